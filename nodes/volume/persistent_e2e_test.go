//go:build e2e

package volume

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
)

const (
	crashVariable = "TEST_VOLUME_CRASH"
	patience      = 30 * time.Second
)

func testPersistent(t *testing.T) *Persistent {
	t.Helper()
	p := newPersistent(t, t.TempDir(), t.TempDir())
	t.Cleanup(func() { must(t, p.Reset(context.Background(), true)) })
	return p
}

func newPersistent(t *testing.T, data, run string) *Persistent {
	t.Helper()
	p, err := NewPersistent(PersistentOptions{DataDir: data, RunDir: run, Node: "n1", Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	return p
}

func provisioned(name, size string, parameters map[string]string) *nodes.Volume {
	return &nodes.Volume{
		Name: name, UID: "u-" + name, Provisioner: nodes.LocalProvisioner, Class: "standard", Parameters: parameters, Node: "n1",
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		},
	}
}

func enforced() map[string]string { return map[string]string{EnforceParameter: "true"} }

func larger(v *nodes.Volume, size string) *nodes.Volume {
	grown := *v
	grown.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
	return &grown
}

func always() bool { return true }

// staged ensures and stages a volume.
func staged(t *testing.T, p *Persistent, v *nodes.Volume) Volume {
	t.Helper()
	if _, err := p.Ensure(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	made, err := p.Stage(t.Context(), v, csi.Wish{})
	must(t, err)
	return made
}

func put(t *testing.T, v Volume, name, text string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(v.Path, name), []byte(text), 0o644))
}

func read(t *testing.T, v Volume, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(v.Path, name))
	must(t, err)
	return string(text)
}

func TestProvisionedVolumesKeepTheirData(t *testing.T) {
	for name, parameters := range map[string]map[string]string{"directory": nil, "image": enforced()} {
		t.Run(name, func(t *testing.T) {
			data, run := t.TempDir(), t.TempDir()
			v := provisioned("data", "16Mi", parameters)
			p := newPersistent(t, data, run)
			put(t, staged(t, p, v), "f", "kept")
			again := newPersistent(t, data, run) // another agent, and what is staged
			if got := read(t, staged(t, again, v), "f"); got != "kept" {
				t.Errorf("another agent finds %q", got)
			}
			must(t, again.Reset(t.Context(), false)) // as after a boot
			rebooted := newPersistent(t, data, run)
			held, err := rebooted.Held(t.Context())
			if err != nil || len(held) != 1 || held[0].Name != "data" || !held[0].Made {
				t.Fatalf("held %v, %v", held, err)
			}
			if got := read(t, staged(t, rebooted, held[0]), "f"); got != "kept" {
				t.Errorf("after a boot it holds %q", got)
			}
			must(t, rebooted.Delete(t.Context(), v))
			must(t, rebooted.Delete(t.Context(), v))
			if entries, err := os.ReadDir(filepath.Join(data, "persistent")); err != nil || len(entries) != 0 {
				t.Errorf("left: %v, %v", entries, err)
			}
			if points, err := mountPoints(run); err != nil || len(points) != 1 {
				t.Errorf("mounted: %v, %v", points, err)
			}
			must(t, rebooted.Reset(t.Context(), true))
		})
	}
}

