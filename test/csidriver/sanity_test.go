//go:build e2e

package main

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"

	"github.com/tallyman-dev/tallyman/test/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

// TestSanity holds the driver to CSI's own tests: one that the agent is tested
// with must be one that anybody would take for a driver.
func TestSanity(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "csi.sock")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	d := &driver{name: "directory.csi.example.com", node: "node", dir: filepath.Join(dir, "data"), attaches: true}
	go func() { ended <- run(ctx, d, socket, registrant{}) }()
	config := sanity.NewTestConfig()
	config.Address = socket
	config.TargetPath, config.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
	config.TestVolumeSize, config.TestVolumeExpandSize = 10<<20, 20<<20
	sanity.Test(t, config)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
