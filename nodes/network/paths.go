package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// paths is what the kernel is to know of the ways to peers. Plain data.
type paths struct {
	routes map[netip.Prefix]hop
	// link is the index of a VXLAN link, 0 for none. Its tables are:
	link int
	// neighbours: next hop → hardware address.
	neighbours map[netip.Addr]hardware
	// forwards: hardware address → the node that has it.
	forwards map[hardware]netip.Addr
}

type hardware [6]byte

func (h hardware) addr() net.HardwareAddr { return h[:] }

// hop is the first step to a range of pods.
type hop struct {
	link int
	// via is invalid on a link without next hops.
	via netip.Addr
	// onLink: via is on the link though no address says so.
	onLink bool
}

func newPaths() *paths {
	return &paths{routes: map[netip.Prefix]hop{}, neighbours: map[netip.Addr]hardware{}, forwards: map[hardware]netip.Addr{}}
}

// lay makes the kernel's tables say what want says. What leads to a peer comes
// before the route there, and goes after it.
func (n *Network) lay(want *paths) error {
	stale, err := n.layTables(want)
	if err != nil {
		return err
	}
	if err := n.layRoutes(want.routes); err != nil {
		return err
	}
	var errs []error
	for i := range stale {
		if err := n.host.NeighDel(&stale[i]); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("forget the way to %s: %w", stale[i].HardwareAddr, err))
		}
	}
	return errors.Join(errs...)
}

// layTables enters what lacks in the tables of the VXLAN link and gives what
// is too much.
func (n *Network) layTables(want *paths) (stale []netlink.Neigh, err error) {
	n.tables.Store(int32(want.link))
	if want.link == 0 {
		return nil, nil
	}
	forwards, surplus, err := n.forwards(want)
	if err != nil {
		return nil, err
	}
	stale = surplus
	for mac, node := range want.forwards {
		if forwards[mac] == node {
			continue
		}
		entry := &netlink.Neigh{
			LinkIndex: want.link, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT | netlink.NUD_NOARP,
			Flags: netlink.NTF_SELF, IP: node.AsSlice(), HardwareAddr: mac.addr(),
		}
		if err := n.host.NeighSet(entry); err != nil {
			return nil, fmt.Errorf("enter that %s is at node %s: %w", mac.addr(), node, err)
		}
	}
	neighbours, surplus, err := n.neighbours(want)
	if err != nil {
		return nil, err
	}
	stale = append(stale, surplus...)
	for via, mac := range want.neighbours {
		if neighbours[via] == mac {
			continue
		}
		entry := &netlink.Neigh{
			LinkIndex: want.link, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
			IP: via.AsSlice(), HardwareAddr: mac.addr(),
		}
		if err := n.host.NeighSet(entry); err != nil {
			return nil, fmt.Errorf("enter that %s is %s: %w", via, mac.addr(), err)
		}
	}
	return stale, nil
}

// forwards reads the forwarding table: what it has of want, and the rest.
func (n *Network) forwards(want *paths) (have map[hardware]netip.Addr, surplus []netlink.Neigh, err error) {
	entries, err := n.host.NeighList(want.link, unix.AF_BRIDGE)
	if err != nil {
		return nil, nil, fmt.Errorf("list the overlay's forwarding entries: %w", err)
	}
	have = make(map[hardware]netip.Addr, len(entries))
	for _, e := range entries {
		if len(e.HardwareAddr) != len(hardware{}) {
			continue
		}
		mac := hardware(e.HardwareAddr)
		node, _ := netip.AddrFromSlice(e.IP)
		node = node.Unmap()
		if _, wanted := want.forwards[mac]; !wanted {
			e.LinkIndex, e.Family, e.Flags = want.link, unix.AF_BRIDGE, netlink.NTF_SELF
			surplus = append(surplus, e)
			continue
		}
		have[mac] = node
	}
	return have, surplus, nil
}

// neighbours reads the lasting entries of the neighbour table: what it has of
// want, and the rest.
func (n *Network) neighbours(want *paths) (have map[netip.Addr]hardware, surplus []netlink.Neigh, err error) {
	entries, err := n.host.NeighList(want.link, unix.AF_INET)
	if err != nil {
		return nil, nil, fmt.Errorf("list the overlay's neighbours: %w", err)
	}
	have = make(map[netip.Addr]hardware, len(entries))
	for _, e := range entries {
		via, ok := netip.AddrFromSlice(e.IP)
		if !ok || e.State&netlink.NUD_PERMANENT == 0 || len(e.HardwareAddr) != len(hardware{}) {
			continue
		}
		via = via.Unmap()
		if _, wanted := want.neighbours[via]; !wanted {
			surplus = append(surplus, e)
			continue
		}
		have[via] = hardware(e.HardwareAddr)
	}
	return have, surplus, nil
}

// layRoutes makes our routes be these.
func (n *Network) layRoutes(want map[netip.Prefix]hop) error {
	have, err := n.host.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes to other nodes: %w", err)
	}
	right := map[netip.Prefix]bool{}
	var stale []netlink.Route
	for _, r := range have {
		to, ok := prefixOf(r.Dst)
		step, wanted := want[to]
		switch {
		case !ok || !wanted:
			stale = append(stale, r)
		case sameRoute(r, n.route(to, step)):
			right[to] = true
		}
	}
	for to, step := range want {
		if right[to] {
			continue
		}
		if err := n.host.RouteReplace(n.route(to, step)); err != nil {
			return fmt.Errorf("set the route to the pods of %s: %w", to, err)
		}
	}
	for i := range stale {
		if err := n.host.RouteDel(&stale[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route to the pods of %s: %w", stale[i].Dst, err)
		}
	}
	return nil
}

// route comes from the gateway's address, so that what the node itself sends
// to a pod is answered the same way.
func (n *Network) route(to netip.Prefix, step hop) *netlink.Route {
	r := &netlink.Route{LinkIndex: step.link, Dst: ipNet(to), Src: n.gateway.AsSlice(), Protocol: routeProtocol, Scope: netlink.SCOPE_LINK}
	if step.via.IsValid() {
		r.Gw, r.Scope = step.via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if step.onLink {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	return r
}

func sameRoute(a netlink.Route, b *netlink.Route) bool {
	const onLink = int(netlink.FLAG_ONLINK)
	return a.LinkIndex == b.LinkIndex && a.Scope == b.Scope && a.Gw.Equal(b.Gw) && bytes.Equal(a.Src.To4(), b.Src.To4()) &&
		a.Flags&onLink == b.Flags&onLink
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

// quiet keeps a link of ours from speaking IPv6 to nobody. A kernel without
// IPv6 has nothing to quiet.
func quiet(link string) {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", []byte("1"), 0o644)
}
