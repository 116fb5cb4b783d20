//go:build e2e

package volume

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
)

func testManager(t *testing.T) *Manager {
	t.Helper()
	m, err := New(Options{DataDir: t.TempDir(), RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { must(t, m.Reset(t.Context())) })
	return m
}

func testPod(group *int64, volumes ...corev1.Volume) *nodes.Pod {
	return &nodes.Pod{UID: "u1", Namespace: "shop", Name: "p", Template: &nodes.Template{Spec: corev1.PodSpec{
		Volumes: volumes, SecurityContext: &corev1.PodSecurityContext{FSGroup: group},
	}}}
}

func memoryVolume(limit string) corev1.Volume {
	q := resource.MustParse(limit)
	return corev1.Volume{Name: "mem", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &q}}}
}

// TestMemoryIsBounded: an emptyDir in memory is no larger than what its pod could
// use, and never goes to swap where the kernel can promise that.
func TestMemoryIsBounded(t *testing.T) {
	m := testManager(t)
	all := memoryVolume("0")
	all.Name = "all"
	src := testSource(nil)
	src.Memory = 4 << 20
	volumes, err := m.Mount(t.Context(), testPod(nil, memoryVolume("1Mi"), all), src)
	must(t, err)
	for name, want := range map[string]uint64{"mem": 1 << 20, "all": 4 << 20} {
		var s unix.Statfs_t
		must(t, unix.Statfs(volumes[name].Path, &s))
		if got := s.Blocks * uint64(s.Bsize); got != want {
			t.Errorf("volume %s has %d bytes, want %d", name, got, want)
		}
	}
	probe := t.TempDir()
	able := unix.Mount("probe", probe, "tmpfs", 0, "noswap") == nil
	if able {
		must(t, unix.Unmount(probe, 0))
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], m.run) && strings.Contains(line, "noswap") != able {
			t.Errorf("kernel can promise %v: %s", able, line)
		}
	}
}

func TestVolumesAreMadeAdoptedAndRemoved(t *testing.T) {
	m := testManager(t)
	q := resource.MustParse("64Ki")
	pod := testPod(new(int64(1234)), memoryVolume("1Mi"),
		corev1.Volume{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &q}}},
		corev1.Volume{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", DefaultMode: new(int32(0o400))}}})
	src := testSource(map[string]map[string]string{"Secret/s": {"k": "v"}})
	var volumes map[string]Volume
	for range 2 { // the second time adopts
		var err error
		volumes, err = m.Mount(t.Context(), pod, src)
		must(t, err)
	}
	for _, name := range []string{"mem", "sec"} {
		var s unix.Statfs_t
		must(t, unix.Statfs(volumes[name].Path, &s))
		if s.Type != unix.TMPFS_MAGIC {
			t.Errorf("volume %s is not on tmpfs", name)
		}
	}
	for _, name := range []string{"mem", "disk"} {
		info, err := os.Stat(volumes[name].Path)
		must(t, err)
		if info.Sys().(*syscall.Stat_t).Gid != 1234 || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSetgid == 0 {
			t.Errorf("volume %s: %v, group %d", name, info.Mode(), info.Sys().(*syscall.Stat_t).Gid)
		}
	}
	info, err := os.Stat(filepath.Join(volumes["sec"].Path, "k"))
	must(t, err)
	if info.Mode().Perm() != 0o440 || info.Sys().(*syscall.Stat_t).Gid != 1234 {
		t.Errorf("secret file: %v", info.Mode())
	}
	if err := os.WriteFile(filepath.Join(volumes["mem"].Path, "big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("the memory volume took more than its limit")
	}
	must(t, os.WriteFile(filepath.Join(volumes["disk"].Path, "big"), make([]byte, 128<<10), 0o600))
	must(t, os.Link(filepath.Join(volumes["disk"].Path, "big"), filepath.Join(volumes["disk"].Path, "same")))
	used, err := m.Disk(t.Context(), pod)
	if disk := used["disk"]; err != nil || disk.Bytes < 128<<10 || disk.Bytes > 256<<10 || disk.Files != 2 || used["mem"] != (nodes.DiskUsage{}) {
		t.Errorf("on disk: %v, %v", used, err)
	}
	uids, err := m.List(t.Context())
	if err != nil || len(uids) != 1 || uids[0] != "u1" {
		t.Errorf("list: %v %v", uids, err)
	}
	must(t, m.Unmount(t.Context(), "u1"))
	must(t, m.Unmount(t.Context(), "u1"))
	if uids, err = m.List(t.Context()); err != nil || len(uids) != 0 {
		t.Errorf("left: %v %v", uids, err)
	}
	if points, err := mountPoints(filepath.Join(m.run, "u1")); err != nil || len(points) != 0 {
		t.Errorf("still mounted: %v %v", points, err)
	}
}

func TestSubPathNeverLeavesItsVolume(t *testing.T) {
	m := testManager(t)
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.Mkdir(outside, 0o755))
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("host"), 0o644))
	volumes, err := m.Mount(t.Context(), testPod(nil, memoryVolume("1Mi")), testSource(nil))
	must(t, err)
	v := volumes["mem"]
	must(t, os.Symlink(outside, filepath.Join(v.Path, "link")))
	must(t, os.Symlink("../../../../../..", filepath.Join(v.Path, "up")))
	for i, path := range []string{"link/secret", "up/etc/passwd", "../x", "/etc"} {
		target, err := m.SubPath("u1", Volume{Path: v.Path, ReadOnly: true}, "c", i, path)
		if err == nil {
			t.Errorf("%s leads to %s", path, target)
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "made")); err == nil {
		t.Error("a directory was made outside of the volume")
	}
	target, err := m.SubPath("u1", v, "c", 9, "a/b")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(target, "f"), []byte("x"), 0o644))
	data, err := os.ReadFile(filepath.Join(v.Path, "a/b/f"))
	if err != nil || string(data) != "x" {
		t.Errorf("the subPath is not the volume's directory: %q %v", data, err)
	}
	// What the container does to its volume later changes nothing.
	must(t, os.Rename(filepath.Join(v.Path, "a"), filepath.Join(v.Path, "moved")))
	must(t, os.Symlink(outside, filepath.Join(v.Path, "a")))
	if entries, err := os.ReadDir(target); err != nil || len(entries) != 1 || entries[0].Name() != "f" {
		t.Errorf("the mount follows: %v %v", entries, err)
	}
	again, err := m.SubPath("u1", v, "c", 9, "moved/b")
	must(t, err)
	points, err := mountPoints(again)
	if err != nil || len(points) != 1 {
		t.Errorf("mounted %d times: %s %v", len(points), strings.Join(points, " "), err)
	}
	must(t, m.Unmount(t.Context(), "u1"))
}

