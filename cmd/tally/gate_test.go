package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/sync/gitrepo"
	"github.com/tallyman-dev/tallyman/sync/loop"
)

// advances is a loop that notes where it is sent.
type advances struct{ to []string }

func (a *advances) Check(context.Context, loop.CheckQuery, io.Writer) (bool, error) { return true, nil }

func (a *advances) Advance(rev desired.Revision)                    { a.to = append(a.to, rev.SHA) }
func (a *advances) Follow(context.Context, string, io.Writer) error { return nil }

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=Ann", "-c", "user.email=ann@example.com"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestLateHookDoesNotGoBack: the hook of a push that a second one has overtaken
// does not send the loop back to the first.
func TestLateHookDoesNotGoBack(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", "one")
	one := git(t, dir, "rev-parse", "HEAD")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", "two")
	two := git(t, dir, "rev-parse", "HEAD")
	repository, err := gitrepo.Open(gitrepo.Options{URL: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	told := &advances{}
	g := &gate{repository: repository, loop: told}
	var first, second bytes.Buffer
	if err := g.Follow(t.Context(), two, &second); err != nil {
		t.Fatal(err)
	}
	if err := g.Follow(t.Context(), one, &first); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told.to, []string{two}) {
		t.Errorf("the loop was sent to %v, want %s alone", told.to, two)
	}
	if want := "superseded by " + two[:7] + "\n"; first.String() != want || second.Len() > 0 {
		t.Errorf("the hooks said %q and %q, want %q and nothing", first.String(), second.String(), want)
	}
}
