package planner

import (
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// stoppedNow are the pods that a plan tells to stop.
func stoppedNow(p *Plan) (list []string) {
	for _, a := range p.Assignments {
		for _, pod := range a.Pods {
			if pod.Stop != nil {
				list = append(list, pod.Name)
			}
		}
	}
	return list
}

// TestDrainsWhatAnEarlierServerRouted: the first revision after a start removes
// pods that the nodes still route to by the table of the server before.
func TestDrainsWhatAnEarlierServerRouted(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2), serviceFor("web"), deployment("db", 1))
	w.settle()
	w.restart(true)
	w.join("n1")
	if p := w.push(serviceFor("web"), deployment("db", 1)); len(stoppedNow(p)) > 0 {
		t.Errorf("stopped at once: %v", stoppedNow(p))
	}
	w.settle()
}

// TestDrainsWhatARemovedServiceRouted: the service goes, and the pods behind it
// before every node has heard so.
func TestDrainsWhatARemovedServiceRouted(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2), serviceFor("web"), deployment("db", 1))
	w.settle()
	w.push(deployment("web", 2), deployment("db", 1))
	if p := w.push(deployment("db", 1)); len(stoppedNow(p)) > 0 {
		t.Errorf("stopped at once: %v", stoppedNow(p))
	}
	p := w.next(Change{Reports: []nodes.Report{w.route("n1")}})
	if len(stoppedNow(p)) != 2 {
		t.Errorf("stopped once the node had the new table: %v", stoppedNow(p))
	}
	w.settle()
}

// TestDrainsNothingBeforeTheFirstTable: the node that routes to the pods is
// late after a start, and so is the first table that leads elsewhere.
func TestDrainsNothingBeforeTheFirstTable(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 4), serviceFor("web"), deployment("db", 1))
	w.settle()
	w.restart(true)
	early, late := "n1", "n2"
	if len(w.machines[early].held) > 0 {
		early, late = late, early
	}
	w.join(early)
	p := w.push(serviceFor("web"), deployment("db", 1))
	w.now = w.now.Add(drainPatience)
	if p.Routes != nil || len(w.machines[late].held) == 0 {
		t.Fatal("the routes did not wait for the other node")
	}
	for _, p := range []*Plan{p, w.next(Change{}), w.join(late)} {
		if len(stoppedNow(p)) > 0 {
			t.Errorf("stopped before any node could know: %v", stoppedNow(p))
		}
	}
	w.settle()
}

// TestAReturningNodeHearsOfTheRoutesFirst: its pods went from Git while it was
// silent.
func TestAReturningNodeHearsOfTheRoutesFirst(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2), serviceFor("web"), deployment("db", 1))
	w.settle()
	w.next(Change{Nodes: []nodes.NodeState{{Node: info("n1"), Since: w.now, Reason: "silent"}}})
	p := w.push(serviceFor("web"), deployment("db", 1))
	w.now = w.now.Add(time.Minute)
	for _, p := range []*Plan{p, w.next(Change{}), w.join("n1")} {
		if len(stoppedNow(p)) > 0 {
			t.Errorf("stopped while the node still routes to it: %v", stoppedNow(p))
		}
	}
	if p := w.next(Change{Reports: []nodes.Report{w.route("n1")}}); len(stoppedNow(p)) != 2 {
		t.Errorf("stopped once the node had the new table: %v", stoppedNow(p))
	}
	w.settle()
}
