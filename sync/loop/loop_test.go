package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

func wantContains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in:\n%s", part, text)
		}
	}
}

func TestPushDeploysAndRevertRollsBack(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 3))
		w.repository.commit("bbbbbbbb", deployment("web", "web:2", 3))
		out, ok := w.push("aaaaaaaa")
		if !ok || w.machine.counts() != [3]int{3, 3, 0} {
			t.Fatalf("accepted %v, pods %v:\n%s", ok, w.machine.counts(), out)
		}
		wantContains(t, out, "+ Deployment default/web", "1 to create", "converged in ")
		if n := w.repository.loads["aaaaaaaa"]; n != 1 {
			t.Errorf("the pushed revision was read %d times, want once", n)
		}
		first := w.Overview()
		if out, _ := w.push("bbbbbbbb"); !strings.Contains(out, "converged in ") || w.inForce() != "bbbbbbbb" {
			t.Fatalf("second push:\n%s", out)
		}
		w.repository.commit("cccccccc", deployment("web", "web:1", 3))
		if out, _ := w.push("cccccccc"); !strings.Contains(out, "converged in ") {
			t.Fatalf("revert:\n%s", out)
		}
		back := w.Overview()
		if a, b := templateOf(first), templateOf(back); a == "" || a != b {
			t.Errorf("template was %q, after the revert %q", a, b)
		}
		for _, sha := range []string{"aaaaaaaa", "bbbbbbbb", "cccccccc"} {
			if got := w.outcome(sha); got != nodes.OutcomeConverged {
				t.Errorf("outcome of %s is %q", sha, got)
			}
		}
		if !back.Plan.Converged || back.Sync.State != "synced" {
			t.Errorf("converged %v, sync %+v", back.Plan.Converged, back.Sync)
		}
	})
}

func templateOf(o *nodes.Overview) string {
	for _, object := range o.Objects {
		if object.Key.Kind == "Deployment" {
			return object.Template
		}
	}
	return ""
}

func TestInvalidPushIsRefusedAndChangesNothing(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
		w.push("aaaaaaaa")
		out, ok := w.push("invalid1")
		if ok {
			t.Error("accepted")
		}
		wantContains(t, out, "error: web.yaml:3: must be positive", "refused: 1 problem")
		if o := w.Overview(); o.Rejected != nil || o.Sync.State != "synced" || w.outcome("invalid1") != "" {
			t.Errorf("a refused push left a trace: %+v %+v", o.Sync, o.Rejected)
		}
	})
}

func TestInvalidHeadLeavesTheLastGoodInForce(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 2))
		w.push("aaaaaaaa")
		time.Sleep(time.Second)
		w.head(Head{Revision: revision("invalid1"), Fetched: time.Now()})
		o := w.Overview()
		if o.Rejected == nil || o.Rejected.Revision.SHA != "invalid1" || o.Sync.State != "rejected" || w.inForce() != "aaaaaaaa" {
			t.Fatalf("sync %+v, rejected %+v, in force %s", o.Sync, o.Rejected, w.inForce())
		}
		if got := w.outcome("invalid1"); got != nodes.OutcomeRejected {
			t.Errorf("outcome %q", got)
		}
		w.head(Head{Revision: revision("aaaaaaaa"), Rewritten: true, Fetched: time.Now()})
		if o := w.Overview(); o.Rejected != nil || o.Sync.State != "synced" || !o.Sync.Rewritten {
			t.Errorf("back at the good one: sync %+v, rejected %+v", o.Sync, o.Rejected)
		}
		if w.machine.counts() != [3]int{2, 2, 0} {
			t.Errorf("pods %v", w.machine.counts())
		}
	})
}

func TestUnreachableKeepsTheLastGood(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 2))
		w.push("aaaaaaaa")
		w.head(Head{Err: errors.New("dial tcp: connection refused"), Next: time.Now().Add(time.Minute)})
		if o := w.Overview(); o.Sync.State != "unreachable" || o.Sync.Message == "" || w.inForce() != "aaaaaaaa" {
			t.Errorf("sync %+v", o.Sync)
		}
		w.head(Head{Revision: revision("aaaaaaaa"), Fetched: time.Now()})
		if o := w.Overview(); o.Sync.State != "synced" {
			t.Errorf("after it answered: %+v", o.Sync)
		}
	})
}

