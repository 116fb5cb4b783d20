//go:build e2e

package main

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A machine whose network comes later, goes for a while and comes back with
// another address. All of it happens on this thread, in a namespace of its own.
func TestNodeLearnsItsAddress(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Unshare(unix.CLONE_NEWNET))
	expect := func(has, want netip.Addr) {
		t.Helper()
		if got, err := newAddr(has); err != nil || got != want {
			t.Errorf("a node with address %v takes %v (%v), want %v", has, got, err, want)
		}
	}
	first, second := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8")
	none := netip.Addr{}

	addrs, err := nodeAddrs("")
	if err != nil || len(addrs) != 1 || addrs[0] != loopback {
		t.Fatalf("without a network: %v, %v", addrs, err)
	}
	expect(loopback, none)

	attrs := netlink.NewLinkAttrs()
	attrs.Name = "out"
	must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	link, err := netlink.LinkByName("out")
	must(err)
	must(netlink.LinkSetUp(link))
	address := func(a netip.Addr) *netlink.Addr {
		parsed, err := netlink.ParseAddr(a.String() + "/24")
		must(err)
		return parsed
	}
	everywhere, err := netlink.ParseIPNet("0.0.0.0/0")
	must(err)
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Scope: netlink.SCOPE_LINK}
	must(netlink.AddrAdd(link, address(first)))
	must(netlink.RouteAdd(route))
	expect(loopback, first)
	expect(first, none)

	must(netlink.RouteDel(route)) // cut off for a while
	expect(first, none)
	must(netlink.RouteAdd(route))
	must(netlink.AddrAdd(link, address(second))) // one more
	expect(first, none)
	must(netlink.AddrDel(link, address(first)))
	must(netlink.RouteReplace(route))
	if addrs := addrsOf(link); len(addrs) == 0 {
		// The kernel takes secondary addresses away with the first.
		must(netlink.AddrAdd(link, address(second)))
	}
	expect(first, second)
	expect(second, none)
}
