package sim

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	kindCronJob = "CronJob"
	// cronName begins the names of CronJobs, and of no other workload.
	cronName = "cron-"
)

// schedule is what a CronJob has beside its pods.
type schedule struct {
	// every so many minutes, from the beginning of the hour.
	every     int
	suspended bool
	policy    batchv1.ConcurrencyPolicy
	// deadline in seconds; 0 for none.
	deadline int
	// successes and failures are how many ended Jobs are kept.
	successes, failures int
}

func (w *workload) period() time.Duration { return time.Duration(w.every) * time.Minute }

func (x *extras) drawSchedule() schedule {
	return schedule{
		every: pick(x.rng, 1, 1, 2), suspended: x.rng.IntN(5) == 0,
		policy:   pick(x.rng, batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent),
		deadline: pick(x.rng, 0, 0, 20), successes: x.rng.IntN(4), failures: x.rng.IntN(2),
	}
}

// changeSchedule adds a CronJob or changes one, and says what.
func (x *extras) changeSchedule(w *world, i *intent) string {
	k := desired.Key{Group: "batch", Kind: kindCronJob, Namespace: pick(x.rng, w.namespaces()...), Name: fmt.Sprintf(cronName+"%d", x.rng.IntN(2))}
	v, found := i.workloads[k]
	if !found {
		v = workload{replicas: 1, completions: 1, image: images[0], grace: pick(x.rng, int64(1), 5, 30)}
	}
	v.schedule = x.drawSchedule()
	i.namespaces["shop"] = true
	i.workloads[k] = v
	return fmt.Sprintf("schedule of %s: %+v", k, v.schedule)
}

func cronJobObject(meta metav1.ObjectMeta, w *workload) *batchv1.CronJob {
	successes, failures := int32(w.successes), int32(w.failures)
	c := &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{
		Schedule: "*/" + strconv.Itoa(w.every) + " * * * *", Suspend: &w.suspended, ConcurrencyPolicy: w.policy,
		SuccessfulJobsHistoryLimit: &successes, FailedJobsHistoryLimit: &failures,
		JobTemplate: batchv1.JobTemplateSpec{Spec: jobObject(meta, w).Spec},
	}}
	if w.deadline > 0 {
		c.Spec.StartingDeadlineSeconds = new(int64)
		*c.Spec.StartingDeadlineSeconds = int64(w.deadline)
	}
	return c
}

// cronOf is the CronJob that a Job is named after.
func cronOf(job desired.Key) desired.Key {
	i := max(0, strings.LastIndexByte(job.Name, '-'))
	return desired.Key{Group: "batch", Kind: kindCronJob, Namespace: job.Namespace, Name: job.Name[:i]}
}

// scheduledFor is the time that stands in the name of a CronJob's Job.
func scheduledFor(job desired.Key) (time.Time, error) {
	minutes, err := strconv.ParseInt(job.Name[strings.LastIndexByte(job.Name, '-')+1:], 10, 64)
	return time.Unix(60*minutes, 0), err
}

// cron is what the witness knows of a CronJob in force.
type cron struct {
	every int
	// since is when the schedule came into force, awake when it was last not suspended.
	since, awake time.Time
	// made are the Jobs that it ever made.
	made map[desired.Key]bool
}

// settle notes since when schedules hold.
func (s *step) settle() {
	for k, w := range s.intent.workloads {
		if k.Kind != kindCronJob {
			continue
		}
		c := s.crons[k]
		if c == nil {
			c = &cron{made: map[desired.Key]bool{}}
			s.crons[k] = c
		}
		if c.every != w.every {
			c.every, c.since = w.every, s.now
		}
		switch {
		case w.suspended:
			c.awake = time.Time{}
		case c.awake.IsZero():
			c.awake = s.now
		}
	}
	maps.DeleteFunc(s.crons, func(k desired.Key, _ *cron) bool { _, found := s.intent.workloads[k]; return !found })
}

// schedulesMakeJobs: invariants 1 and 9. A CronJob makes the Job of each
// scheduled time once, in time, and as its policy says.
func schedulesMakeJobs(s *step) error {
	if s.intent == nil {
		return nil
	}
	s.settle()
	for job, maker := range s.after.makers {
		if _, known := s.before.makers[job]; known || s.after.jobs[job] == nil {
			continue
		}
		if err := s.mayStart(job, maker); err != nil {
			return err
		}
		s.crons[maker].made[job] = true
	}
	return nil
}

