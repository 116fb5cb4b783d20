package registry

import (
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// killTime is how long after the end of its lease a fenced pod may still run:
// what the keeper needs to notice and the kernel to kill, or a watchdog to reset
// the machine where the keeper has died.
const killTime = 2 * time.Second

// untuned is how long a node that was heard of may be silent before anybody has
// said for how long: nothing is planned then.
const untuned = time.Minute

// over is how long after an answer the lease that it granted is over for
// certain: the two machines' clocks may differ in pace by 1 %.
func over(lease time.Duration) time.Duration { return lease + lease/100 + killTime }

// heartbeatOf is how often nodes must be heard, for silence to be noticed in
// time and leases never to run out between two answers.
func heartbeatOf(t *desired.Nodes) time.Duration { return min(t.SilentAfter/4, t.Lease/3) }

// Tune says how long a node may be silent and how long its fenced pods may run
// without word from here. Before the first call a node that was heard of is silent
// after a minute, none that is only expected is, and none is declared lapsed.
func (r *Registry) Tune(t desired.Nodes) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := r.times.Swap(&t)
	poke(r.retimed)
	r.tuned, r.longest = true, max(r.longest, t.Lease)
	if heartbeatOf(before) == heartbeatOf(&t) {
		return
	}
	for _, m := range r.members {
		if m.session != nil {
			// Until the node knows the new rhythm, it keeps to the old one.
			m.heard = max(m.heard, r.o.Clock()+heartbeatOf(before))
			poke(m.session.paced)
		}
	}
}

// Expect names nodes that earlier servers knew, as the record has them. Every
// one of them, and whoever else joins, counts as granted a lease at this moment,
// of the longest duration that these servers granted.
func (r *Registry) Expect(known []nodes.NodeState, longest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began, r.longest = r.o.Clock(), max(r.longest, longest)
	r.blameless = max(r.blameless, r.began+r.o.Settle)
	for i := range known {
		m := r.member(known[i].Name)
		m.number = max(m.number, known[i].Session)
		if m.session != nil || m.expected || !m.state.Since.IsZero() {
			continue
		}
		m.state, m.heard, m.expected = known[i], r.began, true
		m.state.Ready, m.state.Lapsed, m.state.Reason, m.state.Since = false, false, "", time.Time{}
	}
}

// hear notes a sign of life; beat is the number of a heartbeat or 0.
func (s *session) hear(now time.Duration, beat uint64) {
	s.heard.Store(int64(now))
	if beat != 0 {
		s.beat.Store(beat)
		poke(s.beats)
	}
}

// told notes that the agent has been sent an assignment.
func (s *session) told(a *nodes.Assignment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.informed = a.Session == s.number
}

// grant is how long the node's fenced pods may run from the heartbeat that is
// being answered; 0 for an agent that may not know yet what was given away.
func (s *session) grant(now, lease time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.informed || s.closed {
		return 0
	}
	s.until = max(s.until, now+over(lease))
	return lease
}

// lease is what to answer a heartbeat with.
func (r *Registry) lease(s *session) time.Duration {
	if r.o.Leads != nil && !r.o.Leads() {
		return 0
	}
	return s.grant(r.o.Clock(), r.times.Load().Lease)
}

// close ends all granting; it returns when all that was granted is over.
func (s *session) close() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.until
}

// retire takes the member's session away. The caller holds mu.
func (r *Registry) retire(m *member) {
	delete(r.holders, m.session)
	m.until = max(m.until, m.session.close())
	m.heard = max(m.heard, time.Duration(m.session.heard.Load()))
	m.session = nil
}

// lastHeard is when there was a sign of life.
func (m *member) lastHeard() time.Duration {
	if m.session == nil {
		return m.heard
	}
	return max(m.heard, time.Duration(m.session.heard.Load()))
}

// sweep looks which nodes have become silent and which have lapsed, and returns
// after how long that may next be so.
func (r *Registry) sweep() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, times := r.o.Clock(), r.times.Load()
	if now-r.swept > times.SilentAfter/2 {
		r.blameless = max(r.blameless, now) // we were away, not they: what they said waits to be read
	}
	r.swept = now
	var silent, lapsed []string
	next := times.SilentAfter / 4 // a pause of ours is noticed by sweeps that come late
	for name, m := range r.members {
		var due time.Duration
		switch {
		case m.state.Ready || m.expected && r.tuned:
			if due = max(m.lastHeard(), r.blameless) + r.patience(times) - now; due <= 0 {
				silent = append(silent, name)
			}
		case m.session == nil && !m.state.Since.IsZero() && !m.state.Lapsed && r.tuned:
			if due = max(m.until, r.began+over(r.longest)) - now; due < 0 {
				lapsed = append(lapsed, name)
			}
		default:
			continue
		}
		if due >= 0 {
			next = min(next, due)
		}
	}
	slices.Sort(silent)
	for _, name := range silent {
		r.silent(name, now)
	}
	slices.Sort(lapsed)
	for _, name := range lapsed {
		r.lapsed(name)
	}
	return max(next, times.SilentAfter/16, time.Millisecond)
}

// patience is how long a node may be silent.
func (r *Registry) patience(t *desired.Nodes) time.Duration {
	if !r.tuned {
		return untuned
	}
	return t.SilentAfter
}

// silent gives a node up for now, and its session for good: when the node is
// back it begins another, and says what it has. The caller holds mu.
func (r *Registry) silent(name string, now time.Duration) {
	m := r.members[name]
	since := r.o.Now().Add(m.lastHeard() - now).UTC()
	reason := "no word from its agent since "
	if m.expected {
		reason = "no word from its agent since the server started at "
	}
	if s := m.session; s != nil {
		s.end(errSilent)
		r.retire(m)
		r.appointLedger()
	}
	m.expected = false
	m.state.Ready, m.state.Since = false, r.o.Now()
	m.state.Reason = reason + since.Format(time.RFC3339)
	r.tell(name)
	r.o.Log.Warn("node is silent", "node", name, "since", since)
}

// lapsed says that whatever was granted to the node is over. The caller holds mu.
func (r *Registry) lapsed(name string) {
	r.members[name].state.Lapsed = true
	r.tell(name)
	r.o.Log.Info("the node's lease is over: its fenced pods have stopped", "node", name)
}

// tell hands over a node's state. The caller holds mu.
func (r *Registry) tell(name string) {
	state := r.members[name].state
	r.inputs.add(name, Input{Node: &state})
}
