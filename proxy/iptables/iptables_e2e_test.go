//go:build e2e

package iptables

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/proxy"
	"github.com/tallyman-dev/tallyman/proxy/netfilter"
	"github.com/tallyman-dev/tallyman/proxy/proxytest"
)

// If iptables-save printed other words than render writes, every process would
// write every chain again, and take its own words for foreign changes.
func TestRulesAreWrittenAsTheKernelSaysThem(t *testing.T) {
	for _, v := range variants {
		t.Run(string(v), func(t *testing.T) {
			b := newBackend(t, v)
			config := everything()
			if err := b.Set(t.Context(), config); err != nil {
				t.Fatal(err)
			}
			defer b.Close(context.Background())
			want := render(proxy.Compile(config))
			got := netfilter.Ruleset{}
			table := ""
			for line := range strings.Lines(run(t, "iptables-"+string(v)+"-save")) {
				line = strings.TrimSuffix(line, "\n")
				if name, ok := strings.CutPrefix(line, "*"); ok {
					table = name
				}
				if rule, ok := strings.CutPrefix(line, "-A TALLY-"); ok {
					chain, rest, _ := strings.Cut(rule, " ")
					got.Add(table, "TALLY-"+chain, rest)
				}
			}
			if diff := cmp.Diff(want.String(), got.String()); diff != "" {
				t.Errorf("-rendered +saved:\n%s", diff)
			}
		})
	}
}

func BenchmarkProgram1000Services(b *testing.B) {
	for _, v := range variants {
		b.Run(string(v), func(b *testing.B) {
			config := manyServices(1000)
			for b.Loop() {
				backend := newBackend(b, v)
				must(b, backend.Set(b.Context(), config))
				b.StopTimer()
				must(b, backend.Close(b.Context()))
				b.StartTimer()
			}
		})
	}
}

func BenchmarkChangeOneEndpointOf3000(b *testing.B) {
	for _, v := range variants {
		b.Run(string(v), func(b *testing.B) {
			backend := newBackend(b, v)
			config := manyServices(1000)
			must(b, backend.Set(b.Context(), config))
			defer backend.Close(context.Background())
			for i := 0; b.Loop(); i++ {
				table := *config.Table
				table.Generation++
				table.Services = append([]*proxy.Service{}, table.Services...)
				table.Services[500] = numberedService(500, byte(i+1)%2)
				config.Table = &table
				must(b, backend.Set(b.Context(), config))
			}
		})
	}
}

func BenchmarkAdopt1000Services(b *testing.B) {
	for _, v := range variants {
		b.Run(string(v), func(b *testing.B) {
			config := manyServices(1000)
			first := newBackend(b, v)
			must(b, first.Set(b.Context(), config))
			defer first.Close(context.Background())
			for b.Loop() {
				must(b, newBackend(b, v).Set(b.Context(), config))
			}
		})
	}
}

