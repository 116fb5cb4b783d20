package route

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/proxy"
)

// Backend is a pod that a service selects.
type Backend struct {
	Pod  string
	Node string
	// Addr is invalid while the pod has none.
	Addr netip.Addr
	Spec *corev1.PodSpec
	// Hostname and Subdomain give the pod a name of its own below a headless
	// service; empty for none.
	Hostname, Subdomain string
	// Serving is set for a pod that is ready and not on its way out; Leaving
	// for one that is.
	Serving, Leaving bool
}

// Manual are the endpoints that Git names for a service without a selector.
type Manual struct {
	Endpoints *corev1.Endpoints
	Slices    []*discoveryv1.EndpointSlice
}

// NotReady counts, for each port of a compiled service, the pods that match
// but get no traffic.
type NotReady []int

// Compile makes a service's entry of the route table.
func Compile(svc *corev1.Service, lease Lease, backends []Backend, manual Manual) (*proxy.Service, NotReady) {
	s := &proxy.Service{
		Namespace:     svc.Namespace,
		Name:          svc.Name,
		ClusterIPs:    lease.IPs,
		Headless:      Headless(svc) && svc.Spec.Type != corev1.ServiceTypeExternalName,
		Affinity:      affinity(svc),
		InternalLocal: svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		ExternalLocal: svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,

		Prefer:          preference(svc),
		HealthCheckPort: lease.HealthCheckPort,
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		s.ExternalName = strings.TrimSuffix(svc.Spec.ExternalName, ".")
		return s, nil
	}
	for _, ip := range svc.Spec.ExternalIPs {
		if addr, err := netip.ParseAddr(ip); err == nil {
			s.ExternalIPs = append(s.ExternalIPs, addr)
		}
	}
	ports := svc.Spec.Ports
	if len(ports) == 0 && s.Headless {
		// A headless service needs no ports for its DNS records; its endpoints
		// stand behind port 0.
		ports = []corev1.ServicePort{{}}
	}
	notReady := make(NotReady, len(ports))
	for i := range ports {
		p := &ports[i]
		port := proxy.Port{Name: p.Name, Protocol: proxy.Protocol(protocol(p.Protocol)), Port: uint16(p.Port), NodePort: lease.NodePorts[PortKey(p)]}
		if len(svc.Spec.Selector) > 0 {
			port.Endpoints, notReady[i] = selected(svc, p, backends)
		} else {
			port.Endpoints = byHand(svc, p, manual)
		}
		slices.SortFunc(port.Endpoints, compareEndpoint)
		port.Endpoints = slices.CompactFunc(port.Endpoints, func(a, b proxy.Endpoint) bool { return a.Compare(b) == 0 })
		s.Ports = append(s.Ports, port)
	}
	return s, notReady
}

// compareEndpoint extends the table's order to a total one, so that which of
// two equal addresses is kept does not depend on the order of the pods.
func compareEndpoint(a, b proxy.Endpoint) int {
	if c := a.Compare(b); c != 0 {
		return c
	}
	return strings.Compare(a.Pod, b.Pod)
}

// preference is what spec.trafficDistribution asks for. It is about pods: what
// Git names by hand is for Git to choose.
func preference(svc *corev1.Service) proxy.Preference {
	if svc.Spec.TrafficDistribution == nil || len(svc.Spec.Selector) == 0 {
		return proxy.NoPreference
	}
	switch *svc.Spec.TrafficDistribution {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		return proxy.SameZone
	case corev1.ServiceTrafficDistributionPreferSameNode:
		return proxy.SameNode
	}
	return proxy.NoPreference
}

func affinity(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		return time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	}
	return time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
}

func selected(svc *corev1.Service, p *corev1.ServicePort, backends []Backend) (endpoints []proxy.Endpoint, notReady int) {
	for i := range backends {
		b := &backends[i]
		if b.Leaving {
			continue
		}
		port, known := targetPort(p, b.Spec)
		if !b.Addr.IsValid() || !known || !b.Serving && !svc.Spec.PublishNotReadyAddresses {
			notReady++
			continue
		}
		e := proxy.Endpoint{Addr: b.Addr, Port: port, Node: b.Node, Pod: b.Pod}
		if b.Subdomain == svc.Name {
			e.Hostname = b.Hostname
		}
		endpoints = append(endpoints, e)
	}
	return endpoints, notReady
}

// targetPort resolves a service port on one pod: by number, by the name of a
// container port with the same protocol, or the service's own number.
func targetPort(p *corev1.ServicePort, spec *corev1.PodSpec) (uint16, bool) {
	if p.TargetPort.Type == intstr.Int {
		if p.TargetPort.IntVal == 0 {
			return uint16(p.Port), true
		}
		return uint16(p.TargetPort.IntVal), true
	}
	for _, containers := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
		for i := range containers {
			for _, c := range containers[i].Ports {
				if c.Name == p.TargetPort.StrVal && protocol(c.Protocol) == protocol(p.Protocol) {
					return uint16(c.ContainerPort), true
				}
			}
		}
	}
	return 0, false
}

func byHand(svc *corev1.Service, p *corev1.ServicePort, manual Manual) []proxy.Endpoint {
	var out []proxy.Endpoint
	if manual.Endpoints != nil {
		out = fromEndpoints(svc, p, manual.Endpoints)
	}
	for _, s := range manual.Slices {
		out = append(out, fromSlice(svc, p, s)...)
	}
	return out
}

func fromEndpoints(svc *corev1.Service, p *corev1.ServicePort, e *corev1.Endpoints) []proxy.Endpoint {
	var out []proxy.Endpoint
	for i := range e.Subsets {
		subset := &e.Subsets[i]
		addresses := subset.Addresses
		if svc.Spec.PublishNotReadyAddresses {
			addresses = slices.Concat(addresses, subset.NotReadyAddresses)
		}
		port, found := uint16(0), p.Port == 0
		for _, c := range subset.Ports {
			if c.Name == p.Name && protocol(c.Protocol) == protocol(p.Protocol) {
				port, found = uint16(c.Port), true
			}
		}
		if !found {
			continue
		}
		for _, a := range addresses {
			if addr, err := netip.ParseAddr(a.IP); err == nil {
				out = append(out, proxy.Endpoint{Addr: addr, Port: port, Node: text(a.NodeName), Hostname: a.Hostname})
			}
		}
	}
	return out
}

func fromSlice(svc *corev1.Service, p *corev1.ServicePort, s *discoveryv1.EndpointSlice) []proxy.Endpoint {
	if s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	port, found := uint16(0), p.Port == 0
	for _, c := range s.Ports {
		name, proto := "", corev1.ProtocolTCP
		if c.Name != nil {
			name = *c.Name
		}
		if c.Protocol != nil {
			proto = *c.Protocol
		}
		if name == p.Name && proto == protocol(p.Protocol) && c.Port != nil {
			port, found = uint16(*c.Port), true
		}
	}
	if !found {
		return nil
	}
	var out []proxy.Endpoint
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if ready := e.Conditions.Ready; ready != nil && !*ready && !svc.Spec.PublishNotReadyAddresses {
			continue
		}
		for _, a := range e.Addresses {
			addr, err := netip.ParseAddr(a)
			if err != nil {
				continue
			}
			out = append(out, proxy.Endpoint{Addr: addr, Port: port, Node: text(e.NodeName), Hostname: text(e.Hostname)})
		}
	}
	return out
}

// text is what p points to; empty when it is nil.
func text(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}
