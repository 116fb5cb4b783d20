package loop

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
)

// TestWhatWasHeardBeforeIsPlannedBefore lets a report wait when a revision
// arrives: planned after it, the report would pass for an answer to what the
// revision asks of the node.
func TestWhatWasHeardBeforeIsPlannedBefore(t *testing.T) {
	var waiting, late string // a report that the loop has yet to take; what was planned before it
	prepare := func(w *world) {
		w.next = func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
			for _, r := range c.Reports {
				switch {
				case len(r.Gone) == 0:
				case r.Gone[0] == "busy":
					time.Sleep(time.Second)
				case string(r.Gone[0]) == waiting:
					waiting = ""
				}
			}
			if c.Snapshot != nil && waiting != "" {
				late = fmt.Sprintf("revision %s is planned before report %s", c.Snapshot.Revision().SHA, waiting)
			}
			return planner.Next(s, c, now)
		}
	}
	runWith(t, prepare, func(w *world) {
		w.repository.slow = map[string]time.Duration{}
		report := func(gone string) {
			w.inputs <- Input{Report: &nodes.Report{Node: "one", Gone: []nodes.UID{nodes.UID(gone)}}}
		}
		for i := range int32(20) { // which of two things the loop takes first is left to chance
			sha := fmt.Sprintf("%08d", i)
			w.repository.commit(sha, deployment("web", "web:1", 1+i%2))
			w.repository.slow[sha] = time.Second
			w.head(Head{Revision: revision(sha), Fetched: time.Now()})
			time.Sleep(500 * time.Millisecond)
			report("busy")
			time.Sleep(700 * time.Millisecond) // the revision has been read now, and the loop is busy
			waiting = "report-" + sha
			report(waiting)
			time.Sleep(time.Second)
			synctest.Wait()
			if w.inForce() != sha || waiting != "" {
				t.Fatalf("%s is in force, want %s; report %q waits", w.inForce(), sha, waiting)
			}
		}
	})
	if late != "" {
		t.Error(late)
	}
}
