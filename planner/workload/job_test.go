package workload

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
)

// jobWorld plays planner and node for one Job.
type jobWorld struct {
	job  Job
	next uint64
	// taken counts the pods that left before their end.
	taken int
}

func newJob(spec batchv1.JobSpec) *jobWorld {
	return &jobWorld{job: Job{Now: now, Spec: &spec, Run: Run{UID: "u", Template: "t"}}}
}

// step carries out one look.
func (w *jobWorld) step() {
	run, steps := w.job.Next()
	w.job.Run = run
	for _, r := range steps.Removes {
		w.pod(r.UID).Leaving = true
		w.taken++
	}
	for _, c := range steps.Creates {
		for range c.Count {
			w.next++
			w.job.Pods = append(w.job.Pods, JobPod{Pod: Pod{
				UID: nodes.UID(fmt.Sprint("u", w.next)), Name: fmt.Sprint("p", w.next), Incarnation: w.next, Ordinal: c.Ordinal,
				Node: "n", Phase: corev1.PodRunning, Created: w.job.Now,
			}, Status: &nodes.PodStatus{Phase: corev1.PodRunning}})
		}
	}
}

func (w *jobWorld) pod(uid nodes.UID) *Pod {
	for i := range w.job.Pods {
		if w.job.Pods[i].UID == uid {
			return &w.job.Pods[i].Pod
		}
	}
	panic("no pod " + uid)
}

// end lets a pod end with an exit code.
func (w *jobWorld) end(i int, code int32) {
	p := &w.job.Pods[i]
	p.Phase = corev1.PodSucceeded
	if code != 0 {
		p.Phase = corev1.PodFailed
	}
	p.Status = &nodes.PodStatus{Phase: p.Phase, Containers: []nodes.ContainerStatus{
		{Name: "c", State: nodes.Terminated, ExitCode: code, FinishedAt: w.job.Now},
	}}
}

// gone drops the pods that are leaving.
func (w *jobWorld) gone() {
	var stay []JobPod
	for _, p := range w.job.Pods {
		if !p.Leaving {
			stay = append(stay, p)
		}
	}
	w.job.Pods = stay
}

func (w *jobWorld) working() int {
	n := 0
	for i := range w.job.Pods {
		if p := &w.job.Pods[i]; !p.done() && !p.Leaving {
			n++
		}
	}
	return n
}

func spec(parallelism int32, completions int, with ...func(*batchv1.JobSpec)) batchv1.JobSpec {
	s := batchv1.JobSpec{Parallelism: &parallelism, BackoffLimit: new(int32(6))}
	s.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if completions >= 0 {
		s.Completions = new(int32(completions))
	}
	for _, f := range with {
		f(&s)
	}
	return s
}

func indexedMode(s *batchv1.JobSpec) { s.CompletionMode = new(batchv1.IndexedCompletion) }

func TestJobCompletes(t *testing.T) {
	w := newJob(spec(2, 3))
	w.step()
	if w.working() != 2 {
		t.Fatalf("%d pods at work", w.working())
	}
	w.end(0, 0)
	w.step()
	w.step()
	if w.working() != 2 || w.job.Run.Succeeded != 1 {
		t.Fatalf("%d pods at work, %+v", w.working(), w.job.Run)
	}
	w.end(1, 0)
	w.step()
	if w.working() != 1 {
		t.Fatal("more pods than completions are missing")
	}
	w.end(2, 0)
	w.step()
	want := Run{
		UID: "u", Template: "t", Started: now, Succeeded: 3, Counted: "1-3",
		Finish: &Finish{Complete: true, Reason: "CompletionsReached", Message: "Reached expected number of succeeded pods", At: now},
	}
	if diff := cmp.Diff(want, w.job.Run); diff != "" {
		t.Error(diff)
	}
	if v := w.job.Verdict(); v.Health != nodes.Healthy || v.Reason != "completed, 3 successes" || !v.Complete {
		t.Errorf("%+v", v)
	}
	w.job.Pods = nil // the node was set up anew
	w.step()
	if w.working() != 0 {
		t.Error("a completed Job runs again")
	}
}

