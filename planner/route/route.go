// Package route turns Services and the pods behind them into the route table,
// and decides their addresses and node ports.
//
// Guarantees: an address once leased stays with its service as long as the
// service wants one; explicit addresses are honoured; only ready pods that are
// not on their way out are endpoints, unless the manifest publishes others.
// The order of everything is fixed, so equal input gives equal tables. It
// keeps no table and knows no generation; the planner does.
package route

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// Lease is what was decided for a service. It is recorded: its JSON form must
// stay readable. Immutable.
type Lease struct {
	IPs []netip.Addr `json:"ips,omitempty"`
	// NodePorts by protocol and port, e.g. "TCP/80".
	NodePorts map[string]uint16 `json:"node_ports,omitempty"`
	// HealthCheckPort is a TCP port from the same range; 0 for none.
	HealthCheckPort uint16 `json:"health_check_port,omitempty"`
}

// Ports are all that the lease takes of the cluster's node ports.
func (l Lease) Ports() []NodePort {
	ports := make([]NodePort, 0, len(l.NodePorts)+1)
	for key, port := range l.NodePorts {
		proto, _, _ := strings.Cut(key, "/")
		ports = append(ports, NodePort{corev1.Protocol(proto), port})
	}
	if l.HealthCheckPort != 0 {
		ports = append(ports, NodePort{corev1.ProtocolTCP, l.HealthCheckPort})
	}
	return ports
}

// Equal reports whether two leases are the same.
func (l Lease) Equal(o Lease) bool {
	return slices.Equal(l.IPs, o.IPs) && maps.Equal(l.NodePorts, o.NodePorts) && l.HealthCheckPort == o.HealthCheckPort
}

// PortKey names a service's port within a Lease.
func PortKey(p *corev1.ServicePort) string {
	return string(protocol(p.Protocol)) + "/" + strconv.Itoa(int(p.Port))
}

// NodePort is a node port with its protocol: what must be unique in a cluster.
type NodePort struct {
	Protocol corev1.Protocol
	Port     uint16
}

// Taken says what other services hold.
type Taken struct {
	Addr func(netip.Addr) bool
	Port func(NodePort) bool
}

// Decide gives a service its lease: what it holds already if that still fits,
// what it asks for, else a free address and ports found from a hash of its
// name. problem is one sentence when it can't have what it asks for.
func Decide(svc *corev1.Service, held Lease, network desired.Network, taken Taken) (lease Lease, problem string) {
	lease.IPs, problem = decideAddrs(svc, held, network, taken)
	ports, trouble := decidePorts(svc, held, network, taken)
	lease.NodePorts = ports
	problem = cmp.Or(problem, trouble)
	lease.HealthCheckPort, trouble = decideHealthCheck(svc, held, network, func(n NodePort) bool {
		return taken.Port(n) || slices.Contains(lease.Ports(), n)
	})
	return lease, cmp.Or(problem, trouble)
}

// Explicit reports whether a service names an address or port itself: those
// are decided before the others.
func Explicit(svc *corev1.Service) bool {
	if svc.Spec.ClusterIP != "" && svc.Spec.ClusterIP != corev1.ClusterIPNone {
		return true
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		return true
	}
	return slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort != 0 })
}

// Headless reports whether a service has DNS records only.
func Headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

func routed(svc *corev1.Service) bool {
	return svc.Spec.Type != corev1.ServiceTypeExternalName && !Headless(svc)
}

func decideAddrs(svc *corev1.Service, held Lease, network desired.Network, taken Taken) ([]netip.Addr, string) {
	if !routed(svc) {
		return nil, ""
	}
	wanted := svc.Spec.ClusterIPs
	if len(wanted) == 0 && svc.Spec.ClusterIP != "" {
		wanted = []string{svc.Spec.ClusterIP}
	}
	if len(wanted) > 0 {
		return explicitAddrs(svc, wanted, network, taken)
	}
	if len(held.IPs) > 0 && inRange(held.IPs[0], network.Services) {
		return held.IPs, ""
	}
	addr, ok := probeAddr(svc.Namespace+"/"+svc.Name, network.Services, taken.Addr)
	if !ok {
		return nil, fmt.Sprintf("no cluster address is free in %s", network.Services)
	}
	return []netip.Addr{addr}, ""
}

