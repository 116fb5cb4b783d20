//go:build e2e

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/proxy"
)

// wireguardSite has WireGuard of the kernel where there is one, of a program
// where not.
func wireguardSite(t *testing.T, count int) *site {
	s := newSite(t, Routes, count) // the nodes must exist before their links
	s.overlay = WireGuard
	for _, m := range s.members {
		m.o.Overlay = WireGuard
		m.open()
		if !kernelHasWireGuard(t) {
			m.userspace()
		}
	}
	for _, m := range s.members {
		m.tell(s.members...)
	}
	return s
}

func kernelHasWireGuard(t *testing.T) bool {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wg-probe"
	link := &netlink.Wireguard{LinkAttrs: attrs}
	err := netlink.LinkAdd(link)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

func eachOverlay(t *testing.T, count int, test func(*site)) {
	for _, overlay := range []string{VXLAN, Routes} {
		t.Run(overlay, func(t *testing.T) { test(newSite(t, overlay, count)) })
	}
	t.Run(WireGuard, func(t *testing.T) { test(wireguardSite(t, count)) })
}

func TestPodsReachThoseOfOtherNodes(t *testing.T) {
	eachOverlay(t, 3, func(s *site) {
		s.allReach()
		// A node that goes takes its pods' ways along.
		a, gone := s.members[0], s.members[2]
		a.tell(s.members[:2]...)
		s.must(reaches(a, s.members[1]))
		if err := reaches(a, gone); err == nil {
			s.Error("a pod of a node that is no peer any more was reached")
		}
		a.tell(s.members...)
		s.eventually(func() error { return reaches(a, gone) })
		// Alone again: nothing is left of the others.
		a.tell(a)
		if left := a.sees(); left != "" {
			s.Errorf("a node without peers still has\n%s", left)
		}
		if links := a.links(); links[a.n.overlayLink(VXLAN)]+links[a.n.overlayLink(WireGuard)] > 0 {
			s.Errorf("a node without peers has the links %v", links)
		}
	})
}

func TestPodsReachTheOutsideAsTheirNode(t *testing.T) {
	eachOverlay(t, 2, func(s *site) {
		l, err := net.Listen("tcp", outside+":8080")
		s.must(err)
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		for _, m := range s.members {
			s.must(m.pod.try(func() error { return expectAnswer(netip.MustParseAddr(outside), m.addr.String()) }))
		}
		// Another node is outside of the pods' network too.
		a, b := s.members[0], s.members[1]
		b.do(func() error {
			l, err := net.Listen("tcp", b.addr.String()+":8080")
			if err != nil {
				return err
			}
			s.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
					c.Close()
				}
			}()
			return nil
		})
		s.must(a.pod.try(func() error { return expectAnswer(b.addr, a.addr.String()) }))
	})
}

// sendWhole sends a UDP packet of a size, headers included, that nobody may
// fragment, and waits for it at the other end.
func sendWhole(from, to *member, size int) error {
	const headers = ipv4Header + udpHeader
	var l *net.UDPConn
	err := to.pod.try(func() (err error) {
		l, err = net.ListenUDP("udp4", &net.UDPAddr{IP: to.pod.IP.AsSlice()})
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	err = from.pod.try(func() error {
		c, err := net.DialUDP("udp4", nil, l.LocalAddr().(*net.UDPAddr))
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var set error
		if err := raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}); err != nil || set != nil {
			return errors.Join(err, set)
		}
		_, err = c.Write(make([]byte, size-headers))
		return err
	})
	if err != nil {
		return err
	}
	if err := l.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	got, _, err := l.ReadFromUDP(make([]byte, size))
	if err == nil && got != size-headers {
		err = fmt.Errorf("%d bytes arrived of %d", got, size-headers)
	}
	return err
}

// fragments are the counters of packets that the node's kernel cut up or put together.
func (m *member) fragments() string {
	var counters []string
	m.do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n")
		names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
		for i, name := range names {
			if strings.HasPrefix(name, "Frag") || strings.HasPrefix(name, "Reasm") {
				counters = append(counters, name+" "+values[i])
			}
		}
		return nil
	})
	if len(counters) < 7 {
		m.site.Fatalf("the kernel counts %v only", counters)
	}
	return strings.Join(counters, ", ")
}

