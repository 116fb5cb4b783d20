package planner

import (
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestTablesKeepTheirPace: what changes soon after a table waits for the next,
// and that takes all of it.
func TestTablesKeepTheirPace(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 2), serviceFor("web"))
	w.settle()
	w.pace(10 * time.Millisecond)
	w.now = w.now.Add(time.Hour)
	if p := w.push(deployment("web", 2), serviceFor("web"), serviceFor("first")); p.Routes == nil {
		t.Fatal("the first change after long waits")
	}
	due := w.now.Add(20 * time.Millisecond)
	for _, name := range []string{"second", "third"} {
		w.now = w.now.Add(time.Millisecond)
		p := w.push(deployment("web", 2), serviceFor("web"), serviceFor("first"), serviceFor(name))
		if p.Routes != nil || !p.Wake.Equal(due) {
			t.Fatalf("%s: a table %v, wakes at %s, want %s", name, p.Routes, p.Wake, due)
		}
		w.next(Change{Reports: []nodes.Report{w.route("n1"), w.route("n2")}})
		if converged, _ := w.s.Settled(); converged {
			t.Fatalf("%s: converged before its table was made", name)
		}
	}
	w.now = due
	if p := w.next(Change{}); p.Routes == nil || len(p.Routes.Services) != 3 {
		t.Fatalf("the table that is due: %v", p.Routes)
	}
	w.settle()
	w.now = w.now.Add(time.Hour)
	if p := w.next(Change{}); !p.Empty() || !p.Wake.IsZero() {
		t.Errorf("more to do at rest: %+v", p)
	}
}

// TestDrainWaitsForTheTableWithoutThePod: the table before it, which every node
// has, leads to the pod.
func TestDrainWaitsForTheTableWithoutThePod(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 2), serviceFor("web"))
	w.settle()
	w.pace(250 * time.Millisecond)
	w.now = w.now.Add(time.Hour)
	w.push(deployment("web", 2), serviceFor("web"), serviceFor("other"))
	made := w.now
	both := func() *Plan { return w.next(Change{Reports: []nodes.Report{w.route("n1"), w.route("n2")}}) }
	both()
	if p := w.push(deployment("web", 1), serviceFor("web"), serviceFor("other")); p.Routes != nil || len(p.Actions) != 1 || p.Actions[0].Verb != "drain" {
		t.Fatalf("the pod should begin to leave: %+v", p.Actions)
	}
	if p := both(); len(p.Assignments) > 0 {
		t.Fatal("stopped with the table that leads to it in force")
	}
	w.now = made.Add(500 * time.Millisecond)
	if p := w.next(Change{}); p.Routes == nil || len(p.Assignments) > 0 || !p.Wake.Equal(w.now.Add(drainPatience)) {
		t.Fatalf("the table without it: %v, %d assignments, wakes at %s", p.Routes, len(p.Assignments), p.Wake)
	}
	if p := both(); len(p.Assignments) != 1 || p.Actions[0].Verb != "stop" {
		t.Fatalf("not stopped when every node had the routes: %+v", p.Actions)
	}
}

// TestUnreadyAndGoneInOnePause: a pod that is no service's endpoint any more is
// in the table still.
func TestUnreadyAndGoneInOnePause(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 1), serviceFor("web"))
	w.settle()
	w.pace(500 * time.Millisecond)
	w.now = w.now.Add(time.Hour)
	w.push(deployment("web", 1), serviceFor("web"), serviceFor("other"))
	w.next(Change{Reports: []nodes.Report{w.route("n1")}})
	m := w.machines["n1"]
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{m.setReady(w.pods("web")[0].UID, false, w.now)}}}})
	if p := w.push(deployment("web", 0), serviceFor("web"), serviceFor("other")); len(p.Assignments) > 0 {
		t.Fatal("stopped while its node routes to it")
	}
}

// TestManyJoinsMakeFewTables: each table costs as much as there are nodes.
func TestManyJoinsMakeFewTables(t *testing.T) {
	config := testConfig
	config.RoutePace = 100 * time.Microsecond
	s, _ := Next(New(config), Change{Snapshot: roomy(0, "nothing yet")}, epoch)
	now, tables, last := epoch, 0, 0
	take := func(c Change) (wake time.Time) {
		var p *Plan
		if s, p = Next(s, c, now); p.Routes != nil {
			tables, last = tables+1, len(p.Routes.Nodes)
		}
		return p.Wake
	}
	var wake time.Time
	for _, c := range arrivals(300) {
		now = now.Add(100 * time.Microsecond)
		wake = take(c)
	}
	for last < 300 {
		if wake.IsZero() {
			t.Fatalf("the newest table has %d nodes, and no other is to come", last)
		}
		now = wake
		wake = take(Change{})
	}
	if tables > 30 {
		t.Errorf("%d tables for 300 nodes", tables)
	}
}