func TestUnreadableRevisionIsTriedAgain(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
		w.repository.broken = errors.New("object not found")
		w.head(Head{Revision: revision("aaaaaaaa"), Fetched: time.Now()})
		if o := w.Overview(); o.Sync.State != "unreachable" {
			t.Errorf("sync %+v", o.Sync)
		}
		w.repository.mu.Lock()
		w.repository.broken = nil
		w.repository.mu.Unlock()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if w.inForce() != "aaaaaaaa" || w.Overview().Sync.State != "synced" {
			t.Errorf("in force %q, sync %+v", w.inForce(), w.Overview().Sync)
		}
	})
}

func TestNewerRevisionEndsTheOlderWatch(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 2))
		w.repository.commit("bbbbbbbb", deployment("web", "broken:1", 2))
		w.repository.commit("cccccccc", deployment("web", "web:3", 2))
		w.push("aaaaaaaa")
		older := make(chan string)
		go func() {
			out, _ := w.push("bbbbbbbb")
			older <- out
		}()
		synctest.Wait()
		if out, _ := w.push("cccccccc"); !strings.Contains(out, "converged in ") {
			t.Errorf("newer push:\n%s", out)
		}
		wantContains(t, <-older, "superseded by ccccccc change cccccccc")
		if got := w.outcome("bbbbbbbb"); got != nodes.OutcomeSuperseded {
			t.Errorf("outcome %q", got)
		}
	})
}

func TestFailedRolloutSaysWhyAndRecovers(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 4))
		w.repository.commit("bbbbbbbb", deployment("web", "broken:1", 4))
		w.repository.commit("cccccccc", deployment("web", "web:3", 4))
		w.push("aaaaaaaa")
		out, ok := w.push("bbbbbbbb") // virtual time passes the progress deadline
		if !ok {
			t.Fatal("refused")
		}
		wantContains(t, out, "failed: ", "web")
		if lines := strings.Count(out, "\n"); lines > 40 {
			t.Errorf("%d lines of progress:\n%s", lines, out)
		}
		if o := w.Overview(); o.Outcome != nodes.OutcomeFailed || w.outcome("bbbbbbbb") != nodes.OutcomeFailed {
			t.Errorf("outcome %q, in history %q", o.Outcome, w.outcome("bbbbbbbb"))
		}
		if out, _ := w.push("cccccccc"); !strings.Contains(out, "converged in ") {
			t.Errorf("recovery:\n%s", out)
		}
	})
}

// TestAFailureIsOneFailure, whatever else is said about it later.
func TestAFailureIsOneFailure(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "broken:1", 2))
		w.push("aaaaaaaa") // virtual time passes the progress deadline
		first := w.Overview().History[0]
		w.machine.trouble("the image has vanished")
		synctest.Wait()
		time.Sleep(time.Minute)
		w.machine.trouble("the disk is full")
		synctest.Wait()
		last := w.Overview().History[0]
		if !strings.Contains(first.Message, "not ready") || !strings.Contains(last.Message, "the disk is full") {
			t.Errorf("the message went from %q to %q", first.Message, last.Message)
		}
		if last.Outcome != nodes.OutcomeFailed || !last.Ended.Equal(first.Ended) {
			t.Errorf("it ended %s at %s, and then at %s", last.Outcome, first.Ended, last.Ended)
		}
		if n := w.Stats().Revisions[nodes.OutcomeFailed]; n != 1 {
			t.Errorf("%d failed revisions are counted, want 1", n)
		}
	})
}

func TestGuardHoldsUntilConfirmed(t *testing.T) {
	run(t, func(w *world) {
		var many []*desired.Object
		for i := range 15 {
			many = append(many, deployment(fmt.Sprintf("web%02d", i), "web:1", 1))
		}
		w.repository.commit("aaaaaaaa", many...)
		w.repository.commit("bbbbbbbb", many[0])
		w.repository.commit("cccccccc-confirm-14", many[0])
		w.push("aaaaaaaa")
		out, ok := w.push("bbbbbbbb")
		if !ok {
			t.Fatal("a held revision is not refused")
		}
		wantContains(t, out, "held: ", "Tally-Confirm: delete 14")
		o := w.Overview()
		if o.Held == nil || o.Sync.State != "held" || w.inForce() != "aaaaaaaa" || w.outcome("bbbbbbbb") != nodes.OutcomeHeld {
			t.Errorf("sync %+v, in force %s, outcome %q", o.Sync, w.inForce(), w.outcome("bbbbbbbb"))
		}
		if n := w.machine.counts(); n[2] != 0 {
			t.Errorf("a held revision stopped pods: %v", n)
		}
		out, _ = w.push("cccccccc-confirm-14")
		if w.inForce() != "cccccccc-confirm-14" || w.Overview().Held != nil || w.machine.counts()[0] != 1 {
			t.Errorf("in force %s, pods %v:\n%s", w.inForce(), w.machine.counts(), out)
		}
	})
}

