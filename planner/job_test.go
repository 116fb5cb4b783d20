package planner

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

func job(name string, completions, parallelism int32, with ...func(*batchv1.Job)) *batchv1.Job {
	j := &batchv1.Job{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: batchv1.JobSpec{
			Completions: &completions, Parallelism: &parallelism, BackoffLimit: new(int32(2)),
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
				RestartPolicy: corev1.RestartPolicyNever,
				Containers:    []corev1.Container{{Name: "main", Image: "job:1"}},
			}},
		},
	}
	for _, f := range with {
		f(j)
	}
	return j
}

func jobImage(name string) func(*batchv1.Job) {
	return func(j *batchv1.Job) { j.Spec.Template.Spec.Containers[0].Image = name }
}

func indexedJobs(j *batchv1.Job) { j.Spec.CompletionMode = new(batchv1.IndexedCompletion) }

// end lets a pod end with an exit code.
func (w *world) end(p *pod, code int32) {
	w.t.Helper()
	m := w.machines[p.Node]
	s := nodes.PodStatus{UID: p.UID, Phase: corev1.PodSucceeded, Started: w.now, Containers: []nodes.ContainerStatus{
		{Name: "main", State: nodes.Terminated, ExitCode: code, FinishedAt: w.now, Reason: "Completed"},
	}}
	if code != 0 {
		s.Phase, s.Containers[0].Reason = corev1.PodFailed, "Error"
	}
	m.status[p.UID] = &s
	w.next(Change{Reports: []nodes.Report{{Node: p.Node, Statuses: []nodes.PodStatus{s}}}})
}

// working are the pods of a workload that have not ended and are not leaving.
func (w *world) working(name string) []*pod {
	return slices.DeleteFunc(w.pods(name), (*pod).done)
}

// goners lets the nodes take over the routes and end every pod that is to stop.
func (w *world) goners() {
	w.t.Helper()
	names := slices.Sorted(maps.Keys(w.machines))
	for _, name := range append(names, names...) {
		m := w.machines[name]
		r := w.route(name)
		for _, uid := range slices.Sorted(maps.Keys(m.held)) {
			if m.held[uid].Stop != nil {
				r.Gone = append(r.Gone, m.gone(uid))
			}
		}
		w.next(Change{Reports: []nodes.Report{r}})
	}
}

// wipe loses all that a node had but its ledger.
func (m *machine) wipe() {
	clear(m.held)
	clear(m.status)
}

func (w *world) verdict(name string) workload.Verdict {
	for k, g := range entries(w.s.groups) {
		if k.Name == name {
			return g.verdict
		}
	}
	return workload.Verdict{}
}

func TestJobRunsOnce(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(job("once", 2, 1))
	for range 2 {
		w.end(w.working("once")[0], 0)
	}
	w.goners()
	if converged, failed := w.s.Settled(); !converged || failed != "" {
		t.Fatalf("not converged: %q, %v", failed, w.s.Progress())
	}
	done := w.uids("once")
	if p := w.next(Change{}); !p.Empty() {
		t.Fatalf("a finished Job gives a plan: %+v", p)
	}
	stays := func(after string) {
		t.Helper()
		if len(w.working("once")) > 0 || w.verdict("once").Reason != "completed, 2 successes" {
			t.Fatalf("after %s: %d pods at work, %+v", after, len(w.working("once")), w.verdict("once"))
		}
	}
	w.push(job("once", 2, 1), configMap("other", nil))
	stays("another revision")
	w.restart(true)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	stays("a restart")
	w.restart(false)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	stays("the loss of the record")
	if diff := cmp.Diff(done, w.uids("once")); diff != "" {
		t.Fatal(diff)
	}
	w.machines["n1"].wipe()
	w.join("n1")
	stays("the loss of its containers")
	for uid, p := range w.machines["n1"].held {
		if p.Stop == nil {
			t.Fatalf("the node is told to run its ended pod %s again", uid)
		}
	}
	w.goners()
	if len(w.uids("once")) != 0 || len(w.machines["n1"].held) != 0 {
		t.Fatal("the node keeps its ended pods")
	}
	w.machines["n1"].wipe()
	w.restart(false)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	stays("the loss of containers and record")
	w.push(configMap("other", nil))
	w.push(configMap("other", nil), job("once", 2, 1))
	if len(w.working("once")) != 1 {
		t.Error("a Job that was out of Git does not run when it is back")
	}
}

