package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rules is a Config resolved for one node, in no backend's words: every
// backend renders it, and two Configs with equal Rules need no work. A value;
// nobody may change it after Compile.
type Rules struct {
	Local Local
	// Routes in the order of the table.
	Routes []Route
	// HostPorts that have a valid endpoint, in the order of the Config.
	HostPorts []HostPort
}

// Route is one service port as this node routes it. It has at least one
// address or a node port.
type Route struct {
	// Service is "namespace/name", PortName the port's name, which may be empty.
	Service, PortName string
	Protocol          Protocol
	// Port that the cluster and external addresses answer on.
	Port        uint16
	ClusterIPs  []netip.Addr
	ExternalIPs []netip.Addr
	// NodePort is 0 when there is none.
	NodePort uint16
	Affinity time.Duration
	// InternalLocal and ExternalLocal: cluster addresses, or external addresses
	// and node ports, lead to Here only.
	InternalLocal, ExternalLocal bool
	// Endpoints sorted, without repetition.
	Endpoints []netip.AddrPort
	// Near are those of them that this node prefers; nil when all are alike to it.
	Near []netip.AddrPort
	// Here are those of them that run on this node; nil unless a policy asks.
	Here []netip.AddrPort
}

// Compile resolves a configuration: it drops services without addresses,
// endpoints that cannot be reached, and repeated endpoints. The services'
// names and their ports' protocols and numbers must be distinct, as they are
// in every valid manifest.
func Compile(c Config) Rules {
	r := Rules{Local: c.Local}
	if c.Table != nil {
		at := locate(c.Local.Node, c.Table.Nodes)
		for _, s := range c.Table.Services {
			if s.Headless || s.ExternalName != "" {
				continue
			}
			r.Routes = appendRoutes(r.Routes, at, s)
		}
	}
	for _, h := range c.HostPorts {
		if h.HostPort != 0 && reachable(h.Endpoint) {
			r.HostPorts = append(r.HostPorts, h)
		}
	}
	return r
}

func appendRoutes(routes []Route, at location, s *Service) []Route {
	for _, p := range s.Ports {
		if len(s.ClusterIPs) == 0 && len(s.ExternalIPs) == 0 && p.NodePort == 0 {
			continue
		}
		reached := slices.DeleteFunc(slices.Clone(p.Endpoints), func(e Endpoint) bool { return !reachable(e.at()) })
		route := Route{
			Service: s.Namespace + "/" + s.Name, PortName: p.Name,
			Protocol: p.Protocol, Port: p.Port, NodePort: p.NodePort,
			ClusterIPs: s.ClusterIPs, ExternalIPs: s.ExternalIPs, Affinity: s.Affinity,
			InternalLocal: s.InternalLocal, ExternalLocal: s.ExternalLocal,
			Endpoints: addresses(reached), Near: addresses(at.near(s.Prefer, reached)),
		}
		if s.InternalLocal || s.ExternalLocal {
			route.Here = addresses(at.here(reached))
		}
		routes = append(routes, route)
	}
	return routes
}

func (e Endpoint) at() netip.AddrPort { return netip.AddrPortFrom(e.Addr.Unmap(), e.Port) }

// addresses of endpoints, sorted, without repetition; nil for none.
func addresses(endpoints []Endpoint) []netip.AddrPort {
	var list []netip.AddrPort
	for _, e := range endpoints {
		list = append(list, e.at())
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}

func reachable(a netip.AddrPort) bool {
	return a.IsValid() && a.Port() != 0 && !a.Addr().IsUnspecified()
}

// ID names the route among all: "default/web:TCP/80". It stays the same while
// addresses, endpoints and policies change.
func (r Route) ID() string {
	return r.Service + ":" + string(r.Protocol) + "/" + strconv.Itoa(int(r.Port))
}

// Anywhere are the endpoints for traffic that may leave the node.
func (r Route) Anywhere() []netip.AddrPort {
	if r.Near != nil {
		return r.Near
	}
	return r.Endpoints
}

// Internal are the endpoints for traffic to cluster addresses.
func (r Route) Internal() []netip.AddrPort {
	if r.InternalLocal {
		return r.Here
	}
	return r.Anywhere()
}

// External are the endpoints for traffic from outside the cluster to external
// addresses and node ports.
func (r Route) External() []netip.AddrPort {
	if r.ExternalLocal {
		return r.Here
	}
	return r.Anywhere()
}

// Equal reports whether two routes route the same.
func (r Route) Equal(o Route) bool {
	return r.Service == o.Service && r.PortName == o.PortName && r.Protocol == o.Protocol &&
		r.Port == o.Port && r.NodePort == o.NodePort && r.Affinity == o.Affinity &&
		r.InternalLocal == o.InternalLocal && r.ExternalLocal == o.ExternalLocal &&
		slices.Equal(r.ClusterIPs, o.ClusterIPs) && slices.Equal(r.ExternalIPs, o.ExternalIPs) &&
		slices.Equal(r.Endpoints, o.Endpoints) &&
		slices.Equal(r.Near, o.Near) && slices.Equal(r.Here, o.Here)
}

// Equal reports whether two nodes' rules are the same.
func (r Rules) Equal(o Rules) bool {
	return r.Local.Node == o.Local.Node && slices.Equal(r.Local.NodeAddrs, o.Local.NodeAddrs) &&
		r.Local.PodCIDR == o.Local.PodCIDR && r.Local.ClusterCIDR == o.Local.ClusterCIDR &&
		r.Local.ServiceCIDR == o.Local.ServiceCIDR && r.Local.Bridge == o.Local.Bridge &&
		slices.EqualFunc(r.Routes, o.Routes, Route.Equal) &&
		slices.Equal(r.HostPorts, o.HostPorts)
}

// String prints one line a route or host port, for people and golden files.
func (r Rules) String() string {
	var b strings.Builder
	for _, route := range r.Routes {
		b.WriteString(route.String() + "\n")
	}
	for _, h := range r.HostPorts {
		at := "*"
		if h.HostIP.IsValid() {
			at = h.HostIP.String()
		}
		fmt.Fprintf(&b, "host %s %s:%d -> %s\n", h.Protocol, at, h.HostPort, h.Endpoint)
	}
	return b.String()
}

// String prints the route in one line.
func (r Route) String() string {
	var b strings.Builder
	b.WriteString(r.ID())
	if r.PortName != "" {
		b.WriteString(" " + r.PortName)
	}
	for _, a := range r.ClusterIPs {
		b.WriteString(" cluster " + a.String())
	}
	for _, a := range r.ExternalIPs {
		b.WriteString(" external " + a.String())
	}
	if r.NodePort != 0 {
		fmt.Fprintf(&b, " node %d", r.NodePort)
	}
	if r.Affinity > 0 {
		b.WriteString(" affinity " + r.Affinity.String())
	}
	if r.InternalLocal {
		b.WriteString(" internal-local")
	}
	if r.ExternalLocal {
		b.WriteString(" external-local")
	}
	b.WriteString(" ->")
	for _, e := range r.Endpoints {
		b.WriteString(" " + e.String())
	}
	if r.Near != nil {
		b.WriteString(" near")
		for _, e := range r.Near {
			b.WriteString(" " + e.String())
		}
	}
	if r.InternalLocal || r.ExternalLocal {
		b.WriteString(" here")
		for _, e := range r.Here {
			b.WriteString(" " + e.String())
		}
	}
	return b.String()
}