func TestSubPathOfOneFile(t *testing.T) {
	m := testManager(t)
	pod := testPod(nil, corev1.Volume{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: configMap("a", false)}})
	volumes, err := m.Mount(t.Context(), pod, testSource(map[string]map[string]string{"ConfigMap/a": {"x": "1"}}))
	must(t, err)
	target, err := m.SubPath("u1", volumes["cfg"], "c", 0, "x")
	must(t, err)
	if data, err := os.ReadFile(target); err != nil || string(data) != "1" {
		t.Errorf("%q %v", data, err)
	}
	must(t, m.Unmount(t.Context(), "u1"))
}

// A privileged container with Bidirectional propagation mounts a share into an
// emptyDir: what is in the share is not the pod's, however the way to the data
// directory is written.
func TestUnmountSparesWhatIsMountedInAVolume(t *testing.T) {
	home, share := t.TempDir(), t.TempDir()
	must(t, os.Mkdir(filepath.Join(home, "real"), 0o755))
	must(t, os.Symlink("real", filepath.Join(home, "link")))
	foreign := filepath.Join(share, "foreign")
	must(t, os.WriteFile(foreign, nil, 0o644))
	m, err := New(Options{DataDir: filepath.Join(home, "link"), RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() { must(t, m.Reset(t.Context())) })
	pod := testPod(nil, corev1.Volume{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	for _, remove := range map[string]func() error{
		"unmount": func() error { return m.Unmount(t.Context(), pod.UID) },
		"reset":   func() error { return m.Reset(t.Context()) },
	} {
		volumes, err := m.Mount(t.Context(), pod, testSource(nil))
		must(t, err)
		point := filepath.Join(volumes["disk"].Path, "a b", "share")
		must(t, os.MkdirAll(point, 0o755))
		for range 2 { // one over the other
			must(t, unix.Mount(share, point, "", unix.MS_BIND, ""))
		}
		must(t, remove())
		if _, err := os.Stat(foreign); err != nil {
			t.Fatalf("the share lost its file: %v", err)
		}
		if _, err := os.Lstat(volumes["disk"].Path); !os.IsNotExist(err) {
			t.Errorf("the volume is still there: %v", err)
		}
	}
}

// A container that writes without end into its termination message or
// /etc/hosts fills what its own pod has, not what everybody's Secrets lie on.
func TestPodsSmallFilesAreBounded(t *testing.T) {
	m := testManager(t)
	dir, err := m.Dir("u1")
	must(t, err)
	path := filepath.Join(dir, "termination")
	if err := os.WriteFile(path, make([]byte, dirSize+1), 0o666); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a pod's files take more than their share: %v", err)
	}
	again, err := m.Dir("u1")
	must(t, err)
	if _, err := os.Stat(path); err != nil || again != dir {
		t.Errorf("the second time hides the files: %v, %s %s", err, dir, again)
	}
	must(t, m.Unmount(t.Context(), "u1"))
}
