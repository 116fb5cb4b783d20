package trim

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
)

func TestLimits(t *testing.T) {
	const mib, none = 1 << 20, math.MaxInt64
	for _, test := range []struct {
		used        uint64
		usual, want limits
	}{
		{used: 0, usual: limits{100, none}, want: limits{100, none}},
		{used: ample, usual: limits{100, none}, want: limits{100, none}},
		{used: ample, usual: limits{300, 64 * mib}, want: limits{300, 64 * mib}},
		{used: ample + 1, usual: limits{100, none}, want: limits{99, 2*ample + gaps + 1}},
		{used: 256 * mib, usual: limits{100, none}, want: limits{56, (256+144)*mib + gaps}},
		{used: 640 * mib, usual: limits{100, none}, want: limits{30, (640+192)*mib + gaps}},
		{used: 640 * mib, usual: limits{20, 700 * mib}, want: limits{20, 700 * mib}},
	} {
		if got := limitsFor(test.used, test.usual); got != test.want {
			t.Errorf("%d bytes in use, usually %+v: %+v, want %+v", test.used, test.usual, got, test.want)
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
	before := debug.SetMemoryLimit(-1)
	stop := pace()
	for goal() > size*17/10 { // until the cleanup has run; the test's time ends it otherwise
		runtime.GC()
	}
	stop()
	runtime.GC()
	if free := goal(); free < 2*size {
		t.Errorf("after the pace the heap may grow to %d bytes", free)
	}
	if limit := debug.SetMemoryLimit(-1); limit != before {
		t.Errorf("after the pace the limit is %d bytes, %d before", limit, before)
	}
	runtime.KeepAlive(large)
	large = nil
	debug.FreeOSMemory()
}
