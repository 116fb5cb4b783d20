package network

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/component-helpers/node/util/sysctl"

	"github.com/tallyman-dev/tallyman/nodes"
)

// namespaceFlags are the kinds of namespace that a pod may have of its own.
var namespaceFlags = map[string]int{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS}

// pins are the files that hold a pod's namespaces: bind mounts named after
// the kind.
type pins struct{ dir string }

func (n *Network) pins(uid nodes.UID) pins {
	return pins{filepath.Join(n.dir, string(uid))}
}

func (p pins) path(kind string) string { return filepath.Join(p.dir, kind) }

// existing is the path of a pinned namespace, empty when it is not there: a
// file without a mount is left by a crash.
func (p pins) existing(kind string) string {
	path := p.path(kind)
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil || st.Type != unix.NSFS_MAGIC {
		return ""
	}
	return path
}

// pin makes a namespace of the calling thread last.
func (p pins) pin(kind string) error {
	path := p.path(kind)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make pin: %w", err)
	}
	file.Close()
	if err := unix.Mount("/proc/thread-self/ns/"+kind, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin %s namespace at %s: %w", kind, path, err)
	}
	return nil
}

// remove lets go of all namespaces; the kernel ends each with its last process.
func (p pins) remove() error {
	var errs []error
	for kind := range namespaceFlags {
		path := p.path(kind)
		for {
			err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if err == nil {
				continue // pinned twice by a crash: again
			}
			if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("release %s: %w", path, err))
			}
			break
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// pinned lists the pods that have a directory of pins, sorted.
func pinned(dir string) ([]nodes.UID, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list pinned namespaces: %w", err)
	}
	var uids []nodes.UID
	for _, e := range entries {
		if e.IsDir() {
			uids = append(uids, nodes.UID(e.Name()))
		}
	}
	slices.Sort(uids)
	return uids, nil
}

// shareMounts makes the directory of pins a mount of its own that other mount
// namespaces follow, so that a pin that is released here is released in every
// copy of the machine's mounts.
func shareMounts(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of namespaces: %w", err)
	}
	err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return wrap(err, "share mounts at "+dir)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", dir, err)
	}
	return wrap(unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""), "share mounts at "+dir)
}

func wrap(err error, doing string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// onThread runs f on a thread that ends with it: whatever namespaces f joins,
// nobody else ever runs there. The process's first thread is never used, as
// the runtime cannot end it and /proc/PID/ns speaks of it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f) // this thread is taken, so that will be another
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// enter gives the calling thread the pod's namespaces of the wanted kinds,
// those that are pinned and new ones for the rest, which it pins. created
// tells whether the network namespace is new.
func (p pins) enter(kinds []string) (created bool, err error) {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return false, fmt.Errorf("make directory of pins: %w", err)
	}
	var fresh []string
	flags := 0
	for _, kind := range kinds {
		path := p.existing(kind)
		if path == "" {
			fresh = append(fresh, kind)
			flags |= namespaceFlags[kind]
			continue
		}
		if err := join(path, namespaceFlags[kind]); err != nil {
			return false, err
		}
	}
	if flags == 0 {
		return false, nil
	}
	if err := unix.Unshare(flags); err != nil {
		return false, fmt.Errorf("make namespaces: %w", err)
	}
	for _, kind := range fresh {
		if err := p.pin(kind); err != nil {
			return false, err
		}
	}
	return slices.Contains(fresh, "net"), nil
}

func join(path string, flag int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, flag); err != nil {
		return fmt.Errorf("join namespace %s: %w", path, err)
	}
	return nil
}

// checkSysctls refuses sysctls that would change more than the pod: only the
// namespaces that the pod has of its own are its to set.
func (s Sandbox) checkSysctls() error {
	for _, name := range slices.Sorted(maps.Keys(s.Sysctls)) {
		space, _, _ := sysctl.GetNamespace(name)
		switch {
		case space == sysctl.UnknownNamespace:
			return fmt.Errorf("sysctl %q belongs to no namespace of a pod: setting it would change the whole node", name)
		case space == sysctl.NetNamespace && s.HostNetwork:
			return fmt.Errorf("sysctl %q would change the whole node: the pod has hostNetwork", name)
		case space == sysctl.IPCNamespace && s.HostIPC:
			return fmt.Errorf("sysctl %q would change the whole node: the pod has hostIPC", name)
		}
	}
	return nil
}

// setSysctl sets a sysctl in the namespaces of the calling thread. Its name is
// written with dots, slashes standing for dots within a part (eth0/1), or the
// other way round.
func setSysctl(name, value string) error {
	path := strings.NewReplacer(".", "/", "/", ".").Replace(sysctl.NormalizeName(name))
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("sysctl %q is not a name", name)
		}
	}
	file := "/proc/sys/" + path
	if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", name, value, err)
	}
	return nil
}
