package loop

import (
	"testing"
	"time"
)

// TestTheTimeGoesOnWhenTheClockIsPutBack looks that what the planner takes for now
// never goes back and never stands still, and is the clock's again in the end.
func TestTheTimeGoesOnWhenTheClockIsPutBack(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := began
	r := &runner{Loop: &Loop{o: Options{Now: func() time.Time { return clock }}}, read: began}
	for i, step := range []struct {
		clock, want time.Duration
	}{
		{0, 0},
		{time.Hour, time.Hour},
		{10 * time.Minute, time.Hour}, // put back by 50 minutes
		{20 * time.Minute, 65 * time.Minute},
		{100 * time.Minute, 105 * time.Minute},
		{110 * time.Minute, 110 * time.Minute}, // caught up
		{120 * time.Minute, 120 * time.Minute},
	} {
		clock = began.Add(step.clock)
		if now := r.now().Sub(began); now != step.want {
			t.Errorf("step %d: the clock says %s: now is %s, want %s", i, step.clock, now, step.want)
		}
	}
}

// TestTheTimeGoesOnBehindTheRecord starts with a clock that is behind what an
// earlier server recorded.
func TestTheTimeGoesOnBehindTheRecord(t *testing.T) {
	clock := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	recorded := clock.Add(time.Hour)
	r := &runner{Loop: &Loop{o: Options{Now: func() time.Time { return clock }}}, read: clock, last: recorded}
	if now := r.now(); !now.Equal(recorded) {
		t.Errorf("now is %s, behind the record's %s", now, recorded)
	}
	clock = clock.Add(time.Minute)
	if now, want := r.now(), recorded.Add(30*time.Second); !now.Equal(want) {
		t.Errorf("a minute later now is %s, want %s", now, want)
	}
}
