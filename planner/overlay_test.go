package planner

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/tallyman-dev/tallyman/desired"
)

// TestOverlayMayChange: every node hears of it, a restart remembers it, and
// the cluster's addresses stay what they were at first.
func TestOverlayMayChange(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 2))
	w.settle()
	was := w.s.network
	settings := desired.DefaultSettings()
	settings.Network.Overlay, settings.Network.Pods = "wireguard", netip.MustParsePrefix("10.99.0.0/16")
	list := snapshotOf(9, "another overlay", deployment("web", 2))
	next := desired.NewSnapshot(list.Revision(), settings, slices.Collect(list.All()), nil)
	p := w.next(Change{Snapshot: next, Source: w.source})
	if len(p.Assignments) != 2 {
		t.Fatalf("%d nodes were told", len(p.Assignments))
	}
	want := was
	want.Overlay = "wireguard"
	for _, a := range p.Assignments {
		if a.Network != want {
			t.Errorf("node %s was told %+v, want %+v", a.Node, a.Network, want)
		}
	}
	w.restart(true)
	if w.s.network != want {
		t.Errorf("after a restart the network is %+v, want %+v", w.s.network, want)
	}
}