// lateHead is what fsnotify says of a push that a second push has overtaken.
func TestLateHeadDoesNotUndoAPush(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
		w.repository.commit("bbbbbbbb", deployment("web", "web:2", 1))
		w.push("aaaaaaaa")
		w.Advance(revision("bbbbbbbb"))
		synctest.Wait()
		w.head(Head{Revision: revision("aaaaaaaa"), Fetched: time.Now()})
		w.head(Head{Revision: revision("bbbbbbbb"), Fetched: time.Now()})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if w.inForce() != "bbbbbbbb" || w.outcome("bbbbbbbb") != nodes.OutcomeConverged {
			t.Errorf("in force %s, history %+v", w.inForce(), w.Overview().History)
		}
		if n := w.machine.counts(); n != [3]int{1, 2, 1} {
			t.Errorf("pods %v", n)
		}
	})
}

func TestNothingIsHandedOverBeforeItIsRecorded(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 2))
		w.record.breakDown(true)
		w.Advance(revision("aaaaaaaa"))
		synctest.Wait()
		if n := w.machine.counts(); n != [3]int{} {
			t.Errorf("pods run that nobody recorded: %v", n)
		}
		if s := w.Overview().Sync; s.State != "stalled" || !strings.Contains(s.Message, "can't be recorded") {
			t.Errorf("the page says %+v", s)
		}
		w.record.breakDown(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if n := w.machine.counts(); n != [3]int{2, 2, 0} {
			t.Errorf("pods %v", n)
		}
		if s := w.Overview().Sync; s.State != "synced" {
			t.Errorf("afterwards the page says %+v", s)
		}
		if s := w.Stats(); s.RecordErrors == 0 {
			t.Error("the failure was not counted")
		}
	})
}

// Nodes beyond the first three keep no ledger. One of them that runs nothing
// must not be taken for the first of a new cluster.
func TestAnEmptyNodeIsNoNewCluster(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 3))
		w.push("aaaaaaaa")
		w.stop()
		w.record, w.several = newMemory(), true
		w.start()
		w.repository.heads <- Head{Revision: revision("aaaaaaaa"), Fetched: time.Now()}
		w.inputs <- Input{
			Node:   &nodes.NodeState{Node: nodes.Node{Name: "n4"}, Ready: true, Since: time.Now()},
			Report: &nodes.Report{Node: "n4", Complete: true},
		}
		synctest.Wait()
		time.Sleep(time.Second)
		w.machine.connect(w.inputs)
		synctest.Wait()
		if n := w.machine.counts(); n != [3]int{3, 3, 0} {
			t.Errorf("pods %v: the ones that ran were not adopted", n)
		}
	})
}

// The record is lost, and the first node to come kept the ledger long ago.
func TestTheNewestLedgerCounts(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 3))
		w.repository.commit("bbbbbbbb", deployment("web", "web:1", 4))
		w.push("aaaaaaaa")
		old := slices.Collect(maps.Values(w.machine.ledger))
		w.push("bbbbbbbb")
		w.stop()
		w.record, w.several = newMemory(), true
		w.start()
		w.repository.heads <- Head{Revision: revision("invalid1"), Fetched: time.Now()}
		info := nodes.Node{Name: "n2"}
		w.inputs <- Input{
			Node:   &nodes.NodeState{Node: info, Ready: true, Since: time.Now()},
			Report: &nodes.Report{Node: "n2", Complete: true, Info: &info, Ledger: old},
		}
		w.machine.connect(w.inputs)
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := w.machine.counts(); n != [3]int{4, 4, 0} || w.inForce() != "bbbbbbbb" {
			t.Errorf("pods %v, in force %q", n, w.inForce())
		}
	})
}

