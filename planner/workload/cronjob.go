package workload

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// manyMissed is how many missed runs are worth a warning, as in Kubernetes.
const manyMissed = 100

// CronJob is a schedule with what became of it. The rules are those of
// Kubernetes' CronJob controller.
type CronJob struct {
	Now  time.Time
	Spec *batchv1.CronJobSpec
	Name string
	// Location is that of spec.timeZone, UTC where it says nothing.
	Location *time.Location
	// Since is when the CronJob came into being or its schedule last changed:
	// nothing from before it is missed.
	Since time.Time
	// Last is the newest scheduled time that became a Job; zero for none.
	Last time.Time
	// Jobs that it made and that are still there, the oldest first.
	Jobs []CronRun
}

// CronRun is one Job of a CronJob.
type CronRun struct {
	Name string
	// Finish is nil while the Job is at work.
	Finish *Finish
	// Leaving Jobs are already on their way out.
	Leaving bool
}

// CronSteps are what a CronJob does now.
type CronSteps struct {
	// Start is the scheduled time of the Job to make now; zero for none.
	Start time.Time
	// Remove names Jobs that are to go, with Reason each.
	Remove []CronRemove
	// Missed warns that more runs were missed than a schedule should.
	Missed int
	// Skipped says why a run that is due is not made; empty when none is.
	Skipped string
	// Next is when the schedule comes round again; zero for never.
	Next time.Time
}

// CronRemove is one Job that is to go.
type CronRemove struct{ Name, Reason string }

// Schedule reads a schedule as Kubernetes does: five fields, names for months
// and days, "@daily" and the like, "@every 90m". A time zone belongs into
// spec.timeZone.
func Schedule(text string, in *time.Location) (cron.Schedule, error) {
	if strings.Contains(text, "TZ") {
		return nil, errors.New("schedule names a time zone: write it into spec.timeZone")
	}
	if in == nil {
		in = time.UTC
	}
	s, err := cron.ParseStandard(text)
	if err != nil {
		return nil, fmt.Errorf("schedule %q: %w", text, err)
	}
	if spec, ok := s.(*cron.SpecSchedule); ok {
		spec.Location = in
	}
	return s, nil
}

// JobName is that of the Job for a scheduled time: the same time never makes
// two.
func JobName(cronJob string, scheduled time.Time) string {
	return cronJob + "-" + strconv.FormatInt(scheduled.Unix()/60, 10)
}

// Next says what to do now and when to look again. Location must belong to the
// schedule; an error means that the schedule can't be kept.
func (c *CronJob) Next() (CronSteps, error) {
	steps := CronSteps{Remove: c.history()}
	schedule, err := Schedule(c.Spec.Schedule, c.Location)
	if err != nil {
		return steps, err
	}
	if c.Spec.Suspend != nil && *c.Spec.Suspend {
		return steps, nil
	}
	due, missed, err := c.due(schedule, c.earliest(schedule))
	if err != nil {
		return steps, err
	}
	if steps.Next, err = c.next(schedule); err != nil {
		return steps, err
	}
	switch {
	case due.IsZero():
	case c.tooLate(due):
		steps.Skipped = "MissSchedule: the run of " + due.UTC().Format(time.RFC3339) + " could not start within startingDeadlineSeconds"
	case c.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && c.atWork() > 0:
		steps.Skipped = "JobAlreadyActive: the run before is still at work and concurrencyPolicy is Forbid"
	default:
		steps.Start = due
		if missed > manyMissed {
			steps.Missed = missed
		}
		steps.Remove = append(steps.Remove, c.replaced(due)...)
	}
	return steps, nil
}

// earliest is the instant after which a scheduled time counts. An interval
// counts from the run before, so the deadline must not move its beginning
// (Kubernetes does, and never starts one whose deadline is shorter).
func (c *CronJob) earliest(schedule cron.Schedule) time.Time {
	from := latest(c.Since, c.Last)
	_, interval := schedule.(cron.ConstantDelaySchedule)
	if d := c.Spec.StartingDeadlineSeconds; d != nil && !interval {
		from = latest(from, c.Now.Add(-time.Duration(*d)*time.Second))
	}
	return from
}

