package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire"
)

var (
	errReplaced = errors.New("a newer session of this node has taken over")
	errSilent   = errors.New("nothing was heard of this node for too long")
	errExpired  = errors.New("the certificate of this session has expired")
)

// session is one agent's session. The registry's mutex guards outdated,
// complete, keys and bragged.
type session struct {
	wire *wire.Session
	// node and version are what the agent said.
	node, version string
	// caller is whom the server took it for.
	caller wire.Caller
	// dirty wakes the writer, beats has it answer a heartbeat, paced tell a new rhythm.
	dirty, beats, paced chan struct{}
	// ended gets one reason for ending the session.
	ended chan error
	// heard is when there was a sign of life, beat the newest heartbeat's number.
	heard atomic.Int64
	beat  atomic.Uint64

	// outdated tells that the node has a ledger from when it kept it, and is to drop
	// it if it keeps none now.
	outdated bool
	// Of a node that keeps the ledger: complete tells that it must be told all of
	// it, keys what changed otherwise.
	complete bool
	keys     map[ledgerKey]bool
	// bragged is set once it has said what can't be.
	bragged bool

	mu sync.Mutex
	// guarded by mu
	// number is what an assignment must bear to have been decided with this
	// session's complete report; informed tells that such a one was sent.
	number   uint64
	informed bool
	// closed ends all granting; until is when all that was granted is over.
	closed bool
	until  time.Duration
}

func newSession(node, version string) *session {
	return &session{
		node: node, version: version,
		dirty: make(chan struct{}, 1), beats: make(chan struct{}, 1), paced: make(chan struct{}, 1),
		ended: make(chan error, 1), keys: map[ledgerKey]bool{},
	}
}

// wake makes the writer look; nil is a session that does not exist.
func (s *session) wake() {
	if s != nil {
		poke(s.dirty)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// end has the session end for a reason; the first one counts.
func (s *session) end(why error) {
	select {
	case s.ended <- why:
	default:
	}
}

func (s *session) changed(key ledgerKey) {
	if !s.complete {
		s.keys[key] = true
	}
}

// accept runs one session from the agent's hello to its end.
func (r *Registry) accept(ctx context.Context, w *wire.Session) error {
	s := newSession(w.Node(), w.Version())
	s.wire, s.caller = w, w.Caller()
	s.hear(r.o.Clock(), 0)
	w.Attend(func(beat uint64) { s.hear(r.o.Clock(), beat) })
	// Neither Receive nor Send can be interrupted but by the end of the stream,
	// which follows the return of this method; so nobody waits for these two.
	go func() { s.end(r.write(ctx, s)) }()
	first, err := w.Receive()
	if err != nil {
		return err
	}
	if !first.Complete || first.Info == nil || first.Info.Name != s.node {
		return fmt.Errorf("node %s: the first report must be complete and describe the node", s.node)
	}
	r.openLedger(s, first)
	if err := r.join(s, first); err != nil {
		return err
	}
	defer r.leave(s)
	if end := s.caller.Expires; !end.IsZero() {
		defer time.AfterFunc(end.Sub(r.o.Now()), func() { s.end(errExpired) }).Stop()
	}
	go func() { s.end(r.read(s)) }()
	if err := <-s.ended; !errors.Is(err, io.EOF) {
		return err
	}
	return nil // the agent closed the session
}

// join takes in a node's complete report and makes s its session.
func (r *Registry) join(s *session, report *nodes.Report) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.member(s.node)
	if err := r.contradicts(m, s); err != nil {
		return err
	}
	r.believe(s, m, report)
	if old := m.session; old != nil {
		old.end(errReplaced)
		r.retire(m)
	}
	since := m.state.Since
	if !m.state.Ready {
		since = r.o.Now()
	}
	m.session, m.expected = s, false
	// It grows over restarts of the server without a record, too.
	m.number = max(m.number+1, uint64(r.o.Now().UnixMilli()))
	s.begin(m.number)
	m.state = nodes.NodeState{Node: *report.Info, Ready: true, Since: since, Routes: report.Routes, Session: m.number}
	r.appointLedger()
	s.outdated = len(report.Ledger) > 0
	s.wake()
	state := m.state
	r.inputs.add(s.node, Input{Node: &state, Report: report})
	r.o.Log.Info("node joined", "node", s.node, "agent_version", s.version, "pods", len(report.Statuses))
	return nil
}

func (s *session) begin(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number = number
}

// leave notes the end of a session; sweep counts the node silent unless it is
// back in time.
func (r *Registry) leave(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[s.node]
	if m.session != s {
		return // replaced, or silent already
	}
	r.retire(m)
	r.appointLedger()
	r.o.Log.Info("node has no session", "node", s.node)
}

// appointLedger sees to it that enough connected nodes keep the ledger. The
// caller holds mu.
func (r *Registry) appointLedger() {
	if len(r.holders) >= ledgerNodes {
		return
	}
	var names []string
	for name, m := range r.members {
		if m.session != nil && !r.holders[m.session] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names[:min(len(names), ledgerNodes-len(r.holders))] {
		s := r.members[name].session
		r.holders[s], s.complete = true, true
		s.wake()
	}
}

// read turns what the agent says into inputs.
func (r *Registry) read(s *session) error {
	for {
		report, err := s.wire.Receive()
		if err != nil {
			return err
		}
		if report.Info != nil && report.Info.Name != s.node {
			return fmt.Errorf("node %s: it can't describe node %s", s.node, report.Info.Name)
		}
		r.hear(s, report)
	}
}

func (r *Registry) hear(s *session, report *nodes.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[s.node]
	if m.session != s {
		return
	}
	r.believe(s, m, report)
	m.state.Routes = max(m.state.Routes, report.Routes)
	in := Input{Report: report}
	if report.Info != nil {
		m.state.Node = *report.Info
		state := m.state
		in.Node = &state
	}
	r.inputs.add(s.node, in)
}

// write keeps the agent up to date, and answers its heartbeats, until ctx ends
// or the stream breaks.
func (r *Registry) write(ctx context.Context, s *session) error {
	var sent wire.Update
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.beats:
			err = s.wire.Lease(s.beat.Load(), r.lease(s))
		case <-s.paced:
			err = s.wire.Pace(r.heartbeat())
		case <-s.dirty:
			err = r.update(s, &sent)
		}
		if err != nil {
			return err
		}
	}
}