func TestChangedJobIsANewRun(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(job("migrate", 1, 1))
	w.end(w.working("migrate")[0], 0)
	first := w.uids("migrate")

	p := w.push(job("migrate", 1, 1, func(j *batchv1.Job) { j.Spec.TTLSecondsAfterFinished = new(int32(3600)) }))
	if d := p.Difference[0]; d.Op != Update || d.Reason != "the same run: it does not start again" || len(w.working("migrate")) > 0 {
		t.Fatalf("%+v", d)
	}
	p = w.push(job("migrate", 1, 1, jobImage("job:2")))
	if d := p.Difference[0]; d.Op != Replace || d.Reason != "a new run, the pods of the one before go: image job:1 → job:2" {
		t.Fatalf("%+v", d)
	}
	w.goners()
	if len(w.working("migrate")) != 1 || slices.Equal(first, w.uids("migrate")) {
		t.Fatalf("no new run: %v", w.uids("migrate"))
	}
	p = w.push(job("migrate", 1, 1, jobImage("job:2"), func(j *batchv1.Job) { j.Annotations = map[string]string{workload.Rerun: "2"} }))
	if d := p.Difference[0]; d.Op != Replace || len(w.working("migrate")) != 0 {
		t.Fatalf("the run before still works beside the new one: %+v", d)
	}
	if v := w.verdict("migrate"); v.Reason != "0 of 1 completion, 0 pods at work; 1 pod of the run before must stop first" {
		t.Errorf("%+v", v)
	}
	w.goners()
	w.end(w.working("migrate")[0], 0)
	if converged, _ := w.s.Settled(); !converged {
		t.Fatal(w.s.Progress())
	}
	w.push(job("migrate", 1, 1))
	w.goners()
	if len(w.working("migrate")) != 1 {
		t.Error("the way back is no new run")
	}
}

// TestChangedJobWaitsForItsNode changes a Job that has completed on a node that
// is silent: the success before is not the new run's.
func TestChangedJobWaitsForItsNode(t *testing.T) {
	for name, changed := range map[string]*batchv1.Job{"template": job("migrate", 2, 1, jobImage("job:2")), "completions": job("migrate", 1, 1)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1")
			w.push(job("migrate", 2, 1))
			w.end(w.working("migrate")[0], 0)
			w.end(w.working("migrate")[0], 0)
			w.next(Change{Nodes: []nodes.NodeState{{Node: info("n1"), Ready: false, Since: w.now, Reason: "no heartbeat"}}})
			w.push(changed)
			if converged, _ := w.s.Settled(); converged {
				t.Error("the revision counts as converged before its run")
			}
			if lines := w.s.Progress(); len(lines) != 1 || !strings.Contains(lines[0].Line, "n1 is silent") {
				t.Errorf("progress: %+v", lines)
			}
			g, _ := w.s.groups.Get(keyOf(changed))
			if diff := cmp.Diff(&nodes.JobOverview{Completions: int(*changed.Spec.Completions)}, g.jobOverview()); diff != "" {
				t.Error(diff)
			}
			w.join("n1")
			w.goners()
			for range *changed.Spec.Completions {
				w.end(w.working("migrate")[0], 0)
			}
			if converged, failed := w.s.Settled(); !converged || failed != "" {
				t.Fatalf("not converged: %q, %v", failed, w.s.Progress())
			}
		})
	}
}

func TestFailedJobFailsItsRevision(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(job("bad", 1, 1, func(j *batchv1.Job) { j.Spec.BackoffLimit = new(int32(0)) }))
	if converged, failed := w.s.Settled(); converged || failed != "" {
		t.Fatal("a Job at work is progress")
	}
	w.end(w.working("bad")[0], 3)
	converged, failed := w.s.Settled()
	if converged || !strings.HasPrefix(failed, "Job default/bad: BackoffLimitExceeded: Job has reached the specified backoff limit; pod bad-") {
		t.Fatalf("%q", failed)
	}
	bad := job("bad", 1, 1, func(j *batchv1.Job) { j.Spec.BackoffLimit = new(int32(0)) })
	w.now = w.now.Add(time.Minute)
	w.push(bad, deployment("web", 1))
	w.settle()
	if w.verdict("bad").Health != nodes.Degraded {
		t.Error("it is no longer shown as failed")
	}
	w.push(job("bad", 1, 1, jobImage("good")), deployment("web", 1))
	w.goners()
	w.end(w.working("bad")[0], 0)
	w.settle()
}

