//go:build e2e

package iptables

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/proxy"
	"github.com/tallyman-dev/tallyman/proxy/netfilter"
	"github.com/tallyman-dev/tallyman/proxy/proxytest"
)

func TestMain(m *testing.M) { proxytest.Main(m) }

var variants = []netfilter.Variant{netfilter.NFT, netfilter.Legacy}

func newBackend(t testing.TB, v netfilter.Variant) *Backend {
	t.Helper()
	b, err := New(t.Context(), Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Variant: v})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out, talk bytes.Buffer // iptables-save warns in the middle of a line
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s%s", name, strings.Join(args, " "), err, &out, &talk)
	}
	return out.String()
}

// saved are the rules in the kernel, without what changes by itself and
// without empty chains of the kernel's own, which iptables makes by looking.
func saved(t testing.TB, v netfilter.Variant) string {
	var lines []string
	for line := range strings.Lines(run(t, "iptables-"+string(v)+"-save")) {
		if strings.HasPrefix(line, "-A") || strings.HasPrefix(line, ":TALLY") {
			lines = append(lines, line)
		}
	}
	local, err := os.ReadFile(routeLocalnet)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "") + "route_localnet " + string(local)
}

func TestConformance(t *testing.T) {
	for _, v := range variants {
		t.Run(string(v), func(t *testing.T) {
			proxytest.Harness{
				New: func(t testing.TB) proxy.Backend { return newBackend(t, v) },
				Flush: func(t testing.TB) {
					for _, table := range []string{"nat", "filter"} {
						run(t, "iptables-"+string(v), "-t", table, "-F")
						run(t, "iptables-"+string(v), "-t", table, "-X")
					}
				},
				Forward: func(t testing.TB, all bool) {
					run(t, "iptables-"+string(v), "-P", "FORWARD", map[bool]string{true: "ACCEPT", false: "DROP"}[all])
				},
				State: func(t testing.TB) string { return saved(t, v) },
			}.Run(t)
		})
	}
}
