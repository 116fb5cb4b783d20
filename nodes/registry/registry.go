// Package registry is the server's side of its nodes: who is connected, what
// each is to know, and what each has said. It turns the loop's assignments
// into streams and streams into inputs.
//
// It guarantees that Assign, Route and Ledger never wait for a network; that a
// node is told the newest value only, however far behind it is; that nothing at
// all is sent to a node before the loop has said what that node is to run, so
// a server that has just started stops no pod; and that inputs which nobody
// takes are merged, never heaped up. It decides nothing and stores nothing.
package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/beat"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
	"github.com/tallyman-dev/tallyman/nodes/trust"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/proxy"
)

// ledgerNodes is how many nodes keep the ledger; all, if there are fewer.
const ledgerNodes = 3

// Input is what the registry learned about a node.
type Input = nodes.Input

// Options of a Registry.
type Options struct {
	Log *slog.Logger
	// Now is the wall clock; default time.Now.
	Now func() time.Time
	// Clock counts silence and leases; default boottime.Now.
	Clock func() time.Duration
	// Leads tells that no other server can lead at this instant, so that a lease may
	// be granted; nil where there is no other.
	Leads func() bool
	// Settle is how much longer than the silence that is allowed them nodes may take
	// to come here from a server that led before; 0 where there is no other.
	Settle time.Duration
	// Version of the program, told to agents.
	Version string
	// Authority gives certificates to machines that come through public doors, and
	// seals what nodes keep for the server; Members decides which machine has a
	// name. Both may be nil where there are no public doors; what nodes keep is
	// then in the clear.
	Authority *trust.Authority
	Members   Members
	// Bound tells, by its seal, that the server bound a pod to a node: what another
	// machine says about one that it merely claims to hold is not taken. Must be set
	// where there are public doors.
	Bound func(node string, p *nodes.Pod) bool
	// Token signs a token for a pod that is bound to the asking node; nil refuses all.
	Token func(p *nodes.Pod, r nodes.TokenRequest) (nodes.Token, error)
}

// Members decides which machine a node's name belongs to.
type Members interface {
	// Admit returns once the decision is durable and Member was called; a
	// *nodes.TakenError when the name is another machine's.
	Admit(ctx context.Context, a nodes.Admission) error
}

// Door is a listener and whom it lets in.
type Door struct {
	net.Listener
	// Public doors are open to other machines: who comes must show a certificate.
	// Others are private to this machine.
	Public bool
	// Peers, when set, is given the connections of the cluster's other servers to a
	// public door (trust.PeerProtocol), and owns them then.
	Peers func(*tls.Conn)
	// Node is the only one that a private door lets in, and the server's own
	// machine's: its word about what it holds counts. Empty lets in any.
	Node string
}

// Registry knows the nodes. Safe for concurrent use.
type Registry struct {
	o      Options
	inputs *inputs
	times  atomic.Pointer[desired.Nodes]
	// retimed has watch look when times changed.
	retimed chan struct{}

	mu sync.Mutex
	// guarded by mu
	members map[string]*member
	// revoked are the names that Git shuts out, local those of private doors.
	revoked, local map[string]bool
	routes         *proxy.Table
	ledger         map[ledgerKey]nodes.Decision
	// holders are the sessions that keep the ledger.
	holders map[*session]bool
	// known tells that the loop has handed over its ledger.
	known bool
	// tuned tells that the loop has said times; longest is the longest lease that
	// anybody may hold, granted by an earlier server before began.
	tuned   bool
	longest time.Duration
	began   time.Duration
	// swept is when sweep last looked; nobody's silence counts from before blameless.
	swept, blameless time.Duration
}

type ledgerKey struct{ kind, key string }

// member is one node; the registry's mutex guards it.
type member struct {
	state      nodes.NodeState
	assignment *nodes.Assignment
	// owner is the machine that has the name, as far as it was decided.
	owner nodes.Member
	// after is when the machine that had the name before holds no lease any more.
	after time.Duration
	// session is nil while there is none, number that of the newest.
	session *session
	number  uint64
	// heard is when there was a sign of life in earlier sessions, until when all
	// leases are over that were granted in them.
	heard, until time.Duration
	// expected: an earlier server knew the node, and it has yet to be heard of.
	expected bool
}

