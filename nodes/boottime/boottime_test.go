package boottime

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestNowCountsFromTheBoot(t *testing.T) {
	before := Now()
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	after := Now()
	if after < before {
		t.Errorf("the clock went back from %s to %s", before, after)
	}
	// The kernel counts its uptime by the same clock, in whole seconds.
	if up := int64(info.Uptime); up < int64(before.Seconds())-1 || up > int64(after.Seconds())+1 {
		t.Errorf("up for %d s, the clock says %s", up, after)
	}
}
