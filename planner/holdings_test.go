package planner

import (
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

// onDisks is a StatefulSet of one with a claim of the disks's driver.
func onDisks(annotations map[string]string) []runtime.Object {
	s := statefulSetWith(1, nil)
	s.Annotations = annotations
	s.Spec.VolumeClaimTemplates[0].Spec = claimFor("", "1Gi", ofClass("disks")).Spec
	return []runtime.Object{class("disks", disksDriver, delayed), s}
}

func delayed(c *storagev1.StorageClass) {
	mode := storagev1.VolumeBindingWaitForFirstConsumer
	c.VolumeBindingMode = &mode
}

// drainedFrom lets no pod stay on a node, nor come to it.
func drainedFrom(node string) *corev1.Node {
	return machineOf(node, drainNow)
}

func (w *world) only(t *testing.T, name string) *pod {
	t.Helper()
	pods := w.pods(name)
	if len(pods) != 1 {
		t.Fatalf("pods %v", w.uids(name))
	}
	return pods[0]
}

// TestAVolumeFollowsItsPod drains the node of a pod: the volume is let go of
// there before another has it.
func TestAVolumeFollowsItsPod(t *testing.T) {
	for name, f := range map[string]*disks{
		"anywhere": {}, "in its zone": {zones: map[string]string{"n1": "a", "n2": "b", "n3": "a", "n4": "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDisks(t, f, "n1", "n2", "n3", "n4")
			w.push(onDisks(nil)...)
			w.settle()
			first := w.only(t, "db").Node
			v := w.volumeOf("data-db-0")
			if v.Node != "" || v.Maker != first || len(v.Holdings) != 1 || v.Holdings[0].ID != "id-of-"+first {
				t.Fatalf("the volume is %+v", v.volumeRecord)
			}
			w.push(append(onDisks(nil), drainedFrom(first))...)
			w.settle()
			second := w.only(t, "db").Node
			if second == first || f.zones[second] != f.zones[first] || w.attachedTo("data-db-0") != second {
				t.Fatalf("the pod went from %s to %s, its volume is attached to %q", first, second, w.attachedTo("data-db-0"))
			}
			v = w.volumeOf("data-db-0")
			if v.Maker != second || len(v.Holdings) != 1 || w.machines[first].driven[v.Name] != nil {
				t.Errorf("the volume is looked after by %s, held as %+v", v.Maker, v.Holdings)
			}
			if f.zones != nil {
				w.push(append(onDisks(nil), drainedFrom(first), drainedFrom(second))...)
				w.work()
				p := w.only(t, "db")
				if p.Node != "" || !strings.Contains(p.refusal, "node affinity of volume") {
					t.Errorf("the pod is on %q outside of its volume's zone: %s", p.Node, p.refusal)
				}
			}
		})
	}
}

// TestALocalVolumeStays: one that its driver reaches from its node alone, and one
// whose node says nothing of that.
func TestALocalVolumeStays(t *testing.T) {
	for name, f := range map[string]*disks{
		"one node alone": {zones: map[string]string{"n1": "1", "n2": "2", "n3": "3"}}, "old agents": {old: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newDisks(t, f, "n1", "n2", "n3")
			w.push(onDisks(fenced)...)
			w.settle()
			p := w.only(t, "db")
			if v := w.volumeOf("data-db-0"); v.Node != p.Node || len(v.Holdings) != 0 {
				t.Fatalf("the volume is %+v", v.volumeRecord)
			}
			w.promise(p.Node)
			w.die(p.Node)
			w.elapse(time.Minute)
			w.over(p.Node)
			w.elapse(time.Minute)
			after := w.only(t, "db")
			if after.UID != p.UID || !strings.Contains(after.held, "is on node "+p.Node) || strings.Contains(after.held, "as its driver says") == f.old {
				t.Errorf("the pod is held for %q", after.held)
			}
		})
	}
}

