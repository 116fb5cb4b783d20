//go:build e2e

package containerd_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/containerd"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/registry"
)

// inside is a world whose containers are looked at from within.
type inside struct {
	*world
	r *containerd.Runtime
}

func newInside(t testing.TB) inside {
	t.Helper()
	w := newWorld(t)
	in := inside{w, w.runtime(t)}
	if _, err := in.r.Pull(t.Context(), w.image(), runtime.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	return in
}

func (in inside) container(id string, args ...string) runtime.Container {
	return runtime.Container{
		ID: id, Pod: "pod-" + id, Image: in.image(), Args: append([]string{"/program"}, args...),
		Dir: "/", CgroupParent: in.cgroup,
	}
}

func (in inside) start(t testing.TB, c runtime.Container) {
	t.Helper()
	if err := in.r.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := in.r.Start(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
}

func (in inside) exec(t testing.TB, id string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := in.r.Exec(t.Context(), id, append([]string{"/program"}, args...), &out); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

func (in inside) ended(t *testing.T, id string) runtime.Status {
	t.Helper()
	var status runtime.Status
	runtimetest.Eventually(t, id+" ends", func() (err error) {
		status, err = in.r.Status(t.Context(), id)
		if err == nil && status.State != runtime.Exited {
			err = fmt.Errorf("it is %s", status.State)
		}
		return err
	})
	return status
}

// procStatus returns one line of /proc/self/status inside.
func (in inside) procStatus(t testing.TB, id, key string) string {
	t.Helper()
	for line := range strings.Lines(in.exec(t, id, "cat", "/proc/self/status")) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func TestSecurity(t *testing.T) {
	in := newInside(t)
	in.start(t, in.container("plain", "serve"))
	bound := in.container("bound", "serve")
	bound.Security = runtime.Security{NoNewPrivileges: true, ReadOnlyRoot: true, DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}, Seccomp: "unconfined"}
	in.start(t, bound)
	mighty := in.container("mighty", "serve")
	mighty.Security.Privileged = true
	in.start(t, mighty)
	got := map[string]string{}
	for _, id := range []string{"plain", "bound", "mighty"} {
		got[id] = fmt.Sprintf("caps=%s nnp=%s seccomp=%s", in.procStatus(t, id, "CapEff"), in.procStatus(t, id, "NoNewPrivs"),
			in.procStatus(t, id, "Seccomp"))
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, caps, _ := strings.Cut(string(own), "CapEff:\t")
	want := map[string]string{
		"plain":  `caps=00000000a80425fb nnp=0 seccomp=2`,
		"bound":  `caps=0000000000000400 nnp=1 seccomp=0`,
		"mighty": fmt.Sprintf(`caps=%s nnp=0 seccomp=0`, caps[:16]),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if text := in.exec(t, "plain", "cat", "/proc/timer_list"); text != "" {
		t.Errorf("masked file shows %q", text[:min(80, len(text))])
	}
	for id, wanted := range map[string]int{"plain": 0, "bound": 1} {
		code, err := in.r.Exec(t.Context(), id, []string{"/program", "write", "/file", "x"}, nil)
		if err != nil || code != wanted {
			t.Errorf("writing to the root of %s: %d, %v", id, code, err)
		}
	}
	if code, err := in.r.Exec(t.Context(), "plain", []string{"/program", "write", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "99999999999"}, nil); err != nil || code == 0 {
		t.Errorf("wrote to the cgroups: %d, %v", code, err)
	}
}

func TestUsers(t *testing.T) {
	in := newInside(t)
	gid := int64(7)
	for i, test := range []struct {
		user   string
		group  *int64
		groups []int64
		want   string
	}{
		{"", nil, nil, "0 0 [0]"},
		{"web", nil, nil, "1001 1002 [1002 1003]"},
		{"1001", nil, []int64{5}, "1001 1002 [5 1002 1003]"},
		{"4242", nil, nil, "4242 0 [0]"},
		{"4242:extra", nil, nil, "4242 1003 [1003]"},
		{"web:root", &gid, nil, "1001 7 [7 1003]"},
	} {
		c := in.container(fmt.Sprintf("user%d", i), "serve")
		c.User, c.Group, c.Groups = test.user, test.group, test.groups
		in.start(t, c)
		if got := in.exec(t, c.ID, "id"); got != test.want {
			t.Errorf("user %q: %s, want %s", test.user, got, test.want)
		}
	}
	c := in.container("stranger", "serve")
	c.User = "stranger"
	if err := in.r.Create(t.Context(), c); err == nil || !strings.Contains(err.Error(), `no user "stranger"`) {
		t.Errorf("got %v", err)
	}
}

// shimOf is the process above a container.
func (in inside) shimOf(t *testing.T, id string) int {
	t.Helper()
	status, err := in.r.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", status.PID))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	shim, err := strconv.Atoi(strings.Fields(after)[1])
	if err != nil {
		t.Fatal(err)
	}
	return shim
}

// TestHandlerHasItsOwnShim looks at the programs that hold containers, and adds
// one that was missing.
func TestHandlerHasItsOwnShim(t *testing.T) {
	in := newInside(t)
	shims := map[int]bool{}
	for _, id := range []string{"one", "two"} {
		c := in.container(id, "serve")
		c.Pod, c.Handler = "shared", handler
		in.start(t, c)
		shims[in.shimOf(t, id)] = true
	}
	if len(shims) != 1 {
		t.Errorf("shims: %v", shims)
	}
	for shim := range shims {
		if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", shim)); err != nil || program != in.shim() {
			t.Errorf("the shim is %s: %v", program, err)
		}
	}
	late := in.container("late", "serve")
	late.Handler = "late"
	if err := in.r.Create(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if err := in.r.Start(t.Context(), late.ID); !errors.Is(err, runtime.ErrNoHandler) || !strings.Contains(err.Error(), "containerd-shim-late-v2 ") {
		t.Errorf("got %v", err)
	}
	if err := os.Rename(in.shim(), filepath.Join(in.daemon.Shims, "containerd-shim-late-v2")); err != nil {
		t.Fatal(err)
	}
	in.start(t, late)
	for _, id := range []string{"one", "two", "late"} {
		if err := in.r.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// TestDevicesThatSpecsDescribe: a vendor's file on the node says what its device
// needs.
func TestDevicesThatSpecsDescribe(t *testing.T) {
	in := newInside(t)
	dir, driver := filepath.Join(in.dir, "cdi"), filepath.Join(in.dir, "driver")
	described := fmt.Sprintf(`
cdiVersion: 0.6.0
kind: vendor.com/x
containerEdits: {env: [DRIVER=loaded]}
devices:
  - name: one
    containerEdits:
      deviceNodes: [{path: /dev/one, hostPath: /dev/zero}]
      mounts: [{hostPath: %s, containerPath: /driver, options: [ro, bind]}]
`, driver)
	c := in.container("equipped", "serve")
	c.CDI = []string{"vendor.com/x=one"}
	if err := in.r.Create(t.Context(), c); err == nil || !strings.Contains(err.Error(), "vendor.com/x=one") {
		t.Errorf("made with a device that nobody describes: %v", err)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "vendor.yaml"), []byte(described), 0o644), os.WriteFile(driver, []byte("version 7"), 0o644)); err != nil {
		t.Fatal(err)
	}
	in.start(t, c)
	if got := in.exec(t, c.ID, "env", "DRIVER"); got != "loaded" {
		t.Errorf("DRIVER=%s", got)
	}
	if got := in.exec(t, c.ID, "cat", "/driver"); got != "version 7" {
		t.Errorf("the driver: %q", got)
	}
	if got := in.exec(t, c.ID, "first", "/dev/one"); got != "0" {
		t.Errorf("the first byte of the device: %q", got)
	}
}

func TestPodSharesShimAndOutputGoesToPipes(t *testing.T) {
	in := newInside(t)
	pipe := filepath.Join(in.dir, "out")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, id := range []string{"one", "two", "three"} {
		c := in.container(id, "serve")
		c.Pod, c.Stdout, c.Stderr = "shared", pipe, pipe
		in.start(t, c)
	}
	shims := map[int]bool{}
	for _, id := range []string{"one", "two", "three"} {
		shims[in.shimOf(t, id)] = true
	}
	if len(shims) != 1 {
		t.Errorf("shims: %v", shims)
	}
	got := make([]byte, 0, 64)
	for len(got) < 3*len("serving\n") {
		part := make([]byte, 64)
		n, err := reader.Read(part)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, part[:n]...)
	}
	if string(got) != strings.Repeat("serving\n", 3) {
		t.Errorf("output is %q", got)
	}
}

func TestMemoryKillerIsTold(t *testing.T) {
	in := newInside(t)
	c := in.container("eats", "eat")
	c.Resources.Memory = 32 << 20
	in.start(t, c)
	if status := in.ended(t, "eats"); !status.OOMKilled || status.ExitCode != 137 {
		t.Errorf("got %+v", status)
	}
	// Another process of ours knows it too.
	if status, err := in.world.runtime(t).Status(t.Context(), "eats"); err != nil || !status.OOMKilled {
		t.Errorf("got %+v, %v", status, err)
	}
}

func TestSuccessorKnowsEverything(t *testing.T) {
	in := newInside(t)
	in.start(t, in.container("ends", "exit", "4"))
	in.ended(t, "ends")
	in.start(t, in.container("runs", "serve"))
	if err := in.r.Create(t.Context(), in.container("waits", "serve")); err != nil {
		t.Fatal(err)
	}
	bad := in.container("fails")
	bad.Args = []string{"/nope"}
	if err := in.r.Create(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	if err := in.r.Start(t.Context(), "fails"); err == nil {
		t.Fatal("it started")
	}
	before, err := in.r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	successor := in.world.runtime(t)
	after, err := successor.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Error(diff)
	}
	if err := successor.Start(t.Context(), "waits"); err != nil {
		t.Error(err)
	}
	if got := (inside{in.world, successor}).exec(t, "runs", "print", "x"); got != "x" {
		t.Errorf("exec printed %q", got)
	}
}

// TestShimKilled: containers die with their shim; what remains says so.
func TestShimKilled(t *testing.T) {
	in := newInside(t)
	in.start(t, in.container("victim", "serve"))
	if err := unix.Kill(in.shimOf(t, "victim"), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if status := in.ended(t, "victim"); status.ExitCode != 137 {
		t.Errorf("got %+v", status)
	}
	if err := in.r.Delete(t.Context(), "victim"); err != nil {
		t.Error(err)
	}
}

func TestManyPullsShareWork(t *testing.T) {
	w := newWorld(t)
	r := w.runtime(t)
	errs := make(chan error)
	for range 8 {
		go func() { _, err := r.Pull(t.Context(), w.image(), runtime.PullOptions{}); errs <- err }()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestFirstContainersOfAnImage makes several at once of an image whose users
// nobody has read so far: none takes the snapshot to read them from another.
func TestFirstContainersOfAnImage(t *testing.T) {
	in := newInside(t)
	errs := make(chan error)
	const many = 64
	for i := range many {
		go func() { errs <- in.r.Create(t.Context(), in.container(fmt.Sprintf("first%d", i), "serve")) }()
	}
	for range many {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestImageRemovedBehindOurBack: `ctr images rm`, say.
func TestImageRemovedBehindOurBack(t *testing.T) {
	in := newInside(t)
	c := in.container("late", "serve")
	img, err := in.r.Image(t.Context(), c.Image)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.world.runtime(t).RemoveImage(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	c.Image = img.ID
	if err := in.r.Create(t.Context(), c); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("create: %v", err)
	}
	if _, err := in.r.Image(t.Context(), img.ID); !errors.Is(err, runtime.ErrNotFound) {
		t.Errorf("find image: %v", err)
	}
	if err := in.r.Delete(t.Context(), c.ID); err != nil {
		t.Error(err)
	}
	if _, err := in.r.Pull(t.Context(), in.image(), runtime.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	in.start(t, c)
}

func TestPullByDigestAndMirrorAndLogin(t *testing.T) {
	w := newWorld(t)
	r := w.runtime(t)
	img, err := r.Pull(t.Context(), w.image(), runtime.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	byDigest := w.registry.Addr + "/test/program@" + img.Digest
	if got, err := r.Pull(t.Context(), byDigest, runtime.PullOptions{}); err != nil || got.ID != img.ID {
		t.Errorf("by digest: %+v, %v", got, err)
	}
	mirror := filepath.Join(w.dir, "certs.d", "mirrored.test")
	if err := os.MkdirAll(mirror, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", w.registry.Addr)
	if err := os.WriteFile(filepath.Join(mirror, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Pull(t.Context(), "mirrored.test/test/program:v1", runtime.PullOptions{}); err != nil || got.ID != img.ID {
		t.Errorf("by mirror: %+v, %v", got, err)
	}
	locked, err := registry.Start(t.Context(), registry.Options{Dir: filepath.Join(w.dir, "locked"), User: "jo", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer locked.Stop()
	ref := locked.Addr + "/private/program:v1"
	w.push(t, ref, "jo", "secret")
	for _, test := range []struct {
		auths []runtime.Auth
		ok    bool
	}{
		{nil, false},
		{[]runtime.Auth{{Registry: locked.Addr, Username: "jo", Password: "wrong"}}, false},
		{[]runtime.Auth{{Registry: "other.test", Username: "jo", Password: "secret"}}, false},
		{[]runtime.Auth{{Registry: locked.Addr, Username: "jo", Password: "wrong"}, {Registry: locked.Addr, Username: "ann", Password: "secret"}}, false},
		{[]runtime.Auth{{Registry: locked.Addr, Username: "jo", Password: "wrong"}, {Registry: locked.Addr, Username: "jo", Password: "secret"}}, true},
		{[]runtime.Auth{{Registry: locked.Addr + "/public", Username: "x"}, {Registry: "https://" + locked.Addr + "/v2/", Username: "jo", Password: "secret"}}, true},
	} {
		_, err := r.Pull(t.Context(), ref, runtime.PullOptions{Auths: test.auths})
		if test.ok != (err == nil) || err != nil && !strings.Contains(err.Error(), "unauthorized: ") {
			t.Errorf("with %+v: %v", test.auths, err)
		}
	}
}

func TestPullReasons(t *testing.T) {
	w := newWorld(t)
	r := w.runtime(t)
	foreign, err := image.Build(image.Spec{Binaries: map[string]string{"/program": binary}, Arch: "s390x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Push(t.Context(), w.registry.Addr+"/test/foreign:v1", foreign, "", ""); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		w.registry.Addr + "/test/missing:v1": "manifest unknown: " + w.registry.Addr + " has no such image",
		w.registry.Addr + "/test/program:v9": "manifest unknown: " + w.registry.Addr + " has no such image",
		"127.0.0.1:1/x:v1":                   "connection refused by 127.0.0.1:1",
		"no-such-host.invalid/x:v1":          "no such host no-such-host.invalid",
		w.registry.Addr + "/test/foreign:v1": "the image is not made for linux/amd64",
		"x/UPPER":                            "it is not a valid image reference",
	} {
		_, err := r.Pull(t.Context(), ref, runtime.PullOptions{})
		if err == nil || err.Error() != "pull "+ref+": "+want {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// TestPodStartsAgainAndAgain: a pod's shim ends with its last container, and
// may be about to when the next one is made.
func TestPodStartsAgainAndAgain(t *testing.T) {
	in := newInside(t)
	var last string
	for i := range 30 {
		c := in.container(fmt.Sprintf("again%d", i), "stubborn")
		c.Pod = "one-pod"
		if last != "" {
			go func(id string) {
				if err := in.r.Delete(t.Context(), id); err != nil {
					t.Error(err)
				}
			}(last)
		}
		in.start(t, c)
		last = c.ID
		if i%2 == 0 {
			if err := in.r.Delete(t.Context(), last); err != nil {
				t.Fatal(err)
			}
			last = ""
		}
	}
	runtimetest.Eventually(t, "the last is left", func() error {
		list, err := in.r.List(t.Context())
		if err == nil && (len(list) != 1 || list[0].State != runtime.Running) {
			err = fmt.Errorf("left: %+v", list)
		}
		return err
	})
}
