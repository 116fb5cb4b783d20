package loop

import (
	"errors"
	"io"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestRevisionInForceIsReadOnceItCanBe: the server starts while the repository
// can't be read, and the newest revision is refused.
func TestRevisionInForceIsReadOnceItCanBe(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("good", deployment("web", "app:1", 2))
		w.repository.commit("bad")
		w.push("good")
		w.stop()
		w.repository.mu.Lock()
		w.repository.broken = errors.New("input/output error")
		w.repository.mu.Unlock()
		w.start()
		w.machine.connect(w.inputs)
		w.head(Head{Revision: revision("bad")})
		time.Sleep(10 * time.Second)
		w.repository.mu.Lock()
		w.repository.broken = nil
		w.repository.mu.Unlock()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := w.inForce(); got != "good" {
			t.Errorf("in force is %q, want the revision that was before the restart", got)
		}
		if got := w.machine.counts(); got != [3]int{2, 2, 0} {
			t.Errorf("running, started and stopped pods: %v", got)
		}
	})
}

// TestHeldRevisionStaysHeldWhenTheOneInForceIsReadLate: the newest revision is
// held before the one in force could be read.
func TestHeldRevisionStaysHeldWhenTheOneInForceIsReadLate(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("both", deployment("web", "app:1", 1), deployment("db", "app:1", 1))
		w.repository.commit("none", deployment("other", "app:1", 1))
		w.push("both")
		w.stop()
		w.repository.mu.Lock()
		w.repository.broken = errors.New("input/output error")
		w.repository.mu.Unlock()
		w.start()
		w.machine.connect(w.inputs)
		time.Sleep(100 * time.Millisecond)
		w.repository.mu.Lock()
		w.repository.broken = nil
		w.repository.mu.Unlock()
		w.head(Head{Revision: revision("none")})
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		o := w.Overview()
		if w.inForce() != "both" || o.Held == nil || o.Held.Revision.SHA != "none" || o.Sync.State != "held" {
			t.Errorf("in force %q, held %+v, sync %+v", w.inForce(), o.Held, o.Sync)
		}
		if got := w.machine.counts(); got != [3]int{2, 2, 0} {
			t.Errorf("running, started and stopped pods: %v", got)
		}
	})
}

// TestRevisionInForceIsReadLeniently, whoever asks for it: the branch still
// points at it, the first try to read it failed, and we have become stricter.
func TestRevisionInForceIsReadLeniently(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("good", deployment("web", "app:1", 2))
		w.push("good")
		w.stop()
		w.repository.mu.Lock()
		w.repository.broken, w.repository.stricter = errors.New("input/output error"), true
		w.repository.mu.Unlock()
		w.start()
		w.machine.connect(w.inputs)
		synctest.Wait()
		w.repository.mu.Lock()
		w.repository.broken = nil
		w.repository.mu.Unlock()
		w.head(Head{Revision: revision("good")})
		if o := w.Overview(); w.inForce() != "good" || o.Rejected != nil || o.Sync.State != "synced" || w.outcome("good") != nodes.OutcomeConverged {
			t.Errorf("in force %q, sync %+v, rejected %+v, outcome %q", w.inForce(), o.Sync, o.Rejected, w.outcome("good"))
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := w.machine.counts(); got != [3]int{2, 2, 0} || len(w.Overview().History) != 1 {
			t.Errorf("running, started and stopped pods: %v, history %+v", got, w.Overview().History)
		}
	})
}

// TestALedgerThatComesWhileTheNewestIsRead tells what was in force, which is
// put in force again only if the newest is not.
func TestALedgerThatComesWhileTheNewestIsRead(t *testing.T) {
	for _, c := range []struct {
		name, newest, want string
		pods               [3]int
	}{
		{"and is valid", "newest", "newest", [3]int{3, 3, 0}},
		{"and is refused", "refused", "before", [3]int{2, 2, 0}},
		{"and is held", "held", "before", [3]int{2, 2, 0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, func(w *world) {
				w.repository.commit("before", deployment("web", "app:1", 2))
				w.repository.commit("newest", deployment("web", "app:1", 3))
				w.repository.commit("held", deployment("other", "app:1", 1))
				w.push("before")
				w.stop()
				w.record = newMemory()
				w.repository.mu.Lock()
				w.repository.slow = map[string]time.Duration{c.newest: 5 * time.Second, "before": 10 * time.Second}
				w.repository.mu.Unlock()
				w.start()
				time.Sleep(time.Minute)
				w.head(Head{Revision: revision(c.newest)})
				w.machine.connect(w.inputs)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if got := w.inForce(); got != c.want {
					t.Errorf("in force is %q, want %q", got, c.want)
				}
				if got := w.machine.counts(); got != c.pods {
					t.Errorf("running, started and stopped pods: %v, want %v", got, c.pods)
				}
				o := w.Overview()
				if held := o.Held != nil && o.Held.Revision.SHA == c.newest; held != (c.newest == "held") {
					t.Errorf("held: %+v", o.Held)
				}
			})
		})
	}
}

