package route

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/proxy"
)

var (
	network   = desired.DefaultSettings().Network
	nothing   = Taken{Addr: func(netip.Addr) bool { return false }, Port: func(NodePort) bool { return false }}
	addrs     = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	addr      = netip.MustParseAddr
	published = true
)

func service(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}
	if change != nil {
		change(s)
	}
	return s
}

func nodePort(port int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = port
	}
}

func TestDecide(t *testing.T) {
	tests := map[string]struct {
		service *corev1.Service
		held    Lease
		taken   Taken
		ips     int
		ports   int
		problem string
	}{
		"cluster address":         {service: service(nil), ips: 1},
		"headless":                {service: service(func(s *corev1.Service) { s.Spec.ClusterIP = "None" })},
		"external name":           {service: service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName })},
		"node port":               {service: service(nodePort(0)), ips: 1, ports: 1},
		"load balancer":           {service: service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }), ips: 1, ports: 1},
		"address outside":         {service: service(func(s *corev1.Service) { s.Spec.ClusterIP = "10.1.0.1" }), problem: "spec.clusterIP 10.1.0.1 is outside the cluster's service range 10.96.0.0/16"},
		"first address":           {service: service(func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.0" }), problem: "spec.clusterIP 10.96.0.0 is outside the cluster's service range 10.96.0.0/16"},
		"address taken":           {service: service(func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.9" }), taken: Taken{Addr: func(netip.Addr) bool { return true }, Port: nothing.Port}, problem: "spec.clusterIP 10.96.0.9 is already another service's address"},
		"node port outside":       {service: service(nodePort(80)), ips: 1, problem: "node port 80 is outside the cluster's range 30000-32767"},
		"node port taken":         {service: service(nodePort(30080)), taken: Taken{Addr: nothing.Addr, Port: func(NodePort) bool { return true }}, ips: 1, problem: "node port 30080/TCP is already another service's"},
		"no address left":         {service: service(nil), taken: Taken{Addr: func(netip.Addr) bool { return true }, Port: nothing.Port}, problem: "no cluster address is free in 10.96.0.0/16"},
		"held address is renewed": {service: service(nil), held: Lease{IPs: []netip.Addr{addr("10.1.2.3")}}, ips: 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.taken.Addr == nil {
				test.taken = nothing
			}
			lease, problem := Decide(test.service, test.held, network, test.taken)
			if problem != test.problem || len(lease.IPs) != test.ips || len(lease.NodePorts) != test.ports {
				t.Errorf("%+v, problem %q", lease, problem)
			}
			for _, a := range lease.IPs {
				if !network.Services.Contains(a) {
					t.Errorf("%s is outside the range", a)
				}
			}
		})
	}
}

func TestTheRecordWins(t *testing.T) {
	held := Lease{IPs: []netip.Addr{addr("10.96.7.7")}, NodePorts: map[string]uint16{"TCP/80": 31234}}
	lease, problem := Decide(service(nodePort(0)), held, network, nothing)
	if problem != "" || !lease.Equal(held) {
		t.Errorf("%+v, problem %q", lease, problem)
	}
}

// TestProbing: as many services as there are addresses all get one of their own.
func TestProbing(t *testing.T) {
	small := network
	small.Services = netip.MustParsePrefix("10.0.0.0/28")
	rapid.Check(t, func(t *rapid.T) {
		used := map[netip.Addr]bool{}
		for range 14 {
			s := service(func(s *corev1.Service) { s.Name = rapid.StringMatching(`[a-z]{1,9}`).Draw(t, "name") })
			lease, problem := Decide(s, Lease{}, small, Taken{Addr: func(a netip.Addr) bool { return used[a] }, Port: nothing.Port})
			if problem != "" || used[lease.IPs[0]] || lease.IPs[0] == addr("10.0.0.0") || lease.IPs[0] == addr("10.0.0.15") {
				t.Fatalf("%v, problem %q, used %v", lease, problem, used)
			}
			used[lease.IPs[0]] = true
		}
	})
}

func backend(name, ip string, serving bool) Backend {
	return Backend{Pod: name, Node: "n", Addr: addr(ip), Serving: serving, Hostname: name, Subdomain: "web", Spec: &corev1.PodSpec{
		Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 9000}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}}},
	}}
}

func TestEndpoints(t *testing.T) {
	ready, unready := backend("a", "10.244.0.9", true), backend("b", "10.244.0.10", false)
	leaving := backend("c", "10.244.0.11", false)
	leaving.Leaving = true
	noAddr := backend("d", "10.244.0.12", true)
	noAddr.Addr = netip.Addr{}
	all := []Backend{unready, ready, leaving, noAddr}
	at := func(ip string, port uint16, pod string) proxy.Endpoint {
		return proxy.Endpoint{Addr: addr(ip), Port: port, Node: "n", Pod: pod, Hostname: pod}
	}
	tests := map[string]struct {
		change   func(*corev1.Service)
		want     []proxy.Endpoint
		notReady int
	}{
		"number":     {nil, []proxy.Endpoint{at("10.244.0.9", 8080, "a")}, 2},
		"own number": {func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.IntOrString{} }, []proxy.Endpoint{at("10.244.0.9", 80, "a")}, 2},
		"name":       {func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("web") }, []proxy.Endpoint{at("10.244.0.9", 9000, "a")}, 2},
		"name, udp": {func(s *corev1.Service) {
			s.Spec.Ports[0].TargetPort, s.Spec.Ports[0].Protocol = intstr.FromString("dns"), corev1.ProtocolUDP
		}, []proxy.Endpoint{at("10.244.0.9", 53, "a")}, 2},
		"unknown name":      {func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("nope") }, nil, 3},
		"not ready too":     {func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = published }, []proxy.Endpoint{at("10.244.0.9", 8080, "a"), at("10.244.0.10", 8080, "b")}, 1},
		"headless, no port": {func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.Ports = "None", nil }, []proxy.Endpoint{at("10.244.0.9", 0, "a")}, 2},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, notReady := Compile(service(test.change), Lease{}, all, Manual{})
			if diff := cmp.Diff(test.want, got.Ports[0].Endpoints, addrs); diff != "" || notReady[0] != test.notReady {
				t.Errorf("not ready %d\n%s", notReady[0], diff)
			}
		})
	}
}