// TestAVolumeFollowsFromADeadNode: only once nothing runs there for certain, and
// another node has detached it.
func TestAVolumeFollowsFromADeadNode(t *testing.T) {
	for name, test := range map[string]struct {
		annotations map[string]string
		// certain makes it so.
		certain func(w *world, node string)
	}{
		"fenced, the lease is over": {annotations: fenced, certain: func(w *world, node string) { w.over(node) }},
		"Git says that it is dead": {certain: func(w *world, node string) {
			w.push(append(onDisks(nil), machineOf(node, dead))...)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &disks{}
			w := newDisks(t, f, "n1", "n2", "n3")
			w.push(onDisks(test.annotations)...)
			w.settle()
			before := w.only(t, "db")
			w.promise(before.Node)
			w.die(before.Node)
			w.elapse(time.Minute)
			w.work(before.Node)
			if p := w.only(t, "db"); p.UID != before.UID {
				t.Fatalf("before anything is certain, the pod is replaced by one on %q", p.Node)
			}
			f.broken = "the storage does not answer"
			test.certain(w, before.Node)
			w.work(before.Node)
			p := w.only(t, "db")
			if p.Node != "" || !strings.Contains(p.refusal, f.broken) || w.attachedTo("data-db-0") != before.Node {
				t.Fatalf("while nobody can detach the volume, the pod is on %q: %s", p.Node, p.refusal)
			}
			if h := w.health(storage.ClaimKey("default", "data-db-0")); h.Health != nodes.Degraded || !strings.Contains(h.Reason, f.broken) {
				t.Errorf("the claim is %s: %s", h.Health, h.Reason)
			}
			w.restart(true)
			for name := range w.machines {
				if name != before.Node {
					w.join(name)
				}
			}
			w.next(Change{Nodes: []nodes.NodeState{{Node: nodes.Node{Name: before.Node}, Since: w.now, Lapsed: true}}, Snapshot: w.snapshot, Source: w.source})
			f.broken = ""
			w.work(before.Node)
			p = w.only(t, "db")
			if p.Node == "" || p.Node == before.Node || w.attachedTo("data-db-0") != p.Node {
				t.Fatalf("the pod is on %q, the volume on %q: %s", p.Node, w.attachedTo("data-db-0"), p.refusal)
			}
			w.join(before.Node)
			w.work()
			if v := w.volumeOf("data-db-0"); v.Maker != p.Node || len(v.Holdings) != 1 || len(w.machines[before.Node].driven) != 0 {
				t.Errorf("the node is back, and the volume is held as %+v", v.Holdings)
			}
		})
	}
}

// TestAnOrderToDetachIsForgottenFirst: a node that comes back does not get the
// volume again while another may still detach it from there.
func TestAnOrderToDetachIsForgottenFirst(t *testing.T) {
	w := newDisks(t, &disks{}, "n1", "n2")
	w.push(onDisks(nil)...)
	w.settle()
	first := w.only(t, "db").Node
	other := map[string]string{"n1": "n2", "n2": "n1"}[first]
	w.die(first)
	w.push(append(onDisks(nil), machineOf(first, dead))...)
	v := w.volumeOf("data-db-0")
	if d := v.detachments(); len(d) != 1 || d[0].Node != first || d[0].By[0] != other {
		t.Fatalf("orders %+v", d)
	}
	// The other detaches it, can take no pod, and does not hear that the order is
	// taken back.
	done := w.machines[other].tendDriven()
	w.push(append(onDisks(nil), machineOf(first, dead), drainedFrom(other))...)
	w.next(Change{Reports: []nodes.Report{{Node: other, Volumes: done}}})
	w.join(first)
	w.push(append(onDisks(nil), drainedFrom(other))...)
	w.elapse(time.Minute)
	if p := w.only(t, "db"); p.Node != "" || !strings.Contains(p.refusal, "node "+other+" may still detach it") {
		t.Fatalf("the pod is on %q: %s", p.Node, p.refusal)
	}
	w.settle()
	if p := w.only(t, "db"); p.Node != first || w.attachedTo("data-db-0") != first {
		t.Errorf("the pod is on %q, the volume on %q: %s", p.Node, w.attachedTo("data-db-0"), p.refusal)
	}
}

