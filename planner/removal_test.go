package planner

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/nodes"
)

// removed is what Git says of a node that it takes out of the cluster.
func removed(name string) *corev1.Node {
	m := machineOf(name, dead)
	m.Annotations = map[string]string{revokedAnnotation: "broken"}
	return m
}

// mentions lists the decisions of the record that name a node.
func (w *world) mentions(name string) (out []string) {
	for id, d := range w.record {
		if id.kind != kindOfInventory && strings.Contains(string(d.Value), `"`+name+`"`) {
			out = append(out, id.kind+" "+id.key)
		}
	}
	return out
}

// everywhere is one workload of each kind with pods on all nodes.
func everywhere() []runtime.Object {
	return []runtime.Object{
		fencedSet(nil), deployment("a", 3, spreadOut), serviceFor("a"), daemonSet("agent"),
		job("once", 3, 3, func(j *batchv1.Job) { j.Spec.BackoffLimit = new(int32(9)) }),
	}
}

// TestRemoveNode: nothing of the node is left, what it ran is elsewhere, and its
// range is another's.
func TestRemoveNode(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	w.push(everywhere()...)
	for range 20 {
		w.turn()
	}
	_, name := w.holderOf(1)
	was := w.ranges()[name]
	w.push(append(everywhere(), removed(name))...)
	if h := w.health(nodeKey(name)); h.Health != nodes.Progressing || !strings.Contains(h.Reason, "as soon as it is silent") {
		t.Errorf("%s: %s", h.Health, h.Reason)
	}
	if got := w.s.Removed(); len(got) > 0 {
		t.Fatalf("%v removed while it answers", got)
	}
	w.fallSilent(name)
	if got := w.s.Removed(); !slices.Equal(got, []string{name}) {
		t.Fatalf("removed: %v", got)
	}
	delete(w.machines, name)
	w.work()
	if left := w.mentions(name); len(left) > 0 {
		t.Errorf("the record still has it in %v", left)
	}
	for _, n := range w.s.Overview(w.now).Nodes {
		if n.Name == name {
			t.Error("the overview still has it")
		}
	}
	for _, n := range w.s.routes.Nodes {
		if n.Name == name {
			t.Error("the route table still has it")
		}
	}
	if now, other := w.holderOf(1); now == "" || other == name || other == "" {
		t.Errorf("db-1 is %s on %q: %v", now, other, w.last.Waiting)
	}
	if on := w.nodesOf("agent"); len(on) != 2 {
		t.Errorf("the DaemonSet is on %v", on)
	}
	if h := w.health(nodeKey(name)); h.Health != nodes.Healthy || !strings.Contains(h.Reason, "no longer revoked") {
		t.Errorf("%s: %s", h.Health, h.Reason)
	}
	w.joinWith("n9", "")
	if got := w.ranges()["n9"]; got != was {
		t.Errorf("the next node has %s, and %s is free", got, was)
	}
	w.checkAnew(t)
}

// checkAnew: the record alone gives the same cluster.
func (w *world) checkAnew(t *testing.T) {
	t.Helper()
	before := w.ranges()
	w.restart(true)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	if after := w.ranges(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("after a restart: nodes %v, before it %v", after, before)
	}
}

// TestRemoveUnheardNode: a server that lost its record need not hear of a node
// that is gone for good.
func TestRemoveUnheardNode(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	w.push(fencedSet(nil))
	w.settle()
	_, name := w.holderOf(1)
	delete(w.machines, name)
	w.restart(false)
	w.next(Change{Snapshot: snapshotOf(9, "gone", fencedSet(nil), removed(name)), Source: w.source})
	for other := range w.machines {
		w.join(other)
	}
	w.work()
	if now, other := w.holderOf(1); now == "" || other == name || other == "" {
		t.Fatalf("db-1 is %s on %q: %v", now, other, w.last.Waiting)
	}
	if left := w.mentions(name); len(left) > 0 {
		t.Errorf("the record still has it in %v", left)
	}
}

// TestNodeComesAnew: under a name that is no longer revoked another node joins.
func TestNodeComesAnew(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(daemonSet("agent"), removed("n2"))
	w.fallSilent("n2")
	delete(w.machines, "n2")
	w.push(daemonSet("agent"))
	if got := w.s.Removed(); len(got) > 0 {
		t.Errorf("removed: %v", got)
	}
	w.work()
	w.joinWith("n2", "")
	w.work()
	if on := w.nodesOf("agent"); !slices.Equal(on, []string{"n1", "n2"}) {
		t.Errorf("the DaemonSet is on %v", on)
	}
}

// TestRemovedNodesData: data that only the node had is given up only if the
// commit says so, and its claims begin anew elsewhere.
func TestRemovedNodesData(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	set := statefulSetWith(1, nil)
	w.push(set)
	w.settle()
	uid, name := w.holderOf(0)
	w.fallSilent(name)
	p := w.push(set, removed(name))
	if p.Hold == nil || p.Hold.Confirm != "Tally-Confirm: delete 1" || !strings.Contains(p.Hold.Why, "the data of 1 claim would be given up") {
		t.Fatalf("held: %+v", p.Hold)
	}
	w.elapse(0)
	if now, _ := w.holderOf(0); now != uid {
		t.Fatal("a revision that is held took the node out")
	}
	w.pushWith("gone\n\nTally-Confirm: delete 1", set, removed(name))
	delete(w.machines, name)
	w.settle()
	if now, other := w.holderOf(0); now == uid || other == name || other == "" {
		t.Fatalf("db-0 is %s on %q: %v", now, other, w.last.Waiting)
	}
	if left := w.mentions(name); len(left) > 0 {
		t.Errorf("the record still has it in %v", left)
	}
	// Nobody asks again once it has been said.
	other := statefulSetWith(1, nil)
	other.Labels = map[string]string{"a": "b"}
	if p := w.push(other, removed(name)); p.Hold != nil {
		t.Errorf("held again: %+v", p.Hold)
	}
}
