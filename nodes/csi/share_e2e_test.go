//go:build e2e

package csi_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/test/machine"
)

func TestMain(m *testing.M) { machine.Main(m) }

// TestDirectoryIsSharedAndGivenBack has two runs make the directory a shared
// mount, and a reset take it away.
func TestDirectoryIsSharedAndGivenBack(t *testing.T) {
	around := t.TempDir()
	must(t, unix.Mount("private", around, "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(around, 0)) }()
	must(t, unix.Mount("", around, "", unix.MS_PRIVATE, ""))
	dir := filepath.Join(around, "kubelet")
	var volumes *csi.Volumes
	for range 2 {
		drivers, err := csi.New(csi.Options{Dir: dir, DataDir: around, Log: slog.New(slog.DiscardHandler)})
		must(t, err)
		volumes, err = csi.NewVolumes(csi.VolumesOptions{Drivers: drivers, DataDir: around, Config: func(desired.Key) *nodes.Config { return nil }})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- drivers.Run(ctx) }()
		deadline := time.Now().Add(time.Minute)
		for shared := ""; !strings.Contains(shared, "shared:"); shared = mountLine(t, dir) {
			if time.Now().After(deadline) {
				t.Fatalf("the directory is not shared: %q", shared)
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	must(t, volumes.Reset())
	if line := mountLine(t, dir); line != "" {
		t.Errorf("reset leaves %s", line)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reset leaves the directory: %v", err)
	}
}

func mountLine(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, " "+dir+" ") {
			return line
		}
	}
	return ""
}