func TestImageVolumesHoldNoMoreThanTheirSizeAndGrow(t *testing.T) {
	p := testPersistent(t)
	v := provisioned("data", "16Mi", enforced())
	made := staged(t, p, v)
	path := filepath.Join(made.Path, "big")
	if err := os.WriteFile(path, make([]byte, 17<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("17 MiB in a volume of 16: %v", err)
	}
	must(t, os.Remove(path))
	for i, size := range []string{"32Mi", "64Mi"} {
		v = larger(v, size)
		want := v.Spec.Capacity.Storage().Value()
		if i == 1 { // grown while no pod uses it
			must(t, p.Unstage(t.Context(), v, always))
		}
		status, err := p.Ensure(t.Context(), v)
		must(t, err)
		if status.Reason != "" && !mayGrowMounted(t) {
			if status.Reason != "FileSystemResizePending" || status.Capacity >= want || status.Phase != nodes.VolumeReady {
				t.Errorf("%+v", status)
			}
			must(t, p.Unstage(t.Context(), v, always))
			status.Capacity = want
		}
		if status.Capacity != want || status.Unenforced != "" {
			t.Fatalf("%+v", status)
		}
		made, err := p.Stage(t.Context(), v, csi.Wish{})
		must(t, err)
		var s unix.Statfs_t
		must(t, unix.Statfs(made.Path, &s))
		if total := int64(s.Blocks) * s.Bsize; total < want*8/10 {
			t.Errorf("of %d bytes the file system has %d", want, total)
		}
	}
	if status, err := p.Ensure(t.Context(), larger(v, "8Mi")); err != nil || status.Capacity != 64<<20 {
		t.Errorf("a smaller size: %+v, %v", status, err)
	}
}

// mayGrowMounted reports whether we have what the kernel asks of who grows a
// mounted ext4.
func mayGrowMounted(t *testing.T) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	must(t, unix.Capget(&header, &sets[0]))
	return sets[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestDirectoryVolumesSayThatNothingEnforcesTheirSize(t *testing.T) {
	p := testPersistent(t)
	status, err := p.Ensure(t.Context(), provisioned("data", "1Mi", nil))
	must(t, err)
	if !strings.Contains(status.Unenforced, "project quotas") || status.Capacity != 1<<20 {
		t.Errorf("%+v", status)
	}
}

func TestBlockVolumes(t *testing.T) {
	p := testPersistent(t)
	v := provisioned("raw", "4Mi", nil)
	mode := corev1.PersistentVolumeBlock
	v.Spec.VolumeMode = &mode
	made := staged(t, p, v)
	info, err := os.Stat(made.Device)
	must(t, err)
	if made.Path != "" || info.Mode()&os.ModeDevice == 0 {
		t.Fatalf("%+v is %v", made, info.Mode())
	}
	f, err := os.OpenFile(made.Device, os.O_RDWR|os.O_SYNC, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("block"), 1<<20)
	must(t, errors.Join(err, f.Close()))
	if again := staged(t, p, v); again.Device != made.Device {
		t.Errorf("two devices of one file: %s and %s", made.Device, again.Device)
	}
	must(t, p.Unstage(t.Context(), v, always))
	made = staged(t, p, v)
	f, err = os.Open(made.Device)
	must(t, err)
	got := make([]byte, 5)
	_, err = f.ReadAt(got, 1<<20)
	if must(t, errors.Join(err, f.Close())); string(got) != "block" {
		t.Errorf("read %q", got)
	}
}

func TestLostDataIsNeverMadeAnew(t *testing.T) {
	for name, lose := range map[string]func(p *Persistent, v *nodes.Volume) error{
		"data":      func(p *Persistent, v *nodes.Volume) error { return os.RemoveAll(filepath.Join(p.home(v), dataDir)) },
		"directory": func(p *Persistent, v *nodes.Volume) error { return os.RemoveAll(p.home(v)) },
	} {
		p := testPersistent(t)
		v := provisioned("data", "1Mi", nil)
		_, err := p.Ensure(t.Context(), v)
		must(t, err)
		must(t, lose(p, v))
		v.Made = true
		_, err = p.Ensure(t.Context(), v)
		if why, ok := errors.AsType[*Trouble](err); !ok || why.Reason != ReasonMissing {
			t.Errorf("%s lost: %v", name, err)
		}
		if exists(filepath.Join(p.home(v), dataDir)) {
			t.Errorf("%s lost: made anew", name)
		}
	}
}

func TestStaticVolumes(t *testing.T) {
	p := testPersistent(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("static"), 0o644))
	local := func(path string, options ...string) *nodes.Volume {
		return &nodes.Volume{Name: "local", UID: "u", Spec: corev1.PersistentVolumeSpec{
			MountOptions:           options,
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
		}}
	}
	if got := read(t, staged(t, p, local(dir)), "f"); got != "static" {
		t.Errorf("read %q", got)
	}
	v := staged(t, p, local(dir, "ro", "noexec"))
	if err := os.WriteFile(filepath.Join(v.Path, "g"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("written in spite of ro: %v", err)
	}
	must(t, p.Unstage(t.Context(), local(dir), always))
	must(t, p.Unstage(t.Context(), local(dir), always))
	_, err := p.Ensure(t.Context(), local(filepath.Join(dir, "absent")))
	if why, ok := errors.AsType[*Trouble](err); !ok || why.Reason != ReasonMissing {
		t.Errorf("absent path: %v", err)
	}
	if err := p.Delete(t.Context(), local(dir)); err == nil || read(t, Volume{Path: dir}, "f") != "static" {
		t.Errorf("somebody else's data is deleted: %v", err)
	}
	directory := corev1.HostPathDirectory
	host := &nodes.Volume{Name: "host", UID: "u", Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(dir, "f"), Type: &directory},
	}}}
	if _, err := p.Stage(t.Context(), host, csi.Wish{}); err == nil {
		t.Error("a file passes for a directory")
	}
}

// A local volume on a disk is formatted once, when nothing is on it.
func TestLocalVolumeOnABlockDevice(t *testing.T) {
	p := testPersistent(t)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, growFile(disk, 16<<20))
	device, err := execute(t.Context(), "losetup", "--find", "--show", disk)
	must(t, err)
	device = strings.TrimSpace(device)
	defer func() {
		_, err := execute(context.Background(), "losetup", "--detach", device)
		must(t, err)
	}()
	v := &nodes.Volume{Name: "disk", UID: "u", Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: device}},
	}}
	put(t, staged(t, p, v), "f", "on disk")
	must(t, p.Unstage(t.Context(), v, always))
	if got := read(t, staged(t, p, v), "f"); got != "on disk" {
		t.Errorf("read %q", got)
	}
	must(t, p.Unstage(t.Context(), v, always))
	mode := corev1.PersistentVolumeBlock
	v.Spec.VolumeMode = &mode
	if made := staged(t, p, v); made.Device != device {
		t.Errorf("block mode gives %+v", made)
	}
}

