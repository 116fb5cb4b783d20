package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// podLink is the name of the link inside a pod.
const podLink = "eth0"

// linkName is the host end of a pod's link: within the fifteen characters that
// the kernel allows, and the same after any crash.
func linkName(uid nodes.UID) string {
	sum := sha256.Sum256([]byte(uid))
	return linkPrefix + hex.EncodeToString(sum[:linkDigest])
}

const linkPrefix = "tally"

func isPodLink(name string) bool {
	return strings.HasPrefix(name, linkPrefix) && len(name) == len(linkPrefix)+2*linkDigest
}

// linkDigest is how much of the hash of a pod's UID names its link, in bytes.
const linkDigest = 5

// hardwareAddr is a local address that follows from the IP address: neighbour
// caches stay right when an address moves to another pod.
func hardwareAddr(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x7a, b[0], b[1], b[2], b[3]}
}

// Add makes the pod's namespaces and link, or repairs what is missing of them.
// An address once given stays the pod's until Remove.
func (n *Network) Add(ctx context.Context, s Sandbox) (Attachment, error) {
	if err := checkUID(s.UID); err != nil {
		return Attachment{}, err
	}
	if err := ctx.Err(); err != nil {
		return Attachment{}, err
	}
	if err := s.checkSysctls(); err != nil {
		return Attachment{}, fmt.Errorf("add pod %s to the network: %w", s.UID, err)
	}
	if !n.ready.Load() {
		return Attachment{}, fmt.Errorf("add pod %s to the network: %w", s.UID, errNotReady)
	}
	stored := func() error { return nil }
	var ip netip.Addr
	if !s.HostNetwork {
		if !n.o.PodCIDR.IsValid() {
			return Attachment{}, fmt.Errorf("add pod %s to the network: %w", s.UID, ErrNoRange)
		}
		var err error
		if ip, stored, err = n.store.take(s.UID); err != nil {
			return Attachment{}, err
		}
	}
	err := onThread(func() error { return n.build(s, ip) })
	if err := errors.Join(err, stored()); err != nil {
		return Attachment{}, fmt.Errorf("add pod %s to the network: %w", s.UID, err)
	}
	if !s.HostNetwork {
		n.mu.Lock()
		n.links[linkName(s.UID)] = s.UID
		n.mu.Unlock()
	}
	return n.attachment(s.UID), nil
}

func checkUID(uid nodes.UID) error {
	if uid == "" || uid == "." || uid == ".." || strings.ContainsAny(string(uid), "/\x00") || len(uid) > 200 {
		return fmt.Errorf("pod uid %q cannot name a directory", uid)
	}
	return nil
}

func (s Sandbox) kinds() []string {
	var kinds []string
	if !s.HostNetwork {
		kinds = append(kinds, "net", "uts")
	}
	if !s.HostIPC {
		kinds = append(kinds, "ipc")
	}
	return kinds
}

// build runs on a thread of its own.
func (n *Network) build(s Sandbox, ip netip.Addr) error {
	created, err := n.pins(s.UID).enter(s.kinds())
	if err != nil {
		return err
	}
	if !s.HostNetwork {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
		}
		if err := n.link(s.UID, ip, created); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Sysctls)) {
		if err := setSysctl(name, s.Sysctls[name]); err != nil {
			return err
		}
	}
	return nil
}

// link makes the pod's eth0 as it should be. The calling thread is in the
// pod's network namespace; n.host speaks to the node's.
func (n *Network) link(uid nodes.UID, ip netip.Addr, created bool) error {
	pod, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer pod.Close()
	if created {
		// As container runtimes have it: programs without privileges may listen on
		// any port of their own network, and ping.
		for name, value := range map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"} {
			if err := setSysctl(name, value); err != nil {
				return err
			}
		}
		// Answers over the gateway must not teach the pod shorter ways.
		for _, name := range []string{"net.ipv4.conf.all.accept_redirects", "net.ipv4.conf.default.accept_redirects"} {
			if err := setSysctl(name, "0"); err != nil {
				return err
			}
		}
	}
	if err := setUp(pod, "lo"); err != nil {
		return err
	}
	if !n.linked(pod, uid, ip) {
		if err := n.plug(pod, uid, ip); err != nil {
			return err
		}
	}
	return n.address(pod, ip)
}

