package sim

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// boottime is a machine's CLOCK_BOOTTIME. Its pace is a little wrong, and it
// begins anew with each boot. Safe for concurrent use.
type boottime struct {
	// drift is how many of 100,000 ticks it is too fast.
	drift int64

	mu sync.Mutex
	// guarded by mu
	began time.Time
}

func newBoottime(drift int64) *boottime {
	return &boottime{drift: drift, began: time.Now().Add(-time.Hour)}
}

func (b *boottime) now() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	passed := time.Since(b.began)
	return passed + passed*time.Duration(b.drift)/100_000
}

// until is how long it takes until the clock shows at.
func (b *boottime) until(at time.Duration) time.Duration {
	left := at - b.now()
	return left - left*time.Duration(b.drift)/100_000 + time.Microsecond
}

func (b *boottime) reboot() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.began = time.Now()
}

// wallClock is a server's time of day, which jumps. Safe for concurrent use.
type wallClock struct{ wrong atomic.Int64 }

func (c *wallClock) now() time.Time { return time.Now().Add(time.Duration(c.wrong.Load())) }

// jump sets it right or wrong, by up to an hour.
func (c *wallClock) jump(rng *rand.Rand) time.Duration {
	wrong := pick(rng, 0, -time.Minute, time.Minute, -10*time.Minute, 10*time.Minute, -time.Hour, time.Hour)
	c.wrong.Store(int64(wrong))
	return wrong
}

// mostDrift keeps the pace of two machines within 1 % of each other.
const mostDrift = 495

// drift draws the pace of a machine's clock.
func (f *fleet) drift() int64 {
	if f == nil {
		return 0
	}
	return f.rng.Int64N(2*mostDrift+1) - mostDrift
}
