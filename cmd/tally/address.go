package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tallyman-dev/tallyman/nodes/beat"
)

// lookForAddr is how often an agent looks whether its node's address is
// another one: a dump of few routes and addresses.
const lookForAddr = 5 * time.Second

// loopback is the address of a machine that has no way out: it still has itself.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// nodeAddrs are the addresses of this node, the preferred one first.
func nodeAddrs(flag string) ([]netip.Addr, error) {
	if flag != "" {
		addr, err := netip.ParseAddr(flag)
		if err != nil {
			return nil, usageError{fmt.Errorf("--node-ip: %w", err)}
		}
		return []netip.Addr{addr}, nil
	}
	addr, err := outwardAddr()
	if err != nil {
		return nil, err
	}
	if !addr.IsValid() {
		addr = loopback
	}
	return []netip.Addr{addr}, nil
}

// outwardAddr is the address on the link of the default route, invalid while
// there is none.
func outwardAddr() (netip.Addr, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the default route: %w; --node-ip tells the address", err)
	}
	for _, route := range routes {
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil {
			continue
		}
		for _, addr := range addrsOf(link) {
			if addr.IsGlobalUnicast() {
				return addr, nil
			}
		}
	}
	return netip.Addr{}, nil
}

// addrsOf lists the addresses of a link, of all links when it is nil.
func addrsOf(link netlink.Link) []netip.Addr {
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return nil
	}
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// newAddr is the address that a node should have instead of the one it has:
// the first one of a machine that had none, or another when the machine lost
// it. It is invalid when the node keeps what it has; a machine that is cut off
// for a while, or has got one more way out, keeps it.
func newAddr(has netip.Addr) (netip.Addr, error) {
	found, err := outwardAddr()
	if err != nil || !found.IsValid() || found == has {
		return netip.Addr{}, err
	}
	if has != loopback {
		for _, addr := range addrsOf(nil) {
			if addr == has {
				return netip.Addr{}, nil
			}
		}
	}
	return found, nil
}

// watchAddr ends with errNetworkChanged when the node has another address than
// it was wired with: a machine may start before its network does.
func (n *node) watchAddr(ctx context.Context) error {
	tick := time.NewTimer(beat.Wait(lookForAddr))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			tick.Reset(beat.Wait(lookForAddr))
		}
		addr, err := newAddr(n.addrs[0])
		if err != nil {
			n.log.Warn("cannot tell whether the node's address changed", "error", err)
			continue
		}
		if addr.IsValid() {
			n.log.Info("the node has another address: starting the agent with it", "address", addr, "before", n.addrs[0])
			return errNetworkChanged
		}
	}
}