func explicitAddrs(svc *corev1.Service, wanted []string, network desired.Network, taken Taken) ([]netip.Addr, string) {
	var addrs []netip.Addr
	for _, w := range wanted {
		addr, err := netip.ParseAddr(w)
		switch {
		case err != nil:
			return nil, fmt.Sprintf("spec.clusterIP %q is no address", w)
		case !inRange(addr, network.Services):
			return nil, fmt.Sprintf("spec.clusterIP %s is outside the cluster's service range %s", addr, network.Services)
		case taken.Addr(addr):
			return nil, fmt.Sprintf("spec.clusterIP %s is already another service's address", addr)
		}
		addrs = append(addrs, addr)
	}
	return addrs, ""
}

// inRange leaves out the network address and, in IPv4, the broadcast address.
func inRange(a netip.Addr, p netip.Prefix) bool {
	return p.Contains(a) && a != p.Masked().Addr() && (!a.Is4() || p.Contains(a.Next()))
}

// probeAddr begins at a hash of the name and takes the first free address.
func probeAddr(name string, p netip.Prefix, taken func(netip.Addr) bool) (netip.Addr, bool) {
	bits := min(p.Addr().BitLen()-p.Bits(), 24)
	size := uint64(1) << bits
	start := hash(name) % size
	for i := range size {
		addr := offset(p.Masked().Addr(), (start+i)%size)
		if inRange(addr, p) && !taken(addr) {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

func offset(base netip.Addr, by uint64) netip.Addr {
	b := base.AsSlice()
	for i := len(b) - 1; i >= 0 && by > 0; i-- {
		by += uint64(b[i])
		b[i] = byte(by)
		by >>= 8
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

func decidePorts(svc *corev1.Service, held Lease, network desired.Network, taken Taken) (map[string]uint16, string) {
	if !hasNodePorts(svc) {
		return nil, ""
	}
	ports := map[string]uint16{}
	own := map[NodePort]bool{}
	problem := ""
	for pass := range 2 {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if explicit := p.NodePort != 0; explicit != (pass == 0) {
				continue
			}
			port, trouble := decidePort(svc, p, held, network, func(n NodePort) bool { return own[n] || taken.Port(n) })
			if trouble != "" {
				problem = trouble
				continue
			}
			own[NodePort{protocol(p.Protocol), port}] = true
			ports[PortKey(p)] = port
		}
	}
	return ports, problem
}

// decideHealthCheck gives a port to a service whose load balancer must ask each
// node whether it has endpoints.
func decideHealthCheck(svc *corev1.Service, held Lease, network desired.Network, taken func(NodePort) bool) (uint16, string) {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return 0, ""
	}
	want := wish{
		port: uint16(svc.Spec.HealthCheckNodePort), held: held.HealthCheckPort,
		protocol: corev1.ProtocolTCP, name: svc.Namespace + "/" + svc.Name + "/health",
	}
	return want.decide(network, taken)
}

func hasNodePorts(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	default:
		return false
	}
}

func decidePort(svc *corev1.Service, p *corev1.ServicePort, held Lease, network desired.Network, taken func(NodePort) bool) (uint16, string) {
	want := wish{
		port: uint16(p.NodePort), held: held.NodePorts[PortKey(p)],
		protocol: protocol(p.Protocol), name: svc.Namespace + "/" + svc.Name + "/" + PortKey(p),
	}
	return want.decide(network, taken)
}

// wish is what is asked of the node ports.
type wish struct {
	// port is the one named in the manifest, held the one that it had so far; 0 for none.
	port, held uint16
	protocol   corev1.Protocol
	// name says where the search begins.
	name string
}

func (w wish) decide(network desired.Network, taken func(NodePort) bool) (uint16, string) {
	low, high := network.NodePortLow, network.NodePortHigh
	if w.port != 0 {
		if taken(NodePort{w.protocol, w.port}) {
			return 0, fmt.Sprintf("node port %d/%s is already another service's", w.port, w.protocol)
		}
		if w.port < low || w.port > high {
			return 0, fmt.Sprintf("node port %d is outside the cluster's range %d-%d", w.port, low, high)
		}
		return w.port, ""
	}
	if w.held >= low && w.held <= high && !taken(NodePort{w.protocol, w.held}) {
		return w.held, ""
	}
	size := uint64(high) - uint64(low) + 1
	start := hash(w.name) % size
	for i := range size {
		port := low + uint16((start+i)%size)
		if !taken(NodePort{w.protocol, port}) {
			return port, ""
		}
	}
	return 0, fmt.Sprintf("no node port is free in %d-%d", low, high)
}

func protocol(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	sum := h.Sum64()
	// FNV's low bits are weak for short keys that differ at the end.
	return sum ^ sum>>29
}
