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
	// gaps is what may lie between what is in use, in bytes, with the parts of
	// stacks that nobody uses.
	gaps = 128 << 20
)

// limits are what the collector is told.
type limits struct {
	// percent is GOGC, memory GOMEMLIMIT: what is free beyond it goes back to the
	// system at once.
	percent int
	memory  int64
}

// limitsFor so many bytes of heap and stacks in use; usual are those of a small heap.
func limitsFor(used uint64, usual limits) limits {
	if used <= ample {
		return usual
	}
	room := ample + (used-ample)/more
	return limits{min(usual.percent, int(100*room/used)), min(usual.memory, int64(used+room+gaps))}
}

// pacer sets limits after each collection.
type pacer struct {
	usual limits

	mu sync.Mutex
	// guarded by mu
	set     limits
	stopped bool
}

// pace bounds how much of a large heap is garbage until stop is called.
func pace() (stop func()) {
	gogc := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	metrics.Read(gogc)
	if gogc[0].Value.Uint64() > math.MaxInt32 {
		return func() {} // somebody has turned collecting off
	}
	usual := limits{int(gogc[0].Value.Uint64()), debug.SetMemoryLimit(-1)}
	p := &pacer{usual: usual, set: usual}
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
	p.tell(limitsFor(inUse(), p.usual))
	p.await()
}

// tell sets what differs: each stops the process for an instant. The caller holds mu.
func (p *pacer) tell(l limits) {
	if l.memory != p.set.memory {
		debug.SetMemoryLimit(l.memory)
	}
	if l.percent != p.set.percent {
		debug.SetGCPercent(l.percent)
	}
	p.set = l
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
	p.tell(p.usual)
}
