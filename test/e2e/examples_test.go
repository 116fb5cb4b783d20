//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
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
		"30080": {"Front, says front-", "Hello, production from hello-", "The tally agrees with the manifest.", "signed with a secret of 32 characters", "visit ", "kept by visits-0"},
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

	seen := w.visits()
	w.edit("base/visits.yaml", "terminationGracePeriodSeconds: 5", "terminationGracePeriodSeconds: 4")
	w.clone.Apply("another pod on the same volume")
	if after := w.visits(); after <= seen {
		t.Errorf("visit %d after visit %d: the volume has forgotten", after, seen)
	}
	w.runsEveryMinute()
	w.grows()

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

// visits is the number of a visit to production.
func (w *world) visits() (n int) {
	w.t.Helper()
	text, err := get("127.0.0.1:30080", "/")
	if err != nil {
		w.t.Fatal(err)
	}
	_, count, _ := strings.Cut(text, "visit ")
	if _, err := fmt.Sscan(count, &n); err != nil {
		w.t.Fatalf("%q: %v", text, err)
	}
	return n
}

// runsEveryMinute waits until the check of production has run.
func (w *world) runsEveryMinute() {
	w.t.Helper()
	w.Eventually(time.Minute+patience, "a check that succeeded", func() error {
		for _, h := range w.overview().Objects {
			if h.CronJob != nil && h.Key.Namespace == "production" {
				if h.CronJob.Succeeded.IsZero() || h.Health != nodes.Healthy {
					return fmt.Errorf("%s %s: %+v", h.Health, h.Reason, h.CronJob)
				}
				return nil
			}
		}
		return errors.New("no CronJob")
	})
}

// grows sends load until production has more fronts.
func (w *world) grows() {
	w.t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				_, _ = get("127.0.0.1:30080", "/")
			}
		})
	}
	w.Eventually(2*patience, "more fronts under load", func() error {
		if n := len(w.podNames("front-")); n < 2 {
			return fmt.Errorf("%d fronts", n)
		}
		return nil
	})
	stop()
	clients.Wait()
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