// TestRunningJobHoldsNoLaterRevision: what an earlier revision started decides
// nothing about this one.
func TestRunningJobHoldsNoLaterRevision(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(job("long", 1, 1))
	w.now = w.now.Add(time.Minute)
	w.push(job("long", 1, 1), configMap("other", nil))
	w.goners()
	if converged, failed := w.s.Settled(); !converged || failed != "" {
		t.Fatalf("%q", failed)
	}
	for range 3 {
		w.end(w.working("long")[0], 1)
		w.now = w.now.Add(time.Hour)
		w.next(Change{})
	}
	if converged, failed := w.s.Settled(); !converged || w.verdict("long").Health != nodes.Degraded {
		t.Fatalf("%q, %+v", failed, w.verdict("long"))
	}
}

func TestIndexedPods(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(job("map", 2, 2, indexedJobs, func(j *batchv1.Job) { j.Spec.BackoffLimitPerIndex = new(int32(3)) }))
	w.end(w.working("map")[1], 1)
	w.now = w.now.Add(10 * time.Second)
	w.next(Change{})
	for _, p := range w.working("map") {
		index := fmt.Sprint(p.Ordinal)
		failures := map[int]string{0: "0", 1: "1"}[p.Ordinal]
		if !strings.HasPrefix(p.Name, "map-"+index+"-") || p.Hostname != "map-"+index ||
			p.AllLabels()["batch.kubernetes.io/job-completion-index"] != index || p.AllAnnotations()["batch.kubernetes.io/job-completion-index"] != index ||
			p.AllLabels()["job-name"] != "map" || p.AllLabels()["batch.kubernetes.io/job-name"] != "map" || p.AllLabels()["controller-uid"] == "" ||
			p.AllAnnotations()["batch.kubernetes.io/job-index-failure-count"] != failures {
			t.Errorf("%s: hostname %s, labels %v, annotations %v", p.Name, p.Hostname, p.AllLabels(), p.AllAnnotations())
		}
		if e := p.Template.Spec.Containers[0].Env; len(e) != 1 || e[0].Name != "JOB_COMPLETION_INDEX" {
			t.Errorf("environment %v", e)
		}
	}
	w.restart(true)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	before := w.uids("map")
	w.join("n1")
	if diff := cmp.Diff(before, w.uids("map")); diff != "" {
		t.Error(diff)
	}
}

func TestJobExpires(t *testing.T) {
	brief := func(j *batchv1.Job) { j.Spec.TTLSecondsAfterFinished = new(int32(30)) }
	w := newWorld(t, "n1")
	w.push(job("brief", 1, 1, brief))
	w.end(w.working("brief")[0], 0)
	w.goners()
	if !w.last.Wake.Equal(w.now.Add(30 * time.Second)) {
		t.Fatalf("wakes at %s", w.last.Wake)
	}
	w.now = w.now.Add(30 * time.Second)
	w.next(Change{})
	w.goners()
	if len(w.machines["n1"].held) > 0 {
		t.Fatal("its pod stays")
	}
	w.restart(false)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	if len(w.working("brief")) > 0 {
		t.Error("it runs again")
	}
	w.push(job("brief", 1, 1, brief, jobImage("job:2")))
	if len(w.working("brief")) != 1 {
		t.Error("the changed one does not run")
	}
}

// TestWhatIsFilledInRunsNoJobAgain changes what admission filled in of a Job
// that is over, and then what is written.
func TestWhatIsFilledInRunsNoJobAgain(t *testing.T) {
	w := newWorld(t, "n1")
	of := func(class string, with ...func(*batchv1.Job)) *batchv1.Job {
		j := job("j", 1, 1, with...)
		j.Spec.Template.Spec.PriorityClassName = class
		j.Spec.Template.Annotations = map[string]string{desired.FilledAnnotation: "priorityClassName"}
		return j
	}
	w.push(of("low"))
	w.end(w.working("j")[0], 0)
	for _, class := range []string{"high", ""} {
		p := w.push(of(class))
		if len(w.working("j")) != 0 || len(p.Difference) != 1 || p.Difference[0].Op != Update {
			t.Errorf("with class %q filled in %d pods run; difference %+v", class, len(w.working("j")), p.Difference)
		}
	}
	if w.push(of("high", jobImage("app:2"))); len(w.working("j")) != 1 {
		t.Error("a Job that is written anew does not run")
	}
}

