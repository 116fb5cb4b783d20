package gitrepo_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/sync/gitrepo"
)

func isError(target error) (string, func(gitrepo.Head) bool) {
	return "with error: " + target.Error(), func(h gitrepo.Head) bool { return errors.Is(h.Err, target) }
}

// nextIs is next for the pairs that at and isError give.
func nextIs(t *testing.T, r *gitrepo.Repository) func(what string, want func(gitrepo.Head) bool) gitrepo.Head {
	return func(what string, want func(gitrepo.Head) bool) gitrepo.Head {
		t.Helper()
		return next(t, r, what, want)
	}
}

// never is an interval that no test waits for: what happens, happens by fsnotify.
const never = time.Hour

func TestLocalRepositoryIsFollowed(t *testing.T) {
	c := newCheckout(t)
	r := follow(t, gitrepo.Options{URL: c.bare, Interval: never})
	nextIs(t, r)(isError(gitrepo.ErrEmpty))

	c.write("x", "")
	c.commit("elsewhere")
	c.git("push", "--quiet", "origin", "HEAD:other")
	r.Poke()
	nextIs(t, r)(isError(gitrepo.ErrNoBranch))

	first := c.push("web.yaml", "one")
	head := nextIs(t, r)(at(first))
	if head.Previous != "" || head.Rewritten {
		t.Errorf("the first head is %s", describe(head))
	}
	if got := head.Revision.Subject(); got != "write web.yaml" || head.Revision.Author != "Ada" || head.Revision.Signed {
		t.Errorf("revision %+v", head.Revision)
	}

	second := c.push("web.yaml", "two")
	head = nextIs(t, r)(at(second))
	if head.Previous != first || head.Rewritten {
		t.Errorf("after a push the head is %s", describe(head))
	}

	c.git("reset", "--quiet", "--hard", first)
	c.write("web.yaml", "three")
	third := c.commit("three")
	c.git("push", "--quiet", "--force", "origin", "HEAD:main")
	head = nextIs(t, r)(at(third))
	if head.Previous != second || !head.Rewritten {
		t.Errorf("after a forced push the head is %s", describe(head))
	}

	runGit(t, c.bare, "gc", "--quiet", "--prune=now") // packs objects and references
	fourth := c.push("web.yaml", "four")
	nextIs(t, r)(at(fourth))
	for sha, want := range map[string]string{first: "one", third: "three", fourth: "four"} {
		if got := readFile(t, r, sha, "web.yaml"); got != want {
			t.Errorf("%s says %q, want %q", sha, got, want)
		}
	}
}

func TestEveryKindOfLocalRepository(t *testing.T) {
	c := newCheckout(t)
	c.push("web.yaml", "one")
	linked := filepath.Join(t.TempDir(), "linked")
	c.git("worktree", "add", "--quiet", "-b", "side", linked)
	borrowing := filepath.Join(t.TempDir(), "borrowing.git")
	runGit(t, "", "clone", "--quiet", "--bare", "--shared", c.bare, borrowing)

	for name, url := range map[string]string{
		"bare": c.bare, "file URL": "file://" + c.bare, "working tree": c.dir, "its .git": filepath.Join(c.dir, ".git"),
		"linked working tree": linked, "with alternates": borrowing,
	} {
		t.Run(name, func(t *testing.T) {
			r := follow(t, gitrepo.Options{URL: url, Interval: never})
			sha := c.git("rev-parse", "main")
			nextIs(t, r)(at(sha))
			if got := readFile(t, r, sha, "web.yaml"); got != "one" {
				t.Errorf("web.yaml says %q", got)
			}
		})
	}
	r := follow(t, gitrepo.Options{URL: c.dir, Interval: never})
	c.write("web.yaml", "two")
	nextIs(t, r)(at(c.commit("committed, not pushed")))
}

func TestBranchWithSlashes(t *testing.T) {
	c := newCheckout(t)
	c.push("a", "1")
	r := follow(t, gitrepo.Options{URL: c.bare, Branch: "team/prod", Interval: never})
	nextIs(t, r)(isError(gitrepo.ErrNoBranch))
	c.write("a", "2")
	sha := c.commit("two")
	c.git("push", "--quiet", "origin", "HEAD:refs/heads/team/prod")
	nextIs(t, r)(at(sha))
}

func TestPath(t *testing.T) {
	c := newCheckout(t)
	c.push("elsewhere/web.yaml", "one")
	r := follow(t, gitrepo.Options{URL: c.bare, Path: "deploy/prod/", Interval: never})
	nextIs(t, r)(isError(gitrepo.ErrNoPath))
	sha := c.push("deploy/prod/web.yaml", "two")
	nextIs(t, r)(at(sha))
	c.git("rm", "--quiet", "-r", "deploy")
	c.push("deploy/prod", "a file")
	head := nextIs(t, r)(isError(gitrepo.ErrNoPath))
	if head.Revision.SHA != sha {
		t.Errorf("with an error the head names %q, want the last good %q", head.Revision.SHA, sha)
	}
}

// A repository that goes away and comes back is an error meanwhile.
func TestLocalRepositoryComesLater(t *testing.T) {
	c := newCheckout(t)
	sha := c.push("web.yaml", "one")
	place := filepath.Join(t.TempDir(), "later.git")
	r := follow(t, gitrepo.Options{URL: place, Interval: never})
	nextIs(t, r)(isError(gitrepo.ErrNotRepository))
	if err := os.Rename(c.bare, place); err != nil {
		t.Fatal(err)
	}
	nextIs(t, r)(at(sha))
	if err := os.Rename(place, c.bare); err != nil {
		t.Fatal(err)
	}
	head := nextIs(t, r)(isError(gitrepo.ErrNotRepository))
	if head.Revision.SHA != sha {
		t.Errorf("while the repository is away the head is %s", describe(head))
	}
}

