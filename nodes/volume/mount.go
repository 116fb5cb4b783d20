package volume

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// shmSize is what Kubernetes gives a pod's /dev/shm.
const shmSize = 64 << 20

// dirSize is what a pod's own small files may take together.
const dirSize = 1 << 20

// base is a tmpfs that other mounts and secret files lie on.
type base struct {
	dir string

	mu   sync.Mutex
	made bool // guarded by mu
}

// ready mounts it unless it is there.
func (b *base) ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.made {
		return nil
	}
	if err := os.MkdirAll(b.dir, 0o711); err != nil {
		return fmt.Errorf("make volume directory: %w", err)
	}
	if err := tmpfs(b.dir, "mode=0711"); err != nil {
		return err
	}
	// Mounts made below must not travel to other mount namespaces and stay
	// there after they were unmounted here.
	if err := unix.Mount("", b.dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", b.dir, err)
	}
	b.made = true
	return nil
}

// forget tells that it may have been unmounted.
func (b *base) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.made = false
}

// tmpfs mounts one on dir unless there is one already.
func tmpfs(dir, options string) error {
	mounted, err := isMount(dir)
	if err != nil || mounted {
		return err
	}
	// What is in it must never get to a disk. Kernels before 6.4 cannot promise
	// that where the machine has swap.
	err = unix.Mount("tallyman", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options+",noswap")
	if err != nil {
		err = unix.Mount("tallyman", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options)
	}
	if err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return nil
}

// isMount reports whether a file system is mounted on dir.
func isMount(dir string) (bool, error) {
	var here, parent unix.Stat_t
	if err := unix.Lstat(dir, &here); err != nil {
		return false, fmt.Errorf("stat %s: %w", dir, err)
	}
	if err := unix.Lstat(filepath.Dir(dir), &parent); err != nil {
		return false, fmt.Errorf("stat %s: %w", filepath.Dir(dir), err)
	}
	return here.Dev != parent.Dev, nil
}

// emptyDir in memory is no larger than what the pod could use, memory in bytes.
func (m *Manager) emptyDir(pod *nodes.Pod, name string, e *corev1.EmptyDirVolumeSource, memory int64) (Volume, error) {
	limit := memory
	if own := e.SizeLimit; own != nil && own.Sign() > 0 && (limit <= 0 || own.Value() < limit) {
		limit = own.Value()
	}
	dir := m.path(pod.UID, name)
	switch {
	case e.Medium == corev1.StorageMediumMemory:
		return Volume{Path: dir}, m.memoryDir(dir, limit, fsGroup(pod))
	case isHugePages(e.Medium):
		return Volume{Path: dir}, m.hugeDir(pod, dir, e)
	case e.Medium != corev1.StorageMediumDefault:
		return Volume{}, fmt.Errorf("medium %s is not known", e.Medium)
	}
	dir = m.diskPath(pod.UID, name)
	return Volume{Path: dir}, makeOnce(dir, fsGroup(pod))
}

func (m *Manager) memoryDir(dir string, limit int64, group *int64) error {
	if err := makeTree(dir); err != nil {
		return err
	}
	options := "mode=0777"
	if group != nil {
		options = "mode=2777,gid=" + strconv.FormatInt(*group, 10)
	}
	if limit > 0 {
		options += ",size=" + strconv.FormatInt(limit, 10)
	}
	return tmpfs(dir, options)
}

// makeOnce makes an emptyDir on disk. One that is there is left as its
// containers have made it, owner and mode included.
func makeOnce(dir string, group *int64) error {
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	fresh := filepath.Join(filepath.Dir(dir), "@new-"+filepath.Base(dir))
	if err := makeTree(fresh); err != nil {
		return err
	}
	if err := own(fresh, group, 0o777); err != nil {
		return err
	}
	return os.Rename(fresh, dir)
}

// makeTree makes a volume's directory. Those above it are for us alone to list.
func makeTree(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o777)
}

// Shm is the pod's shared /dev/shm.
func (m *Manager) Shm(uid nodes.UID) (string, error) {
	if err := m.base.ready(); err != nil {
		return "", err
	}
	dir := m.path(uid, "@shm")
	if err := makeTree(dir); err != nil {
		return "", fmt.Errorf("make shared memory of pod %s: %w", uid, err)
	}
	return dir, tmpfs(dir, "mode=1777,size="+strconv.Itoa(shmSize))
}

