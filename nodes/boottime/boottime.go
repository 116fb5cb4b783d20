// Package boottime reads the clock that leases are counted by.
//
// It guarantees that the clock never goes back, that nobody can set it, and
// that it goes on while the machine is suspended. What it says means nothing on
// another machine, or after another boot.
package boottime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the machine was booted, suspension included
// (CLOCK_BOOTTIME).
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Duration(t.Nano())
}
