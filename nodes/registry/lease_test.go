package registry

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// quiet is a registry without a network, whose clock the test moves.
type quiet struct {
	*testing.T
	*Registry
	now time.Duration
	// said is what the loop was told of nodes' connections and not expected yet.
	said map[string][]string
}

var testTimes = desired.Nodes{SilentAfter: 4 * time.Second, Lease: 6 * time.Second}

func newQuiet(t *testing.T) *quiet {
	q := &quiet{T: t, now: time.Hour, said: map[string][]string{}}
	r, err := New(Options{
		Log: slog.New(slog.DiscardHandler), Clock: func() time.Duration { return q.now },
		Now: func() time.Time { return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(q.now) },
	})
	if err != nil {
		t.Fatal(err)
	}
	q.Registry = r
	return q
}

// enter joins a node and gives its session.
func (q *quiet) enter(name string) *session {
	s := newSession(name, "test")
	s.hear(q.now, 0)
	q.Registry.join(s, &nodes.Report{Node: name, Complete: true, Info: &nodes.Node{Name: name}})
	q.drain()
	return s
}

// drain notes what the loop is told.
func (q *quiet) drain() {
	for in, ok := q.inputs.take(); ok; in, ok = q.inputs.take() {
		if in.Node == nil {
			continue
		}
		word := "silent"
		if in.Node.Ready {
			word = "ready"
		} else if in.Node.Lapsed {
			word = "lapsed"
		}
		q.said[in.Node.Name] = append(q.said[in.Node.Name], word)
	}
}

// pass lets time pass, as watch sweeps; each s says something in every step.
func (q *quiet) pass(d time.Duration, heard ...*session) {
	for end := q.now + d; q.now < end; {
		q.now += min(q.sweep(), end-q.now)
		q.drain()
		for _, s := range heard {
			s.hear(q.now, 1)
		}
	}
	q.sweep()
	q.drain()
}

// shortest is how long after the moment a sweep may notice it.
func (q *quiet) shortest() time.Duration { return q.times.Load().SilentAfter / 16 }

// expect compares what the loop was told of a node since the last call.
func (q *quiet) expect(name string, want ...string) {
	q.Helper()
	if got := q.said[name]; !slices.Equal(got, want) {
		q.Fatalf("node %s: told %v, want %v", name, got, want)
	}
	delete(q.said, name)
}

func (q *quiet) ask(s *session) time.Duration { return s.grant(q.now, q.times.Load().Lease) }

func TestSilenceBeginsWithTheLastWordThoughTheConnectionStands(t *testing.T) {
	q := newQuiet(t)
	q.Tune(testTimes)
	s, other := q.enter("n1"), q.enter("n2")
	q.expect("n1", "ready")
	q.pass(time.Minute, s, other)
	q.expect("n1")
	q.pass(testTimes.SilentAfter-time.Second, other)
	q.expect("n1")
	q.pass(time.Second, other)
	q.expect("n1", "silent")
	select {
	case err := <-s.ended:
		if err != errSilent {
			t.Errorf("the session ends with %v", err)
		}
	default:
		t.Error("the session goes on")
	}
}

func TestASessionThatEndsIsNoSilence(t *testing.T) {
	q := newQuiet(t)
	q.Tune(testTimes)
	s := q.enter("n1")
	q.pass(time.Second, s)
	q.leave(s)
	q.pass(testTimes.SilentAfter - 2*time.Second)
	s = q.enter("n1")
	q.pass(testTimes.SilentAfter, s)
	q.expect("n1", "ready", "ready")
	q.leave(s)
	q.pass(testTimes.SilentAfter)
	q.expect("n1", "silent")
}

// TestAServerThatWasPausedBlamesNobody: what the nodes said meanwhile still
// waits to be read.
func TestAServerThatWasPausedBlamesNobody(t *testing.T) {
	q := newQuiet(t)
	q.Tune(testTimes)
	s := q.enter("n1")
	q.now += time.Hour
	q.sweep()
	q.pass(testTimes.SilentAfter-time.Second, s)
	q.expect("n1", "ready")
}

