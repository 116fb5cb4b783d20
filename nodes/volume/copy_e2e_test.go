//go:build e2e

package volume

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
)

// copyOf is a volume that begins with another's content.
func copyOf(v *nodes.Volume, name, size string) *nodes.Volume {
	c := provisioned(name, size, v.Parameters)
	c.From = &nodes.Origin{Name: v.Name, UID: v.UID}
	return c
}

func TestCopiesAreWhole(t *testing.T) {
	for name, parameters := range map[string]map[string]string{"directory": nil, "image": enforced()} {
		t.Run(name, func(t *testing.T) {
			p := testPersistent(t)
			v := provisioned("data", "16Mi", parameters)
			s := staged(t, p, v)
			put(t, s, "f", "first")
			must(t, os.Chmod(filepath.Join(s.Path, "f"), 0o640))
			must(t, os.Chown(filepath.Join(s.Path, "f"), 1234, 4321))
			must(t, os.Link(filepath.Join(s.Path, "f"), filepath.Join(s.Path, "g")))
			must(t, os.Symlink("f", filepath.Join(s.Path, "l")))
			must(t, p.Unstage(t.Context(), v, always))

			shot := copyOf(v, "shot", "16Mi")
			shot.Snapshot = true
			// What a crash left of an earlier attempt is no part of it.
			must(t, os.MkdirAll(filepath.Join(p.home(shot), dataDir+unfinished, "rubbish"), 0o700))
			if _, err := p.Ensure(t.Context(), shot); err != nil {
				t.Fatal(err)
			}
			put(t, staged(t, p, v), "f", "second")

			restored := copyOf(shot, "restored", "32Mi")
			r := staged(t, p, restored)
			if got := read(t, r, "f"); got != "first" {
				t.Errorf("restored: %q", got)
			}
			info, err := os.Stat(filepath.Join(r.Path, "g"))
			must(t, err)
			if at := info.Sys().(*syscall.Stat_t); at.Uid != 1234 || at.Gid != 4321 || at.Nlink != 2 || info.Mode().Perm() != 0o640 {
				t.Errorf("restored with owner %d:%d, %d names, mode %v", at.Uid, at.Gid, at.Nlink, info.Mode())
			}
			if entries, err := os.ReadDir(r.Path); err != nil || len(entries) != 3 && parameters == nil {
				t.Errorf("restored %v, %v", entries, err)
			}
			// Each stands by itself.
			must(t, p.Delete(t.Context(), v))
			must(t, p.Delete(t.Context(), shot))
			put(t, staged(t, p, restored), "f", "third")
			if _, err := p.Ensure(t.Context(), restored); err != nil {
				t.Fatal(err)
			}
			if got := read(t, staged(t, p, restored), "f"); got != "third" {
				t.Errorf("once made, a copy was made again: %q", got)
			}
			must(t, p.Delete(t.Context(), restored))
		})
	}
}

func TestACopyIsKeptAsItsSourceIs(t *testing.T) {
	p := testPersistent(t)
	v := provisioned("data", "8Mi", nil)
	staged(t, p, v)
	other := copyOf(v, "copy", "8Mi")
	other.Parameters = enforced()
	if _, err := p.Ensure(t.Context(), other); err == nil {
		t.Error("a directory became an image")
	}
	must(t, p.Delete(t.Context(), other))
	must(t, p.Delete(t.Context(), v))
}
