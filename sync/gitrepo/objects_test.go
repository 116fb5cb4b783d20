package gitrepo

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

// packedRepository has versions of one file in a single pack with deltas, and
// returns its object directory and every object in it.
func packedRepository(t testing.TB) (objectDir string, ids []plumbing.Hash) {
	t.Helper()
	dir := t.TempDir()
	script := `git init -q . && for i in $(seq 30); do seq $((i*7)) $((i*7+200)) >f; git add f
		git -c user.name=a -c user.email=a@b commit -qm $i; done; git repack -adfq --depth=20`
	command := exec.Command("sh", "-ec", script)
	command.Dir = dir
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	objectDir = filepath.Join(dir, ".git", "objects")
	indexes, err := smallPacks(filepath.Join(objectDir, "pack"))
	if err != nil || len(indexes) != 1 {
		t.Fatal(indexes, err)
	}
	if ids, err = packedIDs(indexes); err != nil {
		t.Fatal(err)
	}
	return objectDir, ids
}

func newObjects(dir string) *objects {
	return openObjects([]string{dir}, newLRU[baseKey, rawObject](deltaBases))
}

// A damaged pack gives errors, and never a panic or another content.
func TestDamagedPack(t *testing.T) {
	dir, ids := packedRepository(t)
	names, err := filepath.Glob(filepath.Join(dir, "pack", "pack-*"))
	if err != nil {
		t.Fatal(err)
	}
	whole := map[plumbing.Hash][]byte{}
	for _, id := range ids[:10] {
		object, err := newObjects(dir).read(id)
		if err != nil {
			t.Fatal(err)
		}
		whole[id] = object.content
	}
	const seed = 1
	random := rand.New(rand.NewPCG(seed, 0))
	for _, name := range names {
		intact, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, 0o600); err != nil {
			t.Fatal(err)
		}
		for round := range 200 {
			damaged := slices.Clone(intact)
			if round%4 == 0 {
				damaged = damaged[:random.IntN(len(damaged))]
			}
			for range min(3, len(damaged)) {
				damaged[random.IntN(len(damaged))] ^= 1 << random.IntN(8)
			}
			if err := os.WriteFile(name, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			o := newObjects(dir)
			for id, want := range whole {
				_, _ = o.size(id) // any answer but a panic
				if object, err := o.read(id); err == nil && !bytes.Equal(object.content, want) {
					t.Errorf("seed %d, %s, round %d: %s has another content", seed, name, round, id)
				}
			}
		}
		if err := os.WriteFile(name, intact, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMissingObject(t *testing.T) {
	dir, _ := packedRepository(t)
	_, err := newObjects(dir).read(plumbing.NewHash("1234567890123456789012345678901234567890"))
	if !errors.Is(err, plumbing.ErrObjectNotFound) {
		t.Errorf("a missing object gives %v", err)
	}
}

func TestCompact(t *testing.T) {
	dir, ids := packedRepository(t)
	mirror := filepath.Dir(dir)
	before := map[plumbing.Hash][]byte{}
	reader := newObjects(dir)
	for _, id := range ids {
		object, err := reader.read(id)
		if err != nil {
			t.Fatal(err)
		}
		before[id] = object.content
	}
	// As many packs of one object as it takes, as many fetches would leave.
	for i, id := range ids[:manyPacks] {
		command := exec.Command("git", "pack-objects", "-q", filepath.Join(dir, "pack", "pack"))
		command.Dir, command.Stdin = mirror, bytes.NewBufferString(id.String()+"\n")
		if output, err := command.CombinedOutput(); err != nil {
			t.Fatalf("pack %d: %v: %s", i, err, output)
		}
	}
	if err := (&remote{dir: mirror}).compact(); err != nil {
		t.Fatal(err)
	}
	packs, err := smallPacks(filepath.Join(dir, "pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("%d packs are left, %v", len(packs), err)
	}
	for name, o := range map[string]*objects{"a new reader": newObjects(dir), "one from before": reader} {
		for id, want := range before {
			object, err := o.read(id)
			if err != nil || !bytes.Equal(object.content, want) {
				t.Errorf("%s: %s differs: %v", name, id, err)
			}
		}
	}
}

func TestLRUStaysWithinItsBudget(t *testing.T) {
	cache := newLRU[int, string](100 * (10 + overhead))
	for i := range 1000 {
		cache.put(i, fmt.Sprint(i), 10)
		cache.get(0) // kept for being used
	}
	if _, found := cache.get(0); !found || len(cache.byKey) > 100 || cache.used > cache.budget {
		t.Errorf("%d entries of %d bytes, the used one found %t", len(cache.byKey), cache.used, found)
	}
	cache.put(-1, "huge", cache.budget)
	if _, found := cache.get(-1); found {
		t.Error("one huge value took the place of all others")
	}
}

// What nobody has read yet is not lost when something newer takes its place.
func TestUnreadHeadIsTakenOver(t *testing.T) {
	rewritten := Head{Previous: "a", Rewritten: true, Err: nil}
	if got := (Head{}).after(rewritten); !got.Rewritten || got.Previous != "a" {
		t.Errorf("after a rewrite: %+v", got)
	}
	if got := (Head{Previous: "b"}).after(rewritten); !got.Rewritten || got.Previous != "a" {
		t.Errorf("after a rewrite and a move: %+v", got)
	}
	if got := (Head{Previous: "b", Rewritten: true}).after(Head{}); !got.Rewritten || got.Previous != "b" {
		t.Errorf("after nothing: %+v", got)
	}
}

func FuzzParseTree(f *testing.F) {
	f.Add([]byte("100644 a\x0001234567890123456789"))
	f.Add([]byte("40000 a\x0001234567890123456789100644 b\x0001234567890123456789"))
	f.Add([]byte("100644 ..\x0001234567890123456789"))
	f.Fuzz(func(t *testing.T, content []byte) {
		parsed, err := parseTree(content)
		if err != nil {
			return
		}
		for _, entry := range parsed.entries {
			if found, ok := parsed.find(entry.name); !ok || found != entry {
				t.Errorf("%q is not found again", entry.name)
			}
		}
	})
}
