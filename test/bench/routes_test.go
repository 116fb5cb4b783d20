//go:build e2e

package bench

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/proxy"
	"github.com/tallyman-dev/tallyman/proxy/iptables"
)

// manyServices is how many services, of three endpoints each, are routed.
const manyServices = 1000

// benchRoutes measures the routing of many services through the proxy's
// backend, beside iptables-restore of the same rules.
func benchRoutes(t *testing.T, all *figures) {
	ctx := context.Background()
	var first, change, restore, restoreOne []time.Duration
	for range 5 {
		backend, err := iptables.New(ctx, iptables.Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		config := routes()
		first = append(first, set(t, backend, config))
		for i := range 5 {
			config.Table = changed(config.Table, 500, byte(100+i))
			change = append(change, set(t, backend, config))
		}
		saved := command(t, "", "iptables-save")
		if n := strings.Count(saved, "-A TALLY-"); n < 3*manyServices {
			t.Fatalf("only %d rules for %d services", n, manyServices)
		}
		restore = append(restore, timed(func() { command(t, saved, "iptables-restore") }))
		restoreOne = append(restoreOne, timed(func() {
			command(t, "*nat\n:TALLY-BENCH - [0:0]\n-F TALLY-BENCH\n-A TALLY-BENCH -j RETURN\nCOMMIT\n", "iptables-restore", "--noflush")
		}))
		command(t, "", "iptables", "-t", "nat", "-F", "TALLY-BENCH")
		command(t, "", "iptables", "-t", "nat", "-X", "TALLY-BENCH")
		if err := backend.Close(ctx); err != nil {
			t.Fatal(err)
		}
	}
	all.add(t, lower("1000-services-programmed", median(t, "1,000 services", first).Seconds(), "s", 0.5).
		beside(median(t, "iptables-restore of the same rules", restore).Seconds()))
	all.add(t, lower("one-endpoint-of-3000-changed", median(t, "one endpoint", change).Seconds()*1000, "ms", 50).
		beside(median(t, "iptables-restore of one chain", restoreOne).Seconds()*1000))
}

func timed(do func()) time.Duration {
	begun := time.Now()
	do()
	return time.Since(begun)
}

func set(t *testing.T, b *iptables.Backend, c proxy.Config) time.Duration {
	t.Helper()
	return timed(func() {
		if err := b.Set(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	})
}

func routes() proxy.Config {
	table := &proxy.Table{Generation: 1, Domain: "cluster.local"}
	for i := range manyServices {
		table.Services = append(table.Services, service(i, 1))
	}
	return proxy.Config{Table: table, Local: proxy.Local{
		Node: "node", NodeAddrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		PodCIDR: netip.MustParsePrefix("10.244.0.0/24"), ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"),
		ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), Bridge: "tally0",
	}}
}

// service number i; last is the end of its first endpoint's address.
func service(i int, last byte) *proxy.Service {
	port := proxy.Port{Protocol: proxy.TCP, Port: 80}
	for e := range byte(3) {
		at := netip.AddrFrom4([4]byte{10, 244, byte(i / 250), byte(i%250) + 1})
		if e > 0 {
			at = netip.AddrFrom4([4]byte{10, 244, 100 + e, byte(i % 250)})
		} else if last > 1 {
			at = netip.AddrFrom4([4]byte{10, 244, 200, last})
		}
		port.Endpoints = append(port.Endpoints, proxy.Endpoint{Addr: at, Port: 8000 + uint16(i/250), Node: "node"})
	}
	slices.SortFunc(port.Endpoints, proxy.Endpoint.Compare)
	return &proxy.Service{
		Namespace: "bench", Name: fmt.Sprintf("service-%04d", i),
		ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i / 250), byte(i%250) + 1})},
		Ports:      []proxy.Port{port},
	}
}

// changed is the next generation, in which one service has another endpoint.
func changed(t *proxy.Table, i int, last byte) *proxy.Table {
	next := *t
	next.Generation++
	next.Services = slices.Clone(t.Services)
	next.Services[i] = service(i, last)
	return &next
}

func command(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}