// New makes a registry; Serve makes it work.
func New(o Options) (*Registry, error) {
	if o.Log == nil {
		return nil, errors.New("registry: no logger")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Clock == nil {
		o.Clock = boottime.Now
	}
	r := &Registry{
		o:       o,
		inputs:  newInputs(),
		retimed: make(chan struct{}, 1),
		members: map[string]*member{},
		revoked: map[string]bool{}, local: map[string]bool{},
		ledger:  map[ledgerKey]nodes.Decision{},
		holders: map[*session]bool{},
		began:   o.Clock(),
		swept:   o.Clock(),
	}
	times := desired.DefaultSettings().Nodes
	r.times.Store(&times)
	r.longest = times.Lease
	return r, nil
}

// Inputs yields joins, silences and reports in order. What one node says while
// nobody receives is merged.
func (r *Registry) Inputs() <-chan Input { return r.inputs.out }

// Serve answers agents at the doors until ctx ends, then returns nil. It closes
// them.
func (r *Registry) Serve(ctx context.Context, doors ...Door) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, door := range doors {
		server, err := r.open(door)
		if err != nil {
			return err
		}
		group.Go(func() error { return server.Serve(ctx, door.Listener) })
	}
	group.Go(func() error { r.inputs.run(ctx); return nil })
	group.Go(func() error { r.watch(ctx); return nil })
	return group.Wait()
}

// open makes what answers at a door.
func (r *Registry) open(door Door) (*wire.Server, error) {
	o := wire.ServerOptions{Version: r.o.Version, Accept: r.accept, Token: r.token, Heartbeat: r.heartbeat, Log: r.o.Log}
	if !door.Public {
		if door.Node != "" {
			r.mu.Lock()
			r.local[door.Node] = true
			r.mu.Unlock()
		}
		o.Identify = func(context.Context, wire.Peer) (wire.Caller, error) {
			return wire.Caller{Node: door.Node, Local: door.Node != ""}, nil
		}
		return wire.NewServer(o)
	}
	if r.o.Authority == nil || r.o.Members == nil || r.o.Bound == nil {
		return nil, errors.New("registry: a public door needs an authority, somebody who decides on members, and somebody who knows seals")
	}
	o.Credentials = credentials.NewTLS(r.o.Authority.ServerTLS())
	if door.Peers != nil {
		o.Credentials = wire.Aside(r.o.Authority.ServerTLS(), trust.PeerProtocol, func(c *tls.Conn) { r.peer(c, door.Peers) })
	}
	o.Credentials = wire.Bounded(o.Credentials, r.o.Authority.Knows)
	o.Identify, o.Join, o.Renew = r.identify, r.admit, r.renew
	return wire.NewServer(o)
}

// peer hands on a connection that is another server's.
func (r *Registry) peer(c *tls.Conn, take func(*tls.Conn)) {
	if err := r.o.Authority.CheckServer(c.ConnectionState().PeerCertificates); err != nil {
		r.o.Log.Warn("server refused", "from", c.RemoteAddr(), "reason", err)
		c.Close()
		return
	}
	take(c)
}

func (r *Registry) heartbeat() time.Duration { return heartbeatOf(r.times.Load()) }

// watch sweeps until ctx ends: one timer for all nodes.
func (r *Registry) watch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.retimed:
		case <-timer.C:
		}
		timer.Reset(min(r.sweep(), beat.Wait(r.times.Load().SilentAfter/4)))
	}
}

// Assign says what one node is to run. a must not be changed afterwards.
func (r *Registry) Assign(a nodes.Assignment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.member(a.Node)
	m.assignment = &a
	m.session.wake()
}

// Route says the route table of all nodes.
func (r *Registry) Route(t *proxy.Table) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.routes = t
	for _, m := range r.members {
		m.session.wake()
	}
}

// Ledger adds decisions to what nodes keep for the server; a decision without
// a value is forgotten. Decisions about pods are left out, for containers
// carry those.
func (r *Registry) Ledger(decisions []nodes.Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = true
	for _, d := range decisions {
		if d.Kind == nodes.PodDecision {
			continue
		}
		key := ledgerKey{d.Kind, d.Key}
		if d.Value == nil {
			delete(r.ledger, key)
		} else {
			r.ledger[key] = d
		}
		for s := range r.holders {
			s.changed(key)
		}
	}
	for s := range r.holders {
		s.wake()
	}
}

// Logs opens the log of a container on a node; the caller closes it.
func (r *Registry) Logs(ctx context.Context, node string, q wire.LogQuery) (io.ReadCloser, error) {
	r.mu.Lock()
	var s *session
	if m := r.members[node]; m != nil {
		s = m.session
	}
	r.mu.Unlock()
	if s == nil {
		return nil, fmt.Errorf("log of pod %s: node %q: %w", q.Pod, node, wire.ErrNoSession)
	}
	return s.wire.Logs(ctx, q)
}

// Nodes returns every node that ever joined, sorted by name.
func (r *Registry) Nodes() []nodes.NodeState {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]nodes.NodeState, 0, len(r.members))
	for _, m := range r.members {
		if !m.state.Since.IsZero() {
			out = append(out, m.state)
		}
	}
	slices.SortFunc(out, func(a, b nodes.NodeState) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// member returns the node, unheard of or not. The caller holds mu.
func (r *Registry) member(name string) *member {
	m := r.members[name]
	if m == nil {
		m = &member{}
		r.members[name] = m
	}
	return m
}
