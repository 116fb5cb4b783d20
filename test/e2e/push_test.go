//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// TestPush is the story of one repository, told by its pushes.
func TestPush(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("web.yaml", deployment("web", 2, "env: [{name: GREETING, value: first}]"))
	first, output := w.clone.Apply("two of web")
	contains(t, "the push", output, "+ Deployment default/web", "2 pods", "Deployment default/web: ", "converged in ")

	t.Run("refused with places", func(t *testing.T) { refused(w.in(t), first) })
	t.Run("not fast-forward", func(t *testing.T) { notFastForward(w.in(t), first) })
	t.Run("branch stays", func(t *testing.T) { deletion(w.in(t), first) })
	t.Run("other branches go unchecked", func(t *testing.T) { otherBranch(w.in(t), first) })
	t.Run("by path", func(t *testing.T) { byPath(w.in(t)) })
	t.Run("as sshd runs it", func(t *testing.T) { byShell(w.in(t)) })
	t.Run("without a token", func(t *testing.T) { withoutToken(w.in(t)) })
	t.Run("revert", func(t *testing.T) { revert(w.in(t)) })
	t.Run("without watching", func(t *testing.T) { withoutWatching(w.in(t)) })
	t.Run("interrupted", func(t *testing.T) { interrupted(w.in(t)) })
	t.Run("superseded", func(t *testing.T) { superseded(w.in(t)) })
	t.Run("guard", func(t *testing.T) { guarded(w.in(t)) })

	head := w.clone.Git("ls-remote", "origin", "refs/heads/main")
	w.Stop()
	byDir := w.CloneFrom(w.DataDir + "/repo.git")
	byDir.Git("fetch", "--quiet", "origin", "main")
	byDir.Git("reset", "--quiet", "--hard", "FETCH_HEAD")
	byDir.Commit("nobody there")
	r := byDir.Push()
	if r.Code == 0 {
		t.Errorf("without a server a push by path is accepted: %s", r.Err)
	}
	contains(t, "the push without a server", r.Err, "remote: ", "refused")
	if now := byDir.Git("ls-remote", "origin", "refs/heads/main"); now != head {
		t.Errorf("the branch moved from %s to %s", head, now)
	}
}

// remoteMain is the branch's commit at the server.
func (w *world) remoteMain() string {
	w.t.Helper()
	sha, _, _ := strings.Cut(w.clone.Git("ls-remote", "origin", "refs/heads/main"), "\t")
	return sha
}

// unmoved fails the test unless a push was refused and moved nothing.
func (w *world) unmoved(what string, r machine.Result, at string) {
	w.t.Helper()
	if r.Code == 0 {
		w.t.Errorf("%s: exit code 0: %s", what, r.Err)
	}
	if now := w.remoteMain(); now != at {
		w.t.Errorf("%s: the branch is at %s, want %s", what, now, at)
	}
}

func refused(w *world, at string) {
	w.clone.Write("bad/one.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: one}\nspec:\n  replica: 2\n  selector: {matchLabels: {a: b}}\n  template:\n    metadata: {labels: {a: c}}\n    spec: {containers: [{name: x}]}\n")
	w.clone.Write("bad/two.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web-}\nspec: {ports: [{port: 80}]}\n")
	w.clone.Commit("bad")
	r := w.clone.Push()
	w.unmoved("a push of a bad revision", r, at)
	contains(w.t, "the refusal", r.Err,
		"remote: error: bad/one.yaml:5: spec.replica: ", `did you mean "replicas"`, "bad/one.yaml:", "spec.template.metadata.labels",
		"spec.template.spec.containers[0].image", "bad/two.yaml:3: metadata.name", "the branch has not moved")
	v := w.TallyRaw("validate", w.clone.Dir)
	if v.Code != 3 {
		w.t.Errorf("tally validate: exit code %d, want 3", v.Code)
	}
	for line := range strings.Lines(v.Out) {
		if !strings.Contains(r.Err, strings.TrimSpace(line)) {
			w.t.Errorf("tally validate says %q, the push does not", line)
		}
	}
	w.clone.Git("reset", "--quiet", "--hard", at)
}

func notFastForward(w *world, at string) {
	w.clone.Git("commit", "--quiet", "--amend", "--message", "another first")
	w.unmoved("a push that is no fast-forward", w.clone.Push(), at)
	w.unmoved("the same by force", w.clone.Push("--force"), at)
	w.clone.Git("reset", "--quiet", "--hard", at)
}

func deletion(w *world, at string) {
	w.unmoved("the deletion of the branch", w.clone.TryGit("push", "origin", ":main"), at)
}