// endingOnDisks is onDisks with claims that end with their pods.
func endingOnDisks(replicas int32) []runtime.Object {
	list := onDisks(nil)
	s := list[1].(*appsv1.StatefulSet)
	s.Spec.Replicas, s.Spec.PersistentVolumeClaimRetentionPolicy = &replicas, &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
		WhenDeleted: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
	}
	return list
}

// TestAVolumeThatMovedIsDeleted by the node that has it now.
func TestAVolumeThatMovedIsDeleted(t *testing.T) {
	w := newDisks(t, &disks{}, "n1", "n2", "n3")
	w.push(endingOnDisks(1)...)
	w.settle()
	first := w.only(t, "db").Node
	w.push(append(endingOnDisks(1), drainedFrom(first))...)
	w.settle()
	w.push(append(endingOnDisks(0), drainedFrom(first))...)
	w.settle()
	w.pass(1000 * time.Hour)
	w.settle()
	if w.s.volumes.Len()+w.s.claims.Len() != 0 {
		t.Errorf("%d volumes and %d claims are left", w.s.volumes.Len(), w.s.claims.Len())
	}
	for _, m := range w.machines {
		if len(m.driven) != 0 {
			t.Errorf("%s has something of %d volumes", m.name, len(m.driven))
		}
	}
}

// TestARemovedNodeKeepsNoVolume: what it had others take from it.
func TestARemovedNodeKeepsNoVolume(t *testing.T) {
	w := newDisks(t, &disks{}, "n1", "n2", "n3")
	w.push(onDisks(nil)...)
	w.settle()
	first := w.only(t, "db").Node
	w.die(first)
	w.push(append(onDisks(nil), removed(first))...)
	delete(w.machines, first)
	w.work()
	p := w.only(t, "db")
	if p.Node == "" || p.Node == first || w.attachedTo("data-db-0") != p.Node {
		t.Fatalf("the pod is on %q, the volume on %q: %s", p.Node, w.attachedTo("data-db-0"), p.refusal)
	}
	w.push(onDisks(nil)...)
	w.settle()
	if v := w.volumeOf("data-db-0"); len(v.Holdings) != 1 {
		t.Errorf("the volume is held as %+v", v.Holdings)
	}
}

// TestAttachLimit: a node gets no more volumes of a driver than that allows there,
// and pods say so.
func TestAttachLimit(t *testing.T) {
	w := newDisks(t, &disks{most: 2}, "n1", "n2")
	set := func(replicas int32) []runtime.Object {
		list := onDisks(nil)
		list[1].(*appsv1.StatefulSet).Spec.Replicas = &replicas
		return list
	}
	w.push(set(5)...)
	w.work()
	on, waits := map[string]int{}, ""
	for _, p := range w.pods("db") {
		on[p.Node]++
		if p.Node == "" {
			waits = p.refusal
		}
	}
	if on["n1"] != 2 || on["n2"] != 2 || on[""] != 1 || !strings.Contains(waits, "2 would have more than the 2 volumes that storage driver "+disksDriver+" allows there") {
		t.Fatalf("pods by node %v, one waits for %q", on, waits)
	}
	w.push(set(4)...)
	w.settle()
	w.push(append(set(4), drainedFrom("n1"))...)
	w.work()
	waiting := 0
	for _, p := range w.pods("db") {
		if p.Node == "" && strings.Contains(p.refusal, "1 would have more than the 2 volumes") {
			waiting++
		}
	}
	if waiting == 0 {
		t.Errorf("drained pods found room: %v", w.on("db"))
	}
}

// TestOneVolumeOfSeveralPodsCountsOnce against the limit.
func TestOneVolumeOfSeveralPodsCountsOnce(t *testing.T) {
	w := newDisks(t, &disks{most: 1}, "n1")
	w.push(class("disks", disksDriver, delayed), claimFor("data", "1Gi", ofClass("disks")), deployment("web", 3, withClaim("data")))
	w.settle()
	if on := w.nodesOf("web"); len(on) != 3 || on[0] == "" {
		t.Errorf("pods on %v", on)
	}
}

