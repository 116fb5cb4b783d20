package iptables

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/proxy"
)

var update = flag.Bool("update", false, "write the golden files anew")

func thisNode() proxy.Local {
	return proxy.Local{
		Node: "n1", NodeAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		PodCIDR: netip.MustParsePrefix("10.244.1.0/24"), ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"),
		ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), Bridge: "tally0",
	}
}

func endpoint(addr, node string) proxy.Endpoint {
	at := netip.MustParseAddrPort(addr)
	return proxy.Endpoint{Addr: at.Addr(), Port: at.Port(), Node: node}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// everything is a configuration with one of each thing that can be said.
func everything() proxy.Config {
	three := []proxy.Endpoint{
		endpoint("10.244.1.2:8080", "n1"), endpoint("10.244.1.3:8080", "n1"), endpoint("10.244.2.2:8080", "n2"),
	}
	far := []proxy.Endpoint{endpoint("10.244.2.2:53", "n2")}
	return proxy.Config{
		Local: thisNode(),
		Table: &proxy.Table{Generation: 7, Domain: "cluster.local", Nodes: []proxy.Node{{Name: "n1", Zone: "z1"}, {Name: "n2", Zone: "z2"}}, Services: []*proxy.Service{
			{Namespace: "default", Name: "web", ClusterIPs: addrs("10.96.0.10", "fd00::10"), Ports: []proxy.Port{
				{Name: "http", Protocol: proxy.TCP, Port: 80, NodePort: 30080, Endpoints: three},
			}},
			{Namespace: "default", Name: "sticky", ClusterIPs: addrs("10.96.8.1"), Affinity: 3 * time.Hour, Ports: []proxy.Port{
				{Protocol: proxy.TCP, Port: 6379, Endpoints: three[:2]},
			}},
			{
				Namespace: "default", Name: "out", ClusterIPs: addrs("10.96.8.2"), ExternalIPs: addrs("203.0.113.7"),
				ExternalLocal: true, InternalLocal: true, Ports: []proxy.Port{
					{Protocol: proxy.TCP, Port: 443, NodePort: 30443, Endpoints: three},
					{Protocol: proxy.UDP, Port: 53, NodePort: 30053, Endpoints: far},
					{Protocol: proxy.SCTP, Port: 99, Endpoints: three},
				},
			},
			{Namespace: "default", Name: "empty", ClusterIPs: addrs("10.96.8.3"), ExternalIPs: addrs("203.0.113.8"), Ports: []proxy.Port{
				{Protocol: proxy.TCP, Port: 80, NodePort: 30090}, {Protocol: proxy.UDP, Port: 80, NodePort: 30090},
			}},
			{Namespace: "default", Name: "near", ClusterIPs: addrs("10.96.8.4"), Prefer: proxy.SameZone, Ports: []proxy.Port{
				{Protocol: proxy.TCP, Port: 80, NodePort: 30091, Endpoints: three},
			}},
			{Namespace: "default", Name: "headless", Headless: true, Ports: []proxy.Port{{Protocol: proxy.TCP, Port: 80, Endpoints: three}}},
			{Namespace: "default", Name: "alias", ExternalName: "example.com"},
		}},
		HostPorts: []proxy.HostPort{
			{Protocol: proxy.TCP, HostPort: 8088, Endpoint: netip.MustParseAddrPort("10.244.1.4:80")},
			{Protocol: proxy.UDP, HostPort: 8089, HostIP: netip.MustParseAddr("192.0.2.1"), Endpoint: netip.MustParseAddrPort("10.244.1.4:53")},
		},
	}
}

// manyServices is the configuration of the speed figures: n services with
// three endpoints each.
func manyServices(n int) proxy.Config {
	table := &proxy.Table{Generation: 1}
	for i := range n {
		table.Services = append(table.Services, numberedService(i, 0))
	}
	return proxy.Config{Table: table, Local: thisNode()}
}

func numberedService(i int, shift byte) *proxy.Service {
	at := i * 64 % 65000
	s := &proxy.Service{
		Namespace: "default", Name: fmt.Sprintf("service-%04d", i),
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(at >> 8), byte(at)})},
		Ports:      []proxy.Port{{Name: "http", Protocol: proxy.TCP, Port: 80}},
	}
	for e := range byte(3) {
		addr := netip.AddrFrom4([4]byte{10, 244, byte(2 + i>>6), byte(i&63)<<2 | e + shift})
		s.Ports[0].Endpoints = append(s.Ports[0].Endpoints, proxy.Endpoint{Addr: addr, Port: 8080, Node: "elsewhere"})
	}
	return s
}