func TestWorkQueueStopsAfterFirstSuccess(t *testing.T) {
	w := newJob(spec(3, -1))
	w.step()
	w.end(1, 0)
	w.step()
	if w.working() != 2 || w.job.Run.Finish != nil {
		t.Fatalf("%d at work, %+v", w.working(), w.job.Run)
	}
	w.end(0, 1)
	w.end(2, 0)
	w.step()
	if f := w.job.Run.Finish; f == nil || !f.Complete || w.job.Run.Failed != 1 || w.job.Run.Succeeded != 2 {
		t.Errorf("%+v", w.job.Run)
	}
}

func TestBackoffDoublesAndEnds(t *testing.T) {
	w := newJob(spec(1, 1, func(s *batchv1.JobSpec) { s.BackoffLimit = new(int32(8)) }))
	delays := []time.Duration{10, 20, 40, 80, 160, 320, 600, 600}
	w.step()
	for i, d := range delays {
		w.end(i, 1)
		w.step()
		wake := w.job.Now.Add(d * time.Second)
		if v := w.job.Verdict(); w.working() != 0 || !v.Wake.Equal(wake) {
			t.Fatalf("failure %d: %d at work, wake %s, want %s", i+1, w.working(), v.Wake, wake)
		}
		w.job.Now = wake.Add(-1)
		if w.step(); w.working() != 0 {
			t.Fatalf("failure %d: no delay", i+1)
		}
		w.job.Now = wake
		if w.step(); w.working() != 1 {
			t.Fatalf("failure %d: no pod after the delay", i+1)
		}
	}
	w.end(len(delays), 1)
	w.step()
	v := w.job.Verdict()
	if !v.Late || v.Health != nodes.Degraded || v.Reason != "BackoffLimitExceeded: Job has reached the specified backoff limit" {
		t.Errorf("%+v", v)
	}
}

func TestRestartsWithinPodsCount(t *testing.T) {
	for limit, restarts := range map[int32]int{0: 1, 1: 1, 3: 3} {
		w := newJob(spec(1, 1, func(s *batchv1.JobSpec) {
			s.BackoffLimit, s.Template.Spec.RestartPolicy = &limit, corev1.RestartPolicyOnFailure
		}))
		w.step()
		w.job.Pods[0].Restarts = restarts - 1
		if w.step(); w.job.Run.Finish != nil {
			t.Errorf("limit %d: fails after %d restarts", limit, restarts-1)
		}
		w.job.Pods[0].Restarts = restarts
		if w.step(); w.job.Run.Finish == nil || w.working() != 0 || w.job.Run.Failed != 1 || w.job.Run.Over() {
			t.Errorf("limit %d, %d restarts: %+v", limit, restarts, w.job.Run)
		}
		w.gone()
		if w.step(); !w.job.Run.Over() {
			t.Error("not over when its last pod is gone")
		}
	}
}

func TestActiveDeadline(t *testing.T) {
	w := newJob(spec(2, 2, func(s *batchv1.JobSpec) { s.ActiveDeadlineSeconds = new(int64(60)) }))
	w.step()
	if v := w.job.Verdict(); !v.Wake.Equal(now.Add(time.Minute)) || !v.Deadline.Equal(v.Wake) {
		t.Fatalf("%+v", v)
	}
	w.end(0, 0)
	w.job.Now = now.Add(time.Minute)
	w.step()
	if r := w.job.Run; r.Finish == nil || r.Finish.Reason != "DeadlineExceeded" || r.Failed != 1 || r.Succeeded != 1 {
		t.Errorf("%+v", r)
	}
}

