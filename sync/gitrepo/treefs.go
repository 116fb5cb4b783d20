package gitrepo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
)

// treeFS is a commit's tree as a file system. As with os.DirFS, ReadDir shows a
// symbolic link as a link, while Open, Stat, ReadDir and ReadFile follow it;
// but none leaves the tree. A submodule shows as a directory that cannot be
// read, so that whoever walks the tree meets the error.
type treeFS struct {
	view *View
	root plumbing.Hash
	// large has the directories that are too large for the view's cache: each
	// look-up of a name would otherwise parse them again.
	large *lru[plumbing.Hash, *tree]
}

// largeTrees is the budget for them, in bytes, for as long as the tree is read.
const largeTrees = 256 << 20

func newTreeFS(v *View, root plumbing.Hash) *treeFS {
	return &treeFS{view: v, root: root, large: newLRU[plumbing.Hash, *tree](largeTrees)}
}

func (t *treeFS) tree(id plumbing.Hash) (*tree, error) {
	if parsed, found := t.large.get(id); found {
		return parsed, nil
	}
	parsed, err := t.view.tree(id)
	if err == nil && !t.view.trees.fits(parsed.size) {
		t.large.put(id, parsed, parsed.size)
	}
	return parsed, err
}

var (
	_ fs.ReadDirFS  = (*treeFS)(nil)
	_ fs.ReadFileFS = (*treeFS)(nil)
	_ fs.StatFS     = (*treeFS)(nil)
)

const (
	maxLinks      = 40   // as Linux has it
	maxLinkTarget = 4096 // PATH_MAX
)

// lfsPrefix begins every Git LFS pointer file.
var lfsPrefix = []byte("version https://git-lfs.github.com/spec/v1\n")

// Open implements fs.FS.
func (t *treeFS) Open(name string) (fs.File, error) {
	info, err := t.stat("open", name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		entries, err := t.readDir(name, info)
		if err != nil {
			return nil, err
		}
		return &openDir{info: info, entries: entries}, nil
	}
	content, err := t.content(name, info.entry)
	if err != nil {
		return nil, err
	}
	return &openFile{info: info, Reader: bytes.NewReader(content)}, nil
}

// Stat implements fs.StatFS.
func (t *treeFS) Stat(name string) (fs.FileInfo, error) {
	info, err := t.stat("stat", name)
	if err != nil {
		return nil, err
	}
	return info, nil
}

// ReadFile implements fs.ReadFileFS. The caller owns the result.
func (t *treeFS) ReadFile(name string) ([]byte, error) {
	entry, err := t.lookup("readfile", name)
	if err != nil {
		return nil, err
	}
	if entry.mode == filemode.Dir {
		return nil, &fs.PathError{Op: "readfile", Path: name, Err: errors.New("is a directory")}
	}
	content, err := t.content(name, entry)
	return slices.Clone(content), err
}

// ReadDir implements fs.ReadDirFS: the entries sorted by name.
func (t *treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	entry, err := t.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	if entry.mode != filemode.Dir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: errors.New("not a directory")}
	}
	return t.readDir(name, &fileInfo{entry: entry})
}

func (t *treeFS) readDir(name string, info *fileInfo) ([]fs.DirEntry, error) {
	parsed, err := t.tree(info.entry.id)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	entries := make([]fs.DirEntry, len(parsed.entries))
	for i, e := range parsed.entries {
		entries[i] = &dirEntry{fs: t, dir: name, entry: e}
	}
	return entries, nil
}

func (t *treeFS) stat(op, name string) (*fileInfo, error) {
	entry, err := t.lookup(op, name)
	if err != nil {
		return nil, err
	}
	return t.info(name, path.Base(name), entry)
}

// info completes an entry with its size.
func (t *treeFS) info(name, base string, entry treeEntry) (*fileInfo, error) {
	info := &fileInfo{name: base, entry: entry}
	if entry.mode == filemode.Dir || entry.mode == filemode.Submodule {
		return info, nil
	}
	size, err := t.view.blobSize(entry.id)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	info.size = size
	return info, nil
}

// content reads a file, or says why it is none that we read.
func (t *treeFS) content(name string, entry treeEntry) ([]byte, error) {
	size, err := t.view.blobSize(entry.id)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	if size > MaxFile {
		return nil, &FileError{
			Path: name,
			Why:  fmt.Sprintf("is %.1f MiB large, more than the limit of %d MiB", float64(size)/(1<<20), MaxFile>>20),
			Hint: "keep large files outside of the desired-state repository",
		}
	}
	content, err := t.view.blob(entry.id)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	if bytes.HasPrefix(content, lfsPrefix) {
		return nil, &FileError{
			Path: name,
			Why:  "is a Git LFS pointer, and LFS is not supported",
			Hint: "store the file itself: git lfs untrack it and commit it again",
		}
	}
	return content, nil
}

