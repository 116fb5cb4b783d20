package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// dataLink is the link that is swapped; what users see links through it, as in
// Kubernetes, so that programs that watch it keep working.
const dataLink = "..data"

// swap makes dir hold exactly files, all at once, and reports whether anything
// had to be written. group, when not nil, owns the files and may read them.
func swap(dir string, files map[string]file, group *int64) (bool, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	if err := own(dir, group, 0o755); err != nil {
		return false, err
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err == nil && holds(filepath.Join(dir, old), files, group) {
		return false, links(dir, files)
	}
	fresh, err := os.MkdirTemp(dir, "..data-")
	if err != nil {
		return false, err
	}
	if err := write(fresh, files, group); err != nil {
		return false, errors.Join(err, os.RemoveAll(fresh))
	}
	next := filepath.Join(dir, "..data_tmp")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := os.Symlink(filepath.Base(fresh), next); err != nil {
		return false, err
	}
	if err := os.Rename(next, filepath.Join(dir, dataLink)); err != nil {
		return false, err
	}
	return true, errors.Join(links(dir, files), sweep(dir, filepath.Base(fresh)))
}

func write(dir string, files map[string]file, group *int64) error {
	if err := own(dir, group, 0o755); err != nil {
		return err
	}
	for name, f := range files {
		target := filepath.Join(dir, name)
		if err := makeParents(dir, filepath.Dir(name), group); err != nil {
			return err
		}
		if err := os.WriteFile(target, f.data, 0o600); err != nil {
			return err
		}
		if group != nil || f.user != nil {
			if err := os.Chown(target, id(f.user), id(group)); err != nil {
				return err
			}
		}
		if err := os.Chmod(target, goMode(fileMode(f, group))); err != nil {
			return err
		}
	}
	return nil
}

// id is what the kernel wants; -1 leaves an owner as it is.
func id(n *int64) int {
	if n == nil {
		return -1
	}
	return int(*n)
}

func makeParents(dir, parent string, group *int64) error {
	if parent == "." {
		return nil
	}
	for _, name := range strings.Split(parent, "/") {
		dir = filepath.Join(dir, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := own(dir, group, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// own sets a directory's mode, and its group with the set-group-id bit.
func own(dir string, group *int64, perm fs.FileMode) error {
	if group == nil {
		return os.Chmod(dir, perm)
	}
	if err := os.Chown(dir, -1, int(*group)); err != nil {
		return err
	}
	return os.Chmod(dir, perm|fs.ModeSetgid)
}

// fileMode lets the group read what it owns.
func fileMode(f file, group *int64) uint32 {
	if group != nil {
		return f.mode | 0o440
	}
	return f.mode
}

// goMode turns Unix bits, set-id and sticky included, into Go's.
func goMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

// holds reports whether dir holds exactly files, with their modes and owners.
func holds(dir string, files map[string]file, group *int64) bool {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, wanted := files[name]
		if !wanted || !same(path, f, group) {
			return fmt.Errorf("%s differs", name)
		}
		seen++
		return nil
	})
	return err == nil && seen == len(files)
}

func same(path string, f file, group *int64) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode() != goMode(fileMode(f, group)) || info.Size() != int64(len(f.data)) {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && (group != nil && int64(stat.Gid) != *group || f.user != nil && int64(stat.Uid) != *f.user) {
		return false
	}
	data, err := os.ReadFile(path)
	return err == nil && bytes.Equal(data, f.data)
}

// links makes what users see: one link for each topmost name, and no others.
func links(dir string, files map[string]file) error {
	wanted := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		wanted[top] = true
	}
	for top := range wanted {
		if err := link(filepath.Join(dir, top), filepath.Join(dataLink, top)); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !wanted[e.Name()] {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func link(path, target string) error {
	have, err := os.Readlink(path)
	if err == nil && have == target {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// sweep removes what earlier swaps, finished or not, left.
func sweep(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, "..") && name != keep && name != dataLink {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
