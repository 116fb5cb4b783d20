package gitrepo_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/tallyman-dev/tallyman/sync/gitrepo"
)

func tree(t *testing.T, r *gitrepo.Repository, sha string) fs.FS {
	t.Helper()
	tree, err := r.Tree(t.Context(), sha)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func readFile(t *testing.T, r *gitrepo.Repository, sha, name string) string {
	t.Helper()
	content, err := fs.ReadFile(tree(t, r, sha), name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func (c *checkout) link(name, target string) {
	c.t.Helper()
	if err := os.Symlink(target, filepath.Join(c.dir, name)); err != nil {
		c.t.Fatal(err)
	}
}

func TestTreeIsAFileSystem(t *testing.T) {
	c := newCheckout(t)
	for _, name := range []string{"a.yaml", "base/b.yaml", "base-2/c.yaml", "base/deep/er/d.yaml", "base.yaml"} {
		c.write(name, "content of "+name)
	}
	sha := c.commit("files")
	if err := fstest.TestFS(tree(t, open(t, gitrepo.Options{URL: c.dir}), sha), "a.yaml", "base/b.yaml", "base-2/c.yaml", "base/deep/er/d.yaml", "base.yaml"); err != nil {
		t.Error(err)
	}
}

func TestLinksWithinTheTreeAreFollowed(t *testing.T) {
	c := newCheckout(t)
	c.write("base/web.yaml", "web")
	c.write("prod/readme", "")
	c.link("prod/web.yaml", "../base/web.yaml")
	c.link("prod/base", "../base")
	c.link("prod/again", "web.yaml")
	c.link("prod/roundabout", "base/../prod/base/../base/./web.yaml")
	sha := c.commit("links")
	r := open(t, gitrepo.Options{URL: c.dir})
	for _, name := range []string{"prod/web.yaml", "prod/base/web.yaml", "prod/again", "prod/roundabout"} {
		if got := readFile(t, r, sha, name); got != "web" {
			t.Errorf("%s: %q", name, got)
		}
	}
	files := tree(t, r, sha)
	if info, err := fs.Stat(files, "prod/base"); err != nil || !info.IsDir() {
		t.Errorf("stat of a link to a directory: %v, %v", info, err)
	}
	entries, err := fs.ReadDir(files, "prod")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if isLink := entry.Type()&fs.ModeSymlink != 0; isLink != (entry.Name() != "readme") {
			t.Errorf("%s has type %v", entry.Name(), entry.Type())
		}
	}
	target, _ := fs.Stat(files, "base/web.yaml")
	if got, want := contentID(entries[3]), contentID(target); got != want {
		t.Errorf("the link %s has the content id %s, want that of its target, %s", entries[3].Name(), got, want)
	}
}

func contentID(of any) string { return of.(interface{ ContentID() string }).ContentID() }

// Every file that cannot be read says why, and reading the others goes on.
func TestFilesThatCannotBeRead(t *testing.T) {
	c := newCheckout(t)
	c.write("good.yaml", "good")
	c.link("outside", "../../etc/passwd")
	c.link("absolute", "/etc/passwd")
	c.link("circle", "circle2")
	c.link("circle2", "circle")
	c.link("dangling", "nothing")
	c.write("lfs.yaml", "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n")
	c.write("large.yaml", strings.Repeat("x", gitrepo.MaxFile+1))
	c.write("limit.yaml", strings.Repeat("x", gitrepo.MaxFile))
	c.git("add", "--all")
	c.git("update-index", "--add", "--cacheinfo", "160000,1234567890123456789012345678901234567890,vendored")
	c.git("commit", "--quiet", "-m", "trouble")
	sha := c.git("rev-parse", "HEAD")
	for _, packed := range []bool{false, true} {
		if packed {
			c.git("repack", "-adq")
		}
		files := tree(t, open(t, gitrepo.Options{URL: c.dir}), sha)
		entries, err := fs.ReadDir(files, ".")
		if err != nil || len(entries) != 10 {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		for name, why := range map[string]string{
			"outside": "leaves the repository", "absolute": "leaves the repository", "circle": "too many symbolic links",
			"lfs.yaml": "LFS pointer", "large.yaml": "10.0 MiB large, more than the limit of 10 MiB",
			"vendored": "submodule", "vendored/x.yaml": "submodule",
		} {
			_, err := fs.ReadFile(files, name)
			var problem *gitrepo.FileError
			if !errors.As(err, &problem) || problem.Path != name || !strings.Contains(problem.Why, why) || problem.Hint == "" {
				t.Errorf("packed %t: %s: %v, want: %s", packed, name, err, why)
			}
		}
		if _, err := fs.ReadFile(files, "dangling"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("dangling: %v", err)
		}
		if _, err := fs.ReadDir(files, "vendored"); err == nil {
			t.Error("a submodule was read as a directory")
		}
		for name, size := range map[string]int{"good.yaml": 4, "limit.yaml": gitrepo.MaxFile} {
			if content, err := fs.ReadFile(files, name); err != nil || len(content) != size {
				t.Errorf("%s: %d bytes, %v", name, len(content), err)
			}
		}
	}
}

// Trees that git would not make: names that lead elsewhere, or twice the same.
func TestHostileTrees(t *testing.T) {
	c := newCheckout(t)
	c.write("good.yaml", "good")
	c.commit("good")
	blob := rawID(t, c.git("rev-parse", "HEAD:good.yaml"))
	entry := func(mode, name string) string { return mode + " " + name + "\x00" + blob }
	r := open(t, gitrepo.Options{URL: c.dir})
	for name, content := range map[string]string{
		"parent":    entry("40000", ".."),
		"slash":     entry("100644", "a/b"),
		"nameless":  entry("100644", ""),
		"twice":     entry("100644", "a") + entry("100644", "a"),
		"cut short": entry("100644", "a")[:10],
		"odd mode":  entry("9", "a"),
	} {
		id := pipeGit(t, c.dir, content, "hash-object", "-t", "tree", "--literally", "-w", "--stdin")
		raw := fmt.Sprintf("tree %s\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nhostile\n", id)
		sha := pipeGit(t, c.dir, raw, "hash-object", "-t", "commit", "--literally", "-w", "--stdin")
		files, err := r.Tree(t.Context(), sha)
		if err == nil {
			_, err = fs.ReadDir(files, ".")
		}
		if err == nil {
			t.Errorf("%s: read without complaint", name)
		}
	}
	// Control characters and the like are names as any other.
	odd := "\x1b[31m<b>\n"
	id := pipeGit(t, c.dir, entry("100644", odd), "hash-object", "-t", "tree", "--literally", "-w", "--stdin")
	raw := fmt.Sprintf("tree %s\nauthor A\xff <a> 1 +0000\ncommitter A <a> 1 +0000\n\n\xfe\x00odd\n", id)
	sha := pipeGit(t, c.dir, raw, "hash-object", "-t", "commit", "--literally", "-w", "--stdin")
	if got := readFile(t, r, sha, odd); got != "good" {
		t.Errorf("%q says %q", odd, got)
	}
	if revision, err := r.Revision(t.Context(), sha); err != nil || revision.Author != "A\uFFFD" {
		t.Errorf("%+v, %v", revision, err)
	}
}

func rawID(t *testing.T, hex string) string {
	t.Helper()
	var b []byte
	if _, err := fmt.Sscanf(hex, "%x", &b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Whatever way Git stored it, every object reads as git reads it.
func TestEveryWayToStoreObjects(t *testing.T) {
	c := newCheckout(t)
	// Versions of one long file make chains of deltas.
	lines := make([]string, 400)
	for i := range lines {
		lines[i] = fmt.Sprintf("line %d", i)
	}
	want := map[string]string{}
	for version := range 60 {
		lines[version*6] = fmt.Sprintf("changed in version %d", version)
		content := strings.Join(lines, "\n")
		c.write("grows.yaml", content)
		want[c.commit(fmt.Sprint(version))] = content
	}
	for name, repack := range map[string][]string{
		"loose":             nil,
		"offset deltas":     {"repack", "-adfq", "--depth=50", "--window=50"},
		"reference deltas":  {"-c", "repack.useDeltaBaseOffset=false", "repack", "-adfq", "--depth=50", "--window=50"},
		"64 bit offsets":    {"-c", "pack.indexVersion=2", "repack", "-adfq"},
		"loose and packs":   {"repack", "-dq"},
		"bitmap and commit": {"-c", "core.commitGraph=true", "repack", "-adbq"},
	} {
		t.Run(name, func(t *testing.T) {
			if repack != nil {
				c.git(repack...)
			}
			if name == "64 bit offsets" {
				c.largeOffsets()
			}
			r := open(t, gitrepo.Options{URL: c.dir})
			for sha, content := range want {
				if got := readFile(t, r, sha, "grows.yaml"); got != content {
					t.Fatalf("%s differs", sha)
				}
				info, err := fs.Stat(tree(t, open(t, gitrepo.Options{URL: c.dir}), sha), "grows.yaml")
				if err != nil || info.Size() != int64(len(content)) {
					t.Fatalf("stat %s: %v, %v", sha, info, err)
				}
			}
		})
	}
}

// largeOffsets indexes every pack anew with 64 bit offsets from the start.
func (c *checkout) largeOffsets() {
	c.t.Helper()
	packs, err := filepath.Glob(filepath.Join(c.dir, ".git", "objects", "pack", "*.pack"))
	if err != nil || len(packs) == 0 {
		c.t.Fatal(packs, err)
	}
	for _, pack := range packs {
		if err := os.Remove(strings.TrimSuffix(pack, ".pack") + ".idx"); err != nil {
			c.t.Fatal(err)
		}
		c.git("index-pack", "--index-version=2,0x10", pack)
	}
}

// Git may repack under the reader's hands.
func TestRepackingMeanwhile(t *testing.T) {
	c := newCheckout(t)
	first := c.push("a.yaml", "one")
	runGit(t, c.bare, "repack", "-adq")
	r := open(t, gitrepo.Options{URL: c.bare})
	if got := readFile(t, r, first, "a.yaml"); got != "one" {
		t.Errorf("a.yaml says %q", got)
	}
	second := c.push("b.yaml", "two")
	runGit(t, c.bare, "gc", "--quiet", "--prune=now")
	for name, want := range map[string]string{"a.yaml": "one", "b.yaml": "two"} {
		if got := readFile(t, r, second, name); got != want {
			t.Errorf("%s says %q", name, got)
		}
	}
}

// A tree of 100,000 files, in one directory and spread over many, is listed
// and looked up without quadratic work.
func TestHundredThousandFiles(t *testing.T) {
	const files = 100_000
	c := newCheckout(t)
	blob := pipeGit(t, c.dir, "kind: ConfigMap\n", "hash-object", "-w", "--stdin")
	var index strings.Builder
	for i := range files / 2 {
		fmt.Fprintf(&index, "100644 blob %s\tone/%05d.yaml\n", blob, i)
		fmt.Fprintf(&index, "100644 blob %s\tmany/%03d/%05d.yaml\n", blob, i%500, i)
	}
	pipeGit(t, c.dir, index.String(), "update-index", "--index-info")
	c.git("commit", "--quiet", "-m", "many")
	sha := c.git("rev-parse", "HEAD")
	start := time.Now()
	root := tree(t, open(t, gitrepo.Options{URL: c.dir}), sha)
	read := 0
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(root, path)
		if string(content) != "kind: ConfigMap\n" {
			return fmt.Errorf("%s says %q, %w", path, content, err)
		}
		read++
		return nil
	})
	if err != nil || read != files {
		t.Errorf("read %d files: %v", read, err)
	}
	t.Logf("%d files in %v", read, time.Since(start))
}