// TestTheOneInForceIsReadThoughTheNewestIsHeld: a push was read
// when it was checked, and overtakes the one in force.
func TestTheOneInForceIsReadThoughTheNewestIsHeld(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("before", deployment("web", "app:1", 2))
		w.repository.commit("held", deployment("other", "app:1", 1))
		w.push("before")
		w.stop()
		w.repository.mu.Lock()
		w.repository.slow = map[string]time.Duration{"before": 10 * time.Second}
		w.repository.mu.Unlock()
		w.start()
		w.machine.connect(w.inputs)
		query := CheckQuery{SHA: "held", Revision: revision("held"), Tree: fstest.MapFS{}}
		if ok, err := w.Check(w.Context(), query, io.Discard); !ok || err != nil {
			t.Errorf("a push while the one in force is read: accepted %v, error %v", ok, err)
		}
		w.Advance(revision("held"))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if o := w.Overview(); w.inForce() != "before" || o.Held == nil || o.Held.Revision.SHA != "held" {
			t.Errorf("in force %q, held %+v", w.inForce(), o.Held)
		}
	})
}

// TestARevisionThatALateLedgerContradictsIsHeld: it was put in force without a
// record and before any node had reported.
func TestARevisionThatALateLedgerContradictsIsHeld(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("before", deployment("web", "app:1", 2))
		w.repository.commit("other", deployment("other", "app:1", 1))
		w.push("before")
		w.stop()
		w.record = newMemory()
		w.start()
		w.head(Head{Revision: revision("other")})
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.inForce(); got != "other" {
			t.Fatalf("in force is %q before any node has reported", got)
		}
		w.machine.connect(w.inputs)
		time.Sleep(time.Minute)
		synctest.Wait()
		o := w.Overview()
		if w.inForce() != "before" || o.Held == nil || o.Held.Revision.SHA != "other" || o.Sync.State != "held" || w.outcome("other") != nodes.OutcomeHeld {
			t.Errorf("in force %q, held %+v, sync %+v, outcome %q", w.inForce(), o.Held, o.Sync, w.outcome("other"))
		}
		if got := w.machine.counts(); got != [3]int{2, 2, 0} {
			t.Errorf("running, started and stopped pods: %v", got)
		}
		w.stop()
		w.start()
		w.machine.connect(w.inputs)
		synctest.Wait()
		if got := w.inForce(); got != "before" {
			t.Errorf("in force is %q after another start", got)
		}
	})
}

// TestWhatIsDecidedInIgnoranceIsNotRecorded: the record was lost, and no node
// has reported before the server starts once more.
func TestWhatIsDecidedInIgnoranceIsNotRecorded(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "app:1", 2))
		w.push("aaaaaaaa")
		w.stop()
		w.record = newMemory()
		for range 2 {
			w.start()
			w.head(Head{Revision: revision("aaaaaaaa")})
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := len(w.record.decisions); w.inForce() != "aaaaaaaa" || n > 0 {
				t.Errorf("in force %q, %d decisions recorded", w.inForce(), n)
			}
			w.stop()
		}
		w.start()
		w.head(Head{Revision: revision("aaaaaaaa")})
		time.Sleep(time.Minute)
		w.machine.connect(w.inputs)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := w.machine.counts(); got != [3]int{2, 2, 0} {
			t.Errorf("running, started and stopped pods: %v, want those that ran", got)
		}
		if len(w.record.decisions) == 0 {
			t.Error("nothing is recorded after a node has reported")
		}
	})
}