func TestRender(t *testing.T) {
	got := render(proxy.Compile(everything())).String()
	const file = "testdata/everything.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("rules differ (-want +got); -update writes them anew:\n%s", diff)
	}
}

func TestRenderIsOwnedAndComplete(t *testing.T) {
	rules := render(proxy.Compile(everything()))
	for table, chains := range rules {
		for chain, lines := range chains {
			if !own(chain) {
				t.Errorf("%s/%s is written but not owned", table, chain)
			}
			if len(chain) > 28 {
				t.Errorf("%s is longer than the 28 characters that iptables allows", chain)
			}
			for _, line := range lines {
				fields := strings.Fields(line)
				for i, f := range fields {
					if f != "-j" || !strings.HasPrefix(fields[i+1], "TALLY-") {
						continue
					}
					if _, ok := chains[fields[i+1]]; !ok {
						t.Errorf("%s/%s leads to %s, which is not written", table, chain, fields[i+1])
					}
				}
			}
		}
	}
	for _, j := range jumps() {
		fields := strings.Fields(j.Rule)
		if _, ok := rules[j.Table][fields[len(fields)-1]]; !ok {
			t.Errorf("jump %v leads nowhere", j)
		}
	}
	for _, theirs := range []string{"TALLY-NET-FORWARD", "KUBE-SERVICES", "PREROUTING"} {
		if own(theirs) {
			t.Errorf("%s is taken for ours", theirs)
		}
	}
}

func TestEmptyTableStillRefusesServiceAddresses(t *testing.T) {
	rules := render(proxy.Compile(proxy.Config{Local: thisNode(), Table: &proxy.Table{Generation: 1}}))
	if got := strings.Join(rules["filter"][reject], "\n"); !strings.Contains(got, "-d 10.96.0.0/16") {
		t.Errorf("TALLY-REJECT is %q", got)
	}
}

func TestChangedFlows(t *testing.T) {
	service := func(endpoints ...proxy.Endpoint) proxy.Config {
		return proxy.Config{Local: thisNode(), Table: &proxy.Table{Generation: 1, Services: []*proxy.Service{{
			Namespace: "default", Name: "dns", ClusterIPs: addrs("10.96.0.53"),
			Ports: []proxy.Port{
				{Protocol: proxy.UDP, Port: 53, NodePort: 30053, Endpoints: endpoints},
				{Protocol: proxy.TCP, Port: 53, Endpoints: endpoints},
			},
		}}}}
	}
	a, b := endpoint("10.244.1.2:53", "n1"), endpoint("10.244.1.3:53", "n1")
	addrPort := func(e proxy.Endpoint) netip.AddrPort { return netip.AddrPortFrom(e.Addr, e.Port) }
	cluster, node := frontend{proxy.UDP, netip.MustParseAddr("10.96.0.53"), 53}, frontend{protocol: proxy.UDP, port: 30053}
	stream := frontend{proxy.TCP, cluster.addr, 53}
	before := proxy.Compile(service(a))
	for name, c := range map[string]struct {
		before *proxy.Rules
		after  proxy.Config
		want   frontends
	}{
		"nothing changed":      {&before, service(a), frontends{}},
		"endpoint added":       {&before, service(a, b), frontends{}},
		"endpoint replaced":    {&before, service(b), frontends{cluster: {addrPort(b)}, node: {addrPort(b)}, stream: {addrPort(b)}}},
		"last endpoint gone":   {&before, service(), frontends{cluster: {}, node: {}, stream: {}}},
		"service gone":         {&before, proxy.Config{Local: thisNode()}, frontends{cluster: nil, node: nil, stream: nil}},
		"nothing known so far": {nil, service(a), frontends{cluster: {addrPort(a)}, node: {addrPort(a)}, stream: {addrPort(a)}}},
	} {
		got := changed(c.before, proxy.Compile(c.after))
		equal := cmp.Comparer(func(x, y []netip.AddrPort) bool { return len(x) == len(y) && (len(x) == 0 || x[0] == y[0]) })
		compareAddrs := cmp.Comparer(func(x, y frontend) bool { return x == y })
		if diff := cmp.Diff(c.want, got, equal, compareAddrs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func BenchmarkRender1000Services(b *testing.B) {
	config := manyServices(1000)
	b.ReportAllocs()
	for b.Loop() {
		render(proxy.Compile(config))
	}
}