func TestIndexed(t *testing.T) {
	w := newJob(spec(2, 4, indexedMode))
	w.step()
	w.end(1, 0)
	w.end(0, 1)
	w.step()
	w.job.Now = now.Add(10 * time.Second)
	w.step()
	var at []int
	for i := range w.job.Pods {
		at = append(at, w.job.Pods[i].Ordinal)
	}
	if diff := cmp.Diff([]int{0, 1, 0, 2}, at); diff != "" {
		t.Fatal(diff)
	}
	w.job.Pods = append(w.job.Pods, JobPod{Pod: Pod{UID: "twin", Incarnation: 9, Ordinal: 2, Node: "n"}}, JobPod{Pod: Pod{UID: "stray", Incarnation: 8, Ordinal: 7, Node: "n"}})
	w.step()
	if !w.pod("twin").Leaving || !w.pod("stray").Leaving || w.working() != 2 {
		t.Errorf("%d at work, twin %v", w.working(), w.pod("twin").Leaving)
	}
	w.end(2, 0)
	w.end(3, 0)
	w.step()
	w.end(6, 0)
	w.gone()
	w.step()
	if r := w.job.Run; r.CompletedIndexes != "0-3" || r.Succeeded != 4 || r.Failed != 1 || !r.Over() {
		t.Errorf("%+v", r)
	}
}

// TestElasticIndexed: completions of an Indexed Job change with its parallelism.
func TestElasticIndexed(t *testing.T) {
	w := newJob(spec(3, 3, indexedMode))
	w.step()
	w.job.Spec.Parallelism, w.job.Spec.Completions = new(int32(2)), new(int32(2))
	w.step()
	if w.working() != 2 || !w.job.Pods[2].Leaving {
		t.Fatalf("%d at work", w.working())
	}
}

func TestIdentity(t *testing.T) {
	tests := map[string]struct {
		change    func(*batchv1.Job)
		continues bool
	}{
		"nothing":           {func(*batchv1.Job) {}, true},
		"parallelism":       {func(j *batchv1.Job) { j.Spec.Parallelism = new(int32(1)) }, true},
		"both together":     {func(j *batchv1.Job) { j.Spec.Parallelism, j.Spec.Completions = new(int32(2)), new(int32(2)) }, true},
		"completions alone": {func(j *batchv1.Job) { j.Spec.Completions = new(int32(2)) }, false},
		"mode":              {func(j *batchv1.Job) { j.Spec.CompletionMode = nil }, false},
		"suspend":           {func(j *batchv1.Job) { j.Spec.Suspend = new(true) }, true},
		"limits": {func(j *batchv1.Job) {
			j.Spec.BackoffLimit, j.Spec.ActiveDeadlineSeconds, j.Spec.TTLSecondsAfterFinished = new(int32(1)), new(int64(1)), new(int32(1))
		}, true},
		"limit per index":   {func(j *batchv1.Job) { j.Spec.BackoffLimitPerIndex = new(int32(1)) }, false},
		"success policy":    {func(j *batchv1.Job) { j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{} }, false},
		"failure policy":    {func(j *batchv1.Job) { j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{} }, false},
		"label":             {func(j *batchv1.Job) { j.Labels = map[string]string{"a": "b"} }, true},
		"asked for":         {func(j *batchv1.Job) { j.Annotations = map[string]string{Rerun: "2"} }, false},
		"another completer": {func(j *batchv1.Job) { j.Spec.PodReplacementPolicy = new(batchv1.Failed) }, true},
	}
	for name, test := range tests {
		was := &batchv1.Job{Spec: spec(3, 3, indexedMode)}
		is := was.DeepCopy()
		test.change(is)
		if got := IdentityOf(is).Continues(IdentityOf(was)); got != test.continues {
			t.Errorf("%s: continues %v", name, got)
		}
	}
}

