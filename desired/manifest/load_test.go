package manifest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
)

// tree is a file system that knows its contents by hash and counts what is read.
type tree struct {
	fstest.MapFS
	opened *atomic.Int64
}

func newTree(files map[string]string) tree {
	t := tree{MapFS: fstest.MapFS{}, opened: &atomic.Int64{}}
	for name, text := range files {
		t.MapFS[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return t
}

// with is the same tree with one file changed; an empty text removes it.
func (t tree) with(name, text string) tree {
	next := newTree(nil)
	for n, f := range t.MapFS {
		next.MapFS[n] = f
	}
	next.MapFS[name] = &fstest.MapFile{Data: []byte(text)}
	if text == "" {
		delete(next.MapFS, name)
	}
	return next
}

type hashed struct {
	fs.FileInfo
	id string
}

func (h hashed) ContentID() string          { return h.id }
func (h hashed) Info() (fs.FileInfo, error) { return h, nil }
func (h hashed) Type() fs.FileMode          { return h.Mode().Type() }

func (t tree) hash(p string, info fs.FileInfo) hashed {
	if info.IsDir() {
		return hashed{info, "dir"}
	}
	return hashed{info, contentHash(t.MapFS[p].Data)}
}

func (t tree) Open(p string) (fs.File, error) {
	t.opened.Add(1)
	return t.MapFS.Open(p)
}

func (t tree) Stat(p string) (fs.FileInfo, error) {
	info, err := t.MapFS.Stat(p)
	if err != nil {
		return nil, err
	}
	return t.hash(p, info), nil
}

func (t tree) ReadDir(p string) ([]fs.DirEntry, error) {
	entries, err := t.MapFS.ReadDir(p)
	for i, e := range entries {
		info, infoErr := e.Info()
		if infoErr != nil {
			return nil, infoErr
		}
		name := e.Name()
		if p != "." {
			name = p + "/" + name
		}
		entries[i] = t.hash(name, info)
	}
	return entries, err
}

func configMap(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\n", name)
}

func mustLoad(t testing.TB, l *Loader, tree fs.FS, o LoadOptions) *desired.Snapshot {
	t.Helper()
	s, problems, err := l.Load(context.Background(), tree, desired.Revision{SHA: "1"}, o)
	if err != nil || s == nil {
		t.Fatalf("load: %v, problems %v", err, problems)
	}
	return s
}

func TestUnchangedFilesAreNotReadAgain(t *testing.T) {
	files := map[string]string{"k/kustomization.yaml": "resources: [x.yaml]", "k/x.yaml": configMap("x")}
	for i := range 20 {
		files[fmt.Sprintf("m/%d.yaml", i)] = configMap(fmt.Sprintf("c-%d", i))
	}
	l := NewLoader()
	first := newTree(files)
	before := mustLoad(t, l, first, LoadOptions{})
	second := first.with("m/3.yaml", configMap("other"))
	after := mustLoad(t, l, second, LoadOptions{})
	// One for the changed file, one to look which kustomizations refer to which.
	if n := second.opened.Load(); n > 2 {
		t.Errorf("%d files were opened for one that changed", n)
	}
	key := desired.Key{Kind: "ConfigMap", Namespace: "default", Name: "c-4"}
	if before.Get(key) != after.Get(key) {
		t.Error("an unchanged object is not shared between snapshots")
	}
	if got := desired.Changed(before, after); len(got) != 2 {
		t.Errorf("changed keys: %v", got)
	}
}

func TestKustomizationFollowsItsFiles(t *testing.T) {
	l := NewLoader()
	one := newTree(map[string]string{
		"base/kustomization.yaml": "resources: [x.yaml]", "base/x.yaml": configMap("x"),
		"top/kustomization.yaml": "resources: [../base]\nnamespace: top",
	})
	mustLoad(t, l, one, LoadOptions{Path: "top"})
	s := mustLoad(t, l, one.with("base/x.yaml", configMap("y")), LoadOptions{Path: "top"})
	if s.Get(desired.Key{Kind: "ConfigMap", Namespace: "top", Name: "y"}) == nil {
		t.Error("the change of a file outside of the followed path went unseen")
	}
}

func TestFingerprintIsOfTheContent(t *testing.T) {
	l := NewLoader()
	a := mustLoad(t, l, newTree(map[string]string{"a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: '1', b: '2'}"}), LoadOptions{})
	b := mustLoad(t, l, newTree(map[string]string{"b.json": `{"data":{"b":"2","a":"1"},"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","namespace":"default","creationTimestamp":null}}`}), LoadOptions{})
	if got := desired.Changed(a, b); len(got) != 0 {
		t.Errorf("the same content in another file differs: %v", got)
	}
}

func TestUnreadableTreeIsAnError(t *testing.T) {
	s, problems, err := NewLoader().Load(context.Background(), fstest.MapFS{}, desired.Revision{}, LoadOptions{Path: "missing"})
	if !errors.Is(err, fs.ErrNotExist) || s != nil || problems != nil {
		t.Errorf("got %v, %v, %v", s, problems, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := NewLoader().Load(ctx, newTree(map[string]string{"a.yaml": configMap("a")}), desired.Revision{}, LoadOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// failing refuses one file, as a tree does that finds a submodule or an LFS pointer.
type failing struct {
	tree
	path string
}

func (f failing) Open(p string) (fs.File, error) {
	if p == f.path {
		return nil, errors.New("is a Git LFS pointer")
	}
	return f.tree.Open(p)
}

func TestUnreadableFileIsAProblemOfThatFile(t *testing.T) {
	s, problems, err := NewLoader().Load(context.Background(), failing{newTree(map[string]string{"a.yaml": configMap("a"), "b.yaml": configMap("b")}), "b.yaml"}, desired.Revision{}, LoadOptions{})
	if err != nil || s != nil || len(problems) != 1 {
		t.Fatalf("got %v, %v, %v", s, problems, err)
	}
	if p := problems[0]; p.File != "b.yaml" || p.Code != "unreadable" || !strings.Contains(p.Message, "LFS") {
		t.Errorf("got %+v", p)
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newCache(10_000)
	for i := range 1000 {
		c.put(fmt.Sprint(i), i, 100)
	}
	if c.spent > 10_000 || len(c.items) != c.order.Len() || len(c.items) == 0 {
		t.Errorf("spent %d on %d items", c.spent, len(c.items))
	}
	if c.get("999") != 999 || c.get("0") != nil {
		t.Error("what was used last is gone, or what was used first is not")
	}
}

func TestConcurrentLoads(t *testing.T) {
	l := NewLoader()
	one := newTree(map[string]string{"k/kustomization.yaml": "resources: [x.yaml]", "k/x.yaml": configMap("x"), "a.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {a: b}, ports: [{port: 80}]}"})
	done := make(chan int)
	for range 8 {
		go func() {
			s, _, _ := l.Load(context.Background(), one, desired.Revision{}, LoadOptions{})
			if s == nil {
				done <- 0
				return
			}
			done <- s.Len()
		}()
	}
	for range 8 {
		if n := <-done; n != 2 {
			t.Errorf("%d objects", n)
		}
	}
}

// Symbolic links: those to files are followed; what would be left out in
// silence is a problem.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	for name, text := range map[string]string{
		"shared/a.yaml": configMap("a"), "real.yaml": configMap("real"),
		"k/kustomization.yaml": "resources: [base]", ".base/kustomization.yaml": "resources: [x.yaml]", ".base/x.yaml": configMap("x"),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"apps": "shared", "away": outside, "away.yaml": filepath.Join(outside, "x.yaml"), "up.txt": "../..", "circle": "circle",
		"linked.txt": "real.yaml", "dangling.txt": "nothing", "dangling.yaml": "nothing", "k/base": "../.base",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	_, problems, err := NewLoader().Load(context.Background(), root.FS(), desired.Revision{}, LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range problems {
		if p.Hint == "" {
			t.Errorf("no hint: %s", p)
		}
		got = append(got, p.File+" "+p.Code)
	}
	want := []string{"apps link", "away link", "away.yaml unreadable", "circle link", "dangling.yaml unreadable", "up.txt link"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
