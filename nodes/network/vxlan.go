package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vni is the number of our VXLAN: the port's, so that both are ours alone.
const vni = VXLANPort

// tunnelEnd is the hardware address of a node's VXLAN link. It follows from
// the node's range, so that nodes need not tell each other.
func tunnelEnd(pods netip.Prefix) hardware {
	b := pods.Masked().Addr().As4()
	return hardware{0x02, 0x7b, b[0], b[1], b[2], b[3]}
}

// vxlan leads through the VXLAN link: range → the peer's gateway as next hop →
// its hardware address → its node.
func (n *Network) vxlan(want *paths, missed *Unreachable) error {
	link, err := n.vxlanLink()
	if err != nil {
		return err
	}
	want.link = link.Attrs().Index
	for _, p := range n.peers {
		if !p.Addr.IsValid() || p.Addr.Unmap().Is4() != n.o.NodeAddr.Unmap().Is4() {
			missed.add("node %s at %s cannot be reached from %s: both need an address of the same family (--node-ip)", p.Name, p.Addr, n.o.NodeAddr)
			continue
		}
		via, mac := gatewayOf(p.PodCIDR), tunnelEnd(p.PodCIDR)
		want.routes[p.PodCIDR.Masked()] = hop{link: want.link, via: via, onLink: true}
		want.neighbours[via] = mac
		want.forwards[mac] = p.Addr.Unmap()
	}
	return nil
}

// vxlanLink finds the link as it should be, or makes it anew.
func (n *Network) vxlanLink() (netlink.Link, error) {
	name := n.overlayLink(VXLAN)
	if !n.o.NodeAddr.IsValid() || n.o.NodeAddr.IsLoopback() {
		return nil, errors.New("this node has no address that others could reach: --node-ip tells one")
	}
	link, err := n.host.LinkByName(name)
	if err == nil && !n.isOurVXLAN(link) {
		if err := removeLink(n.host, name); err != nil {
			return nil, err
		}
		link = nil
	}
	if missing(err) || err == nil && link == nil {
		link, err = n.makeVXLAN(name)
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return link, n.setOverlayUp(link)
}

func (n *Network) isOurVXLAN(link netlink.Link) bool {
	v, ok := link.(*netlink.Vxlan)
	return ok && v.VxlanId == vni && v.Port == VXLANPort && !v.Learning && len(v.Group) == 0 &&
		v.SrcAddr.Equal(n.o.NodeAddr.Unmap().AsSlice()) && v.HardwareAddr.String() == tunnelEnd(n.o.PodCIDR).addr().String()
}

// makeVXLAN makes a link that neither learns nor floods: it knows the entries
// of its tables and nothing else.
func (n *Network) makeVXLAN(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, n.MTU(), tunnelEnd(n.o.PodCIDR).addr()
	err := n.host.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: vni, Port: VXLANPort, SrcAddr: n.o.NodeAddr.Unmap().AsSlice(), Learning: false,
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, errors.New("this kernel has no VXLAN (module vxlan): choose another spec.network.overlay")
	case errors.Is(err, unix.EADDRINUSE), errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("make link %s: UDP port %d is in use on this node: %w", name, VXLANPort, err)
	case err != nil:
		return nil, fmt.Errorf("make link %s: %w", name, err)
	}
	n.log.Info("made the link to other nodes", "link", name, "overlay", VXLAN, "vni", vni, "port", VXLANPort, "mtu", n.MTU())
	return n.host.LinkByName(name)
}
