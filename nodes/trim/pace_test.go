package trim

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestPercent(t *testing.T) {
	for _, test := range []struct {
		live  uint64
		usual int
		want  int
	}{
		{live: 0, usual: 100, want: 100},
		{live: ample, usual: 100, want: 100},
		{live: ample, usual: 300, want: 300},
		{live: ample + 1, usual: 100, want: 95},
		{live: 256 << 20, usual: 100, want: 60},
		{live: 512 << 20, usual: 100, want: 40},
		{live: 512 << 20, usual: 20, want: 20},
		{live: 64 << 30, usual: 100, want: 25},
	} {
		if got := percent(test.live, test.usual); got != test.want {
			t.Errorf("%d bytes in use, GOGC %d: %d, want %d", test.live, test.usual, got, test.want)
		}
	}
}

// TestPace fills the real heap: it may grow by less once it is large, and by as
// much as before when nobody paces any more.
func TestPace(t *testing.T) {
	goal := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	const size = 2 * ample
	large := make([]byte, size)
	runtime.GC()
	if free := goal(); free < 2*size {
		t.Fatalf("without a pace the heap may grow to %d bytes", free)
	}
	stop := pace()
	for goal() > size*17/10 { // until the cleanup has run; the test's time ends it otherwise
		runtime.GC()
	}
	stop()
	runtime.GC()
	if free := goal(); free < 2*size {
		t.Errorf("after the pace the heap may grow to %d bytes", free)
	}
	runtime.KeepAlive(large)
	large = nil
	debug.FreeOSMemory()
}
