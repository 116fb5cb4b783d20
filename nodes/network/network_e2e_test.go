//go:build e2e

package network

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestMain runs the tests once more as a node of their own: in a new network
// and mount namespace, which go with the process.
func TestMain(m *testing.M) {
	const inside = "TALLY_TEST_NODE"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "run tests in namespaces of their own:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "set loopback up:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func options(t *testing.T) Options {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return Options{
		PodCIDR:     netip.MustParsePrefix("10.244.3.0/24"),
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"),
		ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		RunDir:      t.TempDir(),
		MTU:         1450,
		DB:          db,
		Log:         slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func open(t *testing.T, o Options) *Network {
	t.Helper()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

func add(t *testing.T, n *Network, s Sandbox) Attachment {
	t.Helper()
	a, err := n.Add(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// in runs f in the pod's network namespace.
func in(t *testing.T, a Attachment, f func() error) {
	t.Helper()
	err := onThread(func() error {
		if err := join(a.NetNS, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		t.Fatalf("in pod %s: %v", a.UID, err)
	}
}

func listen(t *testing.T, a Attachment) {
	t.Helper()
	in(t, a, func() error {
		l, err := net.Listen("tcp", "0.0.0.0:8080")
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s %s", a.UID, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		return nil
	})
}

func ask(addr netip.Addr) (string, error) {
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(addr, 8080).String(), 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	var b bytes.Buffer
	_, err = b.ReadFrom(c)
	return b.String(), err
}

func expectAnswer(addr netip.Addr, want string) error {
	got, err := ask(addr)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s answered %q, want %q", addr, got, want)
	}
	return nil
}

func TestPodsReachEachOther(t *testing.T) {
	n := open(t, options(t))
	a := add(t, n, Sandbox{UID: "a", Hostname: "pod-a"})
	b := add(t, n, Sandbox{UID: "b", Hostname: "pod-b"})
	listen(t, a)
	listen(t, b)
	if err := expectAnswer(a.IP, "a 10.244.3.1"); err != nil {
		t.Errorf("from the node: %v", err)
	}
	in(t, a, func() error { return expectAnswer(b.IP, "b "+a.IP.String()) })
	in(t, b, func() error { return expectAnswer(b.IP, "b "+b.IP.String()) })
}

func TestSandboxIsAsAsked(t *testing.T) {
	n := open(t, options(t))
	a := add(t, n, Sandbox{UID: "a", Hostname: "web-0", Sysctls: map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "12345", "net/ipv4/ip_default_ttl": "33",
	}})
	err := onThread(func() error {
		for path, flag := range map[string]int{a.NetNS: unix.CLONE_NEWNET, a.IPC: unix.CLONE_NEWIPC, a.UTS: unix.CLONE_NEWUTS} {
			if err := join(path, flag); err != nil {
				return err
			}
		}
		for file, want := range map[string]string{
			"/proc/sys/kernel/hostname":                     "web-0",
			"/proc/sys/kernel/msgmax":                       "12345",
			"/proc/sys/net/ipv4/ip_unprivileged_port_start": "80",
			"/proc/sys/net/ipv4/ip_default_ttl":             "33",
			"/proc/sys/net/ipv4/ping_group_range":           "0\t2147483647",
			"/proc/sys/net/ipv4/conf/eth0/accept_redirects": "0",
		} {
			got, err := os.ReadFile(file)
			if err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s is %q (%v), want %q", file, got, err, want)
			}
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if link.Attrs().MTU != 1450 {
			t.Errorf("MTU is %d, want 1450", link.Attrs().MTU)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	host := add(t, n, Sandbox{UID: "host", HostNetwork: true, HostIPC: true})
	if want := (Attachment{UID: "host"}); host != want {
		t.Errorf("host pod is %+v, want %+v", host, want)
	}
	private := add(t, n, Sandbox{UID: "ipc", HostNetwork: true})
	if private.IPC == "" || private.NetNS != "" || private.UTS != "" || private.IP.IsValid() {
		t.Errorf("host network pod is %+v, want an IPC namespace alone", private)
	}
}

func TestUnknownSysctlIsAnError(t *testing.T) {
	n := open(t, options(t))
	for _, name := range []string{"net.no.such", "../../../etc/passwd", "net..ipv4", "net/../kernel/panic", "net.//.kernel.panic"} {
		if _, err := n.Add(t.Context(), Sandbox{UID: "x", Sysctls: map[string]string{name: "1"}}); err == nil {
			t.Errorf("sysctl %q was accepted", name)
		}
	}
}

// What would reach beyond the pod is refused, even with the value it has: so the
// test harms no machine that it fails on.
func TestSysctlsOfTheNodeAreRefused(t *testing.T) {
	n := open(t, options(t))
	for _, c := range []struct {
		file, why string
		s         Sandbox
	}{
		{"vm/overcommit_memory", "belongs to no namespace of a pod", Sandbox{}},
		{"kernel/panic", "belongs to no namespace of a pod", Sandbox{}},
		{"net/ipv4/ip_forward", "hostNetwork", Sandbox{HostNetwork: true}},
		{"kernel/shmmax", "hostIPC", Sandbox{HostIPC: true}},
		{"fs/mqueue/msg_max", "hostIPC", Sandbox{HostIPC: true}},
	} {
		value, err := os.ReadFile("/proc/sys/" + c.file)
		if err != nil {
			t.Fatal(err)
		}
		dotted := strings.ReplaceAll(c.file, "/", ".")
		for _, name := range []string{dotted, c.file} {
			c.s.UID, c.s.Sysctls = "x", map[string]string{name: strings.TrimSpace(string(value))}
			_, err := n.Add(t.Context(), c.s)
			if err == nil || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), name) {
				t.Errorf("sysctl %s: %v, want its name and %q", name, err, c.why)
			}
		}
	}
	if list, err := n.List(t.Context()); err != nil || len(list) > 0 {
		t.Errorf("a refused pod left %+v, %v", list, err)
	}
}

func TestAddRepairs(t *testing.T) {
	n := open(t, options(t))
	s := Sandbox{UID: "a", Hostname: "a"}
	a := add(t, n, s)
	listen(t, a)
	damage := map[string]func() error{
		"nothing":       func() error { return nil },
		"link removed":  func() error { return removeLink(n.host, linkName("a")) },
		"link down":     func() error { return withLink(linkName("a"), netlink.LinkSetDown) },
		"off bridge":    func() error { return withLink(linkName("a"), netlink.LinkSetNoMaster) },
		"loopback down": func() error { return inside(a, func() error { return withLink("lo", netlink.LinkSetDown) }) },
		"inner down":    func() error { return inside(a, func() error { return withLink("eth0", netlink.LinkSetDown) }) },
		"wrong address": func() error {
			return inside(a, func() error {
				return withLink("eth0", func(l netlink.Link) error {
					return netlink.AddrReplace(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.0.2.9/24"))})
				})
			})
		},
	}
	for name, hurt := range damage {
		t.Run(name, func(t *testing.T) {
			if err := hurt(); err != nil {
				t.Fatal(err)
			}
			if again := add(t, n, s); again != a {
				t.Errorf("Add gave %+v, want %+v", again, a)
			}
			if err := expectAnswer(a.IP, "a 10.244.3.1"); err != nil {
				t.Error(err)
			}
		})
	}
}

func inside(a Attachment, f func() error) error {
	return onThread(func() error {
		if err := join(a.NetNS, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

func withLink(name string, f func(netlink.Link) error) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return f(link)
}

func TestNextProcessAdopts(t *testing.T) {
	o := options(t)
	first := open(t, o)
	a := add(t, first, Sandbox{UID: "a", Hostname: "a"})
	listen(t, a)
	second := open(t, o)
	list, err := second.List(t.Context())
	if err != nil || len(list) != 1 || list[0] != a {
		t.Fatalf("the next process lists %+v (%v), want %+v", list, err, a)
	}
	if err := expectAnswer(a.IP, "a 10.244.3.1"); err != nil {
		t.Error(err)
	}
	if again := add(t, second, Sandbox{UID: "a", Hostname: "a"}); again != a {
		t.Errorf("Add gave %+v, want %+v", again, a)
	}
}

// TestALostStoreMovesNoAddress: pods keep theirs, whoever is looked at first,
// and a new pod gets one that nobody has.
func TestALostStoreMovesNoAddress(t *testing.T) {
	o := options(t)
	n := open(t, o)
	a, b := add(t, n, Sandbox{UID: "a", Hostname: "a"}), add(t, n, Sandbox{UID: "b", Hostname: "b"})
	before, err := netlink.LinkByName(linkName("a"))
	if err != nil {
		t.Fatal(err)
	}
	o.DB = options(t).DB
	n = open(t, o)
	c := add(t, n, Sandbox{UID: "c", Hostname: "c"})
	b2, a2 := add(t, n, Sandbox{UID: "b", Hostname: "b"}), add(t, n, Sandbox{UID: "a", Hostname: "a"})
	if a2 != a || b2 != b || c.IP == a.IP || c.IP == b.IP {
		t.Errorf("before %v %v, after %v %v, new %v", a, b, a2, b2, c)
	}
	after, err := netlink.LinkByName(linkName("a"))
	if err != nil || after.Attrs().Index != before.Attrs().Index {
		t.Errorf("the link of a pod that is well was made anew (%v)", err)
	}
}

func TestLeftoversOfACrash(t *testing.T) {
	n := open(t, options(t))
	// A directory and files without mounts: killed between two steps.
	if err := os.MkdirAll(n.pins("a").dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.pins("a").path("net"), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if got := n.attachment("a"); got != (Attachment{UID: "a"}) {
		t.Errorf("a file without a mount counts as a namespace: %+v", got)
	}
	a := add(t, n, Sandbox{UID: "a"})
	listen(t, a)
	if err := expectAnswer(a.IP, "a 10.244.3.1"); err != nil {
		t.Error(err)
	}
}

// A pod whose namespaces went with the machine, or were never made, still has
// its address: whoever lists pods must learn of it to remove it.
func TestListKnowsPodsThatOnlyHaveAnAddress(t *testing.T) {
	o := options(t)
	n := open(t, o)
	a := add(t, n, Sandbox{UID: "a"})
	if err := n.pins("a").remove(); err != nil { // as a reboot does
		t.Fatal(err)
	}
	second := open(t, o)
	list, err := second.List(t.Context())
	if want := (Attachment{UID: "a"}); err != nil || len(list) != 1 || list[0] != want {
		t.Fatalf("listed are %+v (%v), want %+v", list, err, want)
	}
	if err := second.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if list, err := second.List(t.Context()); err != nil || len(list) > 0 || second.store.used[a.IP] {
		t.Errorf("after Remove: %+v (%v), address %s in use: %v", list, err, a.IP, second.store.used[a.IP])
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	o := options(t)
	before := world(t)
	n := open(t, o)
	empty := world(t)
	a := add(t, n, Sandbox{UID: "a"})
	add(t, n, Sandbox{UID: "b"})
	for range 2 {
		for _, uid := range []nodes.UID{"a", "b", "never"} {
			if err := n.Remove(t.Context(), uid); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := world(t); got != empty {
		t.Errorf("after Remove there is\n%s\nwant\n%s", got, empty)
	}
	if got := add(t, n, Sandbox{UID: "c"}); got.IP == a.IP {
		t.Errorf("address %s was used again at once", a.IP)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := n.store.all(); len(left) > 0 {
		t.Errorf("after Close addresses are recorded of %v", left)
	}
	if got := world(t); got != before {
		t.Errorf("after Close there is\n%s\nwant\n%s", got, before)
	}
}

// world prints links, mounts, routes and rules: all that a Network makes.
func world(t *testing.T) string {
	t.Helper()
	out := ""
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out += "link " + l.Attrs().Name + "\n"
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	out += fmt.Sprintf("%d mounts\n", bytes.Count(mounts, []byte("\n")))
	rules, err := exec.Command("iptables-save").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(rules)) {
		if strings.Contains(line, "TALLY") {
			out += line
		}
	}
	return out
}

func TestDriftIsNoticed(t *testing.T) {
	n := open(t, options(t))
	s := Sandbox{UID: "a", Hostname: "a"}
	a := add(t, n, s)
	listen(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	// The first event is heard only once Run listens: hurt until it tells.
	expectDrift := func(want nodes.UID, hurt func() error) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			if err := hurt(); err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-n.Drift():
				if got == want {
					return
				}
			case <-deadline:
				t.Fatalf("no drift of %q was told", want)
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
	expectDrift("a", func() error { return removeLink(n.host, linkName("a")) })
	add(t, n, s)
	expectDrift("", func() error { return removeLink(n.host, n.Bridge()) })
	add(t, n, s)
	if err := expectAnswer(a.IP, "a 10.244.3.1"); err != nil {
		t.Error(err)
	}
	for _, table := range []string{"nat", "filter"} {
		if out, err := exec.Command("iptables", "-t", table, "-F").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	eventually(t, "the rules are back", func() bool {
		rules, err := exec.Command("iptables-save").Output()
		return err == nil && strings.Contains(string(rules), "-j TALLY-NET-FORWARD") &&
			strings.Contains(string(rules), "-j TALLY-NET-OUTSIDE") && strings.Contains(string(rules), "MASQUERADE")
	})
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 seconds: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestManyAtOnce(t *testing.T) {
	n := open(t, options(t))
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range 100 {
		wg.Go(func() {
			if _, err := n.Add(t.Context(), Sandbox{UID: nodes.UID(fmt.Sprintf("pod-%d", i)), Hostname: "x"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("100 pods added in %s", time.Since(begin))
	list, err := n.List(t.Context())
	if err != nil || len(list) != 100 {
		t.Fatalf("%d pods are listed (%v), want 100", len(list), err)
	}
	begin = time.Now()
	for i := range 100 {
		wg.Go(func() {
			if err := n.Remove(t.Context(), nodes.UID(fmt.Sprintf("pod-%d", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("100 pods removed in %s", time.Since(begin))
}

func BenchmarkAddRemove(b *testing.B) {
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	n, err := New(Options{
		PodCIDR: netip.MustParsePrefix("10.244.3.0/24"), ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"),
		RunDir: b.TempDir(), MTU: 1450, DB: db, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := n.Setup(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer n.Close(context.Background())
	for i := 0; b.Loop(); i++ {
		uid := nodes.UID(fmt.Sprintf("pod-%d", i))
		if _, err := n.Add(b.Context(), Sandbox{UID: uid, Hostname: "x"}); err != nil {
			b.Fatal(err)
		}
		if err := n.Remove(b.Context(), uid); err != nil {
			b.Fatal(err)
		}
	}
}

// What leaves the cluster has the node's address; what stays in it keeps its own.
func TestTrafficToOutsideIsMasqueraded(t *testing.T) {
	n := open(t, options(t))
	a := add(t, n, Sandbox{UID: "a"})
	outside := Attachment{UID: "outside", NetNS: filepath.Join(t.TempDir(), "net")}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "tt-outside"
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := (pins{filepath.Dir(outside.NetNS)}).pin("net"); err != nil {
			return err
		}
		ns, err := os.Open(outside.NetNS)
		if err != nil {
			return err
		}
		defer ns.Close()
		return n.host.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd()), PeerTxQLen: -1})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(outside.NetNS, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	give := func(link, addr string) error {
		return withLink(link, func(l netlink.Link) error {
			err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(addr))})
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			return err
		})
	}
	if err := give("tt-outside", "192.0.2.1/24"); err != nil {
		t.Fatal(err)
	}
	in(t, outside, func() error { return give("eth0", "192.0.2.2/24") })
	in(t, outside, func() error {
		return withLink("eth0", func(l netlink.Link) error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(n.o.ClusterCIDR), Gw: net.IP{192, 0, 2, 1}})
		})
	})
	listen(t, outside)
	listen(t, a)
	in(t, a, func() error { return expectAnswer(netip.MustParseAddr("192.0.2.2"), "outside 192.0.2.1") })
	in(t, outside, func() error { return expectAnswer(a.IP, "a 192.0.2.2") })
}
