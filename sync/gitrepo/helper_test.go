package gitrepo_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/sync/gitrepo"
)

// checkout is a working tree that the git program manages, and what it pushes to.
type checkout struct {
	t    *testing.T
	dir  string
	bare string
}

// newCheckout makes an empty bare repository and a clone of it.
func newCheckout(t *testing.T) *checkout {
	t.Helper()
	c := &checkout{t: t, dir: filepath.Join(t.TempDir(), "work"), bare: filepath.Join(t.TempDir(), "repo.git")}
	runGit(t, "", "init", "--quiet", "--bare", "--initial-branch=main", c.bare)
	runGit(t, "", "init", "--quiet", "--initial-branch=main", c.dir)
	c.git("remote", "add", "origin", c.bare)
	return c
}

func runGit(t *testing.T, dir string, arguments ...string) string {
	t.Helper()
	return pipeGit(t, dir, "", arguments...)
}

// pipeGit runs git without any of this machine's configuration.
func pipeGit(t *testing.T, dir, input string, arguments ...string) string {
	t.Helper()
	command := exec.Command("git", arguments...)
	command.Dir = dir
	command.Stdin = strings.NewReader(input)
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com",
	}
	var stderr strings.Builder
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(arguments, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(output))
}

func (c *checkout) git(arguments ...string) string {
	c.t.Helper()
	return runGit(c.t, c.dir, arguments...)
}

func (c *checkout) write(name, content string) {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// commit records whatever changed and returns the commit's id.
func (c *checkout) commit(message string) string {
	c.t.Helper()
	c.git("add", "--all")
	c.git("commit", "--quiet", "--allow-empty", "-m", message)
	return c.git("rev-parse", "HEAD")
}

// commitAt makes an empty commit by a clock that shows the given time.
func (c *checkout) commitAt(message, date string) string {
	c.t.Helper()
	c.git("commit", "--quiet", "--allow-empty", "-m", message, "--date", date)
	raw := c.git("cat-file", "commit", "HEAD")
	when, err := time.Parse(time.RFC3339, date)
	if err != nil {
		c.t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(raw + "\n") {
		if strings.HasPrefix(line, "committer ") {
			line = fmt.Sprintf("committer Ada <ada@example.com> %d +0000\n", when.Unix())
		}
		lines = append(lines, line)
	}
	sha := pipeGit(c.t, c.dir, strings.Join(lines, ""), "hash-object", "-t", "commit", "-w", "--stdin")
	c.git("reset", "--quiet", "--hard", sha)
	return sha
}

// push commits a file and pushes it to main.
func (c *checkout) push(name, content string) string {
	c.t.Helper()
	c.write(name, content)
	sha := c.commit("write " + name)
	c.git("push", "--quiet", "origin", "HEAD:main")
	return sha
}

func logger(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func open(t *testing.T, o gitrepo.Options) *gitrepo.Repository {
	t.Helper()
	if o.Log == nil {
		o.Log = logger(t)
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "mirror")
	}
	repository, err := gitrepo.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return repository
}

// follow opens and runs a repository until the test ends.
func follow(t *testing.T, o gitrepo.Options) *gitrepo.Repository {
	t.Helper()
	repository := open(t, o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- repository.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return repository
}

// next waits for a head that satisfies want.
func next(t *testing.T, r *gitrepo.Repository, what string, want func(gitrepo.Head) bool) gitrepo.Head {
	t.Helper()
	var last gitrepo.Head
	deadline := time.After(20 * time.Second)
	for {
		select {
		case last = <-r.Heads():
			if want(last) {
				return last
			}
		case <-deadline:
			t.Fatalf("no head %s; the last was %s", what, describe(last))
		}
	}
}

// at wants a head at a commit, without error.
func at(sha string) (string, func(gitrepo.Head) bool) {
	return "at " + sha, func(h gitrepo.Head) bool { return h.Err == nil && h.Revision.SHA == sha }
}

func describe(h gitrepo.Head) string {
	return fmt.Sprintf("{%s previous=%s rewritten=%t err=%v}", h.Revision.SHA, h.Previous, h.Rewritten, h.Err)
}
