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
)

func TestDamagedNetworkFileStopsNoNode(t *testing.T) {
	defaults := desired.DefaultSettings().Network
	other := defaults
	other.Pods = netip.MustParsePrefix("10.99.0.0/16")
	path := filepath.Join(t.TempDir(), "network.json")
	read := func(want desired.Network, warns bool) {
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
