// Command hollow connects thousands of nodes without machines to a server, to
// see what it bears: each joins with a token, has a certificate and a TLS
// stream of its own, and runs its pods in its imagination.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"

	"github.com/tallyman-dev/tallyman/nodes/trust"
	"github.com/tallyman-dev/tallyman/nodes/wire"
)

// joinsAtOnce bounds how many nodes ask for certificates at a time.
const joinsAtOnce = 16

// options of the command.
type options struct {
	// server is host:port, token what tally token create printed after --token.
	server, token string
	// dir keeps the nodes' keys.
	dir string
	// nodes is how many there are, in so many zones.
	nodes, zones int
	// tables are those of all nodes: each with its own would fill the machine.
	tables *wire.Tables
}

func main() {
	o := options{tables: &wire.Tables{}}
	flag.StringVar(&o.server, "server", "127.0.0.1:7400", "where agents connect, host:port")
	flag.StringVar(&o.token, "token", "", "a token that all nodes may join with")
	flag.StringVar(&o.dir, "dir", "", "folder for the nodes' keys")
	flag.IntVar(&o.nodes, "nodes", 100, "how many nodes")
	flag.IntVar(&o.zones, "zones", 3, "how many zones they are in")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run connects the nodes, each as soon as it has joined, and keeps them until ctx
// ends. All at once would be thousands of handshakes on a few cores, most of them
// over time before it is their turn.
func run(ctx context.Context, o options, log *slog.Logger) error {
	token, err := trust.ParseToken(o.token)
	if err != nil {
		return fmt.Errorf("-token: %w", err)
	}
	if o.dir == "" {
		return errors.New("-dir: the nodes' keys need a folder")
	}
	running, ctx := errgroup.WithContext(ctx)
	joining, joinCtx := errgroup.WithContext(ctx)
	joining.SetLimit(joinsAtOnce)
	for i := range o.nodes {
		joining.Go(func() error {
			n, err := o.join(joinCtx, fmt.Sprintf("hollow-%05d", i), fmt.Sprintf("zone-%d", i%max(1, o.zones)), token.Authority)
			if err != nil {
				return err
			}
			running.Go(func() error { return n.client.Run(ctx) })
			return nil
		})
	}
	if err := joining.Wait(); err != nil {
		return err
	}
	log.Info("all nodes have certificates", "nodes", o.nodes)
	return running.Wait()
}

// join buys a certificate and makes a node with it.
func (o options) join(ctx context.Context, name, zone string, authority trust.Hash) (*node, error) {
	identity, err := trust.OpenNode(filepath.Join(o.dir, name))
	if err != nil {
		return nil, err
	}
	if identity.Name() == "" {
		request, err := identity.Request(name)
		if err != nil {
			return nil, err
		}
		conn, err := o.dial(ctx)
		if err != nil {
			return nil, err
		}
		chain, err := wire.Join(ctx, tls.Client(conn, trust.JoinTLS(authority)), o.token, name, request)
		if err != nil {
			return nil, fmt.Errorf("node %s joins: %w", name, err)
		}
		if err := identity.Keep(chain, authority); err != nil {
			return nil, err
		}
	}
	config, err := identity.TLS()
	if err != nil {
		return nil, err
	}
	return newNode(name, zone, o.dial, credentials.NewTLS(config), o.tables)
}

func (o options) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", o.server)
}
