package loop

import "time"

// clock is the planner's time: wall time that neither goes back, behind the
// record neither, nor stands still. While the wall clock is behind what was
// seen, as after it was set back, time goes on by the boot clock, at nine tenths
// of its pace: so what waits waits hardly longer, and the wall clock catches up.
type clock struct {
	wall func() time.Time
	boot func() time.Duration
	// last is the newest instant that was seen, read what the boot clock said then.
	last time.Time
	read time.Duration
}

func (c *clock) now() time.Time {
	read := c.boot()
	passed := read - c.read
	c.last, c.read = later(c.wall().UTC(), c.last.Add(passed-passed/10)), read
	return c.last
}

// see has the clock not show anything before t any more.
func (c *clock) see(t time.Time) {
	c.last = later(c.now(), t)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