func TestBackoffLimitPerIndex(t *testing.T) {
	w := newJob(spec(3, 3, indexedMode, func(s *batchv1.JobSpec) {
		s.BackoffLimit, s.BackoffLimitPerIndex, s.MaxFailedIndexes = nil, new(int32(1)), new(int32(1))
	}))
	w.step()
	w.end(0, 1)
	w.end(1, 1)
	w.step()
	if v := w.job.Verdict(); !v.Wake.Equal(now.Add(10 * time.Second)) {
		t.Errorf("%+v", v)
	}
	if diff := cmp.Diff(map[int]IndexFailures{0: {Counted: 1, Last: now}, 1: {Counted: 1, Last: now}}, w.job.Run.ByIndex); diff != "" {
		t.Error(diff)
	}
	w.job.Now = now.Add(10 * time.Second)
	w.step()
	w.end(3, 1)
	w.step()
	if r := w.job.Run; r.FailedIndexes != "0" || r.Finish != nil || w.working() != 2 {
		t.Fatalf("%+v", r)
	}
	w.end(4, 0)
	w.end(2, 0)
	w.step()
	if r := w.job.Run; r.Finish == nil || r.Finish.Reason != "FailedIndexes" || r.CompletedIndexes != "1,2" {
		t.Errorf("%+v", r)
	}
	w = newJob(spec(3, 9, indexedMode, func(s *batchv1.JobSpec) {
		s.BackoffLimitPerIndex, s.MaxFailedIndexes = new(int32(0)), new(int32(1))
	}))
	w.step()
	w.end(0, 1)
	w.end(1, 1)
	w.step()
	if r := w.job.Run; r.Finish == nil || r.Finish.Reason != "MaxFailedIndexesExceeded" || w.working() != 0 {
		t.Errorf("%+v", r)
	}
}

func TestPodFailurePolicy(t *testing.T) {
	policy := func(rules ...batchv1.PodFailurePolicyRule) *batchv1.PodFailurePolicy {
		return &batchv1.PodFailurePolicy{Rules: rules}
	}
	on := func(action batchv1.PodFailurePolicyAction, op batchv1.PodFailurePolicyOnExitCodesOperator, codes ...int32) batchv1.PodFailurePolicyRule {
		return batchv1.PodFailurePolicyRule{Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: op, Values: codes}}
	}
	other := on(batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyOnExitCodesOpIn, 3)
	other.OnExitCodes.ContainerName = new("other")
	disrupted := batchv1.PodFailurePolicyRule{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{
		{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue},
	}}
	tests := map[string]struct {
		policy  *batchv1.PodFailurePolicy
		code    int32
		evicted bool
		failed  int
		reason  string
	}{
		"fails the Job":     {policy(on(batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyOnExitCodesOpIn, 3)), 3, false, 2, "Container c for pod p1 failed with exit code 3 matching FailJob rule at index 0"},
		"ignored":           {policy(on(batchv1.PodFailurePolicyActionIgnore, batchv1.PodFailurePolicyOnExitCodesOpIn, 3)), 3, false, 0, ""},
		"counted":           {policy(on(batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyOnExitCodesOpNotIn, 4)), 3, false, 1, ""},
		"no rule":           {policy(on(batchv1.PodFailurePolicyActionIgnore, batchv1.PodFailurePolicyOnExitCodesOpNotIn, 3)), 3, false, 1, ""},
		"another container": {policy(other), 3, false, 1, ""},
		"disrupted":         {policy(disrupted), 137, true, 0, ""},
		"not disrupted":     {policy(disrupted), 137, false, 1, ""},
		"the first counts":  {policy(disrupted, on(batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyOnExitCodesOpIn, 137)), 137, true, 0, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newJob(spec(2, 5, func(s *batchv1.JobSpec) { s.PodFailurePolicy = test.policy }))
			w.step()
			w.end(0, test.code)
			if test.evicted {
				w.job.Pods[0].Status.Reason = "Evicted"
			}
			w.step()
			message := ""
			if f := w.job.Run.Finish; f != nil {
				message = f.Message
			}
			if w.job.Run.Failed != test.failed || message != test.reason {
				t.Errorf("%d failures, %q", w.job.Run.Failed, message)
			}
		})
	}
	t.Run("fails the index", func(t *testing.T) {
		w := newJob(spec(2, 2, indexedMode, func(s *batchv1.JobSpec) {
			s.BackoffLimitPerIndex = new(int32(5))
			s.PodFailurePolicy = policy(on(batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyOnExitCodesOpIn, 3))
		}))
		w.step()
		w.end(1, 3)
		w.step()
		if r := w.job.Run; r.FailedIndexes != "1" || r.Finish != nil {
			t.Errorf("%+v", r)
		}
	})
}

