package planner

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// cronJobs have no pods: they make Jobs, each a group with their object as its
// maker.
type cronJobs struct{ plain }

// cron is what a CronJob has come to. Immutable.
type cron struct {
	cronRecord
	// skipped is what was last said about a run that is not made.
	skipped string
	// active counts the Jobs that are at work.
	active int
}

// cronRecord is the decision about a CronJob.
type cronRecord struct {
	Key desired.Key `json:"key"`
	// Since is when the CronJob came into being or its schedule last changed.
	Since    time.Time `json:"since"`
	Schedule string    `json:"schedule"`
	TimeZone string    `json:"time_zone,omitempty"`
	// Last is the newest scheduled time that was made a Job, Succeeded when the
	// last of them completed.
	Last      time.Time `json:"last,omitzero"`
	Succeeded time.Time `json:"succeeded,omitzero"`
}

func (cronJobs) cronJob(o *desired.Object) *batchv1.CronJob { return o.Value.(*batchv1.CronJob) }

func (cronJobs) template(*desired.Object) (podTemplate, bool) { return podTemplate{}, false }

func (c cronJobs) reconcile(st *step, g *group) {
	spec := &c.cronJob(g.object).Spec
	st.settleSchedule(g, spec)
	rules, err := st.cronJob(g)
	if err != nil {
		return
	}
	steps, err := rules.Next()
	if err != nil {
		return
	}
	for _, r := range steps.Remove {
		st.discard(jobKey(g.key.Namespace, r.Name), r.Reason)
	}
	if steps.Skipped != g.cron.skipped {
		st.skip(g, steps.Skipped)
	}
	if !steps.Start.IsZero() {
		st.startRun(g, &steps)
	}
	st.keepCron(g)
}

func jobKey(namespace, name string) desired.Key {
	return desired.Key{Group: "batch", Kind: kindJob, Namespace: namespace, Name: name}
}

// settleSchedule notes when a schedule is new: nothing before it is missed.
func (st *step) settleSchedule(g *group, spec *batchv1.CronJobSpec) {
	zone := ""
	if spec.TimeZone != nil {
		zone = *spec.TimeZone
	}
	switch {
	case g.cron == nil:
		g.cron = &cron{cronRecord: cronRecord{Key: g.key, Since: g.created, Schedule: spec.Schedule, TimeZone: zone}}
	case g.cron.Schedule != spec.Schedule || g.cron.TimeZone != zone:
		clone := *g.cron
		clone.Since, clone.Schedule, clone.TimeZone = st.now, spec.Schedule, zone
		g.cron = &clone
	}
}

// location is that of a CronJob's time zone.
func (s *State) location(spec *batchv1.CronJobSpec) (*time.Location, error) {
	if spec.TimeZone == nil || s.config.Location == nil {
		return time.UTC, nil
	}
	return s.config.Location(*spec.TimeZone)
}

// cronJob is the rules of a group with the Jobs that are there.
func (st *step) cronJob(g *group) (*workload.CronJob, error) {
	spec := &cronJobs{}.cronJob(g.object).Spec
	location, err := st.location(spec)
	if err != nil {
		return nil, fmt.Errorf("UnknownTimeZone: %w", err)
	}
	r := &workload.CronJob{Now: st.now, Spec: spec, Name: g.key.Name, Location: location, Since: g.cron.Since, Last: g.cron.Last}
	for _, j := range st.madeBy(g.key) {
		c := workload.CronRun{Name: j.key.Name, Leaving: j.object == nil}
		if j.run != nil {
			c.Finish = j.run.Finish
		}
		r.Jobs = append(r.Jobs, c)
	}
	return r, nil
}

// madeBy are the groups that another made, the oldest schedule first.
func (s *State) madeBy(maker desired.Key) []*group {
	var out []*group
	names, _ := s.made.Get(maker)
	for _, name := range names {
		if g, ok := s.groups.Get(jobKey(maker.Namespace, name)); ok {
			out = append(out, g)
		}
	}
	return out
}

