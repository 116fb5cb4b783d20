package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func on(node, at string) Endpoint {
	a := netip.MustParseAddrPort(at)
	return Endpoint{Addr: a.Addr(), Port: a.Port(), Node: node}
}

func TestCompile(t *testing.T) {
	endpoints := []Endpoint{
		on("n1", "10.244.1.2:8080"), on("n1", "10.244.1.2:8080"), on("n2", "10.244.2.2:8080"), on("", "198.51.100.1:80"),
		on("n1", "0.0.0.0:80"),
		{Addr: addr("10.244.1.9")},
		on("n1", "[::ffff:10.244.1.3]:8080"),
	}
	c := Config{
		Local: Local{Node: "n1"},
		Table: &Table{Generation: 1, Services: []*Service{
			{Namespace: "a", Name: "all", ClusterIPs: []netip.Addr{addr("10.96.0.1")}, Affinity: time.Hour, Ports: []Port{
				{Name: "http", Protocol: TCP, Port: 80, NodePort: 30080, Endpoints: endpoints},
				{Name: "dns", Protocol: UDP, Port: 80},
			}},
			{Namespace: "a", Name: "headless", Headless: true, Ports: []Port{{Protocol: TCP, Port: 80, Endpoints: endpoints}}},
			{
				Namespace: "a", Name: "here", ClusterIPs: []netip.Addr{addr("10.96.0.2")}, ExternalIPs: []netip.Addr{addr("203.0.113.1")},
				ExternalLocal: true, InternalLocal: true, Ports: []Port{{Protocol: TCP, Port: 80, Endpoints: endpoints}},
			},
			{Namespace: "a", Name: "name", ExternalName: "example.com", Ports: []Port{{Protocol: TCP, Port: 80}}},
			{Namespace: "b", Name: "no-address", Ports: []Port{{Protocol: TCP, Port: 80, Endpoints: endpoints}}},
		}},
		HostPorts: []HostPort{
			{Protocol: TCP, HostPort: 8080, Endpoint: netip.MustParseAddrPort("10.244.1.2:80")},
			{Protocol: UDP, HostPort: 53, HostIP: addr("127.0.0.1"), Endpoint: netip.MustParseAddrPort("10.244.1.2:53")},
			{Protocol: TCP, HostPort: 8081},
		},
	}
	const want = `a/all:TCP/80 http cluster 10.96.0.1 node 30080 affinity 1h0m0s -> 10.244.1.2:8080 10.244.1.3:8080 10.244.2.2:8080 198.51.100.1:80
a/all:UDP/80 dns cluster 10.96.0.1 affinity 1h0m0s ->
a/here:TCP/80 cluster 10.96.0.2 external 203.0.113.1 internal-local external-local -> 10.244.1.2:8080 10.244.1.3:8080 10.244.2.2:8080 198.51.100.1:80 here 10.244.1.2:8080 10.244.1.3:8080
host TCP *:8080 -> 10.244.1.2:80
host UDP 127.0.0.1:53 -> 10.244.1.2:53
`
	got := Compile(c)
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if !got.Equal(Compile(c)) {
		t.Error("compiling twice gives different rules")
	}
}

