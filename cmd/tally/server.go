package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/desired/manifest"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/observed"
	"github.com/tallyman-dev/tallyman/nodes/observed/etcd"
	"github.com/tallyman-dev/tallyman/nodes/registry"
	"github.com/tallyman-dev/tallyman/nodes/token"
	"github.com/tallyman-dev/tallyman/nodes/trust"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/status"
	"github.com/tallyman-dev/tallyman/status/access"
	"github.com/tallyman-dev/tallyman/status/metrics"
	"github.com/tallyman-dev/tallyman/sync/gitrepo"
	"github.com/tallyman-dev/tallyman/sync/loop"
	"github.com/tallyman-dev/tallyman/sync/prometheus"
	"github.com/tallyman-dev/tallyman/sync/remote"
)

// routePace has a hundred nodes be told of routes every 20 ms at most, 5,000 every
// second. To tell a node, and to hear that it has done so, costs the server about
// 0.1 ms.
const routePace = 200 * time.Microsecond

// server is the control plane, wired together.
type server struct {
	instance
	o   serverOptions
	log *slog.Logger
	// local is the name of the node in this process; empty for none.
	local       string
	agentSocket string

	// term is the time of this server's leadership; nil where it is the only one.
	term *etcd.Term

	record     *observed.Store
	repository *gitrepo.Repository
	source     *source
	registry   *registry.Registry
	loop       *loop.Loop
	remote     *remote.Remote // nil when another repository is followed
	status     *status.Server
	access     *access.Control
	signer     *token.Signer
	authority  *trust.Authority
	webhook    http.Handler // nil without a secret
	peers      *passed      // nil where it is the only one

	certificate *tls.Certificate // nil without TLS
	shown       string           // host and port that the printed address has
}

func newServer(i instance, o serverOptions, local string, key clusterKey, log *slog.Logger) (*server, error) {
	s := &server{instance: i, o: o, log: log, local: local, agentSocket: filepath.Join(i.runDir, "agents.sock")}
	if err := s.openRecord(); err != nil {
		return nil, err
	}
	return wireServer(s, key)
}

// wireServer joins the parts of a server that has its record.
func wireServer(s *server, key clusterKey) (*server, error) {
	if err := errors.Join(s.wireSync(key), s.wireStatus()); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *server) openRecord() (err error) {
	s.record, err = observed.Open(observed.Options{Dir: filepath.Join(s.dataDir, "server"), Log: s.log})
	return err
}

func (s *server) close() {
	if err := s.record.Close(); err != nil && !errors.Is(err, etcd.ErrDeposed) {
		s.log.Error("close the record", "error", err)
	}
}

// wireSync joins repository, planner and nodes in the loop.
func (s *server) wireSync(key clusterKey) error {
	secretKey, err := key.derive("template hash")
	if err != nil {
		return err
	}
	// The embedded remote must exist before it can be followed, but asks the loop.
	g := &gate{}
	if s.o.embedded() {
		if s.remote, err = s.newRemote(g); err != nil {
			return err
		}
	}
	if err := s.openRepository(); err != nil {
		return err
	}
	s.source = newSource(s.repository)
	if err := s.openSigner(key); err != nil {
		return err
	}
	if err := s.openAuthority(key); err != nil {
		return err
	}
	config := planner.Config{
		SecretKey: secretKey, Default: manifest.DefaultPodSpec, Location: zones(), Several: s.term != nil, RoutePace: routePace,
	}
	registryOptions := registry.Options{
		Log: s.log.With("part", "registry"), Version: version, Token: s.sign, Authority: s.authority, Members: admission{s}, Bound: config.Bound,
	}
	if s.term != nil {
		registryOptions.Leads, registryOptions.Settle = s.term.Leads, settleTime
	}
	if s.registry, err = registry.New(registryOptions); err != nil {
		return err
	}
	options := loop.Options{
		Source: s.source, Load: loader(s.o.path), Record: s.record, Executor: s.registry, Inputs: s.registry.Inputs(),
		Planner:    config,
		SourceName: strings.Join([]string{s.o.shownRepo(), s.o.branch, s.o.path}, " "),
		SyncInfo:   nodes.Sync{Repo: s.o.shownRepo(), Branch: s.o.branch, Path: s.o.path},
		Metrics:    (&prometheus.Source{}).Ask,
		Single:     s.o.listen == "", // the one node is in this process
		Version:    version, Log: s.log.With("part", "loop"),
	}
	if s.term != nil {
		options.Executor, options.Grace = leading{s.registry, s.term}, takeoverGrace
	}
	if s.o.mirrorTo != "" {
		options.Mirror = s.repository.Mirror
	}
	if s.loop, err = loop.New(options); err != nil {
		return err
	}
	*g = gate{repository: s.repository, loop: s.loop}
	return nil
}

