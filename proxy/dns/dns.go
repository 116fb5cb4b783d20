// Package dns answers the names of the cluster from a route table, and
// forwards all others.
//
// It follows the Kubernetes DNS specification, version 1.1.0: A and AAAA for
// services and for the endpoints of headless ones, SRV for named ports, PTR
// for cluster addresses and headless endpoints, CNAME for ExternalName,
// addresses spelled out below pod.<domain>, and the dns-version record.
//
// Guarantees: a table is swapped as a whole, a query sees either the old or
// the new one. A server that hands its sockets to a successor loses no question. A name inside the cluster's domain is never forwarded, and one
// that is not known is told apart from one without records of the asked type.
// A forwarder that leads back here is never used.
//
// It does not cache, validate DNSSEC, transfer zones or answer ANY. What it
// knows is one node's copy of the route table; it never asks another server
// about the cluster.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/proxy"
)

// Options for New.
type Options struct {
	Log *slog.Logger
	// Inherited are the Sockets of a predecessor, which the server owns then: the
	// first Set goes on with those that it is to listen on, and closes the others.
	Inherited []*os.File
}

// Config is what a Server answers from.
type Config struct {
	// Table may be nil or of generation 0: then what was set before stays in
	// force, and before the first real table every query fails with SERVFAIL,
	// which no resolver keeps.
	Table *proxy.Table
	// Listen are addresses for UDP and TCP alike. They need not exist on the
	// machine yet. Port 0 takes any free one (see Addrs).
	Listen []netip.AddrPort
	// Forwarders are asked in this order for names outside the cluster. Those
	// that are one of our own addresses are left out.
	Forwarders []netip.AddrPort
}

// Server is a DNS server. Safe for concurrent use.
type Server struct {
	log     *slog.Logger
	index   atomic.Pointer[index]
	forward *forwarder
	turn    atomic.Uint32
	// changed wakes Run after Set has changed listeners or forwarders.
	changed chan struct{}

	mu sync.Mutex
	// guarded by mu
	table     *proxy.Table
	addrs     []netip.AddrPort // those in index
	listeners map[netip.AddrPort]*listener
	inherited []*os.File
	// left are the sockets of the listeners that Run has stopped.
	left []*os.File
}

// New makes a server that listens nowhere and knows nothing.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		return nil, errors.New("dns server: no logger")
	}
	return &Server{
		log:       o.Log,
		forward:   newForwarder(o.Log),
		changed:   make(chan struct{}, 1),
		listeners: map[netip.AddrPort]*listener{},
		inherited: o.Inherited,
	}, nil
}

// Set puts c in force. It may be called any time, with anything, twice; it
// rebinds only what differs. Sockets are bound when it returns, and answered
// while Run runs. When an address can't be bound the rest of c is in force
// all the same.
func (s *Server) Set(c Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.bind(c.Listen)
	addrs := s.bound()
	if c.Table != nil && c.Table.Generation > 0 && (c.Table != s.table || !slices.Equal(addrs, s.addrs)) {
		s.index.Store(newIndex(c.Table, addrs))
		s.table, s.addrs = c.Table, addrs
	}
	if s.forward.set(withoutOwn(c.Forwarders, addrs)) {
		s.wake()
	}
	return err
}

// Addrs are the addresses that are bound, sorted.
func (s *Server) Addrs() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bound()
}

// bind makes listeners exactly what wanted says; called with mu held.
func (s *Server) bind(wanted []netip.AddrPort) error {
	for addr, l := range s.listeners {
		if !slices.Contains(wanted, addr) {
			l.close()
			delete(s.listeners, addr)
		}
	}
	left := adopt(s.inherited)
	s.inherited = nil
	defer left.close()
	var errs []error
	for _, addr := range wanted {
		if s.listeners[addr] != nil {
			continue
		}
		l, err := left.listen(addr, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("dns server: listen on %v: %w", addr, err))
			continue
		}
		s.listeners[addr] = l
		s.wake()
	}
	return errors.Join(errs...)
}

// bound lists the real addresses; called with mu held.
func (s *Server) bound() []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, l := range s.listeners {
		addrs = append(addrs, l.addr)
	}
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return addrs
}

func (s *Server) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// lastAnswers bounds how long questions that are with a forwarder are waited for
// at the end; they fail then, and who asked asks again.
const lastAnswers = time.Second

// Run answers queries until ctx ends, then those that it has in hand, and
// returns nil. The sockets stay open, so that questions wait in them, until
// Close or the end of the process.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	asking, stopAsking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAsking()
	defer s.forward.stop()
	s.forward.start(asking)
	for {
		s.serveNew(group)
		group.Go(func() error { s.forward.probe(ctx); return nil })
		select {
		case <-ctx.Done():
			timer := time.AfterFunc(lastAnswers, stopAsking)
			defer timer.Stop()
			return errors.Join(s.halt(), group.Wait())
		case <-s.changed:
		case <-s.forward.suspicious:
		}
	}
}

// Sockets are those that Run has left open, for Options.Inherited of another
// process. They stay the server's.
func (s *Server) Sockets() []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.left)
}

// Close closes what Run has left open.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, file := range s.left {
		file.Close()
	}
	s.left = nil
}

// serveNew starts the listeners that nobody serves yet.
func (s *Server) serveNew(group *errgroup.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		if l.served {
			continue
		}
		l.served = true
		for _, server := range l.servers {
			group.Go(func() error {
				if err := server.ActivateAndServe(); err != nil && !l.closed.Load() {
					return fmt.Errorf("dns server: serve %v: %w", l.addr, err)
				}
				return nil
			})
		}
	}
}

// halt ends all listeners when they have answered what they have in hand, and
// keeps their sockets.
func (s *Server) halt() error {
	s.mu.Lock()
	listeners := s.listeners
	s.listeners = map[netip.AddrPort]*listener{}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*lastAnswers)
	defer cancel()
	var errs []error
	var left []*os.File
	var halting sync.WaitGroup
	for _, l := range listeners {
		files, err := l.files()
		left, errs = append(left, files...), append(errs, err)
		halting.Go(func() { l.end(ctx) })
	}
	halting.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = append(s.left, left...)
	return errors.Join(errs...)
}

// ServeDNS implements dns.Handler for the listeners.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) != 1 {
		_ = w.WriteMsg(new(dns.Msg).SetRcodeFormatError(q))
		return
	}
	reply := s.answer(q)
	finish(reply, q, w.RemoteAddr().Network())
	if err := w.WriteMsg(reply); err != nil {
		s.log.Debug("answer not sent", "client", w.RemoteAddr().String(), "error", err)
	}
}

// withoutOwn leaves out the forwarders that are among our own addresses.
func withoutOwn(forwarders, own []netip.AddrPort) []netip.AddrPort {
	return slices.DeleteFunc(slices.Clone(forwarders), func(f netip.AddrPort) bool {
		return !f.IsValid() || slices.ContainsFunc(own, func(o netip.AddrPort) bool {
			return o.Port() == f.Port() && (o.Addr() == f.Addr() || o.Addr().IsUnspecified() && f.Addr().IsLoopback())
		})
	})
}