// TestAVolumeThatCannotBeUnmounted keeps its pod from other nodes, which says why.
func TestAVolumeThatCannotBeUnmounted(t *testing.T) {
	f := &disks{}
	w := newDisks(t, f, "n1", "n2")
	w.push(onDisks(nil)...)
	w.settle()
	first := w.only(t, "db").Node
	f.stuck = "the mount is busy"
	w.push(append(onDisks(nil), drainedFrom(first))...)
	w.work()
	p := w.only(t, "db")
	if p.Node != "" || !strings.Contains(p.refusal, f.stuck) {
		t.Fatalf("the pod is on %q: %s", p.Node, p.refusal)
	}
	w.die(first)
	w.over(first)
	w.work(first)
	if p := w.only(t, "db"); p.Node == "" || p.Node == first {
		t.Errorf("after its node died, the pod is on %q: %s", p.Node, p.refusal)
	}
}

// TestAVolumeIsNotDeletedBehindANode that had it and may come back with a record
// of it.
func TestAVolumeIsNotDeletedBehindANode(t *testing.T) {
	w := newDisks(t, &disks{}, "n1", "n2", "n3")
	w.push(endingOnDisks(1)...)
	w.settle()
	first := w.only(t, "db").Node
	w.die(first)
	gone := w.machines[first]
	gone.cutOff = true
	others := func() {
		for range 20 {
			for _, name := range []string{"n1", "n2", "n3"} {
				if name == first {
					continue
				}
				if r, some := w.act(name); some {
					w.next(Change{Reports: []nodes.Report{r}})
				}
			}
		}
	}
	w.push(append(endingOnDisks(1), machineOf(first, dead))...)
	others()
	if p := w.only(t, "db"); p.Node == "" || p.Node == first {
		t.Fatalf("the pod is on %q", p.Node)
	}
	w.push(append(endingOnDisks(0), machineOf(first, dead))...)
	others()
	w.pass(1000 * time.Hour)
	others()
	if !slices.ContainsFunc(w.s.Overview(w.now).Objects, func(h nodes.ObjectHealth) bool {
		return h.Storage != nil && strings.Contains(h.Reason, "until node "+first+" has said that it has nothing of it any more")
	}) {
		t.Error("what keeps the volume is not told")
	}
	gone.cutOff = false
	w.join(first)
	w.settle()
	w.pass(1000 * time.Hour)
	w.settle()
	if w.s.volumes.Len()+w.s.claims.Len() != 0 {
		t.Errorf("%d volumes and %d claims are left", w.s.volumes.Len(), w.s.claims.Len())
	}
}

// TestNobodyDetachesFromItself: what a node that is back has staged it unmounts first.
func TestNobodyDetachesFromItself(t *testing.T) {
	w := newDisks(t, &disks{}, "n1", "n2")
	w.push(onDisks(nil)...)
	w.settle()
	first := w.only(t, "db").Node
	other := map[string]string{"n1": "n2", "n2": "n1"}[first]
	w.die(first)
	w.push(append(onDisks(nil), machineOf(first, dead))...)
	w.die(other)
	w.push(onDisks(nil)...)
	w.join(first)
	if d := w.volumeOf("data-db-0").detachments(); len(d) != 1 || slices.Contains(d[0].By, first) {
		t.Errorf("orders %+v", d)
	}
	w.join(other)
	w.settle()
	if p := w.only(t, "db"); p.Node == "" || p.Node != w.attachedTo("data-db-0") {
		t.Errorf("the pod is on %q: %s", p.Node, p.refusal)
	}
}

// TestWhatANodeSaysNoMore of a volume does not count: its agent may have lost its memory.
func TestWhatANodeSaysNoMore(t *testing.T) {
	w := newDisks(t, &disks{}, "n1", "n2")
	w.push(onDisks(nil)...)
	w.settle()
	node, v := w.only(t, "db").Node, w.volumeOf("data-db-0")
	for _, use := range []nodes.VolumeUse{nodes.VolumeIdle, ""} {
		w.next(Change{Reports: []nodes.Report{{Node: node, Volumes: []nodes.VolumeStatus{{Name: v.Name, UID: v.UID, Phase: nodes.VolumeReady, Use: use}}}}})
		if got := w.volumeOf("data-db-0").says[node]; got != use {
			t.Errorf("the node said %q, and is taken to say %q", use, got)
		}
	}
}
