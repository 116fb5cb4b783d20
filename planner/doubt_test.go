package planner

import (
	"slices"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// lost is a cluster whose db-1 was given away from one node to another while the
// first was cut off, and whose record was lost then. The first is back, with a ledger
// of before; a second pod of it, fenced as well, runs there or not.
type lost struct {
	*world
	old, next           nodes.UID
	first, second       string
	oldLedger           []nodes.Decision
	session             uint64
	assigned            map[string]nodes.Assignment
	firstRuns, promised []nodes.UID
}

func newLost(t *testing.T, runsOther bool) *lost {
	l := &lost{world: newWorld(t, "n1", "n2", "n3"), assigned: map[string]nodes.Assignment{}}
	set := fencedSet(fenced)
	*set.Spec.Replicas = 6
	l.push(set)
	l.settle()
	l.old, l.first = l.holderOf(1)
	n, _ := l.s.nodes.Get(l.first)
	l.promised = l.s.fencedOn(n)
	l.promise(l.first)
	m := l.machines[l.first]
	l.oldLedger = slices.Clone(m.ledger)
	m.cutOff = true
	l.fallSilent(l.first)
	l.lapse(l.first)
	l.elapse(time.Minute)
	l.work(l.first)
	m.cutOff, m.ledger = false, l.oldLedger
	if l.next, l.second = l.holderOf(1); l.next == l.old || l.second == l.first {
		t.Fatalf("db-1 was not given away: %v", l.last.Waiting)
	}
	if runsOther {
		for uid := range m.held {
			if uid != l.old {
				l.firstRuns = append(l.firstRuns, uid)
			}
		}
	}
	l.restart(false)
	l.step(Change{Snapshot: l.snapshot, Source: l.source})
	l.report(l.first, l.firstRuns, l.promised)
	return l
}

func (l *lost) step(c Change) {
	l.t.Helper()
	for _, a := range l.world.next(c).Assignments {
		l.assigned[a.Node] = a
	}
}

// report begins a session of a node on which some pods run, and all else does not.
func (l *lost) report(name string, run, promised []nodes.UID) {
	l.t.Helper()
	r := l.machines[name].complete()
	r.Fenced = promised
	for i := range r.Statuses {
		s := &r.Statuses[i]
		s.Ready = slices.Contains(run, s.UID)
		s.Containers = []nodes.ContainerStatus{{Name: "main", State: nodes.Waiting}}
		if s.Ready {
			s.Containers[0].State = nodes.Running
		}
	}
	l.session++
	l.step(Change{Nodes: []nodes.NodeState{{Node: info(name), Ready: true, Since: l.now, Session: l.session}}, Reports: []nodes.Report{r}})
}

func (l *lost) reportAll(names ...string) {
	l.t.Helper()
	for _, name := range names {
		var run []nodes.UID
		for uid := range l.machines[name].held {
			run = append(run, uid)
		}
		l.report(name, run, run)
	}
}

func (l *lost) others() (names []string) {
	for _, name := range []string{"n1", "n2", "n3"} {
		if name != l.first {
			names = append(names, name)
		}
	}
	return names
}

// TestAnOldLedgerBeginsNothingFenced: without a lease no fenced pod begins, and the
// node gets none before those that may know more have spoken.
func TestAnOldLedgerBeginsNothingFenced(t *testing.T) {
	l := newLost(t, false)
	l.elapse(time.Hour)
	if a := l.assigned[l.first]; a.Session != 0 || len(a.Pods) == 0 {
		t.Fatalf("it may get a lease in session %d for its %d pods", a.Session, len(a.Pods))
	}
	if !slices.ContainsFunc(l.events, func(e nodes.Event) bool { return e.Reason == "LeaseWithheld" && e.Object == nodeKey(l.first) }) {
		t.Error("nobody is told")
	}
	t.Log("the server starts again meanwhile")
	l.restart(true)
	l.step(Change{Snapshot: l.snapshot, Source: l.source})
	l.report(l.first, nil, l.promised)
	if a := l.assigned[l.first]; a.Session != 0 {
		t.Fatalf("it may get a lease in session %d after another start", a.Session)
	}
	mine := l.session
	t.Log("the others are back")
	l.reportAll(l.others()...)
	if a := l.assigned[l.first]; a.Session != mine {
		t.Errorf("session %d, want %d: %v", a.Session, mine, l.s.absent)
	}
	for name, want := range map[string]struct {
		uid  nodes.UID
		ends bool
	}{l.first: {l.old, true}, l.second: {l.next, false}} {
		i := slices.IndexFunc(l.assigned[name].Pods, func(p *nodes.Pod) bool { return p.UID == want.uid })
		if i < 0 || (l.assigned[name].Pods[i].Stop != nil) != want.ends {
			t.Errorf("db-1 on %s is to end: not %v (%d)", name, want.ends, i)
		}
	}
	l.settle()
	l.checkHeldOnce(t)
}

// TestANodeWithALeaseKeepsIt: what runs fenced there shows that it was not cut off.
func TestANodeWithALeaseKeepsIt(t *testing.T) {
	l := newLost(t, true)
	if a := l.assigned[l.first]; a.Session != l.session {
		t.Errorf("session %d, want %d", a.Session, l.session)
	}
}

// TestTheDeadAreNotWaitedFor: Git vouches for them.
func TestTheDeadAreNotWaitedFor(t *testing.T) {
	l := newLost(t, false)
	set := fencedSet(fenced)
	*set.Spec.Replicas = 6
	l.push(set, machineOf(l.others()[0], dead), machineOf(l.others()[1], dead))
	l.step(Change{})
	if n, _ := l.s.nodes.Get(l.first); l.s.sessionOf(n) != l.session {
		t.Errorf("session %d, want %d", l.s.sessionOf(n), l.session)
	}
}