func otherBranch(w *world, at string) {
	w.clone.Git("checkout", "--quiet", "-b", "draft")
	w.clone.Write("draft.yaml", "nothing: good\n")
	w.clone.Commit("draft")
	if r := w.clone.TryGit("push", "origin", "draft"); r.Code != 0 {
		w.t.Errorf("exit code %d: %s", r.Code, r.Err)
	}
	w.clone.Git("checkout", "--quiet", "main")
	w.unmoved("a push to another branch", machine.Result{Code: 1}, at)
}

func byPath(w *world) {
	w.clone.Git("remote", "add", "path", w.DataDir+"/repo.git")
	w.clone.Write("web.yaml", deployment("web", 3, "env: [{name: GREETING, value: first}]"))
	sha := w.clone.Commit("three")
	r := w.clone.TryGit("push", "path", "main")
	if r.Code != 0 {
		w.t.Fatalf("exit code %d: %s", r.Code, r.Err)
	}
	contains(w.t, "the push", r.Err, "remote: ", "~ Deployment default/web: 2 → 3 replicas", "converged in ")
	w.WaitConverged(sha, patience)
}

// byShell pushes through a command that does what the system's sshd does after
// the login: it runs git-receive-pack by a shell, in a clean environment.
func byShell(w *world) {
	login := filepath.Join(w.t.TempDir(), "login")
	script := "#!/bin/sh\nfor command; do :; done\nexec env -i PATH=\"$PATH\" HOME=/ SSH_CONNECTION='127.0.0.1 1 127.0.0.1 22' sh -c \"$command\"\n"
	if err := os.WriteFile(login, []byte(script), 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.clone.Git("config", "core.sshCommand", login)
	w.clone.Git("remote", "add", "ssh", "ssh://localhost"+w.DataDir+"/repo.git")
	w.clone.Write("web.yaml", deployment("web", 2, "env: [{name: GREETING, value: first}]"))
	sha := w.clone.Commit("two again")
	r := w.clone.TryGit("push", "ssh", "main")
	if r.Code != 0 {
		w.t.Fatalf("exit code %d: %s", r.Code, r.Err)
	}
	contains(w.t, "the push", r.Err, "remote: ", "3 → 2 replicas", "converged in ")
	w.WaitConverged(sha, patience)
	w.clone.Write("web.yaml", deployment("web", 3, "env: [{name: GREETING, value: first}]"))
	w.clone.Apply("three again")
}

func withoutToken(w *world) {
	w.clone.Git("config", "--unset", "credential.http://"+machine.PageAddress+".helper")
	r := w.clone.TryGit("ls-remote", "origin")
	if r.Code == 0 || r.Out != "" {
		w.t.Errorf("without a token, exit code %d: %s", r.Code, r.Out)
	}
	w.clone.Git("config", "credential.http://"+machine.PageAddress+".helper",
		fmt.Sprintf("!'%s' git-credential --run-dir '%s'", w.Binary(), w.RunDir))
}

// replicaSets maps the ReplicaSets of web to their pods.
func (w *world) replicaSets() map[string]int {
	w.t.Helper()
	found := map[string]int{}
	for _, object := range w.overview().Objects {
		if object.Key.Kind == "ReplicaSet" && strings.HasPrefix(object.Key.Name, "web-") {
			found[object.Key.Name] = object.Current
		}
	}
	return found
}

func revert(w *world) {
	before := w.replicaSets()
	w.clone.Write("web.yaml", deployment("web", 3, "env: [{name: GREETING, value: second}]"))
	w.clone.Apply("another greeting")
	between := w.replicaSets()
	w.clone.Git("revert", "--no-edit", "HEAD")
	if r := w.clone.Push(); r.Code != 0 {
		w.t.Fatalf("exit code %d: %s", r.Code, r.Err)
	}
	w.WaitConverged(w.clone.Git("rev-parse", "HEAD"), patience)
	after := w.replicaSets()
	for name, pods := range before {
		if pods == 3 && (between[name] != 0 || after[name] != 3) {
			w.t.Errorf("replica sets before %v, between %v, after %v: want the first one again", before, between, after)
		}
	}
	if len(after) != 2 {
		w.t.Errorf("replica sets %v, want two", after)
	}
}

func withoutWatching(w *world) {
	w.clone.Write("web.yaml", deployment("web", 1, "env: [{name: GREETING, value: third}]"))
	sha := w.clone.Commit("unwatched")
	r := w.clone.Push("-o", "tally.wait=false")
	if r.Code != 0 || strings.Contains(r.Err, "converged") {
		w.t.Errorf("exit code %d: %s", r.Code, r.Err)
	}
	w.WaitConverged(sha, patience)
}

// slow is a deployment that takes a while to get ready.
func slow(greeting string) string {
	return strings.Replace(deployment("web", 1, "env: [{name: GREETING, value: "+greeting+"}]"),
		"periodSeconds: 1", "periodSeconds: 1, initialDelaySeconds: 4", 1)
}

func interrupted(w *world) {
	w.clone.Write("web.yaml", slow("fourth"))
	sha := w.clone.Commit("interrupted")
	watch := w.watchPush(w.clone)
	w.Eventually(patience, "the push shows progress", func() error { return watch.says("Deployment default/web: ") })
	if err := watch.cmd.Process.Signal(syscall.SIGINT); err != nil {
		w.t.Fatal(err)
	}
	<-watch.ended
	w.WaitConverged(sha, patience)
}

func superseded(w *world) {
	w.clone.Write("web.yaml", slow("fifth"))
	w.clone.Commit("overtaken")
	watch := w.watchPush(w.clone)
	w.Eventually(patience, "the push shows progress", func() error { return watch.says("Deployment default/web: ") })
	w.clone.Write("web.yaml", deployment("web", 1, "env: [{name: GREETING, value: sixth}]"))
	sha, _ := w.clone.Apply("overtaking")
	select {
	case <-watch.ended:
	case <-time.After(patience):
		w.t.Fatal("the older push still watches")
	}
	if err := watch.says("superseded by " + sha[:7]); err != nil || watch.cmd.ProcessState.ExitCode() != 0 {
		w.t.Errorf("exit code %d: %v", watch.cmd.ProcessState.ExitCode(), err)
	}
}

// pushWatch is a push that runs beside the test.
type pushWatch struct {
	cmd   *exec.Cmd
	path  string
	ended chan struct{}
}

func (w *world) watchPush(c *machine.Clone) *pushWatch {
	w.t.Helper()
	output, err := os.CreateTemp(w.t.TempDir(), "push")
	if err != nil {
		w.t.Fatal(err)
	}
	defer output.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	p := &pushWatch{cmd: exec.CommandContext(ctx, "git", "push", "origin", "main"), path: output.Name(), ended: make(chan struct{})}
	p.cmd.Dir = c.Dir
	p.cmd.Stdout, p.cmd.Stderr = output, output
	p.cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0")
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer cancel()
		defer close(p.ended)
		_ = p.cmd.Wait()
	}()
	return p
}

