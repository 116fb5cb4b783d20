package planner

import (
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestPodThatWasLeftIsNotGone: a node that lost what it knew still runs its pods.
// What was told to stop has stopped when nothing is left of it, not before.
func TestPodThatWasLeftIsNotGone(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(statefulSet("db", 1))
	w.settle()
	uid := w.pods("db")[0].UID
	w.push(statefulSet("db", 1, setImage("db:2")))
	m := w.machines["n1"]
	if m.held[uid].Stop == nil {
		t.Fatal("the old pod was not told to stop")
	}
	forgetful := nodes.Report{Node: "n1", Complete: true, Info: new(info("n1")), Left: []nodes.UID{uid}}
	w.next(Change{Reports: []nodes.Report{forgetful}})
	if _, p := w.s.pod(uid); p == nil || len(w.pods("db")) > 0 {
		t.Fatal("a pod that may run was taken for gone, and its name given away")
	}
	if p := m.held[uid]; p == nil || p.Stop == nil {
		t.Fatal("the node is not told to stop it")
	}
	m.gone(uid)
	forgetful.Left = nil
	w.next(Change{Reports: []nodes.Report{forgetful}})
	if _, p := w.s.pod(uid); p != nil || len(w.pods("db")) != 1 {
		t.Fatal("a pod of which nothing is left was not taken for gone")
	}
}