func TestByHand(t *testing.T) {
	bare := service(func(s *corev1.Service) { s.Spec.Selector = nil })
	name, port, no, node := "http", int32(8443), false, "n2"
	manual := Manual{
		Endpoints: &corev1.Endpoints{Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1", NodeName: &node}}, NotReadyAddresses: []corev1.EndpointAddress{{IP: "192.0.2.2"}},
			Ports: []corev1.EndpointPort{{Name: "http", Port: 8080}, {Name: "other", Port: 1}},
		}}},
		Slices: []*discoveryv1.EndpointSlice{{
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.3"}, NodeName: &node}, {Addresses: []string{"192.0.2.4"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}}},
			Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		}},
	}
	got, _ := Compile(bare, Lease{}, nil, manual)
	want := []proxy.Endpoint{{Addr: addr("192.0.2.1"), Port: 8080, Node: "n2"}, {Addr: addr("192.0.2.3"), Port: 8443, Node: "n2"}}
	if diff := cmp.Diff(want, got.Ports[0].Endpoints, addrs); diff != "" {
		t.Error(diff)
	}
}

func TestServiceFields(t *testing.T) {
	seconds := int32(60)
	got, _ := Compile(service(func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		s.Spec.ExternalIPs = []string{"192.0.2.9"}
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP})
	}), Lease{IPs: []netip.Addr{addr("10.96.0.9")}, NodePorts: map[string]uint16{"UDP/53": 30053}}, nil, Manual{})
	want := &proxy.Service{
		Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{addr("10.96.0.9")}, ExternalIPs: []netip.Addr{addr("192.0.2.9")},
		Affinity: time.Minute, ExternalLocal: true,
		Ports: []proxy.Port{{Name: "http", Protocol: proxy.TCP, Port: 80}, {Name: "dns", Protocol: proxy.UDP, Port: 53, NodePort: 30053}},
	}
	if diff := cmp.Diff(want, got, addrs); diff != "" {
		t.Error(diff)
	}
	external, _ := Compile(service(func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "db.example.com."
	}), Lease{}, nil, Manual{})
	if external.ExternalName != "db.example.com" || len(external.Ports) != 0 {
		t.Errorf("%+v", external)
	}
}

func balanced(port int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.HealthCheckNodePort = port
	}
}

func TestHealthCheckPort(t *testing.T) {
	lease, problem := Decide(service(balanced(0)), Lease{}, network, nothing)
	if problem != "" || lease.HealthCheckPort < network.NodePortLow || lease.HealthCheckPort > network.NodePortHigh {
		t.Errorf("%+v, problem %q", lease, problem)
	}
	if len(lease.Ports()) != 2 || lease.Ports()[0] == lease.Ports()[1] {
		t.Errorf("the lease takes %v", lease.Ports())
	}
	if again, _ := Decide(service(balanced(0)), lease, network, nothing); !again.Equal(lease) {
		t.Errorf("asked again, it is %+v after %+v", again, lease)
	}
	if asked, problem := Decide(service(balanced(31999)), lease, network, nothing); problem != "" || asked.HealthCheckPort != 31999 {
		t.Errorf("%+v, problem %q", asked, problem)
	}
	own := service(balanced(31000))
	own.Spec.Ports[0].NodePort = 31000
	if _, problem := Decide(own, Lease{}, network, nothing); problem != "node port 31000/TCP is already another service's" {
		t.Errorf("one port for both: problem %q", problem)
	}
	for name, other := range map[string]*corev1.Service{
		"a node port": service(nodePort(0)),
		"policy Cluster": service(func(s *corev1.Service) {
			balanced(0)(s)
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		}),
	} {
		if lease, problem := Decide(other, lease, network, nothing); problem != "" || lease.HealthCheckPort != 0 {
			t.Errorf("%s: %+v, problem %q", name, lease, problem)
		}
	}
	if s, _ := Compile(service(balanced(0)), lease, nil, Manual{}); s.HealthCheckPort != lease.HealthCheckPort || !s.ExternalLocal {
		t.Errorf("compiled into %+v", s)
	}
}

func TestPreference(t *testing.T) {
	for distribution, want := range map[string]proxy.Preference{
		corev1.ServiceTrafficDistributionPreferClose:    proxy.SameZone,
		corev1.ServiceTrafficDistributionPreferSameZone: proxy.SameZone,
		corev1.ServiceTrafficDistributionPreferSameNode: proxy.SameNode,
	} {
		prefers := func(s *corev1.Service) { s.Spec.TrafficDistribution = &distribution }
		if s, _ := Compile(service(prefers), Lease{}, nil, Manual{}); s.Prefer != want {
			t.Errorf("%s: %q, want %q", distribution, s.Prefer, want)
		}
		byHand := func(s *corev1.Service) { prefers(s); s.Spec.Selector = nil }
		if s, _ := Compile(service(byHand), Lease{}, nil, Manual{}); s.Prefer != proxy.NoPreference {
			t.Errorf("%s, endpoints by hand: %q", distribution, s.Prefer)
		}
	}
	if s, _ := Compile(service(nil), Lease{}, nil, Manual{}); s.Prefer != proxy.NoPreference {
		t.Errorf("none: %q", s.Prefer)
	}
}
