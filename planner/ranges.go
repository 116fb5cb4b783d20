package planner

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/proxy"
)

// rangeBits is the size of each node's range of pod addresses.
const rangeBits = 24

// podCIDR is the range that the node has; invalid before it has one.
func (n *node) podCIDR() netip.Prefix {
	p, err := netip.ParsePrefix(n.kept.PodCIDR)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// holdRange notes whose range it is. What is recorded first wins.
func (st *step) holdRange(n *node) {
	p := n.podCIDR()
	if !p.IsValid() {
		return
	}
	if other, taken := st.ranges.Get(p); taken && other != n.Name {
		n.kept.PodCIDR = ""
		return
	}
	st.ranges = st.ranges.Set(p, n.Name)
}

// giveRanges gives a range to each node that has none: the one that it uses
// already, if that is nobody else's, else the smallest that is free. The nodes
// that use one come first; of two that use the same, the record decides, and
// else the name that sorts first.
func (st *step) giveRanges() {
	waiting := keysOf(st.rangeless)
	for _, name := range waiting {
		if n, ok := st.nodes.Get(name); ok && st.mayHave(n) {
			st.giveRange(n, n.PodCIDR)
		}
	}
	for _, name := range waiting {
		if n, ok := st.nodes.Get(name); ok && n.reported && !n.podCIDR().IsValid() {
			st.giveFreeRange(n)
		}
	}
}

func (st *step) giveFreeRange(n *node) {
	free, found := st.freeRange()
	if found {
		st.giveRange(n, free)
	}
	other, taken := st.ranges.Get(n.PodCIDR)
	switch {
	case taken:
		st.sayOfRange(n, n.PodCIDR.String()+" is the range of node "+other+": what has an address of it there is not reached from other nodes")
	case !found:
		st.sayOfRange(n, st.noRangeLeft())
	}
}

// sayOfRange tells once why a node does not have the range that it should.
func (st *step) sayOfRange(n *node, why string) {
	if n.rangeTrouble == why {
		return
	}
	n = st.nodeFor(n.Name)
	n.rangeTrouble = why
	st.nodes = st.nodes.Set(n.Name, n)
	st.event(nodeKey(n.Name), true, "CIDRNotAvailable", "Node "+n.Name+": "+why)
}

// noRangeLeft says why a node has no range, and what helps.
func (s *State) noRangeLeft() string {
	return fmt.Sprintf("all %d ranges of %s are given: remove nodes that are gone for good; how many there can be follows from podCIDR, which is fixed after first use",
		1<<(s.bitsOfRange()-s.network.Pods.Bits()), s.network.Pods)
}

// mayHave reports whether a node may keep the range that it reports.
func (s *State) mayHave(n *node) bool {
	p := n.PodCIDR
	if n.podCIDR().IsValid() || !n.reported || !p.IsValid() || p != p.Masked() || p.Bits() != s.bitsOfRange() || !s.network.Pods.Contains(p.Addr()) {
		return false
	}
	_, taken := s.ranges.Get(p)
	return !taken
}

func (s *State) bitsOfRange() int { return max(s.network.Pods.Bits(), rangeBits) }

func (st *step) giveRange(n *node, p netip.Prefix) {
	clone := *n
	clone.kept.Name, clone.kept.PodCIDR, clone.rangeTrouble = n.Name, p.String(), ""
	st.ranges = st.ranges.Set(p, n.Name)
	st.rangeless = st.rangeless.Delete(n.Name)
	st.recordMachine(&clone)
	st.dirtyNodes[n.Name] = true
	st.putNode(&clone)
}

// freeRange is the smallest that no node has.
func (st *step) freeRange() (netip.Prefix, bool) {
	bits := st.bitsOfRange()
	base := binary.BigEndian.Uint32(st.network.Pods.Masked().Addr().AsSlice())
	for ; st.taken < 1<<(bits-st.network.Pods.Bits()); st.taken++ {
		var addr [4]byte
		binary.BigEndian.PutUint32(addr[:], base+uint32(st.taken)<<(32-bits))
		p := netip.PrefixFrom(netip.AddrFrom4(addr), bits)
		if _, taken := st.ranges.Get(p); !taken {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// peer is what all nodes must know of one; ok is false while there is no way to
// its pods.
func (n *node) peer() (p proxy.Node, ok bool) {
	p = proxy.Node{Name: n.Name, PodCIDR: n.podCIDR(), Zone: n.state.Labels[corev1.LabelTopologyZone]}
	if !n.lacksKey() {
		p.WireGuard = n.wireGuardKey()
	}
	if len(n.Addrs) > 0 {
		p.Addr = n.Addrs[0]
	}
	return p, p.PodCIDR.IsValid() && p.Addr.IsValid()
}

// putPeer keeps the route table's list of nodes.
func (st *step) putPeer(n *node) {
	p, is := n.peer()
	i, was := slices.BinarySearchFunc(st.peers, p, proxy.Node.Compare)
	switch {
	case is && was && st.peers[i] == p, !is && !was:
		return
	case is && was:
		st.peers = slices.Clone(st.peers)
		st.peers[i] = p
	case is:
		st.peers = slices.Insert(slices.Clip(st.peers), i, p)
	default:
		st.peers = slices.Delete(slices.Clone(st.peers), i, i+1)
	}
	st.routesChanged = true
}
