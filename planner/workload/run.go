package workload

import (
	"maps"
	"math"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// Run is one execution of a Job, as far as it must be known for ever: its
// counts survive the pods that they count. It is a decision; its JSON is read
// by later versions.
type Run struct {
	// UID is that of the Job object as Kubernetes would see it: each run has its own.
	UID string `json:"uid"`
	// After is the newest incarnation of the workload when the run began: pods
	// up to it belong to earlier runs.
	After uint64 `json:"after,omitempty"`
	// Template is the hash of the run's pod template.
	Template string `json:"template,omitempty"`
	// Started is when the run began or was last resumed; zero while it is suspended.
	Started   time.Time `json:"started,omitzero"`
	Suspended bool      `json:"suspended,omitempty"`

	Succeeded int `json:"succeeded,omitempty"`
	Failed    int `json:"failed,omitempty"`
	// CompletedIndexes and FailedIndexes are those of an Indexed Job, as
	// Kubernetes writes them ("0,2-5").
	CompletedIndexes string `json:"completed_indexes,omitempty"`
	FailedIndexes    string `json:"failed_indexes,omitempty"`
	// Counted are the incarnations of the pods that no longer change these
	// numbers, in the same form. An incarnation is never used twice, so no pod
	// is ever counted twice.
	Counted string `json:"counted,omitempty"`

	// Failures since the last success, and when the last of them was, set the
	// delay before the next pod; ByIndex holds them apart where each index has
	// its own back-off limit.
	Failures    int                   `json:"failures,omitempty"`
	LastFailure time.Time             `json:"last_failure,omitzero"`
	ByIndex     map[int]IndexFailures `json:"by_index,omitempty"`

	// Finish is set once it is decided how the run ends, for good.
	Finish *Finish `json:"finish,omitempty"`
	// Expired is set when ttlSecondsAfterFinished is over: its pods are gone.
	Expired bool `json:"expired,omitempty"`
}

// IndexFailures are those of one index without a success yet.
type IndexFailures struct {
	// Counted against backoffLimitPerIndex, Ignored by the podFailurePolicy.
	Counted int       `json:"counted,omitempty"`
	Ignored int       `json:"ignored,omitempty"`
	Last    time.Time `json:"last"`
}

// Finish is how a run ends.
type Finish struct {
	// Complete tells success from failure.
	Complete bool `json:"complete,omitempty"`
	// Reason and Message are those of Kubernetes' condition Complete or Failed.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// At is when the last pod had stopped; zero until then.
	At time.Time `json:"at,omitzero"`
}

// Over reports whether the run has ended and its last pod has stopped.
func (r *Run) Over() bool { return r.Finish != nil && !r.Finish.At.IsZero() }

// Has reports whether a pod of this incarnation is counted.
func (r *Run) Has(incarnation uint64) bool { return r.counted().Has(int(incarnation)) }

// Newest is the greatest incarnation that the run knows of.
func (r *Run) Newest() uint64 { return max(r.After, uint64(max(0, r.counted().Max()))) }

func (r *Run) counted() Indexes { return ParseIndexes(r.Counted, math.MaxInt) }

func (r Run) clone() Run {
	r.ByIndex = maps.Clone(r.ByIndex)
	if r.Finish != nil {
		finish := *r.Finish
		r.Finish = &finish
	}
	return r
}

const (
	firstJobDelay = 10 * time.Second
	maxJobDelay   = 10 * time.Minute
)

// jobDelay is how long no pod is made after the last of some failures: ten
// seconds, doubled with each, ten minutes at most, as in Kubernetes' Job
// controller.
func jobDelay(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	delay := firstJobDelay
	for i := 1; i < failures && delay < maxJobDelay; i++ {
		delay *= 2
	}
	return min(delay, maxJobDelay)
}

// Rerun is the annotation of a Job that, set or changed, asks for another run
// of the same content.
const Rerun = "tallyman.dev/run"

// Identity is what makes a Job another one when it changes, besides its pod
// template: what Kubernetes does not let anyone change in a Job. All else
// (suspend, deadlines, limits) takes effect in the run that there is.
type Identity struct {
	Completions *int32 `json:"completions,omitempty"`
	// Parallelism may change; see Continues.
	Parallelism          int32                     `json:"parallelism"`
	CompletionMode       batchv1.CompletionMode    `json:"completion_mode,omitempty"`
	PodFailurePolicy     *batchv1.PodFailurePolicy `json:"pod_failure_policy,omitempty"`
	SuccessPolicy        *batchv1.SuccessPolicy    `json:"success_policy,omitempty"`
	BackoffLimitPerIndex *int32                    `json:"backoff_limit_per_index,omitempty"`
	// Rerun is the value of the annotation.
	Rerun string `json:"rerun,omitempty"`
}

// IdentityOf reads a Job.
func IdentityOf(j *batchv1.Job) Identity {
	i := Identity{
		Completions:          j.Spec.Completions,
		Parallelism:          valueOr(j.Spec.Parallelism, 1),
		CompletionMode:       batchv1.NonIndexedCompletion,
		PodFailurePolicy:     j.Spec.PodFailurePolicy,
		SuccessPolicy:        j.Spec.SuccessPolicy,
		BackoffLimitPerIndex: j.Spec.BackoffLimitPerIndex,
		Rerun:                j.Annotations[Rerun],
	}
	if indexed(&j.Spec) {
		i.CompletionMode = batchv1.IndexedCompletion
	}
	return i
}

// Continues reports whether a Job that has become this one is still the same
// run. The completions of an Indexed Job may change together with its parallelism.
func (i Identity) Continues(before Identity) bool {
	elastic := i.CompletionMode == batchv1.IndexedCompletion && i.Completions != nil && *i.Completions == i.Parallelism
	if elastic {
		before.Completions = i.Completions
	}
	before.Parallelism = i.Parallelism
	return equality.Semantic.DeepEqual(i, before)
}

func indexed(spec *batchv1.JobSpec) bool {
	return spec.CompletionMode != nil && *spec.CompletionMode == batchv1.IndexedCompletion && spec.Completions != nil
}
