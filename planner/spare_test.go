package planner

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/nodes"
)

// routedNodes are those that the newest table leads a service's traffic to.
func (w *world) routedNodes(service string) (out []string) {
	w.t.Helper()
	for _, s := range w.s.routes.Services {
		if s.Name != service {
			continue
		}
		for _, e := range s.Ports[0].Endpoints {
			out = append(out, e.Node)
		}
	}
	slices.Sort(out)
	return out
}

func (w *world) expectRouted(when string, want ...string) {
	w.t.Helper()
	if got := w.routedNodes("a"); !slices.Equal(got, want) {
		w.t.Fatalf("%s: routed to %v, want %v", when, got, want)
	}
}

// TestRoutesAfterTotalSilence: a server that was cut off hears its nodes one by
// one again. Nobody is cut off for being heard later, and who is not heard is.
func TestRoutesAfterTotalSilence(t *testing.T) {
	names := []string{"n1", "n2", "n3", "n4"}
	w := newWorld(t, names...)
	w.push(deployment("a", 4, spreadOut), serviceFor("a"))
	w.settle()
	for _, name := range names {
		w.fallSilent(name)
		w.elapse(100 * time.Millisecond)
	}
	w.expectRouted("nobody answers", names...)
	for _, name := range names[:3] {
		w.join(name)
		w.expectRouted("back: "+name, names...)
		w.elapse(time.Second)
		w.expectRouted("a second after "+name, names...)
	}
	w.elapse(afterStorm - 4*time.Second)
	w.expectRouted("before the time is over", names...)
	w.elapse(2 * time.Second)
	w.expectRouted("when one did not come back", names[:3]...)
	w.fallSilent("n1")
	w.expectRouted("when one falls silent alone", "n2", "n3")
}

// TestRoutesAfterAStorm spares those of the storm that others come back from, once.
func TestRoutesAfterAStorm(t *testing.T) {
	names := []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"}
	w := newWorld(t, names...)
	objects := []runtime.Object{deployment("a", 8, spreadOut, tolerating(corev1.TaintNodeUnreachable, 3600)), serviceFor("a")}
	for i, name := range names {
		m := machineOf(name)
		m.Labels = map[string]string{corev1.LabelTopologyZone: fmt.Sprintf("z%d", i/4)}
		objects = append(objects, m)
	}
	w.push(objects...)
	w.settle()
	w.fallSilent("n1", "n2", "n3", "n5")
	w.expectRouted("a storm over a zone", "n4", "n6", "n7", "n8")
	w.join("n5")
	w.expectRouted("back: one of another zone", "n4", "n5", "n6", "n7", "n8")
	w.join("n1")
	w.expectRouted("back: one of the zone", names...)
	w.elapse(afterStorm + time.Second)
	w.expectRouted("the others did not follow", "n1", "n4", "n5", "n6", "n7", "n8")
	w.join("n2")
	w.expectRouted("one more is back", "n1", "n2", "n4", "n5", "n6", "n7", "n8")
}

// TestAnUnheardNodeIsLeftAlone: after a start, only the server's word that a
// node is silent has consequences, however long that takes.
func TestAnUnheardNodeIsLeftAlone(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("a", 2, spreadOut), serviceFor("a"))
	w.settle()
	before := w.uids("a")
	said := []nodes.Report{w.machines["n1"].complete(), w.machines["n2"].complete()}
	said[0].Complete, said[0].Info, said[0].Held, said[0].Ledger = false, nil, nil, nil
	w.restart(true)
	w.next(Change{
		Nodes:    []nodes.NodeState{{Node: info("n1"), Unheard: true, Since: w.now}, {Node: info("n2"), Ready: true}},
		Reports:  said,
		Snapshot: w.snapshot, Source: w.source,
	})
	w.elapse(10 * time.Minute)
	if after := w.uids("a"); !slices.Equal(before, after) {
		t.Fatalf("before %v\nafter  %v", before, after)
	}
	w.expectRouted("not heard yet", "n1", "n2")
	w.fallSilent("n1")
	w.expectRouted("silent", "n2")
	w.elapse(time.Minute)
	if on := w.nodesOf("a"); slices.Contains(on, "n1") {
		t.Fatalf("on %v", on)
	}
}

// TestUnheardNodesAreOfAStorm: while most nodes have yet to be heard of, one that
// is called silent is no more suspect than they are.
func TestUnheardNodesAreOfAStorm(t *testing.T) {
	names := []string{"n1", "n2", "n3", "n4"}
	w := newWorld(t, names...)
	w.push(deployment("a", 4, spreadOut))
	w.settle()
	c := Change{Nodes: []nodes.NodeState{{Node: info("n4"), Ready: true}}, Reports: []nodes.Report{w.machines["n4"].complete()}}
	w.restart(true)
	for _, name := range names[:3] {
		c.Nodes = append(c.Nodes, nodes.NodeState{Node: info(name), Unheard: true, Since: w.now})
	}
	c.Snapshot, c.Source = w.snapshot, w.source
	w.next(c)
	w.fallSilent("n1")
	w.elapse(time.Minute)
	if on := w.nodesOf("a"); !slices.Equal(on, names) {
		t.Fatalf("given up in a storm: %v", on)
	}
}