// TestNear holds the rules of preference to those of Kubernetes'
// CategorizeEndpoints, with the hints that its controllers give.
func TestNear(t *testing.T) {
	zones := []Node{{Name: "n1", Zone: "z1"}, {Name: "n2", Zone: "z1"}, {Name: "n3", Zone: "z2"}, {Name: "n4"}}
	const here, neighbour, far, nowhere, hand = "n1 10.244.1.2:80", "n2 10.244.2.2:80", "n3 10.244.3.2:80", "n4 10.244.4.2:80", " 198.51.100.1:80"
	for name, test := range map[string]struct {
		prefer    Preference
		node      string
		endpoints []string
		want      []string // nil for all
	}{
		"no preference":                      {NoPreference, "n1", []string{here, neighbour, far}, nil},
		"own zone":                           {SameZone, "n1", []string{here, neighbour, far}, []string{here, neighbour}},
		"own zone, from the neighbour":       {SameZone, "n2", []string{here, far}, []string{here}},
		"none in the own zone":               {SameZone, "n3", []string{here, neighbour}, nil},
		"all in the own zone":                {SameZone, "n1", []string{here, neighbour}, nil},
		"a node without a zone":              {SameZone, "n4", []string{here, neighbour, far}, nil},
		"a node that is not in the table":    {SameZone, "n9", []string{here, neighbour, far}, nil},
		"an endpoint without a zone":         {SameZone, "n1", []string{here, far, nowhere}, nil},
		"an endpoint by hand":                {SameZone, "n1", []string{here, far, hand}, nil},
		"no endpoint":                        {SameZone, "n1", nil, nil},
		"own node":                           {SameNode, "n1", []string{here, neighbour, far}, []string{here}},
		"own node, with a zone unknown":      {SameNode, "n1", []string{here, far, nowhere}, []string{here}},
		"own node, with an endpoint by hand": {SameNode, "n1", []string{here, far, hand}, nil},
		"none on the own node, one in zone":  {SameNode, "n2", []string{here, far}, []string{here}},
		"none on the own node, none in zone": {SameNode, "n3", []string{here, neighbour}, nil},
		"own node without a zone":            {SameNode, "n4", []string{here, nowhere}, []string{nowhere}},
	} {
		var endpoints []Endpoint
		for _, e := range test.endpoints {
			node, at, _ := strings.Cut(e, " ")
			endpoints = append(endpoints, on(node, at))
		}
		var got []string
		for _, e := range locate(test.node, zones).near(test.prefer, endpoints) {
			got = append(got, e.Node+" "+e.at().String())
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: near are %q, want %q", name, got, test.want)
		}
	}
}

func TestRulesDiffer(t *testing.T) {
	config := func(change func(*Config, *Service)) Rules {
		s := &Service{Namespace: "a", Name: "b", ClusterIPs: []netip.Addr{addr("10.96.0.1")}, Ports: []Port{
			{Protocol: TCP, Port: 80, Endpoints: []Endpoint{on("n1", "10.244.1.2:80")}},
		}}
		c := Config{Local: Local{Node: "n1"}, Table: &Table{Generation: 1, Services: []*Service{s}}}
		change(&c, s)
		return Compile(c)
	}
	base := config(func(*Config, *Service) {})
	if same := config(func(c *Config, _ *Service) { c.Table.Generation = 2 }); !base.Equal(same) {
		t.Error("another generation of the same routes is taken for a difference")
	}
	for name, change := range map[string]func(*Config, *Service){
		"endpoint":  func(_ *Config, s *Service) { s.Ports[0].Endpoints = nil },
		"address":   func(_ *Config, s *Service) { s.ClusterIPs = []netip.Addr{addr("10.96.0.2")} },
		"external":  func(_ *Config, s *Service) { s.ExternalIPs = []netip.Addr{addr("203.0.113.1")} },
		"port":      func(_ *Config, s *Service) { s.Ports[0].Port = 81 },
		"node port": func(_ *Config, s *Service) { s.Ports[0].NodePort = 30000 },
		"affinity":  func(_ *Config, s *Service) { s.Affinity = time.Second },
		"preference": func(c *Config, s *Service) {
			c.Table.Nodes = []Node{{Name: "n1", Zone: "z1"}, {Name: "n2", Zone: "z2"}}
			s.Prefer, s.Ports[0].Endpoints = SameZone, []Endpoint{on("n1", "10.244.1.2:80"), on("n2", "10.244.2.2:80")}
		},
		"policy":       func(_ *Config, s *Service) { s.InternalLocal = true },
		"node address": func(c *Config, _ *Service) { c.Local.NodeAddrs = []netip.Addr{addr("192.0.2.1")} },
		"host port": func(c *Config, _ *Service) {
			c.HostPorts = []HostPort{{Protocol: TCP, HostPort: 1, Endpoint: netip.MustParseAddrPort("10.244.1.2:80")}}
		},
	} {
		if base.Equal(config(change)) {
			t.Errorf("another %s is taken for the same", name)
		}
	}
}
