package sim

import (
	"net/netip"

	"github.com/tallyman-dev/tallyman/nodes"
)

// rangesDiffer: invariant 6. No two nodes have one range of pod addresses.
func rangesDiffer(s *step) error {
	holder := map[netip.Prefix]string{}
	for name, n := range s.after.nodes {
		if !n.PodCIDR.IsValid() {
			continue
		}
		if other, twice := holder[n.PodCIDR]; twice {
			return violated(6, "the nodes %s and %s both have range %s", min(name, other), max(name, other), n.PodCIDR)
		}
		holder[n.PodCIDR] = name
	}
	return nil
}

// addressesDiffer: invariant 6. No two pods that run have one address.
func (w *world) addressesDiffer() error {
	holder := map[netip.Addr]nodes.UID{}
	for _, m := range w.nodes {
		for _, c := range m.runtime.running() {
			uid := nodes.UID(c.Labels[labelPod])
			addr := m.network.addrOf(uid)
			if other, twice := holder[addr]; twice && addr.IsValid() && other != uid {
				return violated(6, "the pods %s and %s both have address %s", other, uid, addr)
			}
			holder[addr] = uid
		}
	}
	return nil
}
