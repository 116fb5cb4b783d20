package trim

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

const (
	// ample is the heap up to which collecting whenever it has doubled is cheap for
	// any machine, in bytes; above it a heap may grow by an eighth of what is more.
	ample = 128 << 20
	more  = 8
)

// percent is what GOGC should be for so many bytes of heap and stacks in use.
func percent(used uint64, usual int) int {
	if used <= ample {
		return usual
	}
	room := ample + (used-ample)/more
	return min(usual, int(100*room/used))
}

// pacer sets GOGC after each collection.
type pacer struct {
	usual int

	mu sync.Mutex
	// guarded by mu
	set     int
	stopped bool
}

// pace bounds how much of a large heap is garbage until stop is called.
func pace() (stop func()) {
	gogc := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(gogc)
	if gogc[0].Value.Uint64() > math.MaxInt32 {
		return func() {} // somebody has turned collecting off
	}
	p := &pacer{usual: int(gogc[0].Value.Uint64()), set: int(gogc[0].Value.Uint64())}
	p.await()
	return p.stop
}

// await has collected called after the next collection.
func (p *pacer) await() {
	runtime.AddCleanup(&struct{ *pacer }{p}, (*pacer).collected, p)
}

func (p *pacer) collected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	if wanted := percent(inUse(), p.usual); wanted != p.set {
		p.set = wanted
		debug.SetGCPercent(wanted)
	}
	p.await()
}

// inUse is what GOGC is a percentage of.
func inUse() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() + s[1].Value.Uint64() + s[2].Value.Uint64()
}

func (p *pacer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	debug.SetGCPercent(p.usual)
}
