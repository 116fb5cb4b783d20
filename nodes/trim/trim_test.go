package trim

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// world is a heap that a test fills.
type world struct {
	heap
	// costs is how long giving back takes.
	costs time.Duration
	freed []time.Duration
	begun time.Time
}

func (w *world) free() {
	time.Sleep(w.costs)
	w.cycles++
	w.held = w.live
	w.freed = append(w.freed, time.Since(w.begun))
}

// during lets a process go on for a while; each second it does something.
func during(t *testing.T, w *world, d time.Duration, each func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w.begun = time.Now()
		go run(ctx, func() heap { return w.heap }, w.free)
		for time.Since(w.begun) < d {
			time.Sleep(time.Second - time.Millisecond)
			synctest.Wait()
			each(w)
		}
		cancel()
		synctest.Wait()
	})
}

func TestQuietProcessesAreTrimmed(t *testing.T) {
	w := &world{heap: heap{live: 100, held: 200}}
	during(t, w, time.Minute, func(*world) {})
	if len(w.freed) != 1 || w.freed[0] != pause {
		t.Errorf("gave back after %v, want once, after %s", w.freed, pause)
	}
}

func TestBusyProcessesAreLeftAlone(t *testing.T) {
	w := &world{heap: heap{live: 100, held: 200}}
	during(t, w, time.Minute, func(w *world) { w.cycles++ })
	if len(w.freed) != 0 {
		t.Errorf("gave back after %v", w.freed)
	}
}

func TestLittleGarbageStays(t *testing.T) {
	w := &world{heap: heap{live: 100, held: 150}}
	during(t, w, time.Minute, func(*world) {})
	if len(w.freed) != 0 {
		t.Errorf("gave back after %v", w.freed)
	}
}

func TestTrimmingTakesASmallShareOfTime(t *testing.T) {
	w := &world{heap: heap{live: 100, held: 200}, costs: time.Second}
	const long = 5 * time.Hour
	during(t, w, long, func(w *world) { w.held++ })
	if took := time.Duration(len(w.freed)) * w.costs; len(w.freed) < 10 || took > long/share+w.costs {
		t.Errorf("gave back %d times, which took %s of %s", len(w.freed), took, long)
	}
}

// TestLook reads the real heap: what is dropped is held until it is given back.
func TestLook(t *testing.T) {
	const size = 64 << 20
	debug.FreeOSMemory()
	before := look()
	func() {
		dropped := make([]byte, size)
		if grown := look(); grown.held < before.held+size*9/10 { // a part may come from what was free
			t.Errorf("%d bytes are held, %d before", grown.held, before.held)
		}
		runtime.KeepAlive(dropped)
	}()
	runtime.GC()
	if collected := look(); collected.cycles <= before.cycles || collected.live > before.live+size/2 {
		t.Errorf("after a collection %+v, before %+v", collected, before)
	}
	debug.FreeOSMemory()
	if after := look(); after.held > before.held+size/2 {
		t.Errorf("%d bytes are held after all was given back, %d before", after.held, before.held)
	}
}

func TestMuchGarbageGoes(t *testing.T) {
	w := &world{heap: heap{live: 10 * much, held: 12 * much}}
	during(t, w, time.Minute, func(*world) {})
	if len(w.freed) != 1 {
		t.Errorf("gave back after %v, want once", w.freed)
	}
}
