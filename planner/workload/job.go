package workload

import (
	"cmp"
	"math"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Job is a run with what is there of it. The rules are those of Kubernetes'
// Job controller; where it needs finalizers to count each pod once, a Run
// remembers the incarnations.
type Job struct {
	Now  time.Time
	Spec *batchv1.JobSpec
	Run  Run
	// Pods of the run, in any order, leaving and ended ones included.
	Pods []JobPod
	// Earlier counts the pods of earlier runs that have not stopped: the run
	// waits for them.
	Earlier int
}

// JobPod is one pod of a run.
type JobPod struct {
	Pod
	// Status as the node reports it; nil before that.
	Status *nodes.PodStatus
}

// Next gives the run as it is to be recorded, and what to do. When nothing
// else happens, what it gives next is the same run and no steps.
func (j *Job) Next() (Run, Steps) {
	s := j.plan()
	return s.run, s.steps
}

// jobStep is one look at a Job.
type jobStep struct {
	*Job
	run   Run
	steps Steps
	// counted are the incarnations of run.Counted.
	counted Indexes
	// active pods have not ended and are not leaving; terminating counts those
	// that are leaving and have not ended.
	active      []*JobPod
	terminating int
	// completed and failed are the indexes of an Indexed Job.
	completed, failed Indexes
	// wake is when the next look may differ by itself.
	wake time.Time
}

func (j *Job) plan() *jobStep {
	s := &jobStep{Job: j, run: j.Run.clone(), counted: j.Run.counted()}
	if s.run.Over() {
		s.expire()
		return s
	}
	s.look()
	s.start()
	s.count()
	if s.run.Finish == nil {
		s.run.Finish = s.verdict()
	}
	if s.run.Finish == nil {
		s.manage()
		s.run.Finish = s.completion()
	}
	if s.run.Finish != nil {
		s.windDown()
	}
	s.run.Counted = s.counted.String()
	if s.indexed() {
		s.run.CompletedIndexes, s.run.FailedIndexes = s.completed.String(), s.failed.String()
	}
	return s
}

func (s *jobStep) indexed() bool   { return indexed(s.Spec) }
func (s *jobStep) suspended() bool { return s.Spec.Suspend != nil && *s.Spec.Suspend }
func (s *jobStep) perIndex() bool  { return s.indexed() && s.Spec.BackoffLimitPerIndex != nil }

// completions is how many successes the Job wants; -1 when any one will do.
func (s *jobStep) completions() int { return int(valueOr(s.Spec.Completions, -1)) }

func (s *jobStep) wakeAt(t time.Time) {
	if t.After(s.Now) {
		s.wake = earliest(s.wake, t)
	}
}

// look sorts the pods out.
func (s *jobStep) look() {
	for i := range s.Pods {
		switch p := &s.Pods[i]; {
		case p.done():
		case p.Leaving:
			s.terminating++
		case !s.counted.Has(int(p.Incarnation)):
			s.active = append(s.active, p)
		}
	}
	if s.indexed() {
		s.completed = ParseIndexes(s.run.CompletedIndexes, s.completions())
		s.failed = ParseIndexes(s.run.FailedIndexes, s.completions())
	}
}

func (s *jobStep) start() {
	switch {
	case s.suspended() && s.run.Finish == nil:
		s.run.Suspended, s.run.Started = true, time.Time{}
	case s.run.Started.IsZero():
		s.run.Suspended, s.run.Started = false, s.Now
	}
}

// count takes in the pods that have ended since.
func (s *jobStep) count() {
	var ended []*JobPod
	for i := range s.Pods {
		p := &s.Pods[i]
		if !s.counted.Has(int(p.Incarnation)) && (p.Phase == corev1.PodSucceeded || s.hasFailed(p)) {
			ended = append(ended, p)
		}
	}
	slices.SortFunc(ended, func(a, b *JobPod) int {
		return cmp.Or(a.ended().Compare(b.ended()), cmp.Compare(a.Incarnation, b.Incarnation))
	})
	for _, p := range ended {
		s.countOne(p)
	}
	if s.indexed() {
		s.run.Succeeded = s.completed.Len()
	}
}

// hasFailed reports whether a pod counts as failed: at its end, or, where a
// replacement need not wait for that, as soon as it is taken away.
func (s *jobStep) hasFailed(p *JobPod) bool {
	return p.Phase == corev1.PodFailed || p.Leaving && p.Phase != corev1.PodSucceeded && !s.replacesOnlyFailed()
}

func (s *jobStep) replacesOnlyFailed() bool {
	r := s.Spec.PodReplacementPolicy
	return s.Spec.PodFailurePolicy != nil || r != nil && *r == batchv1.Failed
}

func (s *jobStep) countOne(p *JobPod) {
	s.counted = s.counted.With(int(p.Incarnation))
	if s.indexed() && (p.Ordinal < 0 || p.Ordinal >= s.completions()) {
		return
	}
	if p.Phase == corev1.PodSucceeded {
		s.run.Failures, s.run.LastFailure = 0, time.Time{}
		if s.indexed() {
			s.completed = s.completed.With(p.Ordinal)
			delete(s.run.ByIndex, p.Ordinal)
		} else {
			s.run.Succeeded++
		}
		return
	}
	s.run.Failures++
	s.run.LastFailure = p.ended()
	m := matchFailure(s.Spec.PodFailurePolicy, p)
	if m.action == batchv1.PodFailurePolicyActionFailJob && s.run.Finish == nil {
		s.run.Finish = &Finish{Reason: batchv1.JobReasonPodFailurePolicy, Message: m.message}
	}
	if m.action != batchv1.PodFailurePolicyActionIgnore {
		s.run.Failed++
	}
	if s.perIndex() {
		s.countIndex(p, m.action)
	}
}

func (s *jobStep) countIndex(p *JobPod, action batchv1.PodFailurePolicyAction) {
	if s.completed.Has(p.Ordinal) || s.failed.Has(p.Ordinal) {
		return
	}
	f := s.run.ByIndex[p.Ordinal]
	f.Last = p.ended()
	if action == batchv1.PodFailurePolicyActionIgnore {
		f.Ignored++
	} else {
		f.Counted++
	}
	if action == batchv1.PodFailurePolicyActionFailIndex || f.Counted > int(*s.Spec.BackoffLimitPerIndex) {
		s.failed = s.failed.With(p.Ordinal)
		delete(s.run.ByIndex, p.Ordinal)
		return
	}
	if s.run.ByIndex == nil {
		s.run.ByIndex = map[int]IndexFailures{}
	}
	s.run.ByIndex[p.Ordinal] = f
}

// verdict is how the run ends by what is counted, nil when it goes on: failure
// is looked for before success.
func (s *jobStep) verdict() *Finish {
	switch {
	case s.run.Failed > s.backoffLimit() || s.restartedTooOften():
		return &Finish{Reason: batchv1.JobReasonBackoffLimitExceeded, Message: "Job has reached the specified backoff limit"}
	case s.pastDeadline():
		return &Finish{Reason: batchv1.JobReasonDeadlineExceeded, Message: "Job was active longer than specified deadline"}
	}
	if f := s.failedIndexes(); f != nil {
		return f
	}
	return s.successPolicy()
}

func (s *jobStep) failedIndexes() *Finish {
	if !s.perIndex() {
		return nil
	}
	n := s.failed.Len()
	switch limit := s.Spec.MaxFailedIndexes; {
	case limit != nil && n > int(*limit):
		return &Finish{Reason: batchv1.JobReasonMaxFailedIndexesExceeded, Message: "Job has exceeded the specified maximal number of failed indexes"}
	case n > 0 && n+s.completed.Len() >= s.completions():
		return &Finish{Reason: batchv1.JobReasonFailedIndexes, Message: "Job has failed indexes"}
	}
	return nil
}

func (s *jobStep) backoffLimit() int {
	if s.Spec.BackoffLimit == nil {
		if s.perIndex() {
			return math.MaxInt32
		}
		return 6
	}
	return int(*s.Spec.BackoffLimit)
}

// restartedTooOften counts the restarts within pods that restart their
// containers themselves.
func (s *jobStep) restartedTooOften() bool {
	if s.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	restarts := 0
	for i := range s.Pods {
		if p := &s.Pods[i]; !p.done() {
			restarts += p.Restarts
		}
	}
	return restarts >= max(1, s.backoffLimit())
}

func (s *jobStep) pastDeadline() bool {
	if s.Spec.ActiveDeadlineSeconds == nil || s.suspended() {
		return false
	}
	end := s.deadline()
	s.wakeAt(end)
	return !s.Now.Before(end)
}

// deadline is when the run must have ended; zero without one.
func (s *jobStep) deadline() time.Time {
	if s.Spec.ActiveDeadlineSeconds == nil {
		return time.Time{}
	}
	return s.run.Started.Add(time.Duration(*s.Spec.ActiveDeadlineSeconds) * time.Second)
}

// completion is the ordinary end: as many successes as wanted and nobody at
// work any more.
func (s *jobStep) completion() *Finish {
	wanted := s.completions()
	if wanted < 0 {
		wanted = 1
	}
	if s.run.Succeeded < wanted || len(s.active) > 0 {
		return nil
	}
	return &Finish{Complete: true, Reason: batchv1.JobReasonCompletionsReached, Message: "Reached expected number of succeeded pods"}
}

// windDown ends every pod of a run whose end is decided. When it failed, those
// still at work count as failed.
func (s *jobStep) windDown() {
	s.wake = time.Time{}
	for _, p := range s.active {
		if !s.run.Finish.Complete {
			s.countAborted(p)
		}
		s.remove(p, "the Job has ended: "+s.run.Finish.Reason)
	}
	if s.active = nil; s.terminating == 0 {
		s.run.Finish.At, s.run.ByIndex = s.Now, nil
	}
}

func (s *jobStep) countAborted(p *JobPod) {
	if s.indexed() && (p.Ordinal < 0 || p.Ordinal >= s.completions()) {
		return
	}
	if matchFailure(s.Spec.PodFailurePolicy, p).action != batchv1.PodFailurePolicyActionIgnore {
		s.run.Failed++
	}
}

// remove takes a pod away that then no longer counts.
func (s *jobStep) remove(p *JobPod, reason string) {
	s.counted = s.counted.With(int(p.Incarnation))
	s.steps.Removes = append(s.steps.Removes, Remove{UID: p.UID, Hash: s.run.Template, Reason: reason})
	s.terminating++
}

// expire ends what is left of a run that has ended, when its time is over.
func (s *jobStep) expire() {
	ttl := s.Spec.TTLSecondsAfterFinished
	if ttl != nil && !s.run.Expired {
		end := s.run.Finish.At.Add(time.Duration(*ttl) * time.Second)
		s.run.Expired = !s.Now.Before(end)
		s.wakeAt(end)
	}
	for i := range s.Pods {
		if p := &s.Pods[i]; !p.Leaving && (s.run.Expired || !p.done() && !s.counted.Has(int(p.Incarnation))) {
			s.steps.Removes = append(s.steps.Removes, Remove{UID: p.UID, Hash: s.run.Template, Reason: s.whyExpired()})
		}
	}
}

func (s *jobStep) whyExpired() string {
	if s.run.Expired {
		return "ttlSecondsAfterFinished is over"
	}
	return "the Job has ended: " + s.run.Finish.Reason
}

// ended is when a pod ended, as near as it is known.
func (p *JobPod) ended() time.Time {
	if p.Status == nil {
		return p.Created
	}
	var at time.Time
	for i := range p.Status.Containers {
		at = latest(at, p.Status.Containers[i].FinishedAt)
	}
	if at.IsZero() {
		at = latest(p.Status.ReadySince, p.Created)
	}
	return at
}
