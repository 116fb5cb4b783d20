package trim

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestPercent(t *testing.T) {
	for _, test := range []struct {
		used  uint64
		usual int
		want  int
	}{
		{used: 0, usual: 100, want: 100},
		{used: ample, usual: 100, want: 100},
		{used: ample, usual: 300, want: 300},
		{used: ample + 1, usual: 100, want: 99},
		{used: 256 << 20, usual: 100, want: 56},
		{used: 640 << 20, usual: 100, want: 30},
		{used: 640 << 20, usual: 20, want: 20},
		{used: 64 << 30, usual: 100, want: 12},
	} {
		if got := percent(test.used, test.usual); got != test.want {
			t.Errorf("%d bytes in use, GOGC %d: %d, want %d", test.used, test.usual, got, test.want)
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
