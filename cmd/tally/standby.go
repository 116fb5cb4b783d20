package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"

	"github.com/tallyman-dev/tallyman/nodes/wire"
)

// noLeader is what a standby says while nobody leads.
const noLeader = "No server leads this cluster at the moment: everything runs on, changes wait. Try again in a few seconds; if that lasts, look at etcd.\n"

// standby answers while another server leads: what is to be read it gets from
// there, agents it sends there.
type standby struct {
	*server
	leader func() *leader
	peers  *http.Transport
}

func (c *candidate) newStandby() (*standby, error) {
	s := &standby{server: &server{instance: c.instance, o: c.o, log: c.log}, leader: c.leads.Load}
	if err := errors.Join(s.openAccess(), s.openAuthority(c.key), s.openRepository()); err != nil {
		return nil, err
	}
	config := s.authority.PeerTLS()
	s.peers = &http.Transport{
		// The address is the leader's at the moment, whatever the request was for.
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			l := s.leader()
			if l == nil {
				return nil, errors.New("no server leads")
			}
			d := tls.Dialer{NetDialer: &net.Dialer{Timeout: peerTimeout}, Config: config}
			return d.DialContext(ctx, "tcp", l.Address)
		},
		IdleConnTimeout: time.Minute, ResponseHeaderTimeout: time.Minute,
	}
	return s, nil
}

// peerTimeout is how long the leader may take to take a connection.
const peerTimeout = 3 * time.Second

// run answers until ctx ends.
func (s *standby) run(ctx context.Context) error {
	defer s.peers.CloseIdleConnections()
	local, outward, err := s.listenHTTP()
	if err != nil {
		return err
	}
	agents, err := net.Listen("tcp", s.o.listen)
	if err != nil {
		return errors.Join(err, local.Close(), outward.Close())
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveHTTP(ctx, local, s.localHandler()) })
	group.Go(func() error { return serveHTTP(ctx, outward, s.outwardHandler()) })
	group.Go(func() error {
		secure := wire.Bounded(credentials.NewTLS(s.authority.ServerTLS()), s.authority.Knows)
		return wire.ServeStandby(ctx, agents, wire.StandbyOptions{Credentials: secure, Leader: s.leaderAddress})
	})
	// The repository is kept at hand, so that a new leader need not fetch all of it.
	group.Go(func() error { return s.repository.Run(ctx) })
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-s.repository.Heads():
			}
		}
	})
	return group.Wait()
}

func (s *standby) leaderAddress() string {
	if l := s.leader(); l != nil {
		return l.Address
	}
	return ""
}

func (s *standby) outwardHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.readFromLeader(false))
	mux.HandleFunc("/healthz", s.healthz)
	webhooks := s.readFromLeader(true)
	mux.Handle("/webhook", webhooks)
	mux.Handle("/webhook/", webhooks)
	return s.access.Wrap(mux)
}

func (s *standby) localHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.readFromLeader(false))
	mux.HandleFunc("/healthz", s.healthz)
	mux.HandleFunc("POST "+tokensPath, s.createToken)
	return mux
}

func (s *standby) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "ok\n") // the client has left
}

// readFromLeader passes requests on; posts only where the leader checks their
// signature itself.
func (s *standby) readFromLeader(posts bool) http.Handler {
	pass := &httputil.ReverseProxy{
		Transport: s.peers, FlushInterval: -1,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "https", "leader", r.In.Host
			r.Out.Header.Del("Authorization") // this server's token was shown, and is nobody else's
			r.Out.Header.Del("Cookie")
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			l := s.leader()
			if l == nil {
				http.Error(w, strings.TrimSuffix(noLeader, "\n"), http.StatusServiceUnavailable)
				return
			}
			http.Error(w, "This server is a standby, and the leader "+l.Name+" does not answer at "+l.Address+": "+err.Error(), http.StatusServiceUnavailable)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead && !(posts && r.Method == http.MethodPost) {
			http.Error(w, "This server only answers what reads.", http.StatusMethodNotAllowed)
			return
		}
		pass.ServeHTTP(w, r)
	})
}
