package planner

import (
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestPromisesOutliveTheServer: agents say them once in a session, mostly before
// anybody has read what Git says.
func TestPromisesOutliveTheServer(t *testing.T) {
	for name, withRecord := range map[string]bool{"the record is lost": false, "promised since the last record": true} {
		for when, snapshotFirst := range map[string]bool{"before Git was read": false, "after Git was read": true} {
			for _, said := range []string{"at first", "later", "at first, not as asked for now", "never"} {
				t.Run(name+", "+when+", "+said, func(t *testing.T) {
					w := newWorld(t, "n1", "n2", "n3")
					w.push(fencedSet(fenced))
					w.settle()
					uid, node := w.holderOf(1)
					n, _ := w.s.nodes.Get(node)
					promised := w.s.fencedOn(n)
					if said == "at first, not as asked for now" {
						w.snapshot = snapshotOf(9, "waits", fencedSet(nil))
					}
					w.restart(withRecord)
					read := func() { w.next(Change{Snapshot: w.snapshot, Source: w.source}) }
					if snapshotFirst {
						read()
					}
					for _, m := range []string{"n1", "n2", "n3"} {
						r := w.machines[m].complete()
						if m == node && said != "later" && said != "never" {
							r.Fenced = promised
						}
						w.next(Change{Nodes: []nodes.NodeState{{Node: info(m), Ready: true, Since: w.now, Session: 7}}, Reports: []nodes.Report{r}})
						if m == node && said == "later" {
							w.next(Change{Reports: []nodes.Report{{Node: m, Fenced: promised}}})
						}
					}
					if !snapshotFirst {
						read()
					}
					w.fallSilent(node)
					w.elapse(time.Minute)
					w.lapse(node)
					w.elapse(time.Minute)
					moved := said == "at first" || said == "later"
					if now, _ := w.holderOf(1); (now != uid) != moved {
						t.Errorf("moved %v, want %v; waiting: %v", now != uid, moved, w.last.Waiting)
					}
				})
			}
		}
	}
}

// TestAPromiseThatNobodyRepeatsIsNone: the record says fenced, and the node that its
// keeper holds nothing; Git has not been read yet.
func TestAPromiseThatNobodyRepeatsIsNone(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	w.push(fencedSet(fenced))
	w.settle()
	uid, node := w.holderOf(1)
	w.promise(node)
	w.restart(true)
	if _, p := w.s.pod(uid); !p.fenced {
		t.Fatal("the record does not say that the pod is fenced")
	}
	for _, m := range []string{"n1", "n2", "n3"} {
		w.join(m)
	}
	if _, p := w.s.pod(uid); p.fenced {
		t.Error("still counted on")
	}
}