// TestHandlerRunsNoJobAgain: a Job that is over stays so when its RuntimeClass
// has another handler.
func TestHandlerRunsNoJobAgain(t *testing.T) {
	w := newWorld(t, "n1")
	once := job("j", 1, 1, func(j *batchv1.Job) { j.Spec.Template.Spec.RuntimeClassName = new("safe") })
	w.push(once, runtimeClassOf("kata"))
	p := w.working("j")[0]
	if p.Template.RuntimeHandler != "kata" {
		t.Fatalf("handler %q", p.Template.RuntimeHandler)
	}
	w.end(p, 0)
	plan := w.push(once, runtimeClassOf("runsc"))
	if d := plan.Difference; len(w.working("j")) != 0 || len(d) != 1 || d[0].Op != Replace || d[0].Reason != "no workload rolls" {
		t.Errorf("%d pods run; difference %+v", len(w.working("j")), d)
	}
}

// TestConfigDoesNotRepeatAJob: what a Job reads is read by the run that reads it.
func TestConfigDoesNotRepeatAJob(t *testing.T) {
	reads := func(j *batchv1.Job) {
		j.Spec.Template.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}
	}
	w := newWorld(t, "n1")
	w.push(job("reader", 1, 1, reads), configMap("settings", map[string]string{"a": "1"}))
	w.end(w.working("reader")[0], 0)
	w.push(job("reader", 1, 1, reads), configMap("settings", map[string]string{"a": "2"}))
	if len(w.working("reader")) > 0 {
		t.Error("it runs again")
	}
	w.settle()
}

// TestJobSurvivesAnything plays a Job against crashes of the server, of the
// node and of both: what is counted was carried out, nothing is counted twice,
// and after its end nothing is started.
func TestJobSurvivesAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		completions := rapid.Int32Range(1, 5).Draw(t, "completions")
		with := []func(*batchv1.Job){func(j *batchv1.Job) { j.Spec.BackoffLimit = new(rapid.Int32Range(0, 4).Draw(t, "backoffLimit")) }}
		if rapid.Bool().Draw(t, "indexed") {
			with = append(with, indexedJobs)
		}
		j := job("work", completions, rapid.Int32Range(1, 3).Draw(t, "parallelism"), with...)
		w := newWorld(t, "n1")
		w.push(j)
		m := w.machines["n1"]
		succeeded := 0
		ended := map[nodes.UID]bool{}
		for range rapid.IntRange(5, 50).Draw(t, "steps") {
			g, _ := w.s.groups.Get(keyOf(j))
			over := g != nil && g.run != nil && g.run.Over()
			atWork := len(w.working("work"))
			switch rapid.IntRange(0, 9).Draw(t, "happens") {
			case 0, 1, 2, 3:
				if list := w.working("work"); len(list) > 0 {
					p := rapid.SampledFrom(list).Draw(t, "pod")
					if p.Node == "" || m.held[p.UID] == nil || ended[p.UID] {
						continue
					}
					ended[p.UID] = true
					code := rapid.Int32Range(0, 1).Draw(t, "code")
					if code == 0 {
						succeeded++
					}
					w.end(p, code)
				}
			case 4:
				w.restart(true)
				w.next(Change{Snapshot: w.snapshot, Source: w.source})
				w.join("n1")
			case 5:
				w.restart(false)
				w.next(Change{Snapshot: w.snapshot, Source: w.source})
				w.join("n1")
			case 6:
				w.join("n1")
			case 7:
				w.goners()
			case 8:
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 1000).Draw(t, "seconds")) * time.Second)
				w.next(Change{})
			case 9:
				// Containers that have ended are lost; the others would be missed.
				for uid := range ended {
					m.gone(uid)
				}
				w.join("n1")
			}
			g, _ = w.s.groups.Get(keyOf(j))
			if g.run == nil {
				continue
			}
			if g.run.Succeeded > succeeded || g.run.Succeeded > int(completions) || g.run.Failed > len(ended)-succeeded+int(*j.Spec.Parallelism) {
				t.Fatalf("counted %+v of %d ended, %d well", g.run, len(ended), succeeded)
			}
			if over && (!g.run.Over() || len(w.working("work")) > atWork) {
				t.Fatalf("it is over, and runs: %+v", g.run)
			}
			if g.run.Over() && g.run.Finish.Complete && g.run.Succeeded != int(completions) {
				t.Fatalf("complete with %+v", g.run)
			}
			for uid := range ended {
				if _, p := w.s.pod(uid); p != nil && p.status == nil && m.held[uid] != nil && p.Stop == nil && w.s.informed && m.status[uid] == nil {
					t.Fatalf("the node is told to run %s again", p.Name)
				}
			}
		}
	})
}