// lookup walks from the root to name, following links, and refuses submodules.
func (t *treeFS) lookup(op, name string) (treeEntry, error) {
	root := treeEntry{name: ".", mode: filemode.Dir, id: t.root}
	if !fs.ValidPath(name) {
		return root, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	todo := splitPath(name)
	var at []treeEntry // the directories from below the root to here
	for links := 0; len(todo) > 0; {
		element := todo[0]
		todo = todo[1:]
		if element == ".." {
			if len(at) == 0 {
				return root, linkError(name, "is a symbolic link that leaves the repository")
			}
			at = at[:len(at)-1]
			continue
		}
		entry, err := t.child(op, name, last(at, root), element)
		if err != nil {
			return root, err
		}
		if entry.mode != filemode.Symlink {
			at = append(at, entry)
			continue
		}
		if links++; links > maxLinks {
			return root, linkError(name, "leads through too many symbolic links, perhaps in a circle")
		}
		target, err := t.linkTarget(name, entry)
		if err != nil {
			return root, err
		}
		todo = slices.Concat(splitPath(target), todo)
	}
	return last(at, root), nil
}

// child finds one element in a directory.
func (t *treeFS) child(op, name string, dir treeEntry, element string) (treeEntry, error) {
	if dir.mode != filemode.Dir {
		return treeEntry{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	parsed, err := t.tree(dir.id)
	if err != nil {
		return treeEntry{}, &fs.PathError{Op: op, Path: name, Err: err}
	}
	entry, found := parsed.find(element)
	if !found {
		return treeEntry{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	if entry.mode == filemode.Submodule {
		return treeEntry{}, &FileError{
			Path: name,
			Why:  "is in a submodule, and submodules are not fetched",
			Hint: "copy its files into this repository, for example with git subtree",
		}
	}
	return entry, nil
}

func (t *treeFS) linkTarget(name string, link treeEntry) (string, error) {
	size, err := t.view.blobSize(link.id)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	if size == 0 || size > maxLinkTarget {
		return "", linkError(name, fmt.Sprintf("is a symbolic link with a target of %d bytes", size))
	}
	target, err := t.view.blob(link.id)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	if target[0] == '/' {
		return "", linkError(name, fmt.Sprintf("is a symbolic link that leaves the repository, to %q", target))
	}
	return string(target), nil
}

func linkError(name, why string) error {
	return &FileError{Path: name, Why: why, Hint: "link to a file of this repository by a relative path, or copy the file"}
}

// splitPath gives the elements of a slashed path without "." and empty ones.
func splitPath(name string) []string {
	return slices.DeleteFunc(strings.Split(name, "/"), func(e string) bool { return e == "" || e == "." })
}

func last(at []treeEntry, root treeEntry) treeEntry {
	if len(at) == 0 {
		return root
	}
	return at[len(at)-1]
}

// fileInfo describes what a path leads to.
type fileInfo struct {
	name  string
	entry treeEntry
	size  int64
}

func (i *fileInfo) Name() string       { return i.name }
func (i *fileInfo) Size() int64        { return i.size }
func (i *fileInfo) ModTime() time.Time { return time.Time{} }
func (i *fileInfo) IsDir() bool        { return i.Mode().IsDir() }
func (i *fileInfo) Sys() any           { return nil }
func (i *fileInfo) Mode() fs.FileMode  { return fsMode(i.entry.mode) }

// ContentID names the content: equal ids, equal content. That of a directory
// covers the links in it, not what they point at.
func (i *fileInfo) ContentID() string { return i.entry.id.String() }

func fsMode(mode filemode.FileMode) fs.FileMode {
	switch mode {
	case filemode.Dir:
		return fs.ModeDir | 0o555
	case filemode.Submodule:
		return fs.ModeDir | fs.ModeIrregular | 0o555
	case filemode.Symlink:
		return fs.ModeSymlink | 0o777
	case filemode.Executable:
		return 0o555
	default:
		return 0o444
	}
}

// dirEntry is one name in a directory; links are not followed.
type dirEntry struct {
	fs    *treeFS
	dir   string
	entry treeEntry
}

func (e *dirEntry) Name() string      { return e.entry.name }
func (e *dirEntry) IsDir() bool       { return e.Type().IsDir() }
func (e *dirEntry) Type() fs.FileMode { return fsMode(e.entry.mode).Type() }
func (e *dirEntry) String() string    { return fs.FormatDirEntry(e) }

// Info describes the entry itself: the link, not what it points at.
func (e *dirEntry) Info() (fs.FileInfo, error) {
	info, err := e.fs.info(e.path(), e.entry.name, e.entry)
	if err != nil {
		return nil, err
	}
	return info, nil
}

// ContentID names what reading the entry gives: for a link, the content that
// it leads to, or nothing if it leads nowhere.
func (e *dirEntry) ContentID() string {
	if e.entry.mode != filemode.Symlink {
		return e.entry.id.String()
	}
	target, err := e.fs.lookup("stat", e.path())
	if err != nil {
		return ""
	}
	return target.id.String()
}

func (e *dirEntry) path() string { return path.Join(e.dir, e.entry.name) }

type openFile struct {
	*bytes.Reader
	info *fileInfo
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Close() error               { return nil }

type openDir struct {
	info    *fileInfo
	entries []fs.DirEntry // those not read yet
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: errors.New("is a directory")}
}

// ReadDir implements fs.ReadDirFile.
func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 || n > len(d.entries) {
		if n > 0 && len(d.entries) == 0 {
			return nil, io.EOF
		}
		n = len(d.entries)
	}
	read := d.entries[:n]
	d.entries = d.entries[n:]
	return read, nil
}