// BenchmarkIdleCheck is what Run costs every two seconds while nobody changes rules.
func BenchmarkIdleCheck(b *testing.B) {
	for _, v := range variants {
		b.Run(string(v), func(b *testing.B) {
			backend := newBackend(b, v)
			must(b, backend.Set(b.Context(), manyServices(1000)))
			defer backend.Close(context.Background())
			for b.Loop() {
				if _, err := backend.realm.Check(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPath compares the way through a cluster address, among a thousand
// services, with the direct one: a new connection each, and requests on one.
func BenchmarkPath(b *testing.B) {
	w := proxytest.NewWorld(b)
	server := w.Pod("server")
	server.Serve(8080)
	for _, v := range variants {
		backend := newBackend(b, v)
		config := manyServices(1000)
		service := numberedService(999, 0)
		service.Name = "service-9999"
		service.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.255.10")}
		service.Ports[0].Endpoints = []proxy.Endpoint{{Addr: server.IP, Port: 8080, Node: config.Local.Node}}
		config.Table.Services = append(config.Table.Services, service)
		config.Local = w.Local()
		must(b, backend.Set(b.Context(), config))
		direct, through := server.IP.String()+":8080", "10.96.255.10:80"
		b.Run(string(v)+"/connect", func(b *testing.B) {
			compare(b, func() error { return connect(direct) }, func() error { return connect(through) })
		})
		b.Run(string(v)+"/request", func(b *testing.B) {
			compare(b, request(b, w, direct), request(b, w, through))
		})
		must(b, backend.Close(b.Context()))
	}
}

// compare runs both ways in turns, so that whatever else the machine does
// meets them alike, and reports the median of the turns' ratios.
func compare(b *testing.B, direct, through func() error) {
	const turn = 100
	timed := func(f func() error) float64 {
		begin := time.Now()
		for range turn {
			must(b, f())
		}
		return time.Since(begin).Seconds()
	}
	var ratios []float64
	for b.Loop() {
		ratios = append(ratios, timed(direct)/timed(through))
	}
	slices.Sort(ratios)
	b.ReportMetric(100*ratios[len(ratios)/2], "%ofdirect")
}

func connect(to string) error {
	c, err := net.Dial("tcp", to)
	if err != nil {
		return err
	}
	// A reset leaves no trace in TIME_WAIT, which would run out of ports.
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		return err
	}
	return c.Close()
}

func request(b *testing.B, w *proxytest.World, to string) func() error {
	c, err := w.Node.Dial(to)
	must(b, err)
	b.Cleanup(func() { c.Close() })
	return func() error {
		_, err := c.Say("ping")
		return err
	}
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func TestRunIsCheap(t *testing.T) {
	b := newBackend(t, netfilter.NFT)
	if err := b.Set(t.Context(), everything()); err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	before, err := children()
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if repaired, err := b.realm.Check(t.Context()); repaired || err != nil {
			t.Fatalf("checking untouched rules: repaired %t, %v", repaired, err)
		}
	}
	if after, err := children(); err != nil || after != before {
		t.Errorf("checking untouched rules ran programs (%v): children used %s before and %s after", err, before, after)
	}
}

// children is the processor time of all programs that were run and ended.
func children() (time.Duration, error) {
	var usage syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), err
}

// Rules of others stay, whatever we do and however we clean up.
func TestForeignRulesStay(t *testing.T) {
	for _, v := range variants {
		t.Run(string(v), func(t *testing.T) {
			iptables := "iptables-" + string(v)
			run(t, iptables, "-t", "nat", "-N", "THEIRS")
			run(t, iptables, "-t", "nat", "-A", "THEIRS", "-d", "198.51.100.1", "-j", "RETURN")
			run(t, iptables, "-t", "nat", "-A", "PREROUTING", "-j", "THEIRS")
			run(t, iptables, "-t", "filter", "-N", "TALLY-NET-FORWARD")
			run(t, iptables, "-A", "FORWARD", "-j", "TALLY-NET-FORWARD")
			t.Cleanup(func() {
				for _, args := range []string{"-t nat -F", "-t nat -X", "-F", "-X"} {
					_ = exec.Command(iptables, strings.Fields(args)...).Run()
				}
			})
			before := saved(t, v)
			b := newBackend(t, v)
			if err := b.Set(t.Context(), everything()); err != nil {
				t.Fatal(err)
			}
			if err := b.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, saved(t, v)); diff != "" {
				t.Errorf("-before +after:\n%s", diff)
			}
		})
	}
}

func TestVariantInUseIsTaken(t *testing.T) {
	if got := newBackendVariant(t); got != netfilter.NFT {
		t.Errorf("without any rules the variant is %s, want nft", got)
	}
	run(t, "iptables-legacy", "-A", "INPUT", "-s", "198.51.100.1", "-j", "ACCEPT")
	t.Cleanup(func() { run(t, "iptables-legacy", "-F") })
	if got := newBackendVariant(t); got != netfilter.Legacy {
		t.Errorf("with legacy rules the variant is %s, want legacy", got)
	}
}

func newBackendVariant(t *testing.T) netfilter.Variant {
	t.Helper()
	tables, err := netfilter.Open(t.Context(), netfilter.Options{Log: newBackend(t, netfilter.NFT).log})
	if err != nil {
		t.Fatal(err)
	}
	return tables.Variant()
}
