//go:build e2e

package containerd_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestForgottenContainerIsEnded makes containerd forget what it started, as it
// does when it is killed in the middle of that.
func TestForgottenContainerIsEnded(t *testing.T) {
	in := newInside(t)
	in.start(t, in.container("forgotten", "stubborn"))
	in.start(t, in.container("kept", "serve"))
	forgotten, err := in.r.Status(t.Context(), "forgotten")
	if err != nil {
		t.Fatal(err)
	}
	shim := parent(t, forgotten.PID)
	if err := in.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(filepath.Dir(in.daemon.Address), "state", "io.containerd.runtime.v2.task", in.namespace(), "forgotten")
	if err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(bundle); err != nil {
		t.Fatal(err)
	}
	if err := in.daemon.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(forgotten.PID, 0); err != nil {
		t.Fatalf("the forgotten process: %v: the test looks at nothing", err)
	}
	if err := in.r.Delete(t.Context(), "forgotten"); err != nil {
		t.Fatal(err)
	}
	for name, pid := range map[string]int{"process": forgotten.PID, "shim": shim} {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) && !zombie(pid) {
			t.Errorf("the forgotten %s %d goes on (%v)", name, pid, err)
		}
	}
	if kept, err := in.r.Status(t.Context(), "kept"); err != nil || kept.PID == 0 {
		t.Errorf("another container: %+v, %v", kept, err)
	}
	in.start(t, in.container("forgotten", "serve")) // runc remembers nothing either
}

// TestStateLeftBehindIsReplaced: runc keeps a container's state that containerd
// was killed too early to know of.
func TestStateLeftBehindIsReplaced(t *testing.T) {
	in := newInside(t)
	left := filepath.Join(in.dir, "run", "runc", in.namespace(), "again")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	in.start(t, in.container("again", "serve"))
	if status, err := in.r.Status(t.Context(), "again"); err != nil || status.PID == 0 {
		t.Errorf("%+v, %v", status, err)
	}
}

// parent of a process.
func parent(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	number, err := strconv.Atoi(strings.Fields(after)[1])
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// zombie tells a process that ended and waits to be reaped by its parent.
func zombie(pid int) bool {
	_, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	return err != nil
}
