package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// inside makes the kernel resolve a path with the volume as its root, so that
// no link leads out of it, not even one that is swapped while we look.
const inside = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// SubPath gives a path on the host for a part of a volume: a bind mount, made
// through a descriptor, so that nothing a container does to its volume changes
// what is mounted. Missing directories are made unless the volume is read-only.
// container and index name the volumeMount.
func (m *Manager) SubPath(uid nodes.UID, v Volume, container string, index int, path string) (string, error) {
	if err := m.base.ready(); err != nil {
		return "", err
	}
	clean := filepath.Clean(path)
	if filepath.IsAbs(path) || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("subPath %q leads out of the volume", path)
	}
	target := filepath.Join(m.path(uid, "@subpath"), container, strconv.Itoa(index))
	root, err := unix.Open(v.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("subPath %q: open volume: %w", path, err)
	}
	defer unix.Close(root)
	fd, err := openInside(root, clean, !v.ReadOnly)
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", path, err)
	}
	defer unix.Close(fd)
	if err := bind(fd, target); err != nil {
		return "", fmt.Errorf("subPath %q: %w", path, err)
	}
	return target, nil
}

func openInside(root int, path string, make bool) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: inside}
	fd, err := unix.Openat2(root, path, how)
	if err == nil || !make || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if err := makeInside(root, path); err != nil {
		return -1, err
	}
	return unix.Openat2(root, path, how)
}

// makeInside makes the directories of path one by one, with the mode of the
// volume's root.
func makeInside(root int, path string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(root, &stat); err != nil {
		return err
	}
	parent := "."
	for _, name := range strings.Split(path, "/") {
		how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: inside}
		dir, err := unix.Openat2(root, parent, how)
		if err != nil {
			return err
		}
		err = makeOne(dir, name, stat)
		unix.Close(dir)
		if err != nil {
			return err
		}
		parent += "/" + name
	}
	return nil
}

func makeOne(dir int, name string, like unix.Stat_t) error {
	err := unix.Mkdirat(dir, name, like.Mode&0o7777)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	// mkdir minds the umask, and the owner is the volume's. Both are set through
	// a descriptor: a container may swap the name for a link at any moment.
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	made, err := unix.Openat2(dir, name, how)
	if err != nil {
		return err
	}
	defer unix.Close(made)
	if err := unix.Fchown(made, int(like.Uid), int(like.Gid)); err != nil {
		return err
	}
	return unix.Fchmod(made, like.Mode&0o7777)
}

// bind mounts what fd names on target, replacing what was there.
func bind(fd int, target string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	if err := unmountBelow(target); err != nil {
		return err
	}
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if err := makePoint(target, stat.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	return unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND|unix.MS_REC, "")
}

func makePoint(target string, dir bool) error {
	if dir {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
