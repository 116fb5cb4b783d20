package gitrepo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/objfile"
)

// maxObject bounds every object that is put into memory: trees, commits, and
// the bases of deltas, which may be larger than what is made of them.
const maxObject = 64 << 20

// deltaBases is the budget for delta bases, which matter only while a tree is
// being read.
const deltaBases = 4 << 20

type tooLargeError struct{ size int64 }

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("an object of %d bytes is needed, more than the %d that are read", e.size, int64(maxObject))
}

// objects reads Git objects by id from several object directories: those of a
// repository, its alternates and, for a push that is being checked, its
// quarantine. Nothing is ever written. Git may repack or prune meanwhile: what
// is not found is looked for once more in the packs that are there then.
// Safe for concurrent use.
type objects struct {
	dirs []*objectDir
}

// objectDir is one directory of loose objects and packs.
type objectDir struct {
	path  string
	bases *lru[baseKey, rawObject]

	mu    sync.Mutex
	packs map[string]*pack // guarded by mu; replaced, never changed
}

// openObjects opens object directories and what their alternates name.
func openObjects(dirs []string, bases *lru[baseKey, rawObject]) *objects {
	var all []*objectDir
	for _, dir := range dirs {
		for _, path := range withAlternates(dir) {
			all = append(all, &objectDir{path: path, bases: bases})
		}
	}
	return &objects{dirs: all}
}

// with sees the objects of further directories too, those first.
func (o *objects) with(dirs []string, bases *lru[baseKey, rawObject]) *objects {
	return &objects{dirs: append(openObjects(dirs, bases).dirs, o.dirs...)}
}

// withAlternates lists dir and, transitively, the directories of its
// info/alternates, each once.
func withAlternates(dir string) []string {
	found := []string{filepath.Clean(dir)}
	for i := 0; i < len(found) && len(found) < 16; i++ {
		content, err := os.ReadFile(filepath.Join(found[i], "info", "alternates"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(content)) {
			line = strings.TrimSpace(line)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			if !filepath.IsAbs(line) {
				line = filepath.Join(found[i], line)
			}
			if line = filepath.Clean(line); !slices.Contains(found, line) {
				found = append(found, line)
			}
		}
	}
	return found
}

// read returns an object whole, and checks that it is what its id says: what a
// failing disk or a forger made of it must not run. The error is
// plumbing.ErrObjectNotFound when no directory has it.
func (o *objects) read(id plumbing.Hash) (rawObject, error) {
	var object rawObject
	err := o.find(id, func(p *pack, offset int64) (err error) {
		object, err = p.object(offset)
		return err
	}, func(r *objfile.Reader, kind plumbing.ObjectType, size int64) error {
		if size > maxObject {
			return &tooLargeError{size}
		}
		content := make([]byte, size)
		_, err := io.ReadFull(r, content)
		object = rawObject{kind, content}
		return noEOF(err)
	})
	if err != nil {
		return rawObject{}, err
	}
	if got := plumbing.ComputeHash(object.kind, object.content); got != id {
		return rawObject{}, fmt.Errorf("read object %s: damaged: its content has the id %s", id, got)
	}
	return object, nil
}

// size tells how large an object is without reading it.
func (o *objects) size(id plumbing.Hash) (int64, error) {
	var found int64
	err := o.find(id, func(p *pack, offset int64) (err error) {
		found, err = p.objectSize(offset)
		return err
	}, func(_ *objfile.Reader, _ plumbing.ObjectType, size int64) error {
		found = size
		return nil
	})
	return found, err
}

type (
	packed func(p *pack, offset int64) error
	loose  func(r *objfile.Reader, kind plumbing.ObjectType, size int64) error
)

// find calls one of the two functions with the place where the object is.
func (o *objects) find(id plumbing.Hash, inPack packed, inFile loose) error {
	for _, rescan := range []bool{false, true} {
		for _, dir := range o.dirs {
			found, err := dir.find(id, rescan, inPack, inFile)
			if err != nil {
				return fmt.Errorf("read object %s: %w", id, err)
			}
			if found {
				return nil
			}
		}
	}
	return fmt.Errorf("read object %s: %w", id, plumbing.ErrObjectNotFound)
}

func (d *objectDir) find(id plumbing.Hash, rescan bool, inPack packed, inFile loose) (bool, error) {
	packs, err := d.listPacks(rescan)
	if err != nil {
		return false, err
	}
	for _, p := range packs {
		offset, found, err := p.index.find(id)
		if err != nil {
			return false, err
		}
		if found {
			return true, inPack(p, offset)
		}
	}
	return d.findLoose(id, inFile)
}

func (d *objectDir) findLoose(id plumbing.Hash, inFile loose) (bool, error) {
	name := id.String()
	file, err := os.Open(filepath.Join(d.path, name[:2], name[2:]))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = file.Close() }() // only read
	reader, err := objfile.NewReader(bufio.NewReader(file))
	if err != nil {
		return false, err
	}
	defer func() { _ = reader.Close() }()
	kind, size, err := reader.Header()
	if err != nil {
		return false, err
	}
	return true, inFile(reader, kind, size)
}

// listPacks returns the packs by name, looking at the directory the first time
// and whenever rescan asks for it.
func (d *objectDir) listPacks(rescan bool) (map[string]*pack, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.packs != nil && !rescan {
		return d.packs, nil
	}
	names, err := filepath.Glob(filepath.Join(escapeGlob(d.path), "pack", "pack-*.idx"))
	if err != nil {
		return nil, err
	}
	packs := make(map[string]*pack, len(names))
	for _, name := range names {
		if known := d.packs[name]; known != nil {
			packs[name] = known
			continue
		}
		opened, err := openPack(name, d.bases)
		if errors.Is(err, fs.ErrNotExist) {
			continue // repacked this moment
		}
		if err != nil {
			return nil, err
		}
		packs[name] = opened
	}
	if !maps.Equal(packs, d.packs) || d.packs == nil {
		d.packs = packs
	}
	return d.packs, nil
}

// escapeGlob takes their meaning from the characters that filepath.Glob knows.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}