func (s *server) openRepository() (err error) {
	s.repository, err = gitrepo.Open(gitrepo.Options{
		Dir: filepath.Join(s.dataDir, "mirror.git"), URL: s.address(), Branch: s.o.branch, Path: s.o.path, Interval: s.o.interval,
		Credentials: s.o.credentials, MirrorTo: s.o.mirrorTo, MirrorCredentials: s.o.mirrorCredentials, Log: s.log.With("part", "repository"),
	})
	return err
}

// openSigner makes what signs the tokens of ServiceAccounts.
func (s *server) openSigner(key clusterKey) error {
	seed, err := key.derive("service account tokens")
	if err != nil {
		return err
	}
	s.signer, err = token.New(seed)
	return err
}

// openAuthority makes what gives certificates to other machines.
func (s *server) openAuthority(key clusterKey) error {
	secret, err := key.derive("trust")
	if err != nil {
		return err
	}
	s.authority, err = trust.New(secret, time.Now)
	return err
}

// admission lets the loop decide whose a node's name is: the registry is wired
// before the loop.
type admission struct{ *server }

func (a admission) Admit(ctx context.Context, q nodes.Admission) error { return a.loop.Admit(ctx, q) }

// sign makes a token under the issuer that the repository names.
func (s *server) sign(p *nodes.Pod, r nodes.TokenRequest) (nodes.Token, error) {
	return s.signer.Sign(s.loop.Overview().Issuer, p, r, time.Now())
}

func (s *server) newRemote(g *gate) (*remote.Remote, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find our own binary: %w", err)
	}
	return remote.New(remote.Options{
		Dir: s.embeddedDir(), Branch: s.o.branch, Socket: s.socket(), Executable: executable,
		Group: group, Gate: g, Log: s.log.With("part", "remote"),
	})
}

func (s *server) wireStatus() (err error) {
	if err := s.openAccess(); err != nil {
		return err
	}
	if s.o.webhookSecretFile != "" {
		secret, err := os.ReadFile(s.o.webhookSecretFile)
		if err != nil {
			return fmt.Errorf("--webhook-secret-file: %w", err)
		}
		s.webhook = gitrepo.Webhook([]byte(strings.TrimSpace(string(secret))), s.repository.Poke)
	}
	gatherer, err := metrics.New(metrics.Options{Overview: s.loop.Overview, Loop: s.loopStats, Version: version})
	if err != nil {
		return err
	}
	s.status, err = status.New(status.Options{
		Cluster: s.loop, Logs: s.logs, Access: s.access, Gatherer: gatherer,
		Version: version, Ready: s.ready, Discovery: token.Discovery, Keys: s.signer.Keys, Log: s.log.With("part", "status"),
	})
	return err
}

func (s *server) loopStats() metrics.Loop {
	l := s.loop.Stats()
	return metrics.Loop{
		Steps: l.Steps, Decisions: l.Decisions, LastStep: l.LastStep, MaxStep: l.MaxStep,
		RecordErrors: l.RecordErrors, LoadErrors: l.LoadErrors, Revisions: l.Revisions,
	}
}

// ready tells whether the cluster can be changed: the loop has looked at the
// record and the node is connected.
func (s *server) ready() error {
	for _, n := range s.registry.Nodes() {
		if n.Ready {
			return nil
		}
	}
	return errors.New("no node is connected yet")
}

// openAccess reads token and certificate. Clients may use the listen address,
// the node's name, and every name that the certificate is for.
func (s *server) openAccess() error {
	host, _, err := net.SplitHostPort(s.o.http)
	if err != nil {
		return usageError{fmt.Errorf("--http: %w", err)}
	}
	hosts := []string{host, s.local}
	if s.local == "" {
		name, err := hostName()
		if err != nil {
			return err
		}
		hosts[1] = name
	}
	s.shown = s.o.http
	if s.o.httpCert != "" {
		certificate, err := tls.LoadX509KeyPair(s.o.httpCert, s.o.httpKey)
		if err != nil {
			return fmt.Errorf("--http-cert, --http-key: %w", err)
		}
		s.certificate = &certificate
		names := certificateNames(certificate.Leaf)
		hosts = append(hosts, names...)
		if ip, err := netip.ParseAddr(host); len(names) > 0 && (host == "" || err == nil && ip.IsUnspecified()) {
			s.shown = net.JoinHostPort(names[0], s.o.http[strings.LastIndexByte(s.o.http, ':')+1:])
		}
	}
	s.access, err = access.Open(access.Options{
		Path: s.token(), Group: group, Hosts: hosts, TLS: s.certificate != nil, Log: s.log.With("part", "access"),
	})
	return err
}

