package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/credentials"

	"github.com/tallyman-dev/tallyman/nodes/trust"
	"github.com/tallyman-dev/tallyman/nodes/wire"
)

const (
	// serverPort is where servers listen for agents unless told otherwise.
	serverPort = "7400"
	// dialTimeout is how long one server may take to answer a dial.
	dialTimeout = 10 * time.Second
	// firstJoin and lastJoin are the pauses between attempts to join, firstRenew
	// and lastRenew those between attempts to renew a certificate.
	firstJoin, lastJoin   = time.Second, 30 * time.Second
	firstRenew, lastRenew = time.Minute, time.Hour
)

// agentOptions are the flags of tally agent.
type agentOptions struct {
	instance
	node    nodeOptions
	servers []string
	token   string
}

func newAgentCommand(s streams) *cobra.Command {
	var o agentOptions
	cmd := &cobra.Command{
		Use:   "agent --server https://HOST:7400 --token TOKEN",
		Short: "Run one node of a cluster",
		Long: "Run one node of a cluster: make this machine agree with what its server assigns to it.\n" +
			"The token, from tally token create on the server, is needed the first time only: it buys a certificate, which is kept\n" +
			"in <data-dir>/agent/tls and renewed by itself. Only the agent dials, so it may be behind NAT.\n" +
			"Every flag also reads TALLY_<NAME> from the environment.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runAgent(cmd.Context(), s, o) },
	}
	f := cmd.Flags()
	o.instance.addFlags(f)
	o.node.addFlags(f)
	f.StringSliceVar(&o.servers, "server", nil, "address of the cluster's servers, e.g. https://host:7400; several with commas")
	f.StringVar(&o.token, "token", "", "join token, needed the first time")
	return cmd
}

func runAgent(ctx context.Context, s streams, o agentOptions) error {
	addresses, err := serverAddresses(o.servers)
	if err != nil {
		return err
	}
	given := o.node.name != ""
	if err := o.node.check("agent"); err != nil {
		return err
	}
	if err := o.absolute(); err != nil {
		return err
	}
	return o.hold(ctx, func(log *slog.Logger) error {
		if !isAgent(o.dataDir) && isServed(o.dataDir) {
			return fmt.Errorf("this machine ran tally up, with a cluster of its own (%s): run tally reset and move that file away, or give the agent another --data-dir",
				keyFile(o.dataDir))
		}
		store, err := openAgentKey(o.dataDir)
		if err != nil {
			return err
		}
		identity, err := trust.OpenNode(filepath.Join(agentDir(o.dataDir), "tls"))
		if err != nil {
			return err
		}
		j := &joining{addresses: addresses, token: o.token, name: o.node.name, given: given, identity: identity, log: log}
		if err := j.join(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		o.node.name = identity.Name()
		config, err := identity.TLS()
		if err != nil {
			return err
		}
		fmt.Fprintf(s.err, "Node %s of cluster %s\n", o.node.name, j.cluster())
		return runNode(ctx, o.instance, o.node, store, remoteLink(addresses, config, identity), log)
	})
}

// serverAddresses reads the addresses of --server.
func serverAddresses(list []string) ([]string, error) {
	if len(list) == 0 {
		return nil, usageError{errors.New("--server: which one? e.g. https://host:" + serverPort)}
	}
	var addresses []string
	for _, text := range list {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" {
			return nil, usageError{fmt.Errorf("--server: %q: want https://HOST:%s", text, serverPort)}
		}
		port := u.Port()
		if port == "" {
			port = serverPort
		}
		addresses = append(addresses, net.JoinHostPort(u.Hostname(), port))
	}
	return addresses, nil
}

// joining is how a machine becomes a node.
type joining struct {
	addresses []string
	token     string
	// name is the node's, given tells that somebody chose it.
	name     string
	given    bool
	identity *trust.Node
	log      *slog.Logger
}

func (j *joining) cluster() string {
	hash, _ := j.identity.Authority()
	return hash.Short()
}

