// Package proxy is the vocabulary of routing: the route table as plain data,
// the same on every node, and what every backend must do with it.
//
// A Table says which ready endpoints stand behind which service addresses; it
// carries a generation, so that a pod that goes can first be taken out of
// every node's table and only then be stopped. The planner makes it
// (planner/route), agents hand it to the backends (proxy/iptables, proxy/dns).
// Everything here is a value: no clock, no I/O. Nobody may change a Service
// once it is in a Table; tables share them.
package proxy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Protocol of a service port.
type Protocol string

const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Table is every service of the cluster with the endpoints behind it.
type Table struct {
	// Generation grows with every change; 0 is the empty table of a node that
	// has heard nothing yet, which no backend applies.
	Generation uint64
	// Domain of the cluster's DNS, without final dot.
	Domain string
	// Services sorted by namespace, then name.
	Services []*Service
	// Nodes of the cluster that have a pod range, sorted by name.
	Nodes []Node
}

// Node is where a node's pods are reached. Comparable.
type Node struct {
	Name string
	// Addr is the node's own address, PodCIDR the range of its pods.
	Addr    netip.Addr
	PodCIDR netip.Prefix
	// Zone that the node is in; may be empty.
	Zone string
	// WireGuard is its public key, base64, where that overlay is in use.
	WireGuard string
}

// Compare orders nodes by name.
func (n Node) Compare(o Node) int { return strings.Compare(n.Name, o.Name) }

// Preference is what a service prefers among its endpoints
// (spec.trafficDistribution).
type Preference string

const (
	// NoPreference treats all endpoints alike.
	NoPreference Preference = ""
	// SameZone prefers endpoints in the zone that traffic arrives in.
	SameZone Preference = "zone"
	// SameNode prefers endpoints on the node that traffic arrives at, then SameZone.
	SameNode Preference = "node"
)

// Service is one Service object as the nodes need it.
type Service struct {
	Namespace, Name string
	// ClusterIPs is empty for a headless or ExternalName service.
	ClusterIPs []netip.Addr
	// Headless services have DNS records only: one per endpoint.
	Headless bool
	// ExternalName is the target of a CNAME, without final dot; else empty.
	ExternalName string
	// ExternalIPs route like the cluster address (spec.externalIPs).
	ExternalIPs []netip.Addr
	// Ports in the order of the manifest.
	Ports []Port
	// Affinity is how long a client stays with its endpoint (ClientIP); 0 means none.
	Affinity time.Duration
	// InternalLocal and ExternalLocal keep traffic on the node it arrived at
	// (internalTrafficPolicy, externalTrafficPolicy Local).
	InternalLocal, ExternalLocal bool
	// Prefer says which endpoints are preferred where several could answer.
	Prefer Preference
	// HealthCheckPort answers on every node whether it has ready endpoints of its
	// own (spec.healthCheckNodePort); 0 for none.
	HealthCheckPort uint16
}

// Port is one port of a service with the endpoints that answer on it.
type Port struct {
	// Name may be empty when the service has a single port.
	Name     string
	Protocol Protocol
	Port     uint16
	// NodePort is 0 when the service has none.
	NodePort uint16
	// Endpoints that traffic goes to, sorted by address, then port. Only ready
	// ones, except for publishNotReadyAddresses.
	Endpoints []Endpoint
}

// Endpoint is one address behind a service port.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
	// Node is the name of the node that runs it; empty for endpoints written by hand.
	Node string
	// Hostname is the DNS label of the endpoint below a headless service; may be empty.
	Hostname string
	// Pod is the pod's name; empty for endpoints written by hand.
	Pod string
}

// Compare orders endpoints by address, then port.
func (e Endpoint) Compare(o Endpoint) int {
	if c := e.Addr.Compare(o.Addr); c != 0 {
		return c
	}
	return int(e.Port) - int(o.Port)
}

// Equal reports whether two services route the same.
func (s *Service) Equal(o *Service) bool {
	if s == o {
		return true
	}
	return s.Namespace == o.Namespace && s.Name == o.Name &&
		slices.Equal(s.ClusterIPs, o.ClusterIPs) &&
		s.Headless == o.Headless && s.ExternalName == o.ExternalName &&
		slices.Equal(s.ExternalIPs, o.ExternalIPs) &&
		slices.EqualFunc(s.Ports, o.Ports, Port.Equal) &&
		s.Affinity == o.Affinity && s.InternalLocal == o.InternalLocal && s.ExternalLocal == o.ExternalLocal &&
		s.Prefer == o.Prefer && s.HealthCheckPort == o.HealthCheckPort
}

// Equal reports whether two ports route the same.
func (p Port) Equal(o Port) bool {
	return p.Name == o.Name && p.Protocol == o.Protocol && p.Port == o.Port &&
		p.NodePort == o.NodePort && slices.Equal(p.Endpoints, o.Endpoints)
}

// Compare orders services by namespace, then name.
func (s *Service) Compare(o *Service) int {
	if c := strings.Compare(s.Namespace, o.Namespace); c != 0 {
		return c
	}
	return strings.Compare(s.Name, o.Name)
}

// HostPort forwards a port of the node to a pod on it (ports[].hostPort).
type HostPort struct {
	Protocol Protocol
	// HostIP is invalid when the port is open on all of the node's addresses.
	HostIP   netip.Addr
	HostPort uint16
	Endpoint netip.AddrPort
}

// Local is what a backend must know about the node it runs on.
type Local struct {
	Node string
	// NodeAddrs are the node's own addresses; node ports answer on them (and on loopback where the backend can).
	NodeAddrs []netip.Addr
	// PodCIDR is the node's own pod range, ClusterCIDR that of all nodes:
	// traffic from outside ClusterCIDR to a service is masqueraded.
	PodCIDR, ClusterCIDR netip.Prefix
	// ServiceCIDR holds every cluster address.
	ServiceCIDR netip.Prefix
	// Bridge is the name of the interface that the node's pods hang on.
	Bridge string
}

// Config is all that a backend realises.
type Config struct {
	Table *Table
	Local Local
	// HostPorts sorted by port, protocol, address.
	HostPorts []HostPort
}

// Backend realises a Config in the kernel. Implementations are safe for
// concurrent use.
type Backend interface {
	// Set makes the kernel route as c says. It may be called any time, with
	// anything, twice; what a previous process left is adopted or swept. It
	// changes only what differs. When it returns nil, c is in force, including
	// for connectionless traffic (stale UDP conntrack entries are gone).
	Set(ctx context.Context, c Config) error
	// Run watches for foreign changes and repairs what Set realised last, and has
	// the kernel forget unanswered attempts to reach endpoints that left, until ctx
	// ends.
	Run(ctx context.Context) error
	// Close removes everything that the backend ever made on this node.
	Close(ctx context.Context) error
}
