package iptables

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/proxy"
)

// frontend is an address that flows were sent to. Addr is invalid for every
// address of this node.
type frontend struct {
	protocol proxy.Protocol
	addr     netip.Addr
	port     uint16
}

// frontends are addresses with the endpoints that flows to them may lead to. The
// kernel translates every packet of a known flow as it did the first, so flows
// that lead elsewhere, or nowhere, must be forgotten: those of UDP, and TCP's
// unanswered attempts to connect, which a later one from the same port would
// join. One that only became less preferred goes on.
type frontends map[frontend][]netip.AddrPort

// changed gives the frontends that lost endpoints between two rules, or had
// none, with the endpoints of the later. Before is nil when unknown: then all are.
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
		case len(endpoints) > 0 && within(current, endpoints), len(current)+len(endpoints) == 0:
			delete(now, f) // no flow leads elsewhere
		}
	}
	return now
}

func within(all, some []netip.AddrPort) bool {
	return !slices.ContainsFunc(some, func(a netip.AddrPort) bool { return !slices.Contains(all, a) })
}

func frontendsOf(r proxy.Rules) frontends {
	all := frontends{}
	for _, route := range r.Routes {
		inside := route.Endpoints
		if route.InternalLocal {
			inside = route.Here
		}
		for _, a := range route.ClusterIPs {
			all.add(frontend{route.Protocol, a, route.Port}, inside)
		}
		for _, a := range route.ExternalIPs {
			all.add(frontend{route.Protocol, a, route.Port}, route.Endpoints)
		}
		if route.NodePort != 0 {
			all.add(frontend{protocol: route.Protocol, port: route.NodePort}, route.Endpoints)
		}
	}
	for _, h := range r.HostPorts {
		all.add(frontend{h.Protocol, h.HostIP, h.HostPort}, []netip.AddrPort{h.Endpoint})
	}
	return all
}

func (fs frontends) add(f frontend, endpoints []netip.AddrPort) {
	if f.addr.IsValid() && f.addr.IsUnspecified() {
		f.addr = netip.Addr{}
	}
	fs[f] = append(slices.Clip(fs[f]), endpoints...)
}

// of gives those of a protocol.
func (fs frontends) of(p proxy.Protocol) frontends {
	of := frontends{}
	for f, endpoints := range fs {
		if f.protocol == p {
			of[f] = endpoints
		}
	}
	return of
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

// in gives the same frontends with the endpoints that they have in later rules.
func (fs frontends) in(r proxy.Rules) frontends {
	now, later := frontendsOf(r), frontends{}
	for f := range fs {
		later[f] = now[f]
	}
	return later
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

// MatchConntrackFlow reports whether a flow leads where it should not, and
// nobody would miss it.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	var protocol proxy.Protocol
	switch flow.Forward.Protocol {
	case unix.IPPROTO_UDP:
		protocol = proxy.UDP
	case unix.IPPROTO_TCP:
		if state, ok := flow.ProtoInfo.(*netlink.ProtoInfoTCP); !ok || state.State != nl.TCP_CONNTRACK_SYN_SENT {
			return false
		}
		protocol = proxy.TCP
	default:
		return false
	}
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	to = to.Unmap()
	endpoints, ok := s.frontends[frontend{protocol, to, flow.Forward.DstPort}]
	if !ok && (s.here[to] || to.IsLoopback()) {
		endpoints, ok = s.frontends[frontend{protocol: protocol, port: flow.Forward.DstPort}]
	}
	if !ok {
		return false
	}
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return !slices.Contains(endpoints, netip.AddrPortFrom(from.Unmap(), flow.Reverse.SrcPort))
}
