// Package health answers load balancers that ask a node whether it has ready
// endpoints of a service (spec.healthCheckNodePort), as kube-proxy answers
// them: 200 with any, 503 without.
//
// It guarantees that an answer comes from the last table that was set, and that
// a port which somebody else holds keeps no other from being opened. It probes
// nothing itself.
package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/proxy"
)

// retryEvery is how often a port is tried that could not be opened.
const retryEvery = 5 * time.Second

// Server answers on the health check ports of a table. Safe for concurrent use.
type Server struct {
	log  *slog.Logger
	poke chan struct{}

	mu sync.Mutex
	// answers by port. Guarded by mu; a map that was set is not changed.
	answers map[uint16]answer
}

// answer is the body of every answer, in kube-proxy's words.
type answer struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints int  `json:"localEndpoints"`
	Healthy        bool `json:"serviceProxyHealthy"`
}

// New makes a server; Run makes it answer.
func New(log *slog.Logger) *Server {
	return &Server{log: log, poke: make(chan struct{}, 1)}
}

// Set takes over a table; node is the one whose endpoints are counted. A nil
// table has no services.
func (s *Server) Set(t *proxy.Table, node string) {
	answers := count(t, node)
	s.mu.Lock()
	s.answers = answers
	s.mu.Unlock()
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// count gives the answer of each port: distinct addresses of a node's endpoints.
func count(t *proxy.Table, node string) map[uint16]answer {
	answers := map[uint16]answer{}
	if t == nil {
		return answers
	}
	for _, service := range t.Services {
		if service.HealthCheckPort == 0 {
			continue
		}
		here := map[netip.Addr]bool{}
		for _, p := range service.Ports {
			for _, e := range p.Endpoints {
				if e.Node == node && node != "" {
					here[e.Addr] = true
				}
			}
		}
		a := answer{LocalEndpoints: len(here), Healthy: true}
		a.Service.Namespace, a.Service.Name = service.Namespace, service.Name
		answers[service.HealthCheckPort] = a
	}
	return answers
}

// Run opens the ports, and closes them when they are no longer wanted or ctx
// ends. It returns ctx's error.
func (s *Server) Run(ctx context.Context) error {
	open := map[uint16]*http.Server{}
	var serving sync.WaitGroup
	defer func() {
		for _, server := range open {
			server.Close()
		}
		serving.Wait()
	}()
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		s.adjust(ctx, open, &serving)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.poke:
		case <-retry.C:
		}
	}
}

// adjust makes the open ports be those of the answers.
func (s *Server) adjust(ctx context.Context, open map[uint16]*http.Server, serving *sync.WaitGroup) {
	s.mu.Lock()
	wanted := s.answers
	s.mu.Unlock()
	for port, server := range open {
		if _, still := wanted[port]; !still {
			server.Close()
			delete(open, port)
		}
	}
	for port, a := range wanted {
		if open[port] != nil {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", fmt.Sprintf(":%d", port))
		if err != nil {
			s.log.Warn("cannot answer load balancers", "service", a.Service.Namespace+"/"+a.Service.Name, "port", port, "error", err)
			continue
		}
		server := &http.Server{
			Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.answer(w, port) }),
			ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
			ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		}
		open[port] = server
		serving.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				s.log.Warn("no longer answering load balancers", "port", port, "error", err)
			}
		})
	}
}

func (s *Server) answer(w http.ResponseWriter, port uint16) {
	s.mu.Lock()
	a, known := s.answers[port]
	s.mu.Unlock()
	if !known {
		w.WriteHeader(http.StatusServiceUnavailable) // the port is about to close
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(a.LocalEndpoints))
	if a.LocalEndpoints == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(a) // who asked notices a broken connection itself
}
