//go:build e2e

package e2e_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
)

func TestCommands(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("web.yaml", deployment("web", 1, "")+pod("talker", "containers: [{name: main, image: "+insideImage+"}]"))
	sha, _ := w.clone.Apply("a talker")

	t.Run("exit codes", func(t *testing.T) { exitCodes(w.in(t), sha) })
	t.Run("status", func(t *testing.T) { statusForms(w.in(t), sha) })
	t.Run("logs", func(t *testing.T) { logs(w.in(t)) })
	t.Run("elsewhere", func(t *testing.T) { elsewhere(w.in(t)) })
	t.Run("metrics", func(t *testing.T) { metricNames(w.in(t)) })
	t.Run("completion", func(t *testing.T) { completion(w.in(t)) })
}

func exitCodes(w *world, sha string) {
	dir := w.t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
	bad := filepath.Join(w.t.TempDir(), "b.yaml")
	if err := os.WriteFile(bad, []byte("kind: Nonsense\n"), 0o644); err != nil {
		w.t.Fatal(err)
	}
	server := []string{"--run-dir", w.RunDir}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"version"}, 0},
		{[]string{}, 0},
		{[]string{"nonsense"}, 2},
		{[]string{"status", "--nonsense"}, 2},
		{[]string{"up", "--log-level", "loud"}, 2},
		{append([]string{"status"}, server...), 0},
		{append([]string{"status", "-o", "yaml"}, server...), 2},
		{[]string{"status", "--run-dir", "/nowhere"}, 1},
		{append([]string{"history"}, server...), 0},
		{append([]string{"wait", "--commit", sha}, server...), 0},
		{append([]string{"wait", "--commit", sha[:8]}, server...), 0},
		{append([]string{"wait", "--commit", "abc"}, server...), 2},
		{append([]string{"wait", "--commit", "0123456789", "--timeout", "100ms"}, server...), 3},
		{append([]string{"logs", "nobody"}, server...), 1},
		{append([]string{"logs"}, server...), 2},
		{[]string{"validate", dir}, 0},
		{[]string{"validate", file}, 0},
		{[]string{"validate", bad}, 3},
		{[]string{"validate", "-o", "json", bad}, 3},
		{[]string{"validate", "/nowhere"}, 2},
		{[]string{"validate"}, 2},
		{append([]string{"up", "--data-dir", w.DataDir, "--http", "127.0.0.1:7481"}, server...), 1},
	} {
		r := w.TallyRaw(c.args...)
		if r.Code != c.want {
			w.t.Errorf("tally %s: exit code %d, want %d: %s%s", strings.Join(c.args, " "), r.Code, c.want, r.Out, r.Err)
		}
		if r.Code == 1 && (r.Out != "" || !strings.HasPrefix(r.Err, "tally: ")) {
			w.t.Errorf("tally %s failed with %q on standard output, %q on standard error", strings.Join(c.args, " "), r.Out, r.Err)
		}
	}
}

func statusForms(w *world, sha string) {
	r := w.Tally("status", "-o", "json")
	var o nodes.Overview
	decoder := json.NewDecoder(strings.NewReader(r.Out))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&o); err != nil {
		w.t.Fatal(err)
	}
	if o.InForce == nil || o.InForce.SHA != sha || o.Outcome != nodes.OutcomeConverged || !o.Plan.Converged {
		w.t.Errorf("in force %+v, outcome %s", o.InForce, o.Outcome)
	}
	contains(w.t, "tally status", w.Tally("status").Out, sha[:7], "a talker", "Deployment default/web", "talker", "converged")
	contains(w.t, "tally history", w.Tally("history").Out, sha[:7], "a talker", "converged", "Test")
	var history []nodes.HistoryEntry
	if err := json.Unmarshal([]byte(w.Tally("history", "-o", "json").Out), &history); err != nil || len(history) != 1 || history[0].Revision.SHA != sha {
		w.t.Errorf("history %+v, %v", history, err)
	}
}

func logs(w *world) {
	for _, args := range [][]string{{"talker"}, {"default/talker"}, {"talker", "-c", "main", "--tail", "1"}, {"talker", "-n", "default", "--since", "1h"}} {
		if r := w.Tally("logs", args...); r.Out != "serving :8080\n" {
			w.t.Errorf("tally logs %v: %q %s", args, r.Out, r.Err)
		}
	}
	if r := w.Tally("logs", "talker", "--timestamps"); !strings.HasSuffix(r.Out, "Z serving :8080\n") {
		w.t.Errorf("with timestamps: %q %s", r.Out, r.Err)
	}
}

// elsewhere asks by address and token, told by flags or by the environment.
func elsewhere(w *world) {
	if r := w.TallyRaw("status", "--server", root, "--token-file", filepath.Join(w.RunDir, "token")); r.Code != 0 {
		w.t.Errorf("by address: exit code %d: %s", r.Code, r.Err)
	}
	if r := w.TallyRaw("status", "--server", root); r.Code != 2 {
		w.t.Errorf("without a token: exit code %d, want 2: %s", r.Code, r.Err)
	}
	cmd := exec.Command(w.Binary(), "status")
	cmd.Env = append(os.Environ(), "TALLY_RUN_DIR="+w.RunDir, "TALLY_OUTPUT=json")
	out, err := cmd.Output()
	if err != nil || !json.Valid(out) {
		w.t.Errorf("told by the environment: %v: %s", err, out)
	}
}

func metricNames(w *world) {
	page, err := w.page("/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	contains(w.t, "/metrics", page, "\ntally_", "go_goroutines", "# HELP tally_")
}

func completion(w *world) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := w.TallyRaw("completion", shell); r.Code != 0 || !strings.Contains(r.Out, "tally") {
			w.t.Errorf("tally completion %s: exit code %d", shell, r.Code)
		}
	}
	if r := w.TallyRaw("__complete", "val"); !strings.Contains(r.Out, "validate") {
		w.t.Errorf("completing val: %s", r.Out)
	}
	if r := w.TallyRaw("version"); !strings.HasPrefix(r.Out, "tally ") {
		w.t.Errorf("tally version: %q", r.Out)
	}
}
