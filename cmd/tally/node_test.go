package main

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

func TestDamagedNetworkFileStopsNoNode(t *testing.T) {
	defaults := knownNetwork{Network: desired.DefaultSettings().Network}
	other := defaults
	other.Pods, other.PodCIDR = netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("10.99.3.0/24")
	path := filepath.Join(t.TempDir(), "network.json")
	read := func(want knownNetwork, warns bool) {
		t.Helper()
		var said bytes.Buffer
		got, err := readNetwork(path, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil || got != want || strings.Contains(said.String(), path) != warns {
			t.Errorf("read %+v, %v, and said %q; want %+v", got, err, said.String(), want)
		}
	}
	read(defaults, false)
	if err := writeNetwork(path, other); err != nil {
		t.Fatal(err)
	}
	read(other, false)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Valid up to a field that is not: nothing of it is used.
	damaged := bytes.Replace(whole, []byte(`"`+other.Services.String()+`"`), []byte("7"), 1)
	for _, content := range [][]byte{whole[:len(whole)/2], damaged, nil} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		read(defaults, true)
	}
}

func TestWhatAnAssignmentSaysOfAddresses(t *testing.T) {
	cluster := desired.DefaultSettings().Network
	wireguard, elsewhere := cluster, cluster
	wireguard.Overlay, elsewhere.Pods = "wireguard", netip.MustParsePrefix("10.99.0.0/16")
	first, second := netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("10.244.1.0/24")
	none := netip.Prefix{}
	for name, test := range map[string]struct {
		known knownNetwork
		a     nodes.Assignment
		want  knownNetwork
	}{
		"a new node gets its range":          {knownNetwork{cluster, none}, nodes.Assignment{Network: cluster, PodCIDR: second, Session: 1}, knownNetwork{cluster, second}},
		"there is none left for a new node":  {knownNetwork{cluster, none}, nodes.Assignment{Network: cluster, Session: 1}, knownNetwork{cluster, none}},
		"a node keeps what nobody speaks of": {knownNetwork{cluster, second}, nodes.Assignment{Network: cluster, Session: 1}, knownNetwork{cluster, second}},
		"a node is given another range":      {knownNetwork{cluster, first}, nodes.Assignment{Network: cluster, PodCIDR: second, Session: 1}, knownNetwork{cluster, second}},
		"a server of one node":               {knownNetwork{cluster, none}, nodes.Assignment{Network: cluster}, knownNetwork{cluster, first}},
		"another overlay":                    {knownNetwork{cluster, second}, nodes.Assignment{Network: wireguard, PodCIDR: second, Session: 1}, knownNetwork{wireguard, second}},
		"other addresses":                    {knownNetwork{cluster, second}, nodes.Assignment{Network: elsewhere, Session: 1}, knownNetwork{elsewhere, none}},
		"nothing is said":                    {knownNetwork{cluster, second}, nodes.Assignment{Session: 1}, knownNetwork{cluster, second}},
	} {
		if got := test.known.told(&test.a); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
}