func TestTheLargestPacketPassesWhole(t *testing.T) {
	want := map[string]int{VXLAN: 1450, Routes: 1500, WireGuard: 1440}
	eachOverlay(t, 2, func(s *site) {
		a, b := s.members[0], s.members[1]
		if a.n.MTU() != want[s.overlay] {
			s.Errorf("MTU %d, want %d", a.n.MTU(), want[s.overlay])
		}
		before := []string{a.fragments(), b.fragments()}
		s.must(sendWhole(a, b, a.n.MTU()))
		s.must(sendWhole(b, a, a.n.MTU()))
		if err := sendWhole(a, b, a.n.MTU()+1); !errors.Is(err, unix.EMSGSIZE) {
			s.Errorf("a packet larger than the MTU: %v, want that the pod is told", err)
		}
		for i, m := range s.members {
			if now := m.fragments(); now != before[i] {
				s.Errorf("node %d had fragments: %s, before %s", m.number, now, before[i])
			}
		}
	})
}

func TestAnotherUplinkMTUReachesRunningPods(t *testing.T) {
	s := newSite(t, VXLAN, 2)
	a, b := s.members[0], s.members[1]
	for _, m := range s.members {
		m.run()
	}
	c := a.hold(b)
	for _, uplink := range []int{1400, 1500} {
		for _, m := range s.members {
			m.do(func() error {
				eth0, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.LinkSetMTU(eth0, uplink)
			})
		}
		for _, m := range s.members {
			s.eventually(func() error { return m.podsHave(uplink - 50) })
		}
		s.must(sendWhole(a, b, uplink-50))
		s.must(c.echoes())
	}
}

// podsHave looks whether the pod's link and those that it leads over have an MTU.
func (m *member) podsHave(mtu int) error {
	check := func(name string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().MTU != mtu {
			return fmt.Errorf("%s has MTU %d, want %d", name, link.Attrs().MTU, mtu)
		}
		return nil
	}
	err := m.pod.try(func() error { return check(podLink) })
	return errors.Join(err, m.try(func() error {
		err := errors.Join(check(m.o.Bridge), check(linkName(m.pod.UID)))
		if over := m.n.overlayLink(m.o.Overlay); over != "" {
			err = errors.Join(err, check(over))
		}
		return err
	}))
}

// held is a connection from a pod to another.
type held struct{ a, b net.Conn }

func (m *member) hold(to *member) held {
	var l net.Listener
	var c held
	m.site.must(to.pod.try(func() (err error) {
		l, err = net.Listen("tcp", "0.0.0.0:9090")
		return err
	}))
	defer l.Close()
	m.site.must(m.pod.try(func() (err error) {
		c.a, err = net.DialTimeout("tcp", to.pod.IP.String()+":9090", 5*time.Second)
		return err
	}))
	var err error
	c.b, err = l.Accept()
	m.site.must(err)
	m.site.Cleanup(func() { c.a.Close(); c.b.Close() })
	return c
}

// echoes sends what fills many packets over the connection.
func (c held) echoes() error {
	deadline := time.Now().Add(10 * time.Second)
	if err := errors.Join(c.a.SetDeadline(deadline), c.b.SetDeadline(deadline)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.a.Write(make([]byte, 100_000))
		sent <- err
	}()
	for left, buf := 100_000, make([]byte, 65536); left > 0; {
		n, err := c.b.Read(buf)
		if err != nil {
			return fmt.Errorf("%d bytes are missing: %w", left, err)
		}
		left -= n
	}
	return <-sent
}

func TestTheNextProcessAdoptsThePeers(t *testing.T) {
	eachOverlay(t, 2, func(s *site) {
		a, b := s.members[0], s.members[1]
		c := a.hold(b)
		links, sees := a.links(), a.sees()
		a.open()
		if now := a.sees(); now != sees {
			s.Errorf("before the next process hears of peers it has\n%s\nwant\n%s", now, sees)
		}
		a.tell(s.members...)
		if now := a.sees(); now != sees {
			s.Errorf("the next process has\n%s\nwant\n%s", now, sees)
		}
		for name, index := range a.links() {
			if links[name] != index {
				s.Errorf("link %s was made anew", name)
			}
		}
		s.must(c.echoes())
		s.allReach()
	})
}

