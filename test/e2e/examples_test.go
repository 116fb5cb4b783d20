//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// TestExamples does what the README of examples-repo says to try.
func TestExamples(t *testing.T) {
	m := machine.New(t)
	m.PushImage("github.com/tallyman-dev/tallyman/examples-repo/app", "hello:1")
	m.Up()
	w := &world{Machine: m, clone: m.Clone(), t: t}
	if err := os.CopyFS(w.clone.Dir, os.DirFS(filepath.Join(machine.Root(t), "examples-repo"))); err != nil {
		t.Fatal(err)
	}
	if r := m.TallyRaw("validate", w.clone.Dir); r.Code != 0 {
		t.Fatalf("tally validate: exit code %d: %s%s", r.Code, r.Out, r.Err)
	}
	w.clone.Apply("everything")
	for port, words := range map[string][]string{
		"30080": {"Front, says front-", "Hello, production from hello-", "The tally agrees with the manifest.", "signed with a secret of 32 characters"},
		"30090": {"Hello, production from hello-"}, "30081": {"Hello, staging from hello-"}, "30091": {"Hello, staging from hello-"},
	} {
		w.answers(port, words...)
	}
	before := w.podNames("hello-")
	if len(before) != 3 {
		t.Errorf("hello in production: %v, want three", before)
	}

	w.edit("base/kustomization.yaml", "motd=The tally agrees with the manifest.", "motd=Another day.")
	w.clone.Apply("another message")
	w.answers("30090", "Another day.")
	if after := w.podNames("hello-"); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("pods %v became %v: a file must change in place", before, after)
	}

	production := "overlays/production/kustomization.yaml"
	w.edit(production, "GREETING=Hello, production", "GREETING=Welcome")
	w.edit(production, "count: 3", "count: 2")
	w.clone.Apply("another greeting for two")
	w.answers("30090", "Welcome from hello-")
	if after := w.podNames("hello-"); len(after) != 2 || strings.Contains(fmt.Sprint(before), after[0]) {
		t.Errorf("pods %v became %v: want two new ones", before, after)
	}

	at := w.remoteMain()
	w.edit("base/hello.yaml", "  replicas: 2", "  replica: 2")
	w.clone.Commit("misspelt")
	r := w.clone.Push()
	w.unmoved("a misspelt field", r, at)
	contains(t, "the refusal", r.Err, "base/hello.yaml:", `"replicas"`)
	w.clone.Git("reset", "--quiet", "--hard", at)

	w.clone.Git("rm", "-r", "--quiet", "overlays")
	w.clone.Commit("nothing")
	r = w.clone.Push()
	contains(t, "the push of nothing", r.Err, "held: ", "Tally-Confirm: delete ")
	w.answers("30080", "Welcome from hello-")
}

// answers waits until a node port says the words.
func (w *world) answers(port string, words ...string) {
	w.t.Helper()
	w.Eventually(patience, "node port "+port, func() error {
		text, err := get("127.0.0.1:"+port, "/")
		for _, word := range words {
			if err == nil && !strings.Contains(text, word) {
				err = fmt.Errorf("no %q in %q", word, text)
			}
		}
		return err
	})
}

// podNames are the pods in production that don't end.
func (w *world) podNames(prefix string) []string {
	w.t.Helper()
	var list []string
	for _, p := range machine.Pods(w.overview(), "production", prefix) {
		if !p.Pod.Stopping {
			list = append(list, p.Key.Name)
		}
	}
	return list
}

// edit replaces text in a file of the clone.
func (w *world) edit(path, old, with string) {
	w.t.Helper()
	full := filepath.Join(w.clone.Dir, path)
	content, err := os.ReadFile(full)
	if err != nil {
		w.t.Fatal(err)
	}
	if !strings.Contains(string(content), old) {
		w.t.Fatalf("%s has no %q", path, old)
	}
	w.clone.Write(path, strings.ReplaceAll(string(content), old, with))
}
