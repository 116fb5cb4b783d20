package planner

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestNothingIsRemovedBeforeAllHaveReported: the record is lost, and the first
// node to come kept a ledger from before the newest Deployment.
func TestNothingIsRemovedBeforeAllHaveReported(t *testing.T) {
	for name, end := range map[string]func(w *world) *Plan{
		"the other node reports":           func(w *world) *Plan { return w.join("n2") },
		"Git declares the other node dead": func(w *world) *Plan { return w.push(deployment("web", 2), machineOf("n2", dead)) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			w.push(deployment("web", 2))
			w.settle()
			old := slices.Clone(w.machines["n1"].ledger)
			w.push(deployment("web", 2), deployment("db", 4, spreadOut))
			w.settle()
			w.restart(false)
			w.machines["n1"].ledger = old
			w.push(deployment("web", 2))
			if p := w.join("n1"); !slices.ContainsFunc(p.Waiting, func(i nodes.WaitingItem) bool {
				return i.Object.Name == "db" && strings.Contains(i.Reason, "node n2, which may know more, has not reported")
			}) {
				t.Errorf("waiting: %v", p.Waiting)
			}
			w.elapse(time.Minute)
			if n := len(w.pods("db")); n == 0 {
				t.Error("removed before the other node has reported")
			}
			// A server that starts again in between knows of it.
			w.restart(true)
			w.push(deployment("web", 2))
			w.join("n1")
			w.elapse(time.Minute)
			if n := len(w.pods("db")); n == 0 {
				t.Error("removed by the next server before the other node has reported")
			}
			end(w)
			w.elapse(time.Minute)
			if n := len(w.pods("db")); n > 0 {
				t.Errorf("%d pods were not removed in the end; waiting: %v", n, w.last.Waiting)
			}
		})
	}
}