func TestAnotherOverlayTakesOver(t *testing.T) {
	s := newSite(t, VXLAN, 2)
	a, b := s.members[0], s.members[1]
	c := a.hold(b)
	for _, overlay := range []string{Routes, VXLAN} {
		for _, m := range s.members {
			m.o.Overlay = overlay
			m.open()
			m.tell(s.members...)
		}
		s.must(c.echoes())
		s.allReach()
		for _, m := range s.members {
			s.must(m.podsHave(m.n.MTU()))
			if _, has := m.links()[m.n.overlayLink(VXLAN)]; has != (overlay == VXLAN) {
				s.Errorf("node %d with overlay %s: VXLAN link %v", m.number, overlay, has)
			}
		}
	}
	if a.n.MTU() == 1500 {
		s.Error("the last overlay's MTU is the first one's")
	}
}

func TestWaysToPeersAreRepaired(t *testing.T) {
	ip := func(format string, args ...any) func(*member) error {
		return func(m *member) error {
			command := strings.ReplaceAll(fmt.Sprintf(format, args...), "LINK", m.n.overlayLink(m.o.Overlay))
			out, err := exec.Command("sh", "-c", command).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", command, err, out)
			}
			return nil
		}
	}
	always := map[string]func(*member) error{
		"routes flushed": ip("ip route flush proto %d", routeProtocol),
	}
	vxlan := map[string]func(*member) error{
		"link down":          ip("ip link set LINK down"),
		"link removed":       ip("ip link del LINK"),
		"neighbours flushed": ip("ip neigh flush dev LINK nud permanent"),
		"forwarding flushed": ip("bridge fdb del $(bridge fdb show dev LINK | cut -d' ' -f1) dev LINK"),
	}
	for _, overlay := range []string{VXLAN, Routes} {
		t.Run(overlay, func(t *testing.T) {
			s := newSite(t, overlay, 2)
			a, b := s.members[0], s.members[1]
			before := a.sees()
			a.run()
			damages := []map[string]func(*member) error{always}
			if overlay == VXLAN {
				damages = append(damages, vxlan)
			}
			for _, set := range damages {
				for name, damage := range set {
					a.do(func() error { return damage(a) })
					s.eventually(func() error {
						if now := a.sees(); now != before {
							return fmt.Errorf("%s: now\n%s\nwant\n%s", name, now, before)
						}
						return reaches(a, b)
					})
				}
			}
		})
	}
}

func TestNothingIsFlooded(t *testing.T) {
	s := newSite(t, VXLAN, 2)
	a, b := s.members[0], s.members[1]
	if diff := a.sees(); strings.Contains(diff, "00:00:00:00:00:00") {
		s.Errorf("an entry for everybody:\n%s", diff)
	}
	sent := func() (packets uint64) {
		a.do(func() error {
			link, err := netlink.LinkByName(a.n.overlayLink(VXLAN))
			if err == nil {
				packets = link.Attrs().Statistics.TxPackets
			}
			return err
		})
		return packets
	}
	s.must(reaches(a, b))
	before := sent()
	// Nobody has these: a range that no node has, and a next hop of the right link that nobody is.
	a.do(func() error {
		return exec.Command("ip", "route", "add", "10.244.77.0/24", "via", "10.244.77.1", "dev", a.n.overlayLink(VXLAN), "onlink").Run()
	})
	_ = a.pod.try(func() error { _, err := net.DialTimeout("tcp", "10.244.77.5:80", time.Second); return err })
	if now := sent(); now != before {
		s.Errorf("%d packets left for pods that nobody has", now-before)
	}
}

func TestPlainRoutesNeedASharedLink(t *testing.T) {
	s := newSite(t, Routes, 2)
	a := s.members[0]
	peers := described(s.members)
	far := peers[1]
	far.Name, far.Addr, far.PodCIDR = "far", netip.MustParseAddr("198.51.100.7"), netip.MustParsePrefix("10.244.9.0/24")
	var err error
	a.do(func() error { err = a.n.SetPeers(t.Context(), append(peers, far)); return nil })
	var unreachable *Unreachable
	if !errors.As(err, &unreachable) || len(unreachable.Reasons) != 1 || !strings.Contains(err.Error(), "node far at 198.51.100.7 is not on a link of this node") {
		s.Errorf("a peer behind a router: %v", err)
	}
	s.allReach()
}

