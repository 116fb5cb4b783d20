package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// recoverAddresses takes up the addresses of pods that are here and that the
// store knows nothing of, because it was lost: they are the pods' own, and
// nobody else may get them.
func (n *Network) recoverAddresses() error {
	uids, err := pinned(n.dir)
	if err != nil {
		return err
	}
	for _, uid := range uids {
		if _, known := n.store.get(uid); known {
			continue
		}
		addr, err := n.addressInside(uid)
		if err != nil {
			return fmt.Errorf("look for the address of pod %s: %w", uid, err)
		}
		if !addr.IsValid() {
			continue
		}
		n.log.Info("address of a pod recovered", "uid", uid, "address", addr)
		if err := n.store.keep(uid, addr); err != nil {
			n.log.Warn("recovered address not stored", "uid", uid, "error", err)
		}
	}
	return nil
}

// addressInside is what the pod's link has; invalid when it has none of ours.
func (n *Network) addressInside(uid nodes.UID) (netip.Addr, error) {
	pod, err := n.inside(uid)
	if pod == nil {
		return netip.Addr{}, err
	}
	defer pod.Close()
	link, err := pod.LinkByName(podLink)
	if missing(err) {
		return netip.Addr{}, nil
	}
	if err != nil {
		return netip.Addr{}, err
	}
	addrs, err := pod.AddrList(link, unix.AF_INET)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok && n.o.PodCIDR.Contains(addr) {
			return addr, nil
		}
	}
	return netip.Addr{}, nil
}

// inside speaks to the pod's network namespace; nil when there is none.
func (n *Network) inside(uid nodes.UID) (*netlink.Handle, error) {
	path := n.pins(uid).existing("net")
	if path == "" {
		return nil, nil
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// keep records an address that a pod has already. It is the pod's even when it
// could not be stored.
func (s *addresses) keep(uid nodes.UID, addr netip.Addr) error {
	s.mu.Lock()
	if _, known := s.byUID[uid]; known || s.used[addr] {
		s.mu.Unlock()
		return nil
	}
	s.byUID[uid], s.used[addr] = addr, true
	if !s.last.IsValid() || s.last.Less(addr) {
		s.last = addr
	}
	done := s.enqueue(uid, addr)
	s.mu.Unlock()
	return <-done
}
