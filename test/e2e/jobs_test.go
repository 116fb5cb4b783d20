//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// jobSpec is the spec of a Job whose pods run the program inside with args, the
// directory out of the machine at /out.
func (w *world) jobSpec(args, more string) string {
	return fmt.Sprintf(`%s
template:
  spec:
    restartPolicy: Never
    volumes: [{name: out, hostPath: {path: %s}}]
    containers: [{name: main, image: %s, args: [%s], volumeMounts: [{name: out, mountPath: /out}]}]
`, strings.TrimSpace(more), w.out(), insideImage, args)
}

// out is a directory of the machine, to see who ran how often.
func (w *world) out() string {
	dir := filepath.Join(w.Dir, "out")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// lines of a file in out, sorted.
func (w *world) lines(name string) []string {
	text, err := os.ReadFile(filepath.Join(w.out(), name))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	list := strings.Fields(string(text))
	slices.Sort(list)
	return list
}

func jobManifest(name, metadata, spec string) string {
	return fmt.Sprintf("\n---\napiVersion: batch/v1\nkind: Job\nmetadata: {name: %s%s}\nspec:\n%s", name, metadata, indent(spec, 2))
}

// object finds one by kind and the beginning of its name.
func object(o *nodes.Overview, kind, prefix string) *nodes.ObjectHealth {
	for i := range o.Objects {
		if h := &o.Objects[i]; h.Key.Kind == kind && strings.HasPrefix(h.Key.Name, prefix) {
			return h
		}
	}
	return &nodes.ObjectHealth{}
}

func TestJobs(t *testing.T) {
	w := newWorld(t)
	three := w.jobSpec("append, /out/three, x", "completions: 3\nparallelism: 2")
	w.clone.Write("three.yaml", jobManifest("three", "", three))
	w.clone.Write("indexed.yaml", jobManifest("indexed", "", w.jobSpec("append, /out/indexed, $(JOB_COMPLETION_INDEX)", "completions: 3\nparallelism: 3\ncompletionMode: Indexed")))
	_, output := w.clone.Apply("two Jobs")
	contains(t, "push", output, "+ Job default/three: 3 completions, 2 pods at a time", "converged in")
	if got := w.lines("three"); len(got) != 3 {
		t.Errorf("three ran %d times", len(got))
	}
	if got := w.lines("indexed"); !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Errorf("indexed ran with %v", got)
	}
	o := w.overview()
	if j := object(o, "Job", "indexed"); j.Job == nil || j.Job.CompletedIndexes != "0-2" || j.Job.Condition != "Complete" || j.Health != nodes.Healthy {
		t.Errorf("%+v", j)
	}
	for _, p := range machine.Pods(o, "default", "indexed-") {
		if p.Pod.Status.Phase != corev1.PodSucceeded {
			t.Errorf("%s: %s", p.Key.Name, p.Pod.Status.Phase)
		}
	}
	w.clone.Write("other.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n")
	w.clone.Apply("something else")
	w.clone.Write("three.yaml", jobManifest("three", `, annotations: {tallyman.dev/run: "2"}`, three))
	_, output = w.clone.Apply("again")
	contains(t, "push", output, "a new run, asked for by the annotation tallyman.dev/run")
	if got := w.lines("three"); len(got) != 6 {
		t.Errorf("after a second run three ran %d times", len(got))
	}

	t.Run("failing", func(t *testing.T) {
		w := w.in(t)
		w.clone.Write("bad.yaml", jobManifest("bad", "", w.jobSpec(`end, "", "3"`, `backoffLimit: 6
podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [3]}}]}`)))
		w.clone.Commit("a bad one")
		r := w.clone.Push()
		contains(t, "push", r.Err, "failed", "Job default/bad: PodFailurePolicy: Container main for pod bad-", "failed with exit code 3 matching FailJob rule at index 0")
		contains(t, "status", w.Tally("status").Out, "Job default/bad", "degraded: PodFailurePolicy", "Job default/three", "3/3")
		w.clone.Write("bad.yaml", jobManifest("bad", "", w.jobSpec(`end, "no luck", "7"`, "backoffLimit: 0")))
		w.clone.Commit("bad in another way")
		r = w.clone.Push()
		contains(t, "push", r.Err, "failed: Job default/bad: BackoffLimitExceeded", "exit code 7")
		w.clone.Write("bad.yaml", jobManifest("bad", "", w.jobSpec("append, /out/good, x", "backoffLimit: 0")))
		w.clone.Apply("a good one")
		if got := w.lines("good"); len(got) != 1 {
			t.Errorf("the corrected Job ran %d times", len(got))
		}
	})
	t.Run("CronJob", func(t *testing.T) {
		w := w.in(t)
		spec := w.jobSpec("append, /out/cron, $(RUN)", "")
		spec = strings.Replace(spec, "args:", "env: [{name: RUN, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['job-name']\"}}}], args:", 1)
		w.clone.Write("cron.yaml", "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: cron}\nspec:\n  schedule: '@every 2s'\n  jobTemplate:\n    spec:\n"+indent(spec, 6))
		_, output := w.clone.Apply("a schedule")
		contains(t, "push", output, `+ CronJob default/cron: schedule "@every 2s"`)
		w.Eventually(patience, "a scheduled run", func() error {
			c := object(w.overview(), "CronJob", "cron").CronJob
			if c == nil || c.Succeeded.IsZero() {
				return fmt.Errorf("%+v", c)
			}
			return nil
		})
		if got := w.lines("cron"); len(got) == 0 || !strings.HasPrefix(got[0], "cron-") || len(slices.Compact(slices.Clone(got))) != len(got) {
			t.Errorf("runs %v", got)
		}
		contains(t, "status", w.Tally("status").Out, "CronJob default/cron", "last run", "next")
		w.clone.Git("rm", "-q", "cron.yaml")
		w.clone.Apply("no schedule")
		w.Eventually(patience, "its Jobs go", func() error {
			if j := object(w.overview(), "Job", "cron-"); j.Key.Name != "" {
				return fmt.Errorf("%s is there", j.Key)
			}
			return nil
		})
	})
}