func TestSuccessPolicy(t *testing.T) {
	tests := map[string]struct {
		rule batchv1.SuccessPolicyRule
		ends string
		over bool
	}{
		"the leader":      {batchv1.SuccessPolicyRule{SucceededIndexes: new("0")}, "0", true},
		"not the leader":  {batchv1.SuccessPolicyRule{SucceededIndexes: new("0")}, "12", false},
		"two of some":     {batchv1.SuccessPolicyRule{SucceededIndexes: new("1-3"), SucceededCount: new(int32(2))}, "13", true},
		"one of some":     {batchv1.SuccessPolicyRule{SucceededIndexes: new("1-3"), SucceededCount: new(int32(2))}, "03", false},
		"any two":         {batchv1.SuccessPolicyRule{SucceededCount: new(int32(2))}, "02", true},
		"outside the Job": {batchv1.SuccessPolicyRule{SucceededIndexes: new("7")}, "0", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newJob(spec(4, 4, indexedMode, func(s *batchv1.JobSpec) {
				s.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{test.rule}}
			}))
			w.step()
			for _, c := range test.ends {
				w.end(int(c-'0'), 0)
			}
			w.step()
			w.gone()
			w.step()
			r := w.job.Run
			if (r.Finish != nil) != test.over || test.over && (r.Finish.Reason != "SuccessPolicy" || r.Failed != 0 || !r.Over()) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestSuspendAndResume(t *testing.T) {
	w := newJob(spec(2, 2, func(s *batchv1.JobSpec) { s.Suspend, s.ActiveDeadlineSeconds = new(true), new(int64(60)) }))
	w.step()
	if v := w.job.Verdict(); w.working() != 0 || v.Health != nodes.Suspended || !v.Wake.IsZero() {
		t.Fatalf("%+v", v)
	}
	w.job.Now = now.Add(time.Hour)
	w.job.Spec.Suspend = new(false)
	w.step()
	if w.working() != 2 || !w.job.Run.Started.Equal(w.job.Now) {
		t.Fatalf("%+v", w.job.Run)
	}
	w.job.Spec.Suspend = new(true)
	w.step()
	if r := w.job.Run; w.working() != 0 || r.Failed != 0 || !r.Suspended {
		t.Fatalf("%+v", r)
	}
	w.gone()
	w.job.Spec.Suspend = new(false)
	w.step()
	if r := w.job.Run; w.working() != 2 || r.Failed != 0 || r.Suspended {
		t.Errorf("%+v", r)
	}
}

func TestReplacementWaitsForTheEnd(t *testing.T) {
	for policy, want := range map[batchv1.PodReplacementPolicy]int{batchv1.TerminatingOrFailed: 1, batchv1.Failed: 0} {
		w := newJob(spec(1, 1, func(s *batchv1.JobSpec) { s.PodReplacementPolicy = &policy }))
		w.step()
		w.job.Pods[0].Leaving = true
		w.step()
		w.job.Now = now.Add(time.Minute)
		w.step()
		if w.working() != want || w.job.Run.Failed != want {
			t.Errorf("%s: %d at work, %+v", policy, w.working(), w.job.Run)
		}
	}
}

func TestTTL(t *testing.T) {
	w := newJob(spec(1, 1, func(s *batchv1.JobSpec) { s.TTLSecondsAfterFinished = new(int32(30)) }))
	w.step()
	w.end(0, 0)
	w.step()
	if v := w.job.Verdict(); !v.Wake.Equal(now.Add(30*time.Second)) || len(w.job.Pods) != 1 || w.job.Pods[0].Leaving {
		t.Fatalf("%+v", v)
	}
	w.job.Now = now.Add(30 * time.Second)
	w.step()
	if !w.job.Run.Expired || !w.job.Pods[0].Leaving {
		t.Errorf("%+v", w.job.Run)
	}
	w.gone()
	w.step()
	if v := w.job.Verdict(); w.working() != 0 || v.Health != nodes.Healthy || !v.Wake.IsZero() {
		t.Errorf("%+v", v)
	}
}

func TestRunWaitsForTheOneBefore(t *testing.T) {
	w := newJob(spec(1, 1))
	w.job.Earlier = 2
	w.step()
	if v := w.job.Verdict(); w.working() != 0 || v.Reason != "0 of 1 completion, 0 pods at work; 2 pods of the run before must stop first" {
		t.Errorf("%+v", v)
	}
	w.job.Earlier = 0
	if w.step(); w.working() != 1 {
		t.Error("it does not start")
	}
}

// TestJobProperties plays any Job against nodes that end, lose and take away
// pods, and restarts the planner from its record at any time: pods at work
// never exceed parallelism, each end is counted once, a Job completes with
// exactly its completions, nothing runs after the end, and looking twice
// changes nothing.
func TestJobProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		small := rapid.Int32Range(0, 5)
		s := spec(small.Draw(t, "parallelism"), int(small.Draw(t, "completions")))
		s.BackoffLimit = new(small.Draw(t, "backoffLimit"))
		if rapid.Bool().Draw(t, "indexed") {
			indexedMode(&s)
			if rapid.Bool().Draw(t, "per index") {
				s.BackoffLimitPerIndex = new(rapid.Int32Range(0, 2).Draw(t, "backoffLimitPerIndex"))
			}
		} else if rapid.IntRange(0, 4).Draw(t, "work queue") == 0 {
			s.Completions = nil
		}
		if rapid.Bool().Draw(t, "only failed") {
			s.PodReplacementPolicy = new(batchv1.Failed)
		}
		w := newJob(s)
		succeeded, failed := 0, 0
		for range rapid.IntRange(5, 60).Draw(t, "steps") {
			over := w.job.Run.Over()
			before := w.next
			w.step()
			if again, steps := w.job.Next(); !steps.Empty() || !cmp.Equal(again, w.job.Run) {
				t.Fatalf("a second look differs: %+v, %s", steps, cmp.Diff(w.job.Run, again))
			}
			if w.working() > int(*s.Parallelism) {
				t.Fatalf("%d pods at work, %d allowed", w.working(), *s.Parallelism)
			}
			if over && w.next != before {
				t.Fatal("a Job that is over made a pod")
			}
			if r := w.job.Run; r.Succeeded > succeeded || r.Failed > failed+w.taken || r.Succeeded+r.Failed > int(w.next) {
				t.Fatalf("counted %d and %d, there were %d and %d, %d taken away", r.Succeeded, r.Failed, succeeded, failed, w.taken)
			}
			w.happens(t, &succeeded, &failed)
			w.job.Now = w.job.Now.Add(rapid.SampledFrom([]time.Duration{0, time.Second, 11 * time.Second, time.Hour}).Draw(t, "pause"))
		}
		if f := w.job.Run.Finish; f != nil && f.Complete && s.Completions != nil && w.job.Run.Succeeded != int(*s.Completions) {
			t.Fatalf("complete with %d of %d", w.job.Run.Succeeded, *s.Completions)
		}
	})
}

func (w *jobWorld) happens(t *rapid.T, succeeded, failed *int) {
	for i := range w.job.Pods {
		p := &w.job.Pods[i]
		if p.done() || p.Leaving {
			continue
		}
		switch rapid.IntRange(0, 5).Draw(t, "happens") {
		case 0:
			w.end(i, 0)
			*succeeded++
		case 1:
			w.end(i, 1)
			*failed++
		case 2:
			if rapid.IntRange(0, 3).Draw(t, "taken away") == 0 {
				p.Leaving = true
				w.taken++
			}
		}
	}
	if rapid.Bool().Draw(t, "gone") {
		w.gone()
	}
	if rapid.IntRange(0, 9).Draw(t, "ended pods are lost") == 0 {
		var stay []JobPod
		for _, p := range w.job.Pods {
			if !w.job.Run.Has(p.Incarnation) {
				stay = append(stay, p)
			}
		}
		w.job.Pods = stay
	}
}
