//go:build e2e

package containerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest"
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
	shim := in.shimOf(t, "forgotten")
	in.forget(t, "forgotten")
	if err := unix.Kill(forgotten.PID, 0); err != nil {
		t.Fatalf("the forgotten process: %v: the test looks at nothing", err)
	}
	if err := in.r.Delete(t.Context(), "forgotten"); err != nil {
		t.Fatal(err)
	}
	for name, pid := range map[string]int{"process": forgotten.PID, "shim": shim} {
		if goesOn(pid) {
			t.Errorf("the forgotten %s %d goes on", name, pid)
		}
	}
	if kept, err := in.r.Status(t.Context(), "kept"); err != nil || kept.PID == 0 {
		t.Errorf("another container: %+v, %v", kept, err)
	}
	in.start(t, in.container("forgotten", "serve")) // runc remembers nothing either
}

// forget makes containerd forget that it ever started a container.
func (in inside) forget(t *testing.T, id string) {
	t.Helper()
	if err := in.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(filepath.Dir(in.daemon.Address), "state", "io.containerd.runtime.v2.task", in.namespace(), id)
	if err := unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(bundle); err != nil {
		t.Fatal(err)
	}
	if err := in.daemon.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestForgottenContainerLeavesNoShim: the shim of a pod still counts a container
// that containerd has forgotten, and so does not end with the pod's last one.
func TestForgottenContainerLeavesNoShim(t *testing.T) {
	for _, gone := range [][]string{{"first", "second"}, {"second", "first"}} {
		t.Run(strings.Join(gone, " and then "), func(t *testing.T) {
			in := newInside(t)
			first, second := in.container("first", "serve"), in.container("second", "serve")
			second.Pod = first.Pod
			in.start(t, first)
			in.start(t, second)
			shim := in.shimOf(t, "second")
			if shim != in.shimOf(t, "first") {
				t.Fatal("the pod has two shims: the test looks at nothing")
			}
			in.forget(t, "first")
			for i, id := range gone {
				if err := in.r.Delete(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				if i == 0 && !goesOn(shim) {
					t.Errorf("the shim ended with %s, before the pod's other container", id)
				}
			}
			runtimetest.Eventually(t, "the shim ends with the pod", func() error {
				if goesOn(shim) {
					return fmt.Errorf("shim %d runs", shim)
				}
				return nil
			})
		})
	}
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

// goesOn tells a process that has not ended; one that waits to be reaped by its
// parent has.
func goesOn(pid int) bool {
	_, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	return err == nil
}
