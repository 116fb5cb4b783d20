//go:build e2e

package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

// outside is the site's own address: a machine that is no node.
const outside = "192.0.2.254"

// site is several nodes, each a network namespace, on one link: a bridge of
// the tests' own namespace.
type site struct {
	*testing.T
	overlay string
	members []*member
}

// member is one of the site's nodes with a pod that serves.
type member struct {
	site   *site
	number int
	addr   netip.Addr
	ns     netns.NsHandle
	o      Options
	n      *Network
	pod    Attachment
}

func newSite(t *testing.T, overlay string, count int) *site {
	t.Helper()
	s := &site{T: t, overlay: overlay}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "site"
	s.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	t.Cleanup(func() { s.must(netlink.LinkDel(&netlink.Bridge{LinkAttrs: attrs})) })
	bridge, err := netlink.LinkByName("site")
	s.must(err)
	s.must(netlink.AddrAdd(bridge, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(outside + "/24"))}))
	s.must(netlink.LinkSetUp(bridge))
	for i := range count {
		s.members = append(s.members, s.join(i+1, bridge))
	}
	for _, m := range s.members {
		m.tell(s.members...)
	}
	return s
}

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// join makes a node, without telling anybody of it.
func (s *site) join(number int, bridge netlink.Link) *member {
	s.Helper()
	m := &member{site: s, number: number, addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(number)})}
	s.must(onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		m.ns, err = netns.Get()
		return err
	}))
	s.Cleanup(func() { m.ns.Close() })
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("site-%d", number), bridge.Attrs().Index
	s.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(m.ns), PeerTxQLen: -1}))
	s.Cleanup(func() { _ = netlink.LinkDel(&netlink.Veth{LinkAttrs: attrs}) })
	end, err := netlink.LinkByName(attrs.Name)
	s.must(err)
	s.must(netlink.LinkSetUp(end))
	m.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for file, value := range map[string]string{"all/rp_filter": "1", "default/rp_filter": "1"} { // the stricter setting
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+file, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return errors.Join(
			netlink.LinkSetUp(lo), netlink.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(m.addr, 24))}), netlink.LinkSetUp(eth0),
			netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(outside)}),
			// As Docker has it.
			exec.Command("iptables", "-P", "FORWARD", "DROP").Run(),
		)
	})
	m.o = options(s.T)
	m.o.PodCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24)
	m.o.MTU, m.o.NodeAddr, m.o.Overlay = 0, m.addr, s.overlay
	m.o.Bridge = fmt.Sprintf("tally%d", number) // userspace WireGuard has one place for all namespaces
	m.o.KeyFile = filepath.Join(s.TempDir(), "wireguard.key")
	m.open()
	m.pod = m.add(nodes.UID(fmt.Sprintf("pod-%d", number)))
	listen(s.T, m.pod)
	s.Cleanup(func() {
		m.do(func() error { return m.n.Close(context.Background()) })
	})
	return m
}

// open makes a Network as a new process would.
func (m *member) open() {
	m.site.Helper()
	m.do(func() (err error) {
		if m.n, err = New(m.o); err != nil {
			return err
		}
		return m.n.Setup(m.site.Context())
	})
}

func (m *member) add(uid nodes.UID) (a Attachment) {
	m.site.Helper()
	m.do(func() (err error) {
		a, err = m.n.Add(m.site.Context(), Sandbox{UID: uid, Hostname: string(uid)})
		return err
	})
	return a
}

// do runs f in the node's namespace.
func (m *member) do(f func() error) {
	m.site.Helper()
	if err := m.try(f); err != nil {
		m.site.Fatalf("on node %d: %v", m.number, err)
	}
}

func (m *member) try(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(m.ns); err != nil {
			return err
		}
		return f()
	})
}

// tell tells the node of its peers.
func (m *member) tell(peers ...*member) {
	m.site.Helper()
	m.do(func() error { return m.n.SetPeers(m.site.Context(), described(peers)) })
}

func described(members []*member) []proxy.Node {
	var out []proxy.Node
	for _, m := range members {
		out = append(out, proxy.Node{Name: fmt.Sprintf("node-%d", m.number), Addr: m.addr, PodCIDR: m.o.PodCIDR, WireGuard: m.n.PublicKey()})
	}
	return out
}

// run has the node watched until the test ends.
func (m *member) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.try(func() error { return m.n.Run(ctx) }) }()
	m.site.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			m.site.Errorf("node %d: Run ended with %v", m.number, err)
		}
	})
}

// links gives the node's links: name → index.
func (m *member) links() map[string]int {
	links := map[string]int{}
	m.do(func() error {
		list, err := netlink.LinkList()
		for _, l := range list {
			links[l.Attrs().Name] = l.Attrs().Index
		}
		return err
	})
	return links
}

// sees describes what the kernel of a node knows of its peers.
func (m *member) sees() string {
	var lines []string
	m.do(func() error {
		handle, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer handle.Close()
		routes, err := handle.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return err
		}
		for _, r := range routes {
			lines = append(lines, fmt.Sprintf("route %s via %s", r.Dst, r.Gw))
		}
		link, err := handle.LinkByName(m.n.overlayLink(VXLAN))
		if err != nil {
			return nil
		}
		for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET} {
			entries, err := handle.NeighList(link.Attrs().Index, family)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if family == unix.AF_BRIDGE || e.State == netlink.NUD_PERMANENT {
					lines = append(lines, fmt.Sprintf("%d: %s %s", family, e.IP, e.HardwareAddr))
				}
			}
		}
		return nil
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// eventually asks until there is no error.
func (s *site) eventually(f func() error) {
	s.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// reaches asks b's pod from a's, and from a itself.
func reaches(a, b *member) error {
	err := a.pod.try(func() error { return expectAnswer(b.pod.IP, fmt.Sprintf("%s %s", b.pod.UID, a.pod.IP)) })
	if err != nil {
		return fmt.Errorf("from %s to %s: %w", a.pod.UID, b.pod.UID, err)
	}
	if err := a.try(func() error { return expectAnswer(b.pod.IP, fmt.Sprintf("%s %s", b.pod.UID, a.n.Gateway())) }); err != nil {
		return fmt.Errorf("from node %d to %s: %w", a.number, b.pod.UID, err)
	}
	return nil
}

func (a Attachment) try(f func() error) error {
	return onThread(func() error {
		if err := join(a.NetNS, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// allReach expects every node and its pod to reach every pod.
func (s *site) allReach() {
	s.Helper()
	for _, a := range s.members {
		for _, b := range s.members {
			if a != b {
				s.must(reaches(a, b))
			}
		}
	}
}

// userspace gives the node a WireGuard link that a program makes over tun, for
// kernels that have none. The Network adopts it.
func (m *member) userspace() {
	name := m.n.overlayLink(WireGuard)
	m.do(func() error {
		link, err := tun.CreateTUN(name, m.n.MTU())
		if err != nil {
			return err
		}
		d := device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
		m.site.Cleanup(d.Close)
		// Its sockets are opened by whoever sets it up: here, in the node's namespace.
		if err := d.Up(); err != nil {
			return err
		}
		file, err := ipc.UAPIOpen(name)
		if err != nil {
			return err
		}
		control, err := ipc.UAPIListen(name, file)
		if err != nil {
			return err
		}
		m.site.Cleanup(func() { control.Close() })
		go func() {
			_ = m.try(func() error {
				for {
					c, err := control.Accept()
					if err != nil {
						return nil
					}
					d.IpcHandle(c)
				}
			})
		}()
		return nil
	})
}
