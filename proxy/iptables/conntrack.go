package iptables

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/proxy"
)

// frontend is an address that a connectionless flow was sent to. Addr is
// invalid for every address of this node.
type frontend struct {
	addr netip.Addr
	port uint16
}

// frontends are UDP addresses with the endpoints that flows to them may lead
// to. The kernel translates every packet of a known flow as it did the first,
// so flows that lead elsewhere, or nowhere, must be forgotten. One that only
// became less preferred goes on.
type frontends map[frontend][]netip.AddrPort

// changed gives the UDP frontends whose endpoints differ between two rules,
// with the endpoints of the later. Before is nil when unknown: then all do.
func changed(before *proxy.Rules, after proxy.Rules) frontends {
	now := frontendsOf(after)
	if before == nil {
		return now
	}
	was := frontendsOf(*before)
	for f, endpoints := range was {
		switch current, ok := now[f]; {
		case !ok:
			now[f] = nil
		case slices.Equal(current, endpoints):
			delete(now, f)
		}
	}
	return now
}

func frontendsOf(r proxy.Rules) frontends {
	all := frontends{}
	for _, route := range r.Routes {
		if route.Protocol != proxy.UDP {
			continue
		}
		inside := route.Endpoints
		if route.InternalLocal {
			inside = route.Here
		}
		for _, a := range route.ClusterIPs {
			all.add(frontend{a, route.Port}, inside)
		}
		for _, a := range route.ExternalIPs {
			all.add(frontend{a, route.Port}, route.Endpoints)
		}
		if route.NodePort != 0 {
			all.add(frontend{port: route.NodePort}, route.Endpoints)
		}
	}
	for _, h := range r.HostPorts {
		if h.Protocol == proxy.UDP {
			all.add(frontend{h.HostIP, h.HostPort}, []netip.AddrPort{h.Endpoint})
		}
	}
	return all
}

func (fs frontends) add(f frontend, endpoints []netip.AddrPort) {
	if f.addr.IsValid() && f.addr.IsUnspecified() {
		f.addr = netip.Addr{}
	}
	fs[f] = append(slices.Clip(fs[f]), endpoints...)
}

// join adds what an earlier attempt still owed; the newer endpoints win.
func (fs frontends) join(owed frontends) frontends {
	for f := range owed {
		if _, ok := fs[f]; !ok {
			fs[f] = owed[f]
		}
	}
	return fs
}

// forget deletes the flows that lead from a frontend elsewhere than to its endpoints.
func (fs frontends) forget() error {
	if len(fs) == 0 {
		return nil
	}
	here, err := localAddrs()
	if err != nil {
		return err
	}
	_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, staleFlows{fs, here})
	if err != nil {
		return fmt.Errorf("delete from the connection table: %w", err)
	}
	return nil
}

// localAddrs are the node's addresses at this moment. Loopback is a range.
func localAddrs() (map[netip.Addr]bool, error) {
	list, err := netlink.AddrList(nil, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	addrs := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs[addr.Unmap()] = true
		}
	}
	return addrs, nil
}

// staleFlows implements netlink.CustomConntrackFilter.
type staleFlows struct {
	frontends frontends
	here      map[netip.Addr]bool
}

// MatchConntrackFlow reports whether a flow leads where it should not.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	to = to.Unmap()
	endpoints, ok := s.frontends[frontend{to, flow.Forward.DstPort}]
	if !ok && (s.here[to] || to.IsLoopback()) {
		endpoints, ok = s.frontends[frontend{port: flow.Forward.DstPort}]
	}
	if !ok {
		return false
	}
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return !slices.Contains(endpoints, netip.AddrPortFrom(from.Unmap(), flow.Reverse.SrcPort))
}
