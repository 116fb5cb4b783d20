package planner

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// jobs run to their end, once for each content: a Job that has ended stays
// ended, and one that changes is another run.
type jobs struct{ plain }

// run is what a Job has come to, with what makes it that run and no other.
// Immutable.
type run struct {
	workload.Run
	identity workload.Identity
}

func (jobs) job(o *desired.Object) *batchv1.Job { return o.Value.(*batchv1.Job) }

func (j jobs) template(o *desired.Object) (podTemplate, bool) {
	v := j.job(o)
	t := templateOf(&v.Spec.Template, nil)
	// A Job reads its configuration once: what changes later is for the next.
	t.steady = true
	if !manualSelector(v) {
		t.labels = with(t.labels, map[string]string{batchv1.JobNameLabel: v.Name, "job-name": v.Name})
	}
	if indexedJob(v) {
		t.spec = withIndexVariable(t.spec)
	}
	return t, true
}

func manualSelector(v *batchv1.Job) bool {
	return v.Spec.ManualSelector != nil && *v.Spec.ManualSelector
}

func indexedJob(v *batchv1.Job) bool {
	return v.Spec.CompletionMode != nil && *v.Spec.CompletionMode == batchv1.IndexedCompletion
}

func with(labels, more map[string]string) map[string]string {
	all := map[string]string{}
	maps.Copy(all, labels)
	maps.Copy(all, more)
	return all
}

// indexVariable tells the containers of an Indexed Job their index.
const indexVariable = "JOB_COMPLETION_INDEX"

// withIndexVariable gives it to all containers that have none by that name.
func withIndexVariable(spec *corev1.PodSpec) *corev1.PodSpec {
	spec = spec.DeepCopy()
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			c := &list[i]
			if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == indexVariable }) {
				continue
			}
			c.Env = append(c.Env, corev1.EnvVar{Name: indexVariable, ValueFrom: &corev1.EnvVarSource{
				FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"},
			}})
		}
	}
	return spec
}

func (j jobs) identify(g *group, p *nodes.Pod) {
	v := j.job(g.object)
	if !manualSelector(v) {
		p.Labels = map[string]string{batchv1.ControllerUidLabel: g.run.UID, "controller-uid": g.run.UID}
	}
	if p.Ordinal == workload.NoOrdinal {
		return
	}
	index := strconv.Itoa(p.Ordinal)
	p.Hostname = g.key.Name + "-" + index
	p.Labels = with(p.Labels, map[string]string{batchv1.JobCompletionIndexAnnotation: index})
	p.Annotations = map[string]string{batchv1.JobCompletionIndexAnnotation: index}
	if v.Spec.BackoffLimitPerIndex == nil {
		return
	}
	failures := g.run.ByIndex[p.Ordinal]
	p.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(failures.Counted)
	if failures.Ignored > 0 {
		p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(failures.Ignored)
	}
}

func (j jobs) reconcile(st *step, g *group) {
	if g.current == nil {
		return
	}
	identity := workload.IdentityOf(j.job(g.object))
	if !g.begun() {
		st.newRun(g, identity)
	}
	rules := st.job(g)
	next, steps := rules.Next()
	for _, p := range slices.Clone(g.pods) {
		if p.Incarnation <= next.After {
			st.leave(p.UID, "the Job has changed: this is its next run")
		}
	}
	st.keepRun(g, &run{Run: next, identity: identity})
	st.carryOut(g, steps)
	if next.Expired && g.maker != (desired.Key{}) {
		st.discard(g.key, "ttlSecondsAfterFinished is over")
	}
}

// begun reports whether a Job's run is the one that Git asks for: that of a
// changed Job waits until its node answers.
func (g *group) begun() bool {
	return g.run != nil && (g.current == nil || g.run.Template == g.current.hash) &&
		workload.IdentityOf(jobs{}.job(g.object)).Continues(g.run.identity)
}

// newRun begins a run. The first of a group takes over the pods that are there:
// they are its own, and nobody knew the rest.
func (st *step) newRun(g *group, identity workload.Identity) {
	r := workload.Run{Template: g.current.hash}
	if g.run != nil {
		r.After = g.counter
		st.event(g.key, false, "Replaced", "the Job has changed: a new run begins")
	}
	r.UID = uuid(digest(st.config.SecretKey, "run", g.uid, fmt.Sprint(r.After)))
	g.run = &run{Run: r, identity: identity}
}

// keepRun records a run that differs from the recorded one, and tells of its end.
func (st *step) keepRun(g *group, r *run) {
	over := !g.run.Over() && r.Over()
	g.run = r
	st.recordJob(g)
	if !over {
		return
	}
	if r.Finish.Complete {
		st.event(g.key, false, "Completed", "Job completed")
	} else {
		st.event(g.key, true, r.Finish.Reason, r.Finish.Message)
	}
	if g.maker != (desired.Key{}) {
		st.dirtyGroups[g.maker] = true
	}
}