// next is when the schedule comes round again. An interval ("@every") counts
// from the last time that it did, kept or missed.
func (c *CronJob) next(schedule cron.Schedule) (time.Time, error) {
	from := latest(c.Since, c.Last)
	at, missed, err := c.due(schedule, from)
	switch {
	case !at.IsZero():
		from = at
	case missed > 0:
		from = c.Now
	}
	return schedule.Next(from), err
}

// due is the newest scheduled time after an instant that has come, zero when
// there is none, with an estimate of how many came.
func (c *CronJob) due(schedule cron.Schedule, from time.Time) (at time.Time, missed int, err error) {
	first := schedule.Next(from)
	if first.IsZero() {
		return time.Time{}, 0, errors.New("the schedule never comes round")
	}
	if c.Now.Before(first) {
		return time.Time{}, 0, nil
	}
	second := schedule.Next(first)
	if second.IsZero() || c.Now.Before(second) {
		return first, 1, nil
	}
	// As Kubernetes: the distance of the first two tells about how many fit in
	// between, so that a long absence costs no walk through all of them.
	step := second.Sub(first).Round(time.Second)
	missed = int(c.Now.Sub(first)/step) + 1
	at, _ = c.newest(schedule, first.Add(time.Duration(missed-2)*step))
	// Where the times are not evenly spread ("0 9,10 * * *") none may have come
	// since. Kubernetes then loses the run; here it is looked for further back.
	for reach := 2 * step; at.IsZero(); reach *= 2 {
		at, missed = c.newest(schedule, latest(from, c.Now.Add(-reach)))
	}
	return at, missed, nil
}

// newest is the last scheduled time after an instant that has come, zero when
// none has, and how many have.
func (c *CronJob) newest(schedule cron.Schedule, after time.Time) (at time.Time, n int) {
	for t := schedule.Next(after); !t.IsZero() && !t.After(c.Now); t = schedule.Next(t) {
		at = t
		n++
	}
	return at, n
}

func (c *CronJob) tooLate(due time.Time) bool {
	d := c.Spec.StartingDeadlineSeconds
	return d != nil && due.Add(time.Duration(*d)*time.Second).Before(c.Now)
}

func (c *CronJob) atWork() int {
	n := 0
	for _, j := range c.Jobs {
		if j.Finish == nil && !j.Leaving {
			n++
		}
	}
	return n
}

// replaced are the Jobs that the new one takes the place of.
func (c *CronJob) replaced(due time.Time) []CronRemove {
	if c.Spec.ConcurrencyPolicy != batchv1.ReplaceConcurrent {
		return nil
	}
	var out []CronRemove
	for _, j := range c.Jobs {
		if j.Finish == nil && !j.Leaving && j.Name != JobName(c.Name, due) {
			out = append(out, CronRemove{j.Name, "the next run is due and concurrencyPolicy is Replace"})
		}
	}
	return out
}

// history are the ended Jobs beyond the limits, the oldest first.
func (c *CronJob) history() []CronRemove {
	return append(
		c.beyond(true, c.Spec.SuccessfulJobsHistoryLimit, "successfulJobsHistoryLimit"),
		c.beyond(false, c.Spec.FailedJobsHistoryLimit, "failedJobsHistoryLimit")...,
	)
}

func (c *CronJob) beyond(complete bool, limit *int32, field string) []CronRemove {
	if limit == nil {
		return nil
	}
	var ended []string
	for _, j := range c.Jobs {
		if j.Finish != nil && !j.Finish.At.IsZero() && j.Finish.Complete == complete && !j.Leaving {
			ended = append(ended, j.Name)
		}
	}
	var out []CronRemove
	for _, name := range ended[:max(0, len(ended)-int(*limit))] {
		out = append(out, CronRemove{name, fmt.Sprintf("%s is %d", field, *limit)})
	}
	return out
}
