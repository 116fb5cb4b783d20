package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"testing/fstest"
	"time"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/desired/manifest"
)

// patience is how long reading one document may take.
const patience = time.Minute

// trial reads the collection with one Loader, as a server does.
type trial struct {
	dir    string
	loader *manifest.Loader
	// broken is what must never happen.
	broken []error
}

func newTrial(dir string) *trial {
	return &trial{dir: dir, loader: manifest.NewLoader()}
}

func (t *trial) fault(format string, args ...any) {
	t.broken = append(t.broken, fmt.Errorf(format, args...))
}

// split takes a file apart as kubectl does, which is not how Tallyman does it.
func split(data []byte) ([][]byte, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	var out [][]byte
	for {
		text, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, text)
	}
}

// reading is what loading one document gave.
type reading struct {
	snapshot *desired.Snapshot
	problems []desired.Problem
	err      error
}

// read loads one document as the only file of a repository. A crash, a
// time-out and a document without any outcome are faults.
func (t *trial) read(ctx context.Context, name string, text []byte, lenient bool) (*desired.Snapshot, []desired.Problem) {
	// Hidden files are not read, so that none keeps a name that begins with a dot.
	tree := fstest.MapFS{strings.TrimLeft(path.Base(name), "."): &fstest.MapFile{Data: text}}
	done := make(chan reading, 1)
	go func() {
		var r reading
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("crash: %v", p)
			}
			done <- r
		}()
		r.snapshot, r.problems, r.err = t.loader.Load(ctx, tree, desired.Revision{}, manifest.LoadOptions{Lenient: lenient})
	}()
	var r reading
	select {
	case r = <-done:
	case <-time.After(patience):
		r.err = fmt.Errorf("takes more than %s", patience)
	}
	switch {
	case r.err != nil:
		t.fault("%s: %w", name, r.err)
	case (r.snapshot == nil) != desired.Rejected(r.problems):
		t.fault("%s: a snapshot and an error, or neither", name)
	case r.snapshot != nil && r.snapshot.Len() == 0 && len(r.problems) == 0 && !emptyList(text):
		t.fault("%s: dropped without a word", name)
	}
	return r.snapshot, r.problems
}

// emptyList reports whether a text is a List without items, of which nothing can
// be dropped.
func emptyList(text []byte) bool {
	var list struct {
		Kind  string `json:"kind"`
		Items []any  `json:"items"`
	}
	return yaml.Unmarshal(text, &list) == nil && strings.HasSuffix(list.Kind, "List") && len(list.Items) == 0
}