func TestALeaseIsGrantedOnlyAfterTheSessionsOwnAssignment(t *testing.T) {
	q := newQuiet(t)
	q.Tune(testTimes)
	s := q.enter("n1")
	if d := q.ask(s); d != 0 {
		t.Errorf("granted %s before anything was assigned", d)
	}
	s.told(&nodes.Assignment{Node: "n1", Session: s.number - 1})
	if d := q.ask(s); d != 0 {
		t.Errorf("granted %s on an assignment for the session before", d)
	}
	s.told(&nodes.Assignment{Node: "n1", Session: s.number})
	if d := q.ask(s); d != testTimes.Lease {
		t.Errorf("granted %s, want %s", d, testTimes.Lease)
	}
	q.pass(testTimes.SilentAfter)
	if d := q.ask(s); d != 0 {
		t.Errorf("granted %s to a session that has ended", d)
	}
}

func TestLapseWaitsForTheLastAnswerAndTheMargin(t *testing.T) {
	q := newQuiet(t)
	q.Tune(testTimes)
	s := q.enter("n1")
	s.told(&nodes.Assignment{Node: "n1", Session: s.number})
	q.pass(time.Minute, s)
	q.ask(s)
	granted := q.now
	q.pass(testTimes.SilentAfter)
	q.expect("n1", "ready", "silent")
	q.pass(granted + over(testTimes.Lease) - q.now)
	q.expect("n1")
	q.pass(q.shortest())
	q.expect("n1", "lapsed")
	q.pass(time.Hour)
	q.expect("n1") // it is said once
	q.enter("n1")
	q.expect("n1", "ready")
}

// TestTheLeaseOfAnOlderSessionCounts: a node that was granted one, came back
// and went again before it was granted another.
func TestTheLeaseOfAnOlderSessionCounts(t *testing.T) {
	q := newQuiet(t)
	long := desired.Nodes{SilentAfter: 4 * time.Second, Lease: time.Minute}
	q.Tune(long)
	q.pass(over(long.Lease) + time.Second) // what an earlier server may have granted is over
	s := q.enter("n1")
	s.told(&nodes.Assignment{Node: "n1", Session: s.number})
	q.ask(s)
	granted := q.now
	q.leave(q.enter("n1"))
	q.pass(long.SilentAfter + time.Second)
	q.expect("n1", "ready", "ready", "silent")
	q.pass(granted + over(long.Lease) - q.now)
	q.expect("n1")
	q.pass(time.Second)
	q.expect("n1", "lapsed")
}

func TestExpectedNodesLapseAsIfGrantedALeaseAtTheStart(t *testing.T) {
	q := newQuiet(t)
	q.Expect([]nodes.NodeState{{Node: nodes.Node{Name: "n1"}, Ready: true, Session: 1 << 60}, {Node: nodes.Node{Name: "n2"}}}, 30*time.Second)
	q.pass(time.Hour)
	q.expect("n1") // all waits until the loop knows the times
	q.Expect(nil, 30*time.Second)
	q.Tune(testTimes)
	q.pass(over(30 * time.Second))
	q.expect("n1", "silent")
	q.pass(q.shortest())
	q.expect("n1", "lapsed")
	if s := q.enter("n1"); s.number != 1<<60+1 {
		t.Errorf("session %d after session %d", s.number, 1<<60)
	}
	if all := q.Nodes(); len(all) != 2 || !all[0].Ready || all[0].Lapsed || all[1].Ready || !all[1].Lapsed {
		t.Errorf("nodes %+v", all)
	}
}

// TestExpectedNodesHaveTheirWholeSilence from the start, however soon or late
// the loop knows how long that is.
func TestExpectedNodesHaveTheirWholeSilence(t *testing.T) {
	for _, known := range []time.Duration{0, 5 * time.Second, 50 * time.Second} {
		q := newQuiet(t)
		q.Expect([]nodes.NodeState{{Node: nodes.Node{Name: "n1"}, Ready: true}}, testTimes.Lease)
		heard := q.enter("n2")
		q.expect("n2", "ready")
		q.pass(known, heard)
		q.expect("n1")
		q.Tune(desired.Nodes{SilentAfter: time.Minute, Lease: 6 * time.Second})
		q.pass(59*time.Second-known, heard)
		q.expect("n1")
		q.pass(10*time.Second, heard)
		q.expect("n1", "silent", "lapsed")
		q.expect("n2")
	}
}