func TestUnstageAsksUnderTheLock(t *testing.T) {
	p := testPersistent(t)
	v := provisioned("data", "8Mi", enforced())
	made := staged(t, p, v)
	must(t, p.Unstage(t.Context(), v, func() bool { return false }))
	if mounted, err := mountedOn(made.Path); err != nil || !mounted {
		t.Errorf("unmounted though in use: %v", err)
	}
}

// A process that makes, grows and removes volumes is killed again and again;
// whoever comes next finds everything whole and leaves nothing behind.
func TestKilledAnywhereNothingIsLost(t *testing.T) {
	if os.Getenv(crashVariable) != "" {
		work(t, os.Getenv(crashVariable))
		return
	}
	dir := t.TempDir()
	keep := provisioned("keep", "8Mi", enforced())
	first := newPersistent(t, filepath.Join(dir, "data"), filepath.Join(dir, "run"))
	put(t, staged(t, first, keep), "f", "kept")
	must(t, first.Unstage(t.Context(), keep, always))
	for i := range 40 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), crashVariable+"="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		must(t, cmd.Start())
		time.Sleep(time.Duration(40+i*i%97*5) * time.Millisecond) // the fault's instant, not a wait for anything
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	p := newPersistent(t, filepath.Join(dir, "data"), filepath.Join(dir, "run"))
	must(t, p.Sweep(t.Context(), func(string, string) bool { return true }))
	if got := read(t, staged(t, p, keep), "f"); got != "kept" {
		t.Errorf("the volume holds %q", got)
	}
	for _, name := range []string{"dir", "image"} {
		v := provisioned(name, "8Mi", nil)
		if name == "image" {
			v.Parameters = enforced()
		}
		staged(t, p, v)
		must(t, p.Delete(t.Context(), v))
	}
	must(t, p.Reset(t.Context(), true))
	if out, err := exec.Command("losetup", "--list", "--noheadings", "--output", "BACK-FILE").Output(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("loop devices left: %s, %v", out, err)
	}
}

// work is what the process that is killed does.
func work(t *testing.T, dir string) {
	p := newPersistent(t, filepath.Join(dir, "data"), filepath.Join(dir, "run"))
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		must(t, p.Sweep(t.Context(), func(string, string) bool { return true }))
		for name, parameters := range map[string]map[string]string{"dir": nil, "image": enforced()} {
			v := provisioned(name, "8Mi", parameters)
			staged(t, p, v)
			staged(t, p, larger(v, "12Mi"))
			must(t, p.Unstage(t.Context(), v, always))
			must(t, p.Delete(t.Context(), v))
		}
	}
}

func TestGroupOwnsPersistentFiles(t *testing.T) {
	p, m := testPersistent(t), testManager(t)
	v := provisioned("data", "8Mi", nil)
	made := staged(t, p, v)
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, nil, 0o600))
	must(t, os.Mkdir(filepath.Join(made.Path, "d"), 0o700))
	put(t, made, "d/f", "x")
	must(t, os.Symlink(outside, filepath.Join(made.Path, "link")))
	src := testSource(nil)
	src.Claim = func(context.Context, *corev1.Volume) (Volume, error) { return made, nil }
	claim := corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}
	mount := func(uid string, policy corev1.PodFSGroupChangePolicy) {
		pod := testPod(new(int64(1234)), claim)
		pod.UID = nodes.UID(uid)
		pod.Template.Spec.SecurityContext.FSGroupChangePolicy = &policy
		_, err := m.Mount(t.Context(), pod, src)
		must(t, err)
	}
	owner := func(path string) (uint32, os.FileMode) {
		info, err := os.Stat(path)
		must(t, err)
		return info.Sys().(*syscall.Stat_t).Gid, info.Mode()
	}
	file := filepath.Join(made.Path, "d", "f")
	mount("a", corev1.FSGroupChangeAlways)
	if gid, mode := owner(file); gid != 1234 || mode.Perm() != 0o664 {
		t.Errorf("file: %d %v", gid, mode)
	}
	if gid, mode := owner(filepath.Dir(file)); gid != 1234 || mode.Perm() != 0o770 || mode&os.ModeSetgid == 0 {
		t.Errorf("directory: %d %v", gid, mode)
	}
	if gid, mode := owner(outside); gid == 1234 || mode.Perm() != 0o600 {
		t.Errorf("a link leads out of the volume: %d %v", gid, mode)
	}
	must(t, os.Chown(file, -1, 5))
	mount("a", corev1.FSGroupChangeAlways) // the pod's own doing stays
	mount("b", corev1.FSGroupChangeOnRootMismatch)
	if gid, _ := owner(file); gid != 5 {
		t.Errorf("the root belongs to the group, and the file was changed to %d", gid)
	}
	mount("c", corev1.FSGroupChangeAlways)
	if gid, _ := owner(file); gid != 1234 {
		t.Errorf("always: %d", gid)
	}
}