// job is the rules of a group's run with what is there of it.
func (st *step) job(g *group) *workload.Job {
	r := &workload.Job{Now: st.now, Spec: &jobs{}.job(g.object).Spec, Run: g.run.Run}
	for _, p := range g.pods {
		switch {
		case p.Incarnation > r.Run.After:
			view := workload.JobPod{Pod: st.viewOf(p), Status: p.status}
			if p.lost == certain && !p.done() {
				view.Phase = corev1.PodFailed // as Kubernetes' collector of lost pods has it
			}
			r.Pods = append(r.Pods, view)
		case !p.done() && p.lost == "":
			r.Earlier++
		}
	}
	return r
}

func (j jobs) assess(st *step, g *group) (v workload.Verdict, waits string) {
	if !g.begun() {
		return workload.Verdict{Health: nodes.Progressing, Reason: "not started yet"}, ""
	}
	v = st.job(g).Verdict()
	// Nobody waits for what a schedule started.
	v.Over = v.Over || g.maker != (desired.Key{})
	return v, ""
}

func (j jobs) summary(o *desired.Object) string {
	return jobSummary(&j.job(o).Spec)
}

func jobSummary(spec *batchv1.JobSpec) string {
	text := count(int(replicas(spec.Parallelism)), "pod") + " at a time"
	if spec.Completions != nil {
		text = count(int(*spec.Completions), "completion") + ", " + text
	}
	if spec.Suspend != nil && *spec.Suspend {
		text += ", suspended"
	}
	return text + ", image " + images(&spec.Template.Spec)
}

// change: what identifies a run begins another; all else changes the run that
// there is, or nothing when it has ended.
func (j jobs) change(was, is *desired.Object) (Op, string) {
	old, new := j.job(was), j.job(is)
	template := templateChange(&old.Spec.Template, &new.Spec.Template)
	if template != "" {
		return Replace, "a new run, the pods of the one before go: " + template
	}
	before, after := workload.IdentityOf(old), workload.IdentityOf(new)
	switch {
	case before.Rerun != after.Rerun:
		return Replace, "a new run, asked for by the annotation " + workload.Rerun
	case !after.Continues(before):
		return Replace, "a new run: what it has to complete has changed"
	}
	return Update, "the same run: it does not start again"
}

// jobRecord is a Job's run; for a Job that a CronJob made, the Job besides,
// for Git does not have it: without it, such a Job is on its way out.
type jobRecord struct {
	Key      desired.Key       `json:"key"`
	Run      workload.Run      `json:"run"`
	Identity workload.Identity `json:"identity"`
	Maker    desired.Key       `json:"maker,omitzero"`
	Made     *batchv1.Job      `json:"made,omitempty"`
	From     desired.Place     `json:"from,omitzero"`
}

// recordJob decides only what differs from what was decided last.
func (st *step) recordJob(g *group) {
	r := jobRecord{Key: g.key, Run: g.run.Run, Identity: g.run.identity, Maker: g.maker}
	if g.maker != (desired.Key{}) && g.object != nil {
		r.Made, r.From = jobs{}.job(g.object), g.object.From
	}
	if value := mustJSON(r); !bytes.Equal(value, g.recorded) {
		g.recorded = value
		st.decide(kindOfJob, keyText(g.key), value)
	}
}

func (st *step) restoreJob(r *jobRecord) {
	g := st.groupFor(r.Key)
	g.run = &run{Run: r.Run, identity: r.Identity}
	g.recorded = mustJSON(*r)
	g.counter = max(g.counter, r.Run.Newest())
	if r.Maker != (desired.Key{}) {
		st.adoptMade(g, r)
	}
	st.recordable(g)
}

// counted reports whether a pod is one of a Job's run that no longer counts:
// it is never to run again, even when its node has lost all trace of it.
func (st *step) counted(uid nodes.UID) bool {
	g, p := st.pod(uid)
	return p != nil && g.run != nil && g.run.Has(p.Incarnation)
}

func (g *group) jobOverview() *nodes.JobOverview {
	if g.run == nil || g.object == nil {
		return nil
	}
	spec := &jobs{}.job(g.object).Spec
	if !g.begun() {
		return &nodes.JobOverview{Completions: int(valueOr(spec.Completions, 0))}
	}
	o := &nodes.JobOverview{
		Completions: int(valueOr(spec.Completions, 0)),
		Succeeded:   g.run.Succeeded, Failed: g.run.Failed, Started: g.run.Started,
		CompletedIndexes: g.run.CompletedIndexes, FailedIndexes: g.run.FailedIndexes,
	}
	for _, p := range g.pods {
		if p.Incarnation > g.run.After && p.leaving == "" && p.Stop == nil && !p.done() && !g.run.Has(p.Incarnation) {
			o.Active++
		}
	}
	if g.run.Over() {
		o.Condition, o.Reason, o.Finished = string(batchv1.JobFailed), g.run.Finish.Reason, g.run.Finish.At
		if g.run.Finish.Complete {
			o.Condition = string(batchv1.JobComplete)
		}
	}
	return o
}
