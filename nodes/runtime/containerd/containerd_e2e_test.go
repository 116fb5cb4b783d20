//go:build e2e

package containerd_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/containerd"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/daemon"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/registry"
)

// world is a daemon and a registry with the test program in an image.
type world struct {
	daemon   *daemon.Daemon
	registry *registry.Registry
	dir      string
	// cgroup is the parent of all containers.
	cgroup string
}

// binary is the test program, built once by TestMain.
var (
	binary    string
	binaryErr error
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tt-program-")
	if err != nil {
		panic(err)
	}
	binary, binaryErr = image.BuildBinary(context.Background(), image.Program, dir)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

const passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1001:1002:web:/:/bin/sh\n"

const group = "root:x:0:\nweb:x:1002:\nextra:x:1003:other,web\n"

func newWorld(t testing.TB) *world {
	t.Helper()
	if binaryErr != nil {
		t.Fatal(binaryErr)
	}
	dir, err := os.MkdirTemp("", "tt-containerd-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: dir, cgroup: "/" + filepath.Base(dir)}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for err := removeCgroups(w.cgroup); err != nil; err = removeCgroups(w.cgroup) {
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
			time.Sleep(10 * time.Millisecond) // the kernel still buries the processes
		}
	})
	if w.daemon, err = daemon.Start(t.Context(), filepath.Join(dir, "containerd")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.daemon.Stop(); err != nil {
			t.Error(err)
		}
	})
	if w.registry, err = registry.Start(t.Context(), registry.Options{Dir: filepath.Join(dir, "registry")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.registry.Stop(); err != nil {
			t.Error(err)
		}
	})
	w.push(t, w.image(), "", "")
	w.addShim(t)
	return w
}

// handler is one whose shim is runc's under another name.
const handler = "other"

// addShim gives the daemon the shim of handler. It gets no options from us, so
// runc's state is where the shim has it by default.
func (w *world) addShim(t testing.TB) {
	t.Helper()
	path, err := exec.LookPath("containerd-shim-runc-v2")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(w.daemon.Shims, 0o755), os.WriteFile(w.shim(), program, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		const all = "/run/containerd/runc"
		if err := os.RemoveAll(filepath.Join(all, w.namespace())); err != nil {
			t.Error(err)
		}
		_ = os.Remove(all) // unless others are in it
	})
}

func (w *world) shim() string {
	return filepath.Join(w.daemon.Shims, "containerd-shim-"+handler+"-v2")
}

// namespace of containerd, no other world's.
func (w *world) namespace() string { return filepath.Base(w.dir) }

// removeCgroups takes away the cgroups of containers that were not deleted,
// but died with their daemon.
func removeCgroups(parent string) error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + parent)
	if err != nil {
		return err
	}
	for _, root := range append(roots, "/sys/fs/cgroup"+parent) {
		entries, err := os.ReadDir(root)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		for _, entry := range entries {
			if !entry.IsDir() {
				continue
			}
			if err := os.Remove(filepath.Join(root, entry.Name())); err != nil {
				return err
			}
		}
		if err := os.Remove(root); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

func (w *world) image() string { return w.registry.Addr + "/test/program:v1" }

func (w *world) push(t testing.TB, ref, user, password string) {
	t.Helper()
	img, err := image.Build(image.Spec{
		Binaries:   map[string]string{"/program": binary},
		Files:      map[string]string{"/etc/passwd": passwd, "/etc/group": group},
		Entrypoint: []string{"/program"}, Cmd: []string{"serve"}, Env: []string{"FROM=image"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Push(t.Context(), ref, img, user, password); err != nil {
		t.Fatal(err)
	}
}

func (w *world) options() containerd.Options {
	return containerd.Options{
		Address: w.daemon.Address, Namespace: w.namespace(), CertsDir: filepath.Join(w.dir, "certs.d"), RunDir: filepath.Join(w.dir, "run"), CDIDirs: []string{filepath.Join(w.dir, "cdi")},
		Log: slog.New(slog.DiscardHandler),
	}
}

func (w *world) runtime(t testing.TB) *containerd.Runtime {
	t.Helper()
	r, err := containerd.New(w.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// crash kills containerd and starts it again.
func (w *world) crash(t *testing.T) {
	t.Helper()
	if err := w.daemon.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := w.daemon.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Subject {
		w := newWorld(t)
		return runtimetest.Subject{
			Runtime: w.runtime(t), Image: w.image(), Missing: w.registry.Addr + "/test/missing:v1", Handler: handler,
			Complete: func(c *runtime.Container) { c.CgroupParent = w.cgroup },
			Crash:    w.crash,
			Look:     lookAtImage,
			Unmount: func(t *testing.T, dir string) {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			},
		}
	})
}

// lookAtImage expects the test program, which can be read, not changed, not run.
func lookAtImage(t *testing.T, dir string) {
	program := filepath.Join(dir, "program")
	if info, err := os.Stat(program); err != nil || info.Size() == 0 {
		t.Errorf("the image's program: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("written: %v", err)
	}
	if err := exec.Command(program).Run(); !errors.Is(err, unix.EACCES) {
		t.Errorf("executed: %v", err)
	}
}