// startRun makes the Job of a scheduled time. A name that is taken means that
// the time was dealt with.
func (st *step) startRun(g *group, steps *workload.CronSteps) {
	clone := *g.cron
	clone.Last = steps.Start
	g.cron = &clone
	key := jobKey(g.key.Namespace, workload.JobName(g.key.Name, steps.Start))
	if _, taken := st.groups.Get(key); taken {
		return
	}
	if steps.Missed > 0 {
		st.event(g.key, true, "TooManyMissedTimes", fmt.Sprintf("about %d scheduled times were missed; only the newest is made up for. Set spec.startingDeadlineSeconds, or check the clock", steps.Missed))
	}
	made := st.groupFor(key)
	made.object = st.madeJob(g, key, steps.Start)
	st.setMaker(made, g.key)
	st.recordable(made)
	st.recordWorkload(made)
	st.event(g.key, false, "SuccessfulCreate", "Created job "+key.Name)
	st.act("start", key, "", "scheduled for "+steps.Start.UTC().Format(time.RFC3339))
}

// madeJob is the Job that a CronJob's template says.
func (st *step) madeJob(g *group, key desired.Key, at time.Time) *desired.Object {
	v := cronJobs{}.cronJob(g.object)
	location, err := st.location(&v.Spec)
	if err != nil {
		location = time.UTC
	}
	t := &v.Spec.JobTemplate
	j := &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: kindJob},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace, Name: key.Name, Labels: t.Labels,
			Annotations: with(t.Annotations, map[string]string{batchv1.CronJobScheduledTimestampAnnotation: at.In(location).Format(time.RFC3339)}),
		},
		Spec: *t.Spec.DeepCopy(),
	}
	return &desired.Object{Key: key, From: g.object.From, Value: j}
}

// adoptMade gives a restored group the object that it was made with.
func (st *step) adoptMade(g *group, r *jobRecord) {
	if g.object == nil && r.Made != nil {
		g.object = &desired.Object{Key: r.Key, From: r.From, Value: r.Made}
	}
	st.setMaker(g, r.Maker)
	st.groupFor(r.Maker)
}

func (st *step) setMaker(g *group, maker desired.Key) {
	g.maker = maker
	names, _ := st.made.Get(maker)
	if slices.Contains(names, g.key.Name) {
		return
	}
	names = append(slices.Clone(names), g.key.Name)
	// The names end in minutes: shorter ones are older.
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	st.made = st.made.Set(maker, names)
}

// unmake forgets that a group was made by another, which may now look again.
func (st *step) unmake(g *group) {
	if g.maker == (desired.Key{}) {
		return
	}
	names, _ := st.made.Get(g.maker)
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == g.key.Name })
	if len(names) == 0 {
		st.made = st.made.Delete(g.maker)
	} else {
		st.made = st.made.Set(g.maker, names)
	}
	st.dirtyGroups[g.maker] = true
	g.maker = desired.Key{}
}

// discard ends a Job that a CronJob made.
func (st *step) discard(k desired.Key, reason string) {
	g := st.edit(k)
	if g == nil || g.object == nil {
		return
	}
	for _, p := range slices.Clone(g.pods) {
		st.leave(p.UID, reason)
	}
	g.object = nil
	st.dirtyGroups[k], st.touched[k] = true, true
	if g.run != nil {
		st.recordJob(g)
	}
	st.act("stop", k, "", reason)
}

func (st *step) skip(g *group, why string) {
	clone := *g.cron
	clone.skipped = why
	g.cron = &clone
	if reason, message, ok := strings.Cut(why, ": "); ok {
		st.event(g.key, reason == "MissSchedule", reason, message)
	}
}

// keepCron records what is new about a CronJob.
func (st *step) keepCron(g *group) {
	r := g.cron.cronRecord
	active := 0
	for _, j := range st.madeBy(g.key) {
		if j.object != nil && (j.run == nil || !j.run.Over()) {
			active++
		}
		if j.run != nil && j.run.Over() && j.run.Finish.Complete && j.run.Finish.At.After(r.Succeeded) {
			r.Succeeded = j.run.Finish.At
		}
	}
	clone := *g.cron
	clone.cronRecord, clone.active = r, active
	g.cron = &clone
	if value := mustJSON(r); string(value) != string(g.recorded) {
		g.recorded = value
		st.decide(kindOfCronJob, keyText(g.key), value)
	}
}