func (p *pushWatch) says(part string) error {
	content, err := os.ReadFile(p.path)
	if err == nil && !bytes.Contains(content, []byte(part)) {
		err = fmt.Errorf("no %q in the push's output:\n%s", part, content)
	}
	return err
}

func guarded(w *world) {
	w.clone.Write("gone.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: gone}\n---"+
		strings.Replace(pod("inhabitant", "containers: [{name: main, image: "+insideImage+"}]"), "{name: inhabitant,", "{name: inhabitant, namespace: gone,", 1))
	w.clone.Apply("a namespace with a pod")
	w.clone.Git("rm", "--quiet", "gone.yaml")
	w.clone.Commit("no namespace")
	r := w.clone.Push()
	if r.Code != 0 {
		w.t.Errorf("a held push: exit code %d, want 0", r.Code)
	}
	contains(w.t, "the held push", r.Err, "held: ", "Namespace", "gone", "Tally-Confirm: delete 2")
	s := w.Tally("status")
	if s.Code != 3 {
		w.t.Errorf("tally status of a held revision: exit code %d, want 3", s.Code)
	}
	contains(w.t, "tally status", s.Out, "Tally-Confirm: delete 2")
	if pods := machine.Pods(w.overview(), "gone", "inhabitant"); len(pods) != 1 || pods[0].Pod.Stopping {
		w.t.Errorf("pods of the held namespace: %+v", pods)
	}
	w.clone.Apply("confirmed\n\nTally-Confirm: delete 2")
	w.Eventually(patience, "the namespace is empty", func() error {
		o, err := w.Overview()
		if err == nil && len(machine.Pods(o, "gone", "")) > 0 {
			err = fmt.Errorf("its pod is still there")
		}
		return err
	})
	if o := w.overview(); o.Held != nil || o.Outcome != nodes.OutcomeConverged {
		w.t.Errorf("held %+v, outcome %s", o.Held, o.Outcome)
	}
}
