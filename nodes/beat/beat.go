// Package beat has what comes round in one process fall on the same instants: a
// quiet machine that wakes once for all of it takes less than one that wakes for
// each.
package beat

import "time"

// origin is where all beats of the process begin. Processes differ in it, so that
// the nodes of a cluster do not ask their server all at once.
var origin = time.Now()

// Wait is how long it takes from now until the next whole multiple of period since
// the process began: more than 0, at most period.
func Wait(period time.Duration) time.Duration {
	return wait(time.Since(origin), period)
}

func wait(since, period time.Duration) time.Duration {
	past := since % period
	if past < 0 { // somebody has set a clock that is not monotonic
		past += period
	}
	return period - past
}