func (st *step) restoreCron(r *cronRecord) {
	g := st.groupFor(r.Key)
	g.cron = &cron{cronRecord: *r}
	g.recorded = mustJSON(*r)
	st.recordable(g)
}

func (c cronJobs) assess(st *step, g *group) (v workload.Verdict, waits string) {
	v = workload.Verdict{Health: nodes.Healthy, Over: true}
	if g.cron == nil {
		return v, ""
	}
	rules, err := st.cronJob(g)
	var steps workload.CronSteps
	if err == nil {
		steps, err = rules.Next()
	}
	if err != nil {
		v.Health, v.Reason = nodes.Degraded, err.Error()
		return v, ""
	}
	v.Wake = steps.Next
	v.Reason = g.cron.text(&steps)
	if failed := lastFailed(st.madeBy(g.key)); failed != nil {
		v.Health = nodes.Degraded
		v.Reason = fmt.Sprintf("Job %s failed: %s; %s", failed.key.Name, failed.run.Finish.Reason, v.Reason)
	}
	if s := c.cronJob(g.object).Spec.Suspend; s != nil && *s {
		v.Health, v.Reason = nodes.Suspended, "suspended; "+v.Reason
	}
	return v, ""
}

// lastFailed is the newest Job that ended, if it failed.
func lastFailed(made []*group) *group {
	for _, g := range slices.Backward(made) {
		if g.run != nil && g.run.Over() && g.object != nil {
			if g.run.Finish.Complete {
				return nil
			}
			return g
		}
	}
	return nil
}

// text says when the schedule last and next comes round.
func (c *cron) text(steps *workload.CronSteps) string {
	parts := []string{"no run yet"}
	if !c.Last.IsZero() {
		parts[0] = "last run " + c.Last.UTC().Format(time.RFC3339)
	}
	if !steps.Next.IsZero() {
		parts = append(parts, "next "+steps.Next.UTC().Format(time.RFC3339))
	}
	if c.skipped != "" {
		parts = append(parts, c.skipped)
	}
	return strings.Join(parts, ", ")
}

func (c cronJobs) summary(o *desired.Object) string {
	spec := &c.cronJob(o).Spec
	return scheduleText(spec) + ", image " + images(&spec.JobTemplate.Spec.Template.Spec)
}

func scheduleText(spec *batchv1.CronJobSpec) string {
	text := fmt.Sprintf("schedule %q", spec.Schedule)
	if spec.TimeZone != nil {
		text += " in " + *spec.TimeZone
	}
	if spec.Suspend != nil && *spec.Suspend {
		text += ", suspended"
	}
	return text
}

func (c cronJobs) change(was, is *desired.Object) (Op, string) {
	old, new := &c.cronJob(was).Spec, &c.cronJob(is).Spec
	var parts []string
	if before, after := scheduleText(old), scheduleText(new); before != after {
		parts = append(parts, before+" → "+after)
	}
	if change := templateChange(&old.JobTemplate.Spec.Template, &new.JobTemplate.Spec.Template); change != "" {
		parts = append(parts, "from the next run on: "+change)
	}
	if len(parts) == 0 {
		return Update, "no run is touched"
	}
	return Update, strings.Join(parts, "; ")
}

func (g *group) cronOverview() *nodes.CronJobOverview {
	if g.cron == nil || g.object == nil {
		return nil
	}
	spec := &cronJobs{}.cronJob(g.object).Spec
	return &nodes.CronJobOverview{
		Schedule: g.cron.Schedule, TimeZone: g.cron.TimeZone, Suspended: spec.Suspend != nil && *spec.Suspend,
		Active: g.cron.active, Last: g.cron.Last, Next: g.verdict.Wake, Succeeded: g.cron.Succeeded,
	}
}