func (s *step) mayStart(job, maker desired.Key) error {
	w, wanted := s.intent.workloads[maker]
	at, err := scheduledFor(job)
	switch {
	case err != nil || cronOf(job) != maker:
		return violated(1, "%s makes a Job called %s", maker, job.Name)
	case !wanted:
		return violated(1, "%s runs for %s, which is not in Git", job, maker)
	case w.suspended:
		return violated(1, "%s runs, and %s is suspended", job, maker)
	case at.After(s.now) || !at.Add(w.period()).After(s.now) || at.Unix()%int64(w.period().Seconds()) != 0 || at.Before(s.crons[maker].since):
		return violated(1, "%s runs for %v at %v, the schedule of %s is every %v since %v", job, at, s.now, maker, w.period(), s.crons[maker].since)
	case w.deadline > 0 && s.now.Sub(at) > time.Duration(w.deadline)*time.Second:
		return violated(1, "%s starts %v late, %s allows %d s", job, s.now.Sub(at), maker, w.deadline)
	case s.crons[maker].made[job]:
		return violated(9, "%s runs for the second time", job)
	}
	for other, j := range s.after.jobs {
		if w.policy != batchv1.AllowConcurrent && other != job && s.after.makers[other] == maker && j.Condition == "" {
			return violated(9, "%s runs beside %s, and %s has the policy %s", job, other, maker, w.policy)
		}
	}
	return nil
}

// discarded reports whether the end of a Job was decided by its CronJob.
func (s *step) discarded(job desired.Key) bool {
	return s.maker(job) != desired.Key{} && s.after.jobs[job] == nil
}

// maker is the CronJob that made a Job; zero for none.
func (s *step) maker(job desired.Key) desired.Key {
	if k, found := s.after.makers[job]; found {
		return k
	}
	return s.before.makers[job]
}

// schedulesAreKept: invariant 2. What is due has been done, when nothing kept
// the server from it.
func (w *world) schedulesAreKept() error {
	x := w.witness
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now()
	for k, c := range x.crons {
		v := x.force.intent.workloads[k]
		due := now.Add(-2 * time.Second).Truncate(v.period())
		seen := x.last.crons[k]
		switch {
		case c.awake.IsZero() || due.Before(c.awake) || !due.After(c.since) || due.Before(w.disturbed().Add(settled)) || due.Before(x.known.Add(settled)):
		case seen == nil:
			return violated(2, "nobody looks after %s", k)
		case v.policy == batchv1.ForbidConcurrent && (v.deadline > 0 || seen.Active > 0):
			// The run before may have been at work for as long as this one could begin.
		case seen.Last.Before(due):
			return violated(2, "%s did not run at %v; it last ran at %v", k, due, seen.Last)
		}
	}
	return nil
}

// quieten lets schedules come round a few times more, then suspends them: a
// cluster with work to do is never at rest.
func (w *world) quieten() error {
	if !w.extras.schedules {
		return nil
	}
	for range 9 {
		time.Sleep(20 * time.Second)
		if err := w.checkNow(); err != nil {
			return err
		}
	}
	i := w.repo.head().intent.clone()
	for k, v := range i.workloads {
		if k.Kind == kindCronJob {
			v.suspended = true
			i.workloads[k] = v
		}
	}
	w.pushConfirmed(i, "suspend")
	return nil
}

// historyAgrees looks at the Jobs that CronJobs keep.
func (w *world) historyAgrees(i *intent, o *nodes.Overview) error {
	ended := map[desired.Key]map[string]int{}
	for _, h := range o.Objects {
		if h.Owner.Kind != kindCronJob || h.Job == nil {
			continue
		}
		if _, wanted := i.workloads[h.Owner]; !wanted {
			return violated(2, "%s is there, and Git does not have %s", h.Key, h.Owner)
		}
		if ended[h.Owner] == nil {
			ended[h.Owner] = map[string]int{}
		}
		ended[h.Owner][h.Job.Condition]++
	}
	for _, k := range slices.SortedFunc(maps.Keys(ended), desired.Key.Compare) {
		v, n := i.workloads[k], ended[k]
		if n[string(batchv1.JobComplete)] > v.successes || n[string(batchv1.JobFailed)] > v.failures || n[""] > 0 {
			return violated(2, "%s keeps the Jobs %v; limits are %d and %d", k, n, v.successes, v.failures)
		}
	}
	return nil
}
