package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// What the overlays put around a packet, in bytes: WireGuard a UDP header, its
// own of 16 and a tag of 16; VXLAN a UDP header, its own of 8 and the inner
// Ethernet header of 14. An IPv4 or IPv6 header comes on top.
const (
	ipv4Header      = 20
	ipv6Header      = 40
	udpHeader       = 8
	vxlanHeaders    = udpHeader + 8 + 14
	wireguardHeader = udpHeader + 16 + 16
)

// minMTU is the least that every IPv4 host must take (RFC 791).
const minMTU = 576

// overhead is what the overlay adds to a packet on the uplink.
func overhead(overlay string, node netip.Addr) int {
	outer := ipv4Header
	if node.Is6() && !node.Is4In6() {
		outer = ipv6Header
	}
	switch overlay {
	case VXLAN:
		return outer + vxlanHeaders
	case WireGuard:
		return outer + wireguardHeader
	}
	return 0
}

// fittingMTU is the largest at which a pod's packet to another node needs no
// fragmentation.
func (n *Network) fittingMTU() int {
	if n.o.MTU > 0 {
		return n.o.MTU
	}
	return max(n.uplinkMTU()-overhead(n.o.Overlay, n.o.NodeAddr), minMTU)
}

// uplinkMTU is that of the link which packets to other nodes leave by.
func (n *Network) uplinkMTU() int {
	const usual = 1500
	if link := n.uplink(); link != nil && link.Attrs().MTU > 0 {
		return link.Attrs().MTU
	}
	return usual
}

// uplink has the node's address, or else the default route; nil when there is none.
func (n *Network) uplink() netlink.Link {
	if n.o.NodeAddr.IsValid() && !n.o.NodeAddr.IsLoopback() {
		addrs, _ := n.host.AddrList(nil, netlink.FAMILY_ALL)
		for _, a := range addrs {
			if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.Unmap() == n.o.NodeAddr.Unmap() {
				link, _ := n.host.LinkByIndex(a.LinkIndex)
				return link
			}
		}
	}
	routes, _ := n.host.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_DST)
	for _, r := range routes {
		if link, err := n.host.LinkByIndex(r.LinkIndex); err == nil {
			return link
		}
	}
	return nil
}

// fitMTU gives a link the pods' MTU.
func (n *Network) fitMTU(h *netlink.Handle, link netlink.Link) error {
	if link.Attrs().MTU == n.MTU() {
		return nil
	}
	if err := h.LinkSetMTU(link, n.MTU()); err != nil {
		return fmt.Errorf("set MTU of %s to %d: %w", link.Attrs().Name, n.MTU(), err)
	}
	return nil
}

// fitPod gives both ends of a running pod's link the pods' MTU. The outer end
// tells whether there is anything to do: it is changed last.
func (n *Network) fitPod(uid nodes.UID, outside netlink.Link) error {
	if outside.Attrs().MTU == n.MTU() {
		return nil
	}
	pod, err := n.inside(uid)
	if err != nil {
		return fmt.Errorf("set the MTU of pod %s: %w", uid, err)
	}
	if pod != nil {
		defer pod.Close()
		link, err := pod.LinkByName(podLink)
		if err == nil {
			err = n.fitMTU(pod, link)
		}
		if err != nil && !missing(err) {
			return fmt.Errorf("set the MTU of pod %s: %w", uid, err)
		}
	}
	err = n.fitMTU(n.host, outside)
	if errors.Is(err, unix.ENODEV) {
		return nil // it went meanwhile
	}
	return err
}
