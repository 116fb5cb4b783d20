package loop

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// leases sets what the next revision says about nodes.
func (w *world) leases(lease time.Duration) desired.Nodes {
	w.repository.mu.Lock()
	defer w.repository.mu.Unlock()
	w.repository.settings.Nodes.Lease = lease
	return w.repository.settings.Nodes
}

// toldTimes are those that the executor was told since the last call.
func (m *machine) toldTimes() []desired.Nodes {
	m.mu.Lock()
	defer m.mu.Unlock()
	told := m.times
	m.times = nil
	return told
}

func TestTimesAreHandedOverOnceARevision(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
		w.repository.commit("bbbbbbbb", deployment("web", "web:1", 2))
		w.repository.commit("cccccccc", deployment("web", "web:1", 3))
		first := w.leases(6 * time.Second)
		w.push("aaaaaaaa")
		w.push("bbbbbbbb")
		if got := w.machine.toldTimes(); !slices.Equal(got, []desired.Nodes{first}) {
			t.Errorf("told %+v, want once %+v", got, first)
		}
		second := w.leases(time.Minute)
		w.push("cccccccc")
		if got := w.machine.toldTimes(); !slices.Equal(got, []desired.Nodes{second}) {
			t.Errorf("told %+v, want %+v", got, second)
		}
	})
}

// TestTheNextServerWaitsForTheLongestLease, with the record and without.
func TestTheNextServerWaitsForTheLongestLease(t *testing.T) {
	for name, lose := range map[string]bool{"with the record": false, "without the record": true} {
		t.Run(name, func(t *testing.T) {
			run(t, func(w *world) {
				w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
				w.repository.commit("bbbbbbbb", deployment("web", "web:1", 2))
				w.repository.commit("cccccccc", deployment("web", "web:1", 3))
				w.leases(time.Minute)
				w.push("aaaaaaaa")
				w.leases(6 * time.Second)
				w.push("bbbbbbbb")
				restart := func() {
					w.stop()
					if lose {
						w.record = newMemory()
					}
					w.machine.mu.Lock()
					w.machine.longest, w.machine.expected = 0, map[string]bool{}
					w.machine.mu.Unlock()
					w.start()
					synctest.Wait()
					w.machine.connect(w.inputs)
					synctest.Wait()
				}
				restart()
				// Somebody may still hold one of a minute.
				if got := w.machine.longest; got != time.Minute {
					t.Errorf("waits for %s, want a minute", got)
				}
				if got := slices.Collect(maps.Keys(w.machine.expected)); !slices.Equal(got, []string{"n1"}) {
					t.Errorf("expects %v", got)
				}
				time.Sleep(3 * time.Minute)
				w.push("cccccccc")
				restart()
				if got := w.machine.longest; got != 6*time.Second {
					t.Errorf("waits for %s, want 6s", got)
				}
			})
		})
	}
}

// TestALongerLeaseIsRecordedBeforeItIsGranted: a server that dies in between
// must not lead the next one to wait too short.
func TestALongerLeaseIsRecordedBeforeItIsGranted(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
		w.repository.commit("bbbbbbbb", deployment("web", "web:1", 2))
		w.push("aaaaaaaa")
		w.machine.toldTimes()
		w.leases(time.Minute)
		w.record.breakDown(true)
		w.Advance(revision("bbbbbbbb"))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.machine.toldTimes(); len(got) != 0 {
			t.Errorf("told %+v though the record takes nothing", got)
		}
		w.record.breakDown(false)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := w.machine.toldTimes(); len(got) != 1 || got[0].Lease != time.Minute {
			t.Errorf("told %+v", got)
		}
		decisions, err := w.record.Decisions()
		if err != nil || !slices.ContainsFunc(decisions, func(d nodes.Decision) bool { return d.Kind == kindLease }) {
			t.Errorf("recorded %v, %v", decisions, err)
		}
	})
}