// A node that comes when the grace is over still tells what was in force.
func TestALateLedgerTellsTheRevision(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 3))
		w.push("aaaaaaaa")
		w.stop()
		w.record = newMemory()
		w.start()
		w.repository.heads <- Head{Revision: revision("invalid1"), Fetched: time.Now()}
		time.Sleep(time.Minute)
		synctest.Wait()
		if w.inForce() != "" {
			t.Fatalf("in force %q, and nobody said so", w.inForce())
		}
		w.machine.connect(w.inputs)
		synctest.Wait()
		if n := w.machine.counts(); n != [3]int{3, 3, 0} || w.inForce() != "aaaaaaaa" {
			t.Errorf("pods %v, in force %q", n, w.inForce())
		}
	})
}

func TestRestartRestartsNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		lose bool
	}{{"with the record", false}, {"without the record", true}} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(w *world) {
				w.repository.commit("aaaaaaaa", deployment("web", "web:1", 3))
				w.repository.commit("bbbbbbbb", deployment("web", "web:1", 4))
				w.push("aaaaaaaa")
				before := w.Overview().History
				w.stop()
				if c.lose {
					w.record = newMemory()
				}
				w.start()
				w.repository.heads <- Head{Revision: revision("invalid1"), Fetched: time.Now()}
				synctest.Wait()
				w.machine.connect(w.inputs)
				synctest.Wait()
				if n := w.machine.counts(); n != [3]int{3, 3, 0} {
					t.Fatalf("pods after the restart: %v", n)
				}
				if o := w.Overview(); len(o.History) != 2 || o.History[0].Outcome != nodes.OutcomeRejected || !cmp.Equal(o.History[1:], before) {
					t.Errorf("history %+v, was %+v", o.History, before)
				}
				// The newest revision is refused; the one before it is known and in force.
				if w.inForce() != "aaaaaaaa" || w.Overview().Sync.State != "rejected" {
					t.Errorf("in force %q, sync %+v", w.inForce(), w.Overview().Sync)
				}
				if out, _ := w.push("bbbbbbbb"); w.machine.counts() != [3]int{4, 4, 0} {
					t.Errorf("pods %v:\n%s", w.machine.counts(), out)
				}
			})
		})
	}
}

func TestStartWaitsForKnownNodes(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
		w.push("aaaaaaaa")
		w.stop()
		w.start()
		synctest.Wait()
		if o := w.Overview(); o.Sync.State != "waiting" || w.Stats().Steps != 0 {
			t.Errorf("planned before the known node said a word: %+v", o.Sync)
		}
		time.Sleep(6 * time.Second) // beyond the grace
		synctest.Wait()
		o := w.Overview()
		if w.Stats().Steps == 0 || len(o.Nodes) != 1 || o.Nodes[0].Ready {
			t.Errorf("after the grace: %d steps, nodes %+v", w.Stats().Steps, o.Nodes)
		}
		if n := w.machine.counts(); n != [3]int{1, 1, 0} {
			t.Errorf("pods %v", n)
		}
	})
}

func TestIdleClusterMakesNoSteps(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 3))
		w.push("aaaaaaaa")
		time.Sleep(time.Hour)
		synctest.Wait()
		before := w.Stats().Steps
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if after := w.Stats().Steps; after != before {
			t.Errorf("%d steps in an idle day", after-before)
		}
	})
}

func TestWatchTellsTheNewest(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 3))
		ctx, cancel := context.WithCancel(w.Context())
		defer cancel()
		watch := w.Watch(ctx)
		first := <-watch
		w.push("aaaaaaaa")
		for o := range watch {
			if o.Serial <= first.Serial {
				t.Fatalf("serial %d after %d", o.Serial, first.Serial)
			}
			if first = o; o.Plan.Converged && o.InForce != nil {
				break
			}
		}
	})
}

func TestCheckChangesNothing(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 3))
		var out bytes.Buffer
		if ok, err := w.Check(w.Context(), CheckQuery{Revision: revision("aaaaaaaa"), Tree: fstest.MapFS{}}, &out); !ok || err != nil {
			t.Fatal(ok, err)
		}
		synctest.Wait()
		if w.inForce() != "" || w.machine.counts() != [3]int{} || len(w.Overview().History) != 0 {
			t.Error("a check changed something")
		}
	})
}

func TestPrintable(t *testing.T) {
	if got, want := printable("a\x1b[31mb\nc\u202ed\té"), "a\uFFFD[31mb\uFFFDc\uFFFDd\té"; got != want {
		t.Errorf("printable = %q, want %q", got, want)
	}
}