func certificateNames(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// logs reads a container's log from the node that runs the pod.
func (s *server) logs(ctx context.Context, namespace, pod, container string, o status.LogOptions) (io.ReadCloser, error) {
	for _, object := range s.loop.Overview().Objects {
		if object.Pod != nil && object.Key.Namespace == namespace && object.Key.Name == pod {
			return s.registry.Logs(ctx, object.Pod.Node, wire.LogQuery{
				Pod: object.Pod.UID, Container: container, Follow: o.Follow, Previous: o.Previous,
				Tail: o.Tail, Since: o.Since, Timestamps: o.Timestamps,
			})
		}
	}
	return nil, fmt.Errorf("pod %s/%s: %w", namespace, pod, fs.ErrNotExist)
}

// link is the page's address with the token.
func (s *server) link() string {
	scheme := "http"
	if s.certificate != nil {
		scheme = "https"
	}
	return s.access.Link(scheme + "://" + s.shown)
}

// run serves until ctx ends.
func (s *server) run(ctx context.Context) error {
	doors, err := s.openDoors()
	if err != nil {
		return err
	}
	local, outward, err := s.listenHTTP()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.record.Run(ctx) })
	group.Go(func() error { return s.repository.Run(ctx) })
	group.Go(func() error { return s.source.run(ctx) })
	group.Go(func() error { return s.registry.Serve(ctx, doors...) })
	group.Go(func() error { return s.loop.Run(ctx) })
	group.Go(func() error { return serveHTTP(ctx, local, s.localHandler()) })
	group.Go(func() error { return serveHTTP(ctx, outward, s.outwardHandler()) })
	if s.peers != nil {
		group.Go(func() error { return serveHTTP(ctx, s.peers, s.peerHandler()) })
	}
	s.log.Info("server runs", "http", s.o.http, "listen", s.o.listen, "cluster", s.authority.Hash().Short(), "repo", s.o.shownRepo(), "branch", s.o.branch, "path", s.o.path)
	return group.Wait()
}

// listenHTTP listens for clients: those of this machine at the socket, and those
// that show the token.
func (s *server) listenHTTP() (local, outward net.Listener, err error) {
	if local, err = listenUnix(s.socket(), 0o660); err != nil {
		return nil, nil, err
	}
	if outward, err = net.Listen("tcp", s.o.http); err != nil {
		local.Close()
		return nil, nil, fmt.Errorf("--http: %w; another instance may run here", err)
	}
	if s.certificate != nil {
		outward = tls.NewListener(outward, &tls.Config{Certificates: []tls.Certificate{*s.certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	return local, outward, nil
}

// openDoors listens for agents: the one in this process, and those of other machines.
func (s *server) openDoors() ([]registry.Door, error) {
	var doors []registry.Door
	if s.local != "" {
		agents, err := listenUnix(s.agentSocket, 0o600)
		if err != nil {
			return nil, err
		}
		doors = append(doors, registry.Door{Listener: agents, Node: s.local})
	}
	if s.o.listen != "" {
		agents, err := net.Listen("tcp", s.o.listen)
		if err != nil {
			return nil, fmt.Errorf("--listen: %w; another instance may run here", err)
		}
		door := registry.Door{Listener: agents, Public: true}
		if s.term != nil {
			s.peers = newPassed(agents.Addr())
			door.Peers = s.peers.take
		}
		doors = append(doors, door)
	}
	return doors, nil
}

// outwardHandler is what HTTP clients reach; all but webhooks and health wants
// the token.
func (s *server) outwardHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.status.SocketHandler())
	if s.remote != nil {
		mux.Handle("/repo.git/", s.remote.Handler())
	}
	s.addWebhook(mux)
	return s.access.Wrap(mux)
}

// addWebhook serves the paths that need no token, so that nothing else may
// answer there.
func (s *server) addWebhook(mux *http.ServeMux) {
	webhook := s.webhook
	if webhook == nil {
		webhook = http.NotFoundHandler()
	}
	mux.Handle("/webhook", webhook)
	mux.Handle("/webhook/", webhook)
}

// localHandler is what the unix socket serves: who may open it may look, and
// Git's hooks ask here.
func (s *server) localHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.status.SocketHandler())
	mux.HandleFunc("POST "+tokensPath, s.createToken)
	if s.remote != nil {
		hooks := s.remote.HookHandler()
		mux.Handle("POST /pre-receive", hooks)
		mux.Handle("POST /post-receive", hooks)
	}
	return mux
}

// listenUnix listens on a socket that only its owner, and with mode 0660 the
// group tally, may open. What an earlier process left is replaced.
func listenUnix(path string, mode os.FileMode) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if mode == 0o600 {
		err = os.Chmod(path, mode)
	} else {
		err = shareWithGroup(path, mode)
	}
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("restrict %s: %w", path, err)
	}
	return listener, nil
}

// serveHTTP serves until ctx ends; open requests are then given up, for event
// streams and followed logs never end by themselves.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