// join returns when the machine has a certificate, at once when it had one.
// While no server answers it goes on; a refusal ends it.
func (j *joining) join(ctx context.Context) error {
	t, needed, err := j.prepare()
	if err != nil || !needed {
		return err
	}
	for wait := firstJoin; ctx.Err() == nil; wait = min(2*wait, lastJoin) {
		err := j.try(ctx, t)
		var refused *wire.RefusedError
		var other *trust.OtherClusterError
		if err == nil || errors.As(err, &refused) || errors.As(err, &other) {
			return err
		}
		j.log.Warn("this machine can't join yet", "servers", j.addresses, "reason", err, "retry_in", wait)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// prepare says whether a token is needed, and reads it.
func (j *joining) prepare() (t trust.Token, needed bool, err error) {
	has, expired := j.identity.Name(), time.Now().After(j.identity.Expires())
	if has != "" && j.given && has != j.name {
		return t, false, fmt.Errorf("this machine joined as node %s and can't be %s: leave out --node-name, or remove the certificate in <data-dir>/agent/tls and join anew", has, j.name)
	}
	if has != "" {
		j.name, j.given = has, true
	}
	if j.token == "" {
		switch {
		case has == "":
			return t, false, usageError{errors.New("--token: this machine has not joined yet: make a token with tally token create, on the server")}
		case expired:
			return t, false, fmt.Errorf("the certificate of node %s expired on %s: give a new --token, from tally token create on the server",
				has, j.identity.Expires().Format(time.DateOnly))
		}
		return t, false, nil
	}
	if t, err = trust.ParseToken(j.token); err != nil {
		return t, false, usageError{fmt.Errorf("--token: %w", err)}
	}
	over := !time.Now().Before(t.Expires)
	if has != "" {
		if kept, _ := j.identity.Authority(); kept != t.Authority {
			return t, false, fmt.Errorf("--token: it is of cluster %s, but this machine belongs to %s: leave it out, or run tally reset and remove <data-dir>/agent/tls to change the cluster",
				t.Authority.Short(), kept.Short())
		}
		if !expired && (!t.Replace || over) {
			return t, false, nil // it has what the token is for
		}
	}
	if over {
		return t, false, fmt.Errorf("--token: it expired on %s: make another one with tally token create", t.Expires.Format(time.RFC3339))
	}
	if t.Node != "" && t.Node != j.name {
		if j.given {
			return t, false, usageError{fmt.Errorf("--token: it is for node %s, not %s", t.Node, j.name)}
		}
		j.name = t.Node
	}
	return t, true, nil
}

// try asks every server once, and in place of a standby the leader.
func (j *joining) try(ctx context.Context, t trust.Token) error {
	request, err := j.identity.Request(j.name)
	if err != nil {
		return fmt.Errorf("ask for a certificate: %w", err)
	}
	var failures error
	for _, address := range j.addresses {
		chain, err := j.ask(ctx, address, t.Authority, request)
		var standby *wire.StandbyError
		if errors.As(err, &standby) && standby.Leader != "" {
			address = standby.Leader
			chain, err = j.ask(ctx, address, t.Authority, request)
		}
		if err == nil {
			return j.identity.Keep(chain, t.Authority)
		}
		failures = errors.Join(failures, fmt.Errorf("%s: %w", address, err))
	}
	return failures
}

func (j *joining) ask(ctx context.Context, address string, authority trust.Hash, request []byte) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	secured := tls.Client(conn, trust.JoinTLS(authority))
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return wire.Join(ctx, secured, j.token, j.name, request)
}

// link is how an agent reaches its server.
type link struct {
	dial func(ctx context.Context) (net.Conn, error)
	// credentials secure it; nil where it is private.
	credentials credentials.TransportCredentials
	// identity is renewed over the link; nil where none is needed.
	identity *trust.Node
	// elsewhere is told who leads; see wire.ClientOptions, as for the two that are
	// bounded where several servers are known.
	elsewhere          func(leader string)
	maxRetry, greeting time.Duration
}

// localLink leads to the server in this process.
func localLink(socket string) *link {
	return &link{dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
}

// remoteLink leads to the servers of a cluster: to the leader, where one is known.
func remoteLink(addresses []string, config *tls.Config, identity *trust.Node) *link {
	servers := &servers{addresses: addresses}
	l := &link{credentials: credentials.NewTLS(config), identity: identity, dial: servers.dial, elsewhere: servers.elsewhere}
	if len(addresses) > 1 {
		l.maxRetry, l.greeting = severalRetry, severalGreeting
	}
	return l
}

// renew asks for the next certificate in time, until ctx ends.
func (l *link) renew(ctx context.Context, client *wire.Client, log *slog.Logger) error {
	if l.identity == nil {
		return nil
	}
	for pause := firstRenew; ; {
		wait := time.Until(l.identity.RenewAt())
		if wait <= 0 {
			if err := l.renewOnce(ctx, client); err != nil {
				log.Warn("the node's certificate is not renewed yet", "expires", l.identity.Expires(), "reason", err, "retry_in", pause)
				wait, pause = pause, min(2*pause, lastRenew)
			} else {
				log.Info("the node's certificate is renewed", "expires", l.identity.Expires())
				pause = firstRenew
				continue
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (l *link) renewOnce(ctx context.Context, client *wire.Client) error {
	request, err := l.identity.Request(l.identity.Name())
	if err != nil {
		return err
	}
	chain, err := client.Renew(ctx, request)
	if err != nil {
		return err
	}
	return l.identity.Keep(chain, trust.Hash{})
}
