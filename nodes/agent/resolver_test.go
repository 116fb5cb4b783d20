package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
)

func TestMachineResolverIsReachableFromAPod(t *testing.T) {
	const resolved = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0\nsearch corp.test\n"
	search, options := []string{"corp.test"}, []string{"edns0"}
	for _, c := range []struct {
		name, etc, systemd string
		hostNetwork        bool
		want               spec.Resolver
	}{
		{name: "plain", etc: "nameserver 192.0.2.1\n", want: spec.Resolver{Servers: []string{"192.0.2.1"}}},
		{name: "some loopback", etc: "nameserver ::1\nnameserver 192.0.2.1\n", want: spec.Resolver{Servers: []string{"192.0.2.1"}}},
		{
			name: "systemd-resolved", etc: resolved, systemd: "nameserver 192.0.2.2\nnameserver 192.0.2.3\n",
			want: spec.Resolver{Servers: []string{"192.0.2.2", "192.0.2.3"}, Searches: search, Options: options},
		},
		{name: "a resolver of its own", etc: resolved, want: spec.Resolver{Servers: []string{"10.244.0.1"}, Searches: search, Options: options}},
		{
			name: "host network", etc: resolved, systemd: "nameserver 192.0.2.2\n", hostNetwork: true,
			want: spec.Resolver{Servers: []string{"127.0.0.53"}, Searches: search, Options: options},
		},
		{name: "none", etc: ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := [2]string{filepath.Join(t.TempDir(), "etc"), filepath.Join(t.TempDir(), "systemd")}
			for i, text := range [2]string{c.etc, c.systemd} {
				if text == "" {
					continue // no such file
				}
				if err := os.WriteFile(files[i], []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := machineResolver(files, c.hostNetwork, netip.MustParseAddr("10.244.0.1"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
