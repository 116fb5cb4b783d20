package proxytest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/proxy"
)

// Main runs a package's tests in network and mount namespaces of their own,
// which end with the process: the tests' node. Call it from TestMain.
func Main(m *testing.M) {
	const inside = "TALLY_TEST_NODE"
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in namespaces of their own:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// The addresses of the world.
var (
	nodeAddr    = netip.MustParseAddr("192.0.2.1")
	outsideAddr = netip.MustParseAddr("192.0.2.2")
	gateway     = netip.MustParseAddr("10.244.1.1")
	podCIDR     = netip.MustParsePrefix("10.244.1.0/24")
	remotePod   = netip.MustParseAddr("10.244.2.10")
	nearbyPod   = netip.MustParseAddr("10.244.2.11")
	deadPod     = netip.MustParseAddr("10.244.2.12") // nobody has it
	remoteCIDR  = netip.MustParsePrefix("10.244.2.0/24")
	clusterCIDR = netip.MustParsePrefix("10.244.0.0/16")
	serviceCIDR = netip.MustParsePrefix("10.96.0.0/16")
	everywhere  = netip.MustParsePrefix("0.0.0.0/0")
)

const (
	bridge   = "tt-br0"
	nodeName = "here"
	// nearby is a node of the same zone, elsewhere one of another.
	nearby, elsewhere = "nearby", "elsewhere"
)

// nodes are those of the cluster, with their zones.
func (w *World) nodes() []proxy.Node {
	return []proxy.Node{
		{Name: elsewhere, Zone: "other"}, {Name: nodeName, Addr: nodeAddr, PodCIDR: podCIDR, Zone: "own"}, {Name: nearby, Zone: "own"},
	}
}

// World is one node with a bridge for its pods, a machine outside, and, on
// that machine, the pod of another node.
type World struct {
	t testing.TB
	// Node is the process's own place.
	Node *Place
	// Outside is a client that is no pod; it holds the addresses of pods of two
	// other nodes too.
	Outside *Place
	pods    int
}

// Place is a network namespace to serve in and to ask from.
type Place struct {
	w    *World
	Name string
	IP   netip.Addr
	ns   netns.NsHandle // closed handle: the process's own
}

// NewWorld builds the world; it goes with the test.
func NewWorld(t testing.TB) *World {
	t.Helper()
	w := &World{t: t}
	w.Node = &Place{w: w, Name: "node", IP: nodeAddr, ns: netns.None()}
	w.must(up("lo"))
	settings := map[string]string{
		"ip_forward": "1", "conf/all/rp_filter": "1", "conf/default/rp_filter": "1", // the stricter setting
		"icmp_ratelimit": "0", // the tests meet more refusals than a client in its right mind
	}
	for file, value := range settings {
		w.must(os.WriteFile("/proc/sys/net/ipv4/"+file, []byte(value), 0o644))
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	w.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	t.Cleanup(func() { remove(bridge) })
	w.must(address(bridge, netip.PrefixFrom(gateway, podCIDR.Bits())))
	w.Outside = w.place("outside", outsideAddr, "")
	w.must(address("tt-outside", netip.PrefixFrom(nodeAddr, 24)))
	w.must(route("tt-outside", remoteCIDR, outsideAddr))
	w.must(route("tt-outside", everywhere, outsideAddr))
	w.Outside.Do(func() error {
		return errors.Join(address("eth0", netip.PrefixFrom(outsideAddr, 24)),
			address("lo", netip.PrefixFrom(remotePod, 32)), address("lo", netip.PrefixFrom(nearbyPod, 32)), route("eth0", everywhere, nodeAddr))
	})
	return w
}

func (w *World) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// Pod adds a pod to the node.
func (w *World) Pod(name string) *Place {
	w.t.Helper()
	w.pods++
	ip := podCIDR.Addr()
	for range 9 + w.pods {
		ip = ip.Next()
	}
	p := w.place(name, ip, bridge)
	p.Do(func() error {
		return errors.Join(address("eth0", netip.PrefixFrom(ip, 32)),
			route("eth0", netip.PrefixFrom(gateway, 32), netip.Addr{}), route("eth0", everywhere, gateway))
	})
	return p
}

// place makes a namespace whose eth0 is linked to tt-NAME on the node.
func (w *World) place(name string, ip netip.Addr, master string) *Place {
	w.t.Helper()
	p := &Place{w: w, Name: name, IP: ip}
	w.must(thread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make namespace of %s: %w", name, err)
		}
		ns, err := netns.Get()
		p.ns = ns
		return err
	}))
	w.t.Cleanup(func() { p.ns.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "tt-" + name
	w.must(netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.ns), PeerTxQLen: -1,
	}))
	w.t.Cleanup(func() { remove(attrs.Name) })
	if master != "" {
		link, err := netlink.LinkByName(attrs.Name)
		w.must(err)
		to, err := netlink.LinkByName(master)
		w.must(err)
		w.must(netlink.LinkSetMaster(link, to))
		w.must(netlink.LinkSetHairpin(link, true))
	}
	w.must(up(attrs.Name))
	p.Do(func() error { return errors.Join(up("lo"), up("eth0")) })
	return p
}

// Do runs f in the place, on a thread of its own.
func (p *Place) Do(f func() error) {
	p.w.t.Helper()
	if err := p.try(f); err != nil {
		p.w.t.Fatalf("in %s: %v", p.Name, err)
	}
}

func (p *Place) try(f func() error) error {
	return thread(func() error {
		if p.ns.IsOpen() {
			if err := netns.Set(p.ns); err != nil {
				return err
			}
		}
		return f()
	})
}

// thread runs f on a thread that ends with it, never the process's first.
func thread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- thread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func address(name string, prefix netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(prefix)}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func route(name string, to netip.Prefix, via netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to)}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	return netlink.RouteReplace(r)
}

func remove(name string) {
	if link, err := netlink.LinkByName(name); err == nil {
		_ = netlink.LinkDel(link)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Local describes the world's node to a backend.
func (w *World) Local() proxy.Local {
	return proxy.Local{
		Node: nodeName, NodeAddrs: []netip.Addr{nodeAddr},
		PodCIDR: podCIDR, ClusterCIDR: clusterCIDR, ServiceCIDR: serviceCIDR, Bridge: bridge,
	}
}

// Eventually polls until f gives no error.
func Eventually(t testing.TB, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