func (r *Registry) update(s *session, sent *wire.Update) error {
	update := r.news(s, sent)
	if update == nil {
		return nil
	}
	r.sealLedger(update)
	if err := s.wire.Send(*update); err != nil {
		return err
	}
	if update.Assignment != nil {
		s.told(update.Assignment)
	}
	return nil
}

// news gathers what s has not been told; nil when there is nothing.
func (r *Registry) news(s *session, sent *wire.Update) *wire.Update {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[s.node]
	if m == nil || m.session != s {
		return nil
	}
	update := &wire.Update{}
	// Before the loop has said anything about this node, nothing is sent: an
	// empty assignment would stop all of its pods.
	if m.assignment != sent.Assignment {
		update.Assignment, sent.Assignment = m.assignment, m.assignment
	}
	if r.routes != nil && r.routes != sent.Routes {
		update.Routes, sent.Routes = r.routes, r.routes
	}
	r.ledgerNews(s, update)
	if update.Assignment == nil && update.Routes == nil && !update.LedgerComplete && len(update.Ledger) == 0 {
		return nil
	}
	return update
}

// ledgerNews adds the changed decisions, or all. The caller holds mu.
func (r *Registry) ledgerNews(s *session, update *wire.Update) {
	if !r.known {
		return
	}
	if !r.holders[s] {
		update.LedgerComplete, s.outdated = s.outdated, false
		return
	}
	if s.complete {
		s.complete, update.LedgerComplete = false, true
		for _, d := range r.ledger {
			update.Ledger = append(update.Ledger, d)
		}
	}
	for key := range s.keys {
		d, exists := r.ledger[key]
		if !exists {
			d = nodes.Decision{Kind: key.kind, Key: key.key}
		}
		update.Ledger = append(update.Ledger, d)
	}
	clear(s.keys)
	slices.SortFunc(update.Ledger, func(a, b nodes.Decision) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
}
