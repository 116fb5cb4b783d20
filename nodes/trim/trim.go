// Package trim gives memory back to the system while a process has little to do,
// and keeps a large heap from being mostly garbage while it has much.
//
// Go collects garbage when the heap has doubled, or after two minutes. A process that is
// quiet keeps what its start and its last work left behind until then: half of what
// it takes. A lower GC percent would collect more often under load, too, where
// it costs: so only heaps above 128 MiB have one, the lower the larger they are. A fixed
// memory limit would have to know the size of the cluster: this one follows what is in
// use. Where GOGC or GOMEMLIMIT is set, the lower counts.
//
// It guarantees that a process which allocates quickly is left alone, and that
// trimming takes at most a five-hundredth of the time. It does not bound memory.
package trim

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// pause is the least time between two looks.
	pause = 20 * time.Second
	// share is how much longer than a trim the pause after it is.
	share = 500
	// much is garbage that is worth a trim in any case, in bytes.
	much = 64 << 20
)

// heap is what the Go runtime says about memory.
type heap struct {
	// cycles counts the collections since the start.
	cycles uint64
	// live is what the last one left, held all that is there now, free memory that
	// the system has not got back included, in bytes.
	live, held uint64
}

// Run paces and trims until ctx ends.
func Run(ctx context.Context) {
	defer pace()()
	run(ctx, look, free)
}

// free collects a large heap twice: what pools hold, of gRPC's and bbolt's work above
// all, outlives one collection.
func free() {
	if look().live > ample {
		runtime.GC()
	}
	debug.FreeOSMemory()
}

func run(ctx context.Context, look func() heap, free func()) {
	last := look()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wait := pause
		now := look()
		if now.worth(last) {
			begun := time.Now()
			free()
			wait = max(pause, share*time.Since(begun))
			now = look()
		}
		last = now
		timer.Reset(wait)
	}
}

// worth tells whether the process was quiet since the last look (it never had to
// collect), and a third of what it holds may be garbage, or very much.
func (h heap) worth(last heap) bool {
	return h.cycles == last.cycles && h.held > h.live+min(h.live/2, much)
}

func look() heap {
	s := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	return heap{cycles: s[0].Value.Uint64(), live: s[1].Value.Uint64(), held: s[2].Value.Uint64() + s[3].Value.Uint64()}
}
