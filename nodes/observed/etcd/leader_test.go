package etcd

import (
	"errors"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes/boottime"
)

// TestATermThatWasOverStaysOver, although etcd agrees to extend it after all:
// what was not handed out meanwhile would be lost.
func TestATermThatWasOverStaysOver(t *testing.T) {
	for _, c := range []struct {
		name  string
		asked time.Duration // before now
		leads bool
	}{{"in time", 3 * time.Second, true}, {"too late", 5 * time.Second, false}} {
		term := &Term{client: &Client{o: Options{TTL: 4 * time.Second}}}
		term.begin(boottime.Now() - c.asked)
		if term.Leads() != c.leads {
			t.Errorf("%s: leads %v, want %v", c.name, term.Leads(), c.leads)
		}
		if extended := term.extend(boottime.Now()); extended != c.leads || term.Leads() != c.leads {
			t.Errorf("%s: extended %v, leads %v, want %v", c.name, extended, term.Leads(), c.leads)
		}
		if err := term.err(); (err == nil) != c.leads || err != nil && !errors.Is(err, ErrDeposed) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
