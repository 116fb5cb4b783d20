package gitrepo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
)

// Every fetch leaves a pack. When there are manyPacks of at most smallPack
// bytes, they become one: reading looks into each pack in turn. Larger ones
// stay as they are, so that the work does not grow with the history.
const (
	manyPacks = 32
	smallPack = 1 << 20
)

// compact makes one pack of many small ones. The new one is in place before
// the old ones go, and whoever reads from those holds them open.
func (r *remote) compact() error {
	storage := newStorage(r.dir)
	small, err := smallPacks(filepath.Join(r.dir, "objects", "pack"))
	if err != nil || len(small) < manyPacks {
		return err
	}
	ids, err := packedIDs(small)
	if err != nil {
		return err
	}
	writer, err := storage.PackfileWriter()
	if err != nil {
		return err
	}
	const window = 10 // as git repack
	made, err := packfile.NewEncoder(writer, storage, false).Encode(ids, window)
	if err = errors.Join(err, writer.Close()); err != nil {
		return fmt.Errorf("make one pack of %d: %w", len(small), err)
	}
	for _, pack := range small {
		name := strings.TrimSuffix(pack, ".idx")
		if strings.HasSuffix(name, made.String()) {
			continue
		}
		// The index first: a pack without one is not looked at.
		err = errors.Join(err, os.Remove(pack), os.Remove(name+".pack"))
	}
	return err
}

// smallPacks lists the indexes of the small packs in a directory.
func smallPacks(dir string) ([]string, error) {
	indexes, err := filepath.Glob(filepath.Join(escapeGlob(dir), "pack-*.idx"))
	if err != nil {
		return nil, err
	}
	var small []string
	for _, index := range indexes {
		info, err := os.Stat(strings.TrimSuffix(index, ".idx") + ".pack")
		if err != nil {
			return nil, err
		}
		if info.Size() <= smallPack {
			small = append(small, index)
		}
	}
	return small, nil
}

// packedIDs lists the objects of packs, each once.
func packedIDs(indexes []string) ([]plumbing.Hash, error) {
	seen := map[plumbing.Hash]bool{}
	var ids []plumbing.Hash
	for _, path := range indexes {
		index, err := openPackIndex(path)
		if err != nil {
			return nil, err
		}
		names, err := index.names()
		if err = errors.Join(err, index.file.Close()); err != nil {
			return nil, fmt.Errorf("read pack index %s: %w", path, err)
		}
		for _, id := range names {
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}
