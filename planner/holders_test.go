package planner

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/nodes"
)

// movable is a volume that any node may have, but one at a time.
func movable(name string) *corev1.PersistentVolume {
	v := hostVolume(name, "5Gi", "")
	v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "192.0.2.1", Path: "/data"}}
	return v
}

// TestVolumeOfAnUnheardNode loses the record, and hears of two nodes: a volume that
// the third may use stays there until it has spoken, or Git has said that it is dead.
func TestVolumeOfAnUnheardNode(t *testing.T) {
	objects := []runtime.Object{movable("pv"), claimFor("data", "1Gi", ofClass("")), deployment("db", 1, withClaim("data"))}
	for name, test := range map[string]struct {
		// and is what happens then.
		and   func(w *world, node string)
		moves bool
	}{
		"the node speaks": {and: func(w *world, node string) { w.join(node) }},
		"the node speaks and has no pod": {moves: true, and: func(w *world, node string) {
			w.machines[node].held = map[nodes.UID]*nodes.Pod{}
			w.join(node)
		}},
		"Git says that the node is dead": {moves: true, and: func(w *world, node string) {
			w.push(append(slices.Clone(objects), machineOf(node, dead))...)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2", "n3")
			w.push(objects...)
			w.settle()
			before := w.pods("db")[0]
			w.restart(false)
			for _, name := range []string{"n1", "n2", "n3"} {
				if name != before.Node {
					w.join(name)
				}
			}
			w.next(Change{Snapshot: w.snapshot, Source: w.source})
			w.elapse(time.Minute)
			for _, p := range w.pods("db") {
				if p.Node != "" {
					t.Fatalf("pod %s was given the volume on %s: %s may use it still", p.Name, p.Node, before.Node)
				}
			}
			test.and(w, before.Node)
			w.elapse(time.Minute)
			w.settle()
			after := w.pods("db")
			if len(after) != 1 || after[0].Node == "" || (after[0].UID != before.UID) != test.moves {
				t.Fatalf("moved is not %v: %v, %v", test.moves, w.uids("db"), w.last.Waiting)
			}
		})
	}
}

// TestAVolumeFollowsAFencedPod: with the record, after a restart, of a node that
// was not heard of since.
func TestAVolumeFollowsAFencedPod(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	d := deployment("db", 1, withClaim("data"))
	d.Annotations = fenced
	w.push(movable("pv"), claimFor("data", "1Gi", ofClass("")), d)
	w.settle()
	before := w.pods("db")[0]
	w.promise(before.Node)
	w.restart(true)
	for _, name := range []string{"n1", "n2", "n3"} {
		if name != before.Node {
			w.join(name)
		}
	}
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.fallSilent(before.Node)
	w.elapse(time.Minute)
	w.lapse(before.Node)
	w.work(before.Node)
	after := w.pods("db")
	if len(after) != 1 || after[0].UID == before.UID || after[0].Node == "" || after[0].Node == before.Node {
		t.Fatalf("the pod did not follow: %v, %v", w.uids("db"), w.last.Waiting)
	}
}
