package beat

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestWait(t *testing.T) {
	for _, test := range []struct{ since, period, want time.Duration }{
		{0, 2 * time.Second, 2 * time.Second},
		{time.Millisecond, 2 * time.Second, 1999 * time.Millisecond},
		{1999 * time.Millisecond, 2 * time.Second, time.Millisecond},
		{2 * time.Second, 2 * time.Second, 2 * time.Second},
		{-500 * time.Millisecond, 2 * time.Second, 500 * time.Millisecond},
	} {
		if got := wait(test.since, test.period); got != test.want {
			t.Errorf("%s after the beginning, every %s: %s, want %s", test.since, test.period, got, test.want)
		}
	}
}

// TestBeatsCoincide: every second beat of one second is one of two.
func TestBeatsCoincide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(1234567 * time.Nanosecond)
		time.Sleep(Wait(2 * time.Second))
		if got := Wait(time.Second); got != time.Second {
			t.Errorf("the next beat of a second comes after %s", got)
		}
	})
}
