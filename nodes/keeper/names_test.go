package keeper

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tallyman-dev/tallyman/proxy"
)

// TestOnlyWhatNamesNeedIsSent: a change of endpoints that no name and no health check
// is made of is no change.
func TestOnlyWhatNamesNeedIsSent(t *testing.T) {
	endpoint := func(node string) proxy.Endpoint {
		return proxy.Endpoint{Addr: netip.MustParseAddr("10.244.0.2"), Port: 80, Node: node}
	}
	table := func(change func(*proxy.Table)) *proxy.Table {
		t := &proxy.Table{Generation: 7, Domain: "cluster.local", Nodes: []proxy.Node{{Name: "here"}, {Name: "there"}}}
		for _, s := range []*proxy.Service{{Name: "web"}, {Name: "balanced", HealthCheckPort: 30000}, {Name: "peers", Headless: true}} {
			s.Namespace = "default"
			s.Ports = []proxy.Port{{Name: "http", Port: 80, Endpoints: []proxy.Endpoint{endpoint("here"), endpoint("there")}}}
			t.Services = append(t.Services, s)
		}
		change(t)
		return t
	}
	grow := func(i int, node string) func(*proxy.Table) {
		return func(t *proxy.Table) {
			p := &t.Services[i].Ports[0]
			p.Endpoints = append(p.Endpoints, endpoint(node))
		}
	}
	before := DNS{Table: table(func(*proxy.Table) {}), Node: "here"}
	for name, test := range map[string]struct {
		change func(*proxy.Table)
		same   bool
	}{
		"generation":                {func(t *proxy.Table) { t.Generation = 8 }, true},
		"a node":                    {func(t *proxy.Table) { t.Nodes = t.Nodes[:1] }, true},
		"an endpoint behind an IP":  {grow(0, "here"), true},
		"a checked one here":        {grow(1, "here"), false},
		"a checked one there":       {grow(1, "there"), true},
		"one that has a name":       {grow(2, "there"), false},
		"an address":                {func(t *proxy.Table) { t.Services[0].ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.1")} }, false},
		"a port":                    {func(t *proxy.Table) { t.Services[0].Ports[0].Name = "https" }, false},
		"a service":                 {func(t *proxy.Table) { t.Services = t.Services[:2] }, false},
		"nothing was heard so far":  {func(t *proxy.Table) { t.Generation = 0 }, false},
		"the domain of the cluster": {func(t *proxy.Table) { t.Domain = "example.org" }, false},
	} {
		full := table(test.change)
		if same := before.served().equal(DNS{Table: full, Node: "here"}.served()); same != test.same {
			t.Errorf("%s: the same is served: %v", name, same)
		}
		if diff := cmp.Diff(table(test.change), full, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s: the agent's own table changed: %s", name, diff)
		}
	}
}

// BenchmarkServed shows what a generation costs on a node of a large cluster.
func BenchmarkServed(b *testing.B) {
	t := &proxy.Table{Generation: 1, Domain: "cluster.local"}
	for i := range 5000 {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1})
		prefix, _ := addr.Prefix(24)
		t.Nodes = append(t.Nodes, proxy.Node{Name: fmt.Sprintf("node-%04d", i), Addr: addr, PodCIDR: prefix, Zone: "zone"})
	}
	for i := range 2000 {
		s := &proxy.Service{Namespace: "default", Name: fmt.Sprintf("app-%04d", i), ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}}
		p := proxy.Port{Name: "http", Protocol: proxy.TCP, Port: 80}
		for e := range 10 {
			p.Endpoints = append(p.Endpoints, proxy.Endpoint{Addr: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(e)}), Port: 8080, Node: fmt.Sprintf("node-%04d", i), Pod: fmt.Sprintf("app-%04d-7d9f8b6c5-%05d", i, e)})
		}
		s.Ports = append(s.Ports, p)
		t.Services = append(t.Services, s)
	}
	for name, d := range map[string]DNS{"whole": {Table: t, Node: "node-0001"}, "served": DNS{Table: t, Node: "node-0001"}.served()} {
		b.Run(name, func(b *testing.B) {
			size := 0
			for b.Loop() {
				encoded, err := json.Marshal(d)
				if err != nil {
					b.Fatal(err)
				}
				var decoded DNS
				if err := json.Unmarshal(encoded, &decoded); err != nil {
					b.Fatal(err)
				}
				size = len(encoded)
			}
			b.ReportMetric(float64(size), "B/table")
		})
	}
	last := DNS{Table: t, Node: "node-0001"}.served()
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			if !last.equal(DNS{Table: t, Node: "node-0001"}.served()) {
				b.Fatal("it changed")
			}
		}
	})
}
