package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// claimed is a volume of the pod with a claim behind it.
func (m *Manager) claimed(ctx context.Context, pod *nodes.Pod, v *corev1.Volume, src Source) (Volume, error) {
	made, err := src.Claim(ctx, v)
	if err != nil {
		return Volume{}, err
	}
	if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly {
		made.ReadOnly = true
	}
	return m.owned(ctx, pod, v.Name, made)
}

// owned is a volume that belongs to the pod's group, if it is one that should.
func (m *Manager) owned(ctx context.Context, pod *nodes.Pod, name string, made Volume) (Volume, error) {
	group := fsGroup(pod)
	if group == nil || !made.grouped || made.ReadOnly || made.Path == "" {
		return made, nil
	}
	return made, m.ownOnce(ctx, pod, name, made.Path, *group)
}

// ownOnce gives a volume to the pod's group when the pod begins: what its
// containers change later is theirs.
func (m *Manager) ownOnce(ctx context.Context, pod *nodes.Pod, name, dir string, group int64) error {
	mark := m.path(pod.UID, "@owned-"+name)
	if exists(mark) {
		return nil
	}
	policy := pod.Template.Spec.SecurityContext.FSGroupChangePolicy
	rootOnly := policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch
	if !rootOnly || !belongs(dir, group) {
		if err := ownTree(ctx, dir, group); err != nil {
			return fmt.Errorf("give the volume to group %d: %w", group, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(mark), 0o711); err != nil {
		return err
	}
	return os.WriteFile(mark, nil, 0o600)
}

// What a volume's group may do, as in Kubernetes' volume ownership.
const (
	groupFile = 0o660
	groupDir  = 0o770
)

// belongs reports whether a volume's root says that the group owns it.
func belongs(dir string, group int64) bool {
	info, err := os.Lstat(dir)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int64(stat.Gid) == group && info.Mode()&fs.ModeSetgid != 0 && info.Mode().Perm()&groupDir == groupDir
}

// ownTree gives all files to the group, the root last: a crash half-way leaves
// a root that does not belong to it yet. It goes by descriptors, so that no
// link that somebody puts into the volume meanwhile leads it out.
func ownTree(ctx context.Context, dir string, group int64) error {
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	return ownBelow(ctx, unix.AT_FDCWD, path, int(group))
}

func ownBelow(ctx context.Context, parent int, name string, group int) error {
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	more := uint32(groupFile)
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		more = groupDir | unix.S_ISGID
		if err := ownEntries(ctx, fd, group); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(fd, "", -1, group, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), stat.Mode&0o7777|more)
}

func ownEntries(ctx context.Context, dir, group int) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "volume")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		// Another pod of the volume may remove files while we look.
		if err := ownBelow(ctx, fd, name, group); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
