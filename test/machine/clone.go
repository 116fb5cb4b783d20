package machine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Host is where a working copy's git and tally run.
type Host interface {
	// Exec runs a command to its end.
	Exec(cmd *exec.Cmd) Result
	// Tally runs a client command of tally against the server there.
	Tally(command string, args ...string) Result
}

// Clone is a working copy of a followed repository.
type Clone struct {
	Dir  string
	t    testing.TB
	host Host
}

// Exec runs a command on the machine.
func (m *Machine) Exec(cmd *exec.Cmd) Result { return run(cmd) }

// Clone makes a working copy that pushes over HTTP with the credential helper.
func (m *Machine) Clone() *Clone {
	m.t.Helper()
	return m.CloneFrom("http://" + PageAddress + "/repo.git")
}

// CloneFrom makes a working copy of any repository.
func (m *Machine) CloneFrom(url string) *Clone {
	m.t.Helper()
	return NewClone(m.t, m, url, fmt.Sprintf("!'%s' git-credential --run-dir '%s'", m.binary, m.RunDir))
}

// NewClone makes a working copy that host uses; helper is Git's word for the
// credential helper that opens PageAddress.
func NewClone(t testing.TB, host Host, url, helper string) *Clone {
	t.Helper()
	c := &Clone{Dir: t.TempDir(), t: t, host: host}
	c.Git("init", "--quiet", "--initial-branch", "main")
	c.Git("config", "user.name", "Test")
	c.Git("config", "user.email", "test@localhost")
	c.Git("config", "credential.http://"+PageAddress+".helper", helper)
	c.Git("remote", "add", "origin", url)
	return c
}

// For returns the clone for a subtest, whose failures are then its own.
func (c *Clone) For(t testing.TB) *Clone { return &Clone{Dir: c.Dir, t: t, host: c.host} }

// Git runs git in the clone; failing fails the test.
func (c *Clone) Git(args ...string) string {
	c.t.Helper()
	r := c.TryGit(args...)
	if r.Code != 0 {
		c.t.Fatalf("git %s: exit code %d: %s%s", strings.Join(args, " "), r.Code, r.Out, r.Err)
	}
	return strings.TrimSpace(r.Out)
}

// gitTimeout ends a push that would watch for ever.
const gitTimeout = time.Minute

// TryGit runs git in the clone.
func (c *Clone) TryGit(args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), gitTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", c.Dir}, args...)...)
	cmd.WaitDelay = time.Second // its own children may hold the output
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
	return c.host.Exec(cmd)
}

// Write puts a file into the clone; nothing is committed yet.
func (c *Clone) Write(path, content string) {
	c.t.Helper()
	full := filepath.Join(c.Dir, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// Commit commits everything and returns the commit's id.
func (c *Clone) Commit(message string) string {
	c.t.Helper()
	c.Git("add", "--all")
	c.Git("commit", "--quiet", "--allow-empty", "--message", message)
	return c.Git("rev-parse", "HEAD")
}

// Push pushes main and watches until the end; Err has the remote: lines.
func (c *Clone) Push(options ...string) Result {
	return c.TryGit(append(append([]string{"push"}, options...), "origin", "main")...)
}

// Apply commits everything, pushes, and waits until it is converged.
func (c *Clone) Apply(message string) (sha, output string) {
	c.t.Helper()
	sha = c.Commit(message)
	r := c.Push()
	if r.Code != 0 {
		c.t.Fatalf("push of %q: exit code %d: %s", message, r.Code, r.Err)
	}
	c.WaitConverged(sha, time.Minute)
	return sha, r.Err
}

// WaitConverged waits until the revision is in force, converged and healthy.
func (c *Clone) WaitConverged(sha string, patience time.Duration) {
	c.t.Helper()
	if r := c.host.Tally("wait", "--commit", sha, "--timeout", patience.String()); r.Code != 0 {
		c.t.Fatalf("revision %s: exit code %d: %s", sha, r.Code, r.Err)
	}
}
