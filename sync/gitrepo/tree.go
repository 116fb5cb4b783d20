package gitrepo

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
)

// tree is one Git tree, parsed and sorted by name. Immutable, shared.
type tree struct {
	entries []treeEntry
	size    int64 // about what it takes in memory, in bytes
}

// treeEntry is one name in a tree.
type treeEntry struct {
	name string
	mode filemode.FileMode
	id   plumbing.Hash
}

// parseTree takes a tree object apart. Every name in the result is a single
// path element: a tree with another one is hostile or broken, and refused.
func parseTree(content []byte) (*tree, error) {
	var entries []treeEntry
	for len(content) > 0 {
		entry, rest, err := parseTreeEntry(content)
		if err != nil {
			return nil, err
		}
		entries, content = append(entries, entry), rest
	}
	// Git sorts directories as if their names ended in a slash.
	slices.SortFunc(entries, func(a, b treeEntry) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(entries); i++ {
		if entries[i].name == entries[i-1].name {
			return nil, fmt.Errorf("the tree names %q twice", entries[i].name)
		}
	}
	size := int64(0)
	for _, e := range entries {
		size += int64(len(e.name)) + 48
	}
	return &tree{entries: entries, size: size}, nil
}

// parseTreeEntry reads "<mode in octal> <name>\0<20 bytes of id>".
func parseTreeEntry(content []byte) (treeEntry, []byte, error) {
	mode, rest, found := bytes.Cut(content, []byte{' '})
	if !found {
		return treeEntry{}, nil, errors.New("the tree is cut short")
	}
	name, rest, found := bytes.Cut(rest, []byte{0})
	if !found || len(rest) < hashSize {
		return treeEntry{}, nil, errors.New("the tree is cut short")
	}
	fileMode, err := filemode.New(string(mode))
	if err != nil {
		return treeEntry{}, nil, fmt.Errorf("the tree has the mode %q", mode)
	}
	entry := treeEntry{name: string(name), mode: fileMode, id: plumbing.Hash(rest[:hashSize])}
	if entry.name == "" || entry.name == "." || entry.name == ".." || strings.Contains(entry.name, "/") {
		return treeEntry{}, nil, fmt.Errorf("the tree has the impossible name %q", entry.name)
	}
	return entry, rest[hashSize:], nil
}

// find returns the entry with a name.
func (t *tree) find(name string) (treeEntry, bool) {
	i, found := slices.BinarySearchFunc(t.entries, name, func(e treeEntry, name string) int {
		return strings.Compare(e.name, name)
	})
	if !found {
		return treeEntry{}, false
	}
	return t.entries[i], true
}