func TestQuarantine(t *testing.T) {
	c := newCheckout(t)
	first := c.push("web.yaml", "one")
	r := open(t, gitrepo.Options{URL: c.bare})
	c.write("web.yaml", "two")
	second := c.commit("two")
	if _, err := r.Revision(t.Context(), second); !errors.Is(err, gitrepo.ErrNoRevision) {
		t.Errorf("a commit that was not pushed gives %v", err)
	}
	for _, packed := range []bool{false, true} {
		if packed {
			c.git("repack", "-adq")
		}
		view, err := r.Quarantine(filepath.Join(c.dir, ".git", "objects"))
		if err != nil {
			t.Fatal(err)
		}
		revision, err := view.Revision(t.Context(), second)
		if err != nil || revision.Subject() != "two" {
			t.Errorf("packed %t: %+v, %v", packed, revision, err)
		}
		tree, err := view.Tree(t.Context(), second)
		if err != nil {
			t.Fatal(err)
		}
		if content, err := fs.ReadFile(tree, "web.yaml"); string(content) != "two" || err != nil {
			t.Errorf("packed %t: web.yaml says %q, %v", packed, content, err)
		}
		if forward, err := view.Descends(t.Context(), first, second); !forward || err != nil {
			t.Errorf("packed %t: Descends: %t, %v", packed, forward, err)
		}
	}
}

func TestDescends(t *testing.T) {
	c := newCheckout(t)
	base := c.commitAt("base", "2020-01-01T00:00:00Z")
	left := c.commitAt("left", "2020-01-02T00:00:00Z")
	c.git("checkout", "--quiet", "-b", "side", base)
	right := c.commitAt("right", "1999-01-01T00:00:00Z") // by a clock that was wrong
	later := c.commitAt("later", "2020-01-03T00:00:00Z")
	c.git("checkout", "--quiet", "main")
	c.git("merge", "--quiet", "--no-ff", "-m", "merge", "side")
	merge := c.git("rev-parse", "HEAD")
	gone := "1234567890123456789012345678901234567890"
	r := open(t, gitrepo.Options{URL: c.dir})
	for _, test := range []struct {
		name, from, to string
		want           bool
	}{
		{"itself", base, base, true},
		{"parent", base, left, true},
		{"through a merge", left, merge, true},
		{"through a commit from the past", base, later, true},
		{"to a commit from the past", right, merge, true},
		{"backwards", merge, base, false},
		{"beside", left, later, false},
		{"beside, the other way", later, left, false},
		{"from a commit that is gone", gone, merge, false},
	} {
		got, err := r.Descends(t.Context(), test.from, test.to)
		if err != nil || got != test.want {
			t.Errorf("%s: %t, %v", test.name, got, err)
		}
	}
	if _, err := r.Descends(t.Context(), base, gone); !errors.Is(err, gitrepo.ErrNoRevision) {
		t.Errorf("to a commit that is gone: %v", err)
	}
}

func TestSignedCommitsAreSeen(t *testing.T) {
	c := newCheckout(t)
	sha := c.push("a", "1")
	raw := c.git("cat-file", "commit", sha)
	header, message, _ := strings.Cut(raw, "\n\n")
	r := open(t, gitrepo.Options{URL: c.dir})
	for _, kind := range []string{"PGP SIGNATURE", "SSH SIGNATURE"} {
		signature := "gpgsig -----BEGIN " + kind + "-----\n \n c2lnbmVk\n -----END " + kind + "-----"
		signed := pipeGit(t, c.dir, header+"\n"+signature+"\n\n"+message+"\n", "hash-object", "-t", "commit", "-w", "--stdin")
		revision, err := r.Revision(t.Context(), signed)
		if err != nil || !revision.Signed || revision.Subject() != "write a" {
			t.Errorf("%s: %+v, %v", kind, revision, err)
		}
	}
}

func TestOpenRefusesNonsense(t *testing.T) {
	for name, o := range map[string]gitrepo.Options{
		"no URL":            {},
		"unknown scheme":    {URL: "ftp://example.com/repo"},
		"path outside":      {URL: "/repo", Path: "../other"},
		"bad branch":        {URL: "/repo", Branch: "a..b"},
		"secret in clear":   {URL: "http://user:secret@example.com/repo.git"},
		"missing password":  {URL: "https://example.com/repo.git", Credentials: gitrepo.Credentials{PasswordFile: "/nonexistent"}},
		"missing ssh key":   {URL: "git@example.com:repo.git", Credentials: gitrepo.Credentials{SSHKeyFile: "/nonexistent"}},
		"mirror to nowhere": {URL: "/repo", MirrorTo: "ftp://example.com/repo"},
	} {
		o.Dir, o.Log = t.TempDir(), logger(t)
		_, err := gitrepo.Open(o)
		if err == nil {
			t.Errorf("%s: opened", name)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error gives the password away: %v", name, err)
		}
	}
	if _, err := gitrepo.Open(gitrepo.Options{URL: "/repo"}); err == nil {
		t.Error("opened without a logger")
	}
}
