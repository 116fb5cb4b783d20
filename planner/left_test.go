package planner

import (
	"testing"
	"time"

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
	forgetful.Left = nil
	w.next(Change{Reports: []nodes.Report{forgetful}})
	if _, p := w.s.pod(uid); p == nil {
		t.Fatal("a report that may be older than the order to stop was taken for the answer to it")
	}
	w.goners()
	if _, p := w.s.pod(uid); p != nil || len(w.pods("db")) != 1 {
		t.Fatal("a pod of which nothing is left was not taken for gone")
	}
}

// TestANodeThatNeverHeardOfAPod falls silent before it does, and comes back with
// a report from before: it is told to begin no pod that others have replaced.
func TestANodeThatNeverHeardOfAPod(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	w.push(deployment("web", 3, spreadOut))
	var lost *nodes.Pod
	for _, p := range w.pods("web") {
		if p.Node == "n1" {
			lost = p.Pod
		}
	}
	if lost == nil {
		t.Fatalf("nothing on n1: %v", w.on("web"))
	}
	w.work("n1")
	w.fallSilent("n1")
	w.elapse(time.Minute)
	w.work("n1")
	empty := nodes.Report{Node: "n1", Complete: true, Info: new(info("n1"))}
	w.next(Change{Nodes: []nodes.NodeState{{Node: info("n1"), Since: w.now, Ready: true}}, Reports: []nodes.Report{empty}})
	if p := w.machines["n1"].held[lost.UID]; p == nil || p.Stop == nil {
		t.Fatalf("n1 may begin %s beside the one in its place: %+v", lost.Name, p)
	}
	w.work()
	if _, p := w.s.pod(lost.UID); p != nil {
		t.Errorf("%s is gone and not forgotten", lost.Name)
	}
}

// TestWhatIsLeftOfAJobBeginsNothing: a node that lost all but a log of a Job's pod
// is told to end it. It would begin it anew, when the Job has counted it.
func TestWhatIsLeftOfAJobBeginsNothing(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(job("once", 1, 1))
	done := w.working("once")[0]
	w.end(done, 0)
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Complete: true, Info: new(info("n1")), Left: []nodes.UID{done.UID}}}})
	if p := w.machines["n1"].held[done.UID]; p.Stop == nil {
		t.Fatal("the node may begin a pod that has ended")
	}
	w.goners()
	if v := w.verdict("once"); !v.Over || len(w.working("once")) > 0 {
		t.Errorf("the Job runs again: %+v", v)
	}
}
