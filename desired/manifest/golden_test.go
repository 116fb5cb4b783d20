package manifest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tallyman-dev/tallyman/desired"
)

// Every testdata/*.txtar is a tree and, in its last file "want", what reading
// it gives: the objects, or none, then the problems. Lines of the comment set
// options: "path: web", "lenient", "previous" (the files below "before/" are
// what is in force). -update writes "want".
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tree, before, want := fstest.MapFS{}, fstest.MapFS{}, ""
	for _, f := range archive.Files {
		switch name, old := strings.CutPrefix(f.Name, "before/"); {
		case f.Name == "want":
			want = string(f.Data)
		case old:
			before[name] = &fstest.MapFile{Data: f.Data}
		default:
			tree[f.Name] = &fstest.MapFile{Data: f.Data}
		}
	}
	l := NewLoader()
	var o LoadOptions
	for line := range strings.Lines(string(archive.Comment)) {
		line = strings.TrimSpace(line)
		if p, ok := strings.CutPrefix(line, "path: "); ok {
			o.Path = p
		}
		o.Lenient = o.Lenient || line == "lenient"
	}
	if len(before) > 0 {
		o.Previous, _ = load(t, l, before, LoadOptions{Path: o.Path})
		if o.Previous == nil {
			t.Fatal("the tree in before/ is not valid")
		}
	}
	snapshot, problems := load(t, l, tree, o)
	got := describe(snapshot, problems)
	if *update {
		writeGolden(t, file, archive, got)
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
	again, problemsAgain := load(t, l, tree, o)
	if second := describe(again, problemsAgain); second != got {
		t.Errorf("a second reading, from memory, differs:\n%s", cmp.Diff(got, second))
	}
}

func writeGolden(t *testing.T, file string, archive *txtar.Archive, got string) {
	kept := archive.Files[:0]
	for _, f := range archive.Files {
		if f.Name != "want" {
			kept = append(kept, f)
		}
	}
	archive.Files = append(kept, txtar.File{Name: "want", Data: []byte(got)})
	if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}

// load reads a tree and checks what holds for every outcome.
func load(t *testing.T, l *Loader, tree fstest.MapFS, o LoadOptions) (*desired.Snapshot, []desired.Problem) {
	t.Helper()
	snapshot, problems, err := l.Load(context.Background(), tree, desired.Revision{SHA: "1"}, o)
	if err != nil {
		t.Fatal(err)
	}
	if (snapshot == nil) != desired.Rejected(problems) {
		t.Errorf("snapshot is nil: %v, but a problem is an error: %v", snapshot == nil, desired.Rejected(problems))
	}
	return snapshot, problems
}

func describe(s *desired.Snapshot, problems []desired.Problem) string {
	var b bytes.Buffer
	if s == nil {
		b.WriteString("rejected\n")
	} else {
		for o := range s.All() {
			fmt.Fprintf(&b, "%s from %s document %d\n", o.Key, o.From, o.From.Document)
		}
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "%s %s document %d: %s\n", p.Severity, p.Code, p.Document, p)
	}
	return b.String()
}