// linked tells whether the pod's link exists, is ours and has both ends.
func (n *Network) linked(pod *netlink.Handle, uid nodes.UID, ip netip.Addr) bool {
	inside, err := pod.LinkByName(podLink)
	if err != nil || inside.Attrs().HardwareAddr.String() != hardwareAddr(ip).String() {
		return false
	}
	outside, err := n.host.LinkByName(linkName(uid))
	return err == nil && outside.Attrs().ParentIndex == inside.Attrs().Index && n.attach(outside) == nil
}

// plug makes the pair of links, after whatever is left of an earlier one.
func (n *Network) plug(pod *netlink.Handle, uid nodes.UID, ip netip.Addr) error {
	name := linkName(uid)
	if err := removeLink(pod, podLink); err != nil {
		return err
	}
	if err := removeLink(n.host, name); err != nil {
		return err
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, n.MTU()
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: podLink, PeerMTU: uint32(n.MTU()),
		PeerHardwareAddr: hardwareAddr(ip), PeerNamespace: netlink.NsFd(ns.Fd()),
		PeerTxQLen: -1,
	}
	if err := n.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	outside, err := n.host.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	return n.attach(outside)
}

// attach hangs a host end on the bridge, if it does not already.
func (n *Network) attach(outside netlink.Link) error {
	bridge, err := n.host.LinkByName(n.o.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.o.Bridge, err)
	}
	attrs := outside.Attrs()
	if attrs.MasterIndex != bridge.Attrs().Index {
		if err := n.host.LinkSetMaster(outside, bridge); err != nil {
			return fmt.Errorf("hang link %s on bridge %s: %w", attrs.Name, n.o.Bridge, err)
		}
		// Needed where the kernel translates addresses within the bridge.
		if err := n.host.LinkSetHairpin(outside, true); err != nil {
			return fmt.Errorf("let link %s answer itself: %w", attrs.Name, err)
		}
	}
	if attrs.Flags&net.FlagUp != 0 {
		return nil
	}
	return wrap(n.host.LinkSetUp(outside), "set link "+attrs.Name+" up")
}

// address gives the pod's link its address and the way out.
func (n *Network) address(pod *netlink.Handle, ip netip.Addr) error {
	link, err := pod.LinkByName(podLink)
	if err != nil {
		return fmt.Errorf("find %s in the pod: %w", podLink, err)
	}
	if err := onlyAddress(pod, link, netip.PrefixFrom(ip, ip.BitLen())); err != nil {
		return err
	}
	if err := n.fitMTU(pod, link); err != nil {
		return err
	}
	if err := pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", podLink, err)
	}
	gateway := n.gateway.AsSlice()
	routes := []netlink.Route{
		{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(n.gateway, n.gateway.BitLen())), Scope: netlink.SCOPE_LINK},
		{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), Gw: gateway},
	}
	for i := range routes {
		if err := pod.RouteReplace(&routes[i]); err != nil {
			return fmt.Errorf("set route to %s in the pod: %w", routes[i].Dst, err)
		}
	}
	return nil
}

// Remove takes the pod's namespaces, link and address away. A pod that is not
// there is no error.
func (n *Network) Remove(ctx context.Context, uid nodes.UID) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	name := linkName(uid)
	n.mu.Lock()
	delete(n.links, name)
	n.mu.Unlock()
	// The address last: nobody may get it while something still answers to it.
	err := errors.Join(n.pins(uid).remove(), n.unplug(ctx, name))
	if err == nil {
		err = n.store.release(uid)
	}
	return wrap(err, "remove pod "+string(uid)+" from the network")
}

// unplug sees a link go whose namespace was let go of. The kernel ends
// namespaces in batches, which for many pods is far cheaper than to remove
// link by link; if a process still holds the namespace, the link is removed.
func (n *Network) unplug(ctx context.Context, name string) error {
	deadline := time.NewTimer(unplugPatience)
	defer deadline.Stop()
	tick := time.NewTicker(unplugPoll)
	defer tick.Stop()
	for {
		if _, err := n.host.LinkByName(name); missing(err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline.C:
			return removeLink(n.host, name)
		case <-tick.C:
		}
	}
}

const (
	// unplugPatience is how long the kernel may take to end a namespace.
	unplugPatience = 300 * time.Millisecond
	unplugPoll     = 4 * time.Millisecond
)