func TestAKernelWithoutWireGuardSaysSo(t *testing.T) {
	s := newSite(t, Routes, 2)
	a := s.members[0]
	a.o.Overlay = WireGuard
	a.open()
	err := a.try(func() error { return a.n.SetPeers(t.Context(), described(s.members)) })
	_, made := a.links()[a.n.overlayLink(WireGuard)]
	switch {
	case !made && !errors.Is(err, ErrNoWireGuard):
		s.Errorf("without WireGuard: %v", err)
	case made && !strings.Contains(fmt.Sprint(err), "node node-2 has told no WireGuard key"):
		s.Errorf("with WireGuard, and a peer without a key: %v", err)
	}
	a.do(func() error { return a.n.Setup(t.Context()) }) // the node's own pods can run all the same
	a.add("another")
	info, err := os.Stat(a.o.KeyFile)
	s.must(err)
	if info.Mode().Perm() != 0o600 {
		s.Errorf("the key's file has mode %v", info.Mode())
	}
	key := a.n.PublicKey()
	a.open()
	if a.n.PublicKey() != key {
		s.Error("the next process has another key")
	}
}

// TestManyPeers has a node know as many others as a large cluster has, and one
// of them move.
func TestManyPeers(t *testing.T) {
	const many = 4000
	s := newSite(t, VXLAN, 2)
	a := s.members[0]
	peers := described(s.members)
	for i := range many {
		peers = append(peers, proxy.Node{
			Name: fmt.Sprintf("far-%d", i), Addr: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}),
			PodCIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + i>>8), byte(i), 0}), 24),
		})
	}
	told := func(what string) {
		begun := time.Now()
		a.do(func() error { return a.n.SetPeers(t.Context(), peers) })
		t.Logf("%s: %s", what, time.Since(begun).Round(time.Millisecond))
	}
	told("all are new")
	if lines := strings.Count(a.sees(), "\n") + 1; lines != 3*(many+1) {
		s.Errorf("%d entries, want three for each peer", lines)
	}
	peers[many].Addr = netip.MustParseAddr("203.0.113.1")
	told("one has another address")
	if sees := a.sees(); !strings.Contains(sees, "203.0.113.1") || strings.Count(sees, "\n")+1 != 3*(many+1) {
		s.Error("the peer that moved is not where it is")
	}
	told("nothing changed")
	s.must(reaches(a, s.members[1]))
	peers = peers[:2]
	told("all but one leave")
	if lines := strings.Count(a.sees(), "\n") + 1; lines != 3 {
		s.Errorf("%d entries are left, want three", lines)
	}
}

func TestWithoutARangeNothingIsSetUp(t *testing.T) {
	o := options(t)
	o.PodCIDR = netip.Prefix{}
	n := open(t, o)
	if _, err := n.Add(t.Context(), Sandbox{UID: "a"}); !errors.Is(err, ErrNoRange) {
		t.Errorf("Add: %v", err)
	}
	if _, err := netlink.LinkByName(DefaultBridge); err == nil {
		t.Error("there is a bridge")
	}
	known, err := KnownRange(o.DB, "")
	if err != nil || known.IsValid() {
		t.Errorf("a new node knows the range %s (%v)", known, err)
	}
	o.PodCIDR = netip.MustParsePrefix("10.244.7.0/24")
	add(t, open(t, o), Sandbox{UID: "a"})
	if known, err := KnownRange(o.DB, ""); err != nil || known != o.PodCIDR {
		t.Errorf("a node that had pods of %s knows %s (%v)", o.PodCIDR, known, err)
	}
	o.PodCIDR = netip.Prefix{}
	open(t, o)
	if known, err := KnownRange(o.DB, ""); err != nil || known.String() != "10.244.7.0/24" {
		t.Errorf("a node that was opened without its range knows %s (%v)", known, err)
	}
	fresh := options(t)
	if known, err := KnownRange(fresh.DB, ""); err != nil || known.String() != "10.244.7.0/24" {
		t.Errorf("a node that lost its store knows %s from its bridge (%v)", known, err)
	}
}
