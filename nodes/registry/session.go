package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire"
)

var errReplaced = errors.New("a newer session of this node has taken over")

// session is one agent's session. The registry's mutex guards the fields
// below wire.
type session struct {
	wire *wire.Session
	// dirty wakes the writer; replaced ends the session.
	dirty    chan struct{}
	replaced chan struct{}

	// Of a node that keeps the ledger: complete tells that it must be told all of
	// it, keys what changed otherwise.
	complete bool
	keys     map[ledgerKey]bool
}

// wake makes the writer look; nil is a session that does not exist.
func (s *session) wake() {
	if s == nil {
		return
	}
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

func (s *session) changed(key ledgerKey) {
	if !s.complete {
		s.keys[key] = true
	}
}

// accept runs one session from its complete report to its end.
func (r *Registry) accept(ctx context.Context, w *wire.Session) error {
	first, err := w.Receive()
	if err != nil {
		return err
	}
	if !first.Complete || first.Info == nil || first.Info.Name != w.Node() {
		return fmt.Errorf("node %s: the first report must be complete and describe the node", w.Node())
	}
	s := &session{
		wire:     w,
		dirty:    make(chan struct{}, 1),
		replaced: make(chan struct{}),
		keys:     map[ledgerKey]bool{},
	}
	r.join(s, first)
	defer r.leave(s)
	// Neither Receive nor Send can be interrupted but by the end of the stream,
	// which follows the return of this method; so nobody waits for these two.
	ended := make(chan error, 2)
	go func() { ended <- r.write(ctx, s) }()
	go func() { ended <- r.read(s) }()
	select {
	case err = <-ended:
	case <-s.replaced:
		err = errReplaced
	}
	if errors.Is(err, io.EOF) {
		return nil // the agent closed the session
	}
	return err
}

// join takes in a node's complete report and makes s its session.
func (r *Registry) join(s *session, report *nodes.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := s.wire.Node()
	m := r.member(name)
	if old := m.session; old != nil {
		close(old.replaced)
		delete(r.holders, old)
	}
	if m.silence != nil {
		m.silence.Stop()
		m.silence = nil
	}
	since := m.state.Since
	if !m.state.Ready {
		since = r.o.Now()
	}
	m.session = s
	m.state = nodes.NodeState{Node: *report.Info, Ready: true, Since: since, Routes: report.Routes}
	r.appointLedger()
	s.wake()
	state := m.state
	r.inputs.add(name, Input{Node: &state, Report: report})
	r.o.Log.Info("node joined", "node", name, "agent_version", s.wire.Version(), "pods", len(report.Statuses))
}

// leave counts the node silent unless it is back in time.
func (r *Registry) leave(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := s.wire.Node()
	m := r.members[name]
	if m.session != s {
		return // replaced
	}
	m.session = nil
	delete(r.holders, s)
	lost := r.o.Now()
	var timer *time.Timer
	timer = time.AfterFunc(r.o.SilentAfter, func() { r.silent(name, lost, timer) })
	m.silence = timer
	r.appointLedger()
	r.o.Log.Info("node has no session", "node", name, "silent_in", r.o.SilentAfter)
}

// silent counts a node silent when its timer fires. One that fired while the
// node came back, and that could not be stopped any more, is not the node's.
func (r *Registry) silent(name string, lost time.Time, timer *time.Timer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[name]
	if m.session != nil || m.silence != timer {
		return
	}
	m.silence = nil
	m.state.Ready, m.state.Since = false, r.o.Now()
	m.state.Reason = "no word from its agent since " + lost.UTC().Format(time.RFC3339)
	state := m.state
	r.inputs.add(name, Input{Node: &state})
	r.o.Log.Warn("node is silent", "node", name, "since", lost)
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
		r.hear(s, report)
	}
}

func (r *Registry) hear(s *session, report *nodes.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := s.wire.Node()
	m := r.members[name]
	if m.session != s {
		return
	}
	m.state.Routes = max(m.state.Routes, report.Routes)
	in := Input{Report: report}
	if report.Info != nil {
		m.state.Node = *report.Info
		state := m.state
		in.Node = &state
	}
	r.inputs.add(name, in)
}

// write keeps the agent up to date until ctx ends or the stream breaks.
func (r *Registry) write(ctx context.Context, s *session) error {
	var sent wire.Update
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.dirty:
		}
		update := r.news(s, &sent)
		if update == nil {
			continue
		}
		if err := s.wire.Send(*update); err != nil {
			return err
		}
	}
}

// news gathers what s has not been told; nil when there is nothing.
func (r *Registry) news(s *session, sent *wire.Update) *wire.Update {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.members[s.wire.Node()]
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
	if !r.holders[s] || !r.known {
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