func TestAFasterRhythmBlamesNobodyBeforeItIsKnown(t *testing.T) {
	q := newQuiet(t)
	q.Tune(desired.Nodes{SilentAfter: time.Hour, Lease: time.Hour})
	s := q.enter("n1")
	q.pass(10 * time.Minute)
	q.Tune(testTimes)
	if len(s.paced) != 1 {
		t.Error("the agent is not told")
	}
	q.pass(10 * time.Minute)
	q.expect("n1", "ready")
	q.pass(10 * time.Minute)
	q.expect("n1", "silent")
}

func TestAgentsAreGrantedLeasesOverTheWire(t *testing.T) {
	w := newWorldWith(t, Options{})
	a, _ := w.join("n1")
	in := w.joined("n1")
	const lease = 900 * time.Millisecond // a heartbeat every 300 ms; three without an answer end the session
	w.Tune(desired.Nodes{SilentAfter: time.Minute, Lease: lease})
	w.Assign(nodes.Assignment{Node: "n1", Session: in.Node.Session})
	for deadline := time.After(time.Minute); ; {
		a.mu.Lock()
		leases, assignments := a.leases, a.assignments
		a.mu.Unlock()
		if len(leases) > 3 {
			if leases[0] != lease || assignments == 0 {
				t.Errorf("leases %v after %d assignments", leases, assignments)
			}
			return
		}
		select {
		case in := <-w.Inputs(): // another session, when the machine stood still for a lease
			if in.Node != nil && in.Node.Ready {
				w.Assign(nodes.Assignment{Node: "n1", Session: in.Node.Session})
			}
		case <-time.After(time.Millisecond):
		case <-deadline:
			t.Fatalf("granted %v", leases)
		}
	}
}

// BenchmarkHeartbeats is what a second's heartbeats of 5,000 nodes cost beside
// gRPC, with the sweeps of that second.
func BenchmarkHeartbeats(b *testing.B) {
	now := time.Hour
	r, err := New(Options{Log: slog.New(slog.DiscardHandler), Clock: func() time.Duration { return now }})
	if err != nil {
		b.Fatal(err)
	}
	r.Tune(testTimes)
	sessions := make([]*session, 5000)
	for i := range sessions {
		name := "n" + time.Duration(i).String()
		sessions[i] = newSession(name, "test")
		sessions[i].hear(now, 0)
		r.join(sessions[i], &nodes.Report{Node: name, Complete: true, Info: &nodes.Node{Name: name}})
		sessions[i].told(&nodes.Assignment{Node: name, Session: sessions[i].number})
	}
	b.ReportAllocs()
	for b.Loop() {
		for end := now + time.Second; now < end; {
			now += min(r.sweep(), end-now)
		}
		for n, s := range sessions {
			s.hear(now, uint64(n+1))
			<-s.beats
			s.grant(now, testTimes.Lease)
		}
	}
}

// TestOnlyALeaderGrants has a server that may be stopped and go on when another
// one leads.
func TestOnlyALeaderGrants(t *testing.T) {
	q := newQuiet(t)
	q.Tune(testTimes)
	s := q.enter("n1")
	s.told(&nodes.Assignment{Node: "n1", Session: s.number})
	leads := true
	q.o.Leads = func() bool { return leads }
	if got := q.lease(s); got != testTimes.Lease {
		t.Errorf("the leader grants %v", got)
	}
	leads = false
	if got := q.lease(s); got != 0 {
		t.Errorf("a server that leads no more grants %v", got)
	}
}

// TestNodesMaySettle lets nodes come later from a server that led before.
func TestNodesMaySettle(t *testing.T) {
	q := newQuiet(t)
	q.o.Settle = 3 * time.Second
	q.Tune(testTimes)
	q.Expect([]nodes.NodeState{{Node: nodes.Node{Name: "n1"}, Ready: true}}, testTimes.Lease)
	q.pass(testTimes.SilentAfter + q.o.Settle - time.Second)
	q.expect("n1")
	q.pass(2 * time.Second)
	q.expect("n1", "silent")
}