// removeTrees removes directories with all that is in them, after unmounting
// what is mounted in them. While anything stays mounted it removes nothing, for
// that would be somebody else's files.
func removeTrees(dirs ...string) error {
	if err := unmountBelow(dirs...); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// unmountBelow unmounts the directories and everything below them, the newest
// first. When it returns nil, nothing is mounted there any more.
func unmountBelow(dirs ...string) error {
	paths, err := resolve(dirs)
	if err != nil {
		return err
	}
	for {
		points, listed := mountPoints(paths...)
		switch {
		case listed != nil:
			return fmt.Errorf("list mounts: %w", listed)
		case len(points) == 0:
			return nil
		case err != nil:
			return err
		}
		err = unmountAll(points)
	}
}

// unmountAll unmounts what it can, the last first. It fails when that is nothing.
func unmountAll(points []string) error {
	var errs []error
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	if len(errs) < len(points) {
		return nil
	}
	return errors.Join(errs...)
}

// resolve gives the real paths of the directories that exist: the kernel lists
// mounts by those.
func resolve(dirs []string) ([]string, error) {
	var paths []string
	for _, dir := range dirs {
		path, err := filepath.EvalSymlinks(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("resolve %s: %w", dir, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// mountPoints lists what is mounted on the directories or below them, in the
// order of the kernel's list. The paths must be real.
func mountPoints(dirs ...string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readMountPoints(f, dirs)
}

func readMountPoints(mountinfo io.Reader, dirs []string) ([]string, error) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			return nil, fmt.Errorf("a line of mountinfo is cut short: %q", lines.Text())
		}
		p := unescape.Replace(fields[4])
		if slices.ContainsFunc(dirs, func(dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }) {
			points = append(points, p)
		}
	}
	return points, lines.Err()
}

// mountedOn reports whether anything is mounted on a directory, without asking
// what is mounted: its server may be away.
func mountedOn(dir string) (bool, error) {
	points, err := mountPoints(dir)
	return slices.Contains(points, dir), err
}

// mountOnce mounts on a directory unless something is mounted there.
func (run programs) mountOnce(ctx context.Context, point string, options []string, kind, source string) error {
	mounted, err := mountedOn(point)
	if err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(point, 0o755); err != nil {
		return err
	}
	args := []string{"-t", kind}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	_, err = run(ctx, "mount", append(args, source, point)...)
	return err
}

// removePoint unmounts a directory and removes it.
func removePoint(point string) error {
	if err := unmountBelow(point); err != nil {
		return err
	}
	err := os.Remove(point) // never what would be in it
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// hostPath checks, or makes, what a hostPath volume names.
func hostPath(s *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if s.Type != nil {
		kind = *s.Type
	}
	switch kind {
	case corev1.HostPathUnset:
		// Container runtimes below Kubernetes make what is absent.
		if _, err := os.Stat(s.Path); errors.Is(err, fs.ErrNotExist) {
			return os.MkdirAll(s.Path, 0o755)
		}
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if err := os.MkdirAll(s.Path, 0o755); err != nil {
			return err
		}
	case corev1.HostPathFileOrCreate:
		f, err := os.OpenFile(s.Path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		f.Close()
	}
	return checkType(s.Path, kind)
}

func checkType(path string, kind corev1.HostPathType) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("hostPath type check failed: %w", err)
	}
	fits, mode := false, info.Mode()
	switch kind {
	case corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate:
		fits = mode.IsDir()
	case corev1.HostPathFile, corev1.HostPathFileOrCreate:
		fits = mode.IsRegular()
	case corev1.HostPathSocket:
		fits = mode&fs.ModeSocket != 0
	case corev1.HostPathCharDev:
		fits = mode&fs.ModeCharDevice != 0
	case corev1.HostPathBlockDev:
		fits = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
	}
	if !fits {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", path, kind)
	}
	return nil
}

// diskUsage sums what lies below dir, each file once.
func diskUsage(ctx context.Context, dir string) (nodes.DiskUsage, error) {
	var total nodes.DiskUsage
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // gone since
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && !seen[stat.Ino] {
			seen[stat.Ino] = stat.Nlink > 1
			total.Add(nodes.DiskUsage{Bytes: stat.Blocks * 512, Files: 1})
		}
		return ctx.Err()
	})
	return total, err
}
