package planner

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
)

func cronJob(name, schedule string, with ...func(*batchv1.CronJob)) *batchv1.CronJob {
	c := &batchv1.CronJob{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "CronJob"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: batchv1.CronJobSpec{
			Schedule: schedule, ConcurrencyPolicy: batchv1.AllowConcurrent,
			SuccessfulJobsHistoryLimit: new(int32(2)), FailedJobsHistoryLimit: new(int32(1)),
			JobTemplate: batchv1.JobTemplateSpec{Spec: job("", 1, 1).Spec},
		},
	}
	for _, f := range with {
		f(c)
	}
	return c
}

// made are the Jobs of the cluster that Git does not have, with their verdicts.
func (w *world) made() map[string]string {
	out := map[string]string{}
	for k, g := range entries(w.s.groups) {
		if g.maker.Name != "" {
			out[k.Name] = string(g.verdict.Health)
		}
	}
	return out
}

func (w *world) at(clock string) *Plan {
	w.t.Helper()
	t, err := time.Parse("2006-01-02 15:04:05", "2026-01-01 "+clock)
	if err != nil {
		w.t.Fatalf("%v", err)
	}
	w.now = t
	return w.next(Change{})
}

func runName(name, clock string) string {
	t, _ := time.Parse("2006-01-02 15:04:05", "2026-01-01 "+clock)
	return fmt.Sprintf("%s-%d", name, t.Unix()/60)
}

func TestCronJobRuns(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(cronJob("backup", "*/10 * * * *"), configMap("other", nil))
	w.goners()
	if !w.last.Wake.Equal(epoch.Add(10*time.Minute)) || len(w.made()) != 0 {
		t.Fatalf("wakes at %s", w.last.Wake)
	}
	if converged, _ := w.s.Settled(); !converged {
		t.Fatal("a CronJob is not waited for")
	}
	ten := runName("backup", "12:10:00")
	w.at("12:10:00")
	pods := w.working(ten)
	if len(pods) != 1 || pods[0].Owner != jobKey("default", ten) {
		t.Fatalf("%v, %v", w.made(), pods)
	}
	if converged, _ := w.s.Settled(); !converged || len(w.last.Waiting) > 0 {
		t.Fatal("what a schedule starts is waited for")
	}
	if again := w.next(Change{}); len(again.Actions)+len(again.Decisions) > 0 {
		t.Fatalf("twice: %+v", again.Actions)
	}
	w.restart(true)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	w.restart(false)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	if got := w.working(ten); len(got) != 1 || got[0].UID != pods[0].UID {
		t.Fatalf("the run is lost with the record: %v", w.made())
	}
	w.end(w.working(ten)[0], 0)
	for _, clock := range []string{"12:20:00", "12:30:00"} {
		w.at(clock)
		w.end(w.working(runName("backup", clock))[0], 0)
	}
	w.goners()
	if diff := cmp.Diff([]string{runName("backup", "12:20:00"), runName("backup", "12:30:00")}, slices.Sorted(maps.Keys(w.made()))); diff != "" {
		t.Error(diff)
	}
	if v := w.verdict("backup"); v.Health != nodes.Healthy || v.Reason != "last run 2026-01-01T12:30:00Z, next 2026-01-01T12:40:00Z" {
		t.Errorf("%+v", v)
	}
	w.at("12:40:00")
	for range 3 {
		w.end(w.working(runName("backup", "12:40:00"))[0], 1)
		w.now = w.now.Add(time.Minute)
		w.next(Change{})
	}
	if converged, failed := w.s.Settled(); !converged || w.verdict("backup").Health != nodes.Degraded {
		t.Errorf("%q, %+v", failed, w.verdict("backup"))
	}
	if p := w.push(configMap("other", nil)); p.Difference[0].Reason != "no longer in Git, 3 Jobs of its go with it" {
		t.Errorf("%+v", p.Difference)
	}
	w.goners()
	w.settle()
	if len(w.made()) > 0 || len(w.machines["n1"].held) > 0 {
		t.Errorf("its Jobs stay: %v", w.made())
	}
	for id := range w.record {
		if id.kind == kindOfJob || id.kind == kindOfCronJob {
			t.Errorf("%s %s stays in the record", id.kind, id.key)
		}
	}
}

func TestCronJobAfterDowntime(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(cronJob("hourly", "0 * * * *"))
	w.at("13:00:00")
	w.end(w.working(runName("hourly", "13:00:00"))[0], 0)
	w.now = w.now.Add(150 * time.Minute)
	w.restart(true)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	if len(w.working(runName("hourly", "15:00:00"))) != 1 || len(w.made()) != 2 {
		t.Errorf("%v", w.made())
	}
	w.push(cronJob("hourly", "*/5 * * * *"))
	if w.at("15:30:30"); len(w.made()) != 2 {
		t.Errorf("a changed schedule makes up for what it never said: %v", w.made())
	}
}

func TestCronJobConcurrency(t *testing.T) {
	with := func(p batchv1.ConcurrencyPolicy) func(*batchv1.CronJob) {
		return func(c *batchv1.CronJob) { c.Spec.ConcurrencyPolicy = p }
	}
	w := newWorld(t, "n1")
	w.push(cronJob("forbid", "*/10 * * * *", with(batchv1.ForbidConcurrent)), cronJob("replace", "*/10 * * * *", with(batchv1.ReplaceConcurrent)))
	w.at("12:10:00")
	w.at("12:20:00")
	if len(w.working(runName("forbid", "12:10:00"))) != 1 || len(w.working(runName("forbid", "12:20:00"))) != 0 {
		t.Errorf("forbid: %v", w.made())
	}
	if len(w.working(runName("replace", "12:10:00"))) != 0 || len(w.working(runName("replace", "12:20:00"))) != 1 {
		t.Errorf("replace: %v", w.made())
	}
	w.restart(true)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	w.goners()
	if _, back := w.made()[runName("replace", "12:10:00")]; back {
		t.Error("the replaced Job is back after a restart")
	}
	w.end(w.working(runName("forbid", "12:10:00"))[0], 0)
	if len(w.working(runName("forbid", "12:20:00"))) != 1 {
		t.Errorf("forbid does not make up for the run in between: %v", w.made())
	}
}

func TestCronJobSuspendZoneAndTTL(t *testing.T) {
	w := newWorld(t, "n1")
	berlin := func(c *batchv1.CronJob) { c.Spec.TimeZone = new("Europe/Berlin") }
	brief := func(c *batchv1.CronJob) { c.Spec.JobTemplate.Spec.TTLSecondsAfterFinished = new(int32(5)) }
	suspended := func(c *batchv1.CronJob) { c.Spec.Suspend = new(true) }
	w.push(cronJob("zone", "0 14 * * *", berlin, brief), cronJob("idle", "* * * * *", suspended))
	w.goners()
	if !w.last.Wake.Equal(epoch.Add(time.Hour)) || w.verdict("idle").Health != nodes.Suspended {
		t.Fatalf("wakes at %s, %+v", w.last.Wake, w.verdict("idle"))
	}
	name := runName("zone", "13:00:00")
	w.at("13:00:00")
	g, _ := w.s.groups.Get(jobKey("default", name))
	if g == nil || g.object.Value.(*batchv1.Job).Annotations[batchv1.CronJobScheduledTimestampAnnotation] != "2026-01-01T14:00:00+01:00" {
		t.Fatalf("%v", w.made())
	}
	w.end(w.working(name)[0], 0)
	w.at("13:00:05")
	w.goners()
	if len(w.made()) > 0 {
		t.Errorf("it outlives its time: %v", w.made())
	}
	if w.at("13:00:06"); len(w.made()) > 0 {
		t.Errorf("it runs again: %v", w.made())
	}
}

// TestCronJobSurvivesAnything lets time pass, ends pods and loses the server or
// its record: no scheduled time becomes a Job twice, no Job counts a success
// twice, and history stays short.
func TestCronJobSurvivesAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := rapid.SampledFrom([]batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent}).Draw(t, "policy")
		w := newWorld(t, "n1")
		kept := rapid.Int32Range(0, 2).Draw(t, "history")
		w.push(cronJob("tick", "*/10 * * * *", func(c *batchv1.CronJob) {
			c.Spec.ConcurrencyPolicy, c.Spec.SuccessfulJobsHistoryLimit = policy, &kept
		}), configMap("other", nil))
		again := func(record bool) {
			w.restart(record)
			w.next(Change{Snapshot: w.snapshot, Source: w.source})
			w.join("n1")
		}
		for range rapid.IntRange(5, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 6).Draw(t, "happens") {
			case 0, 1:
				w.now = w.now.Add(time.Duration(rapid.IntRange(1, 1500).Draw(t, "seconds")) * time.Second)
				w.next(Change{})
			case 2:
				for name := range w.made() {
					for _, p := range w.working(name) {
						if p.Node != "" && w.machines["n1"].held[p.UID] != nil {
							w.end(p, rapid.Int32Range(0, 1).Draw(t, "code"))
						}
					}
				}
			case 3:
				again(true)
			case 4:
				again(false)
			case 5:
				w.goners()
			case 6:
				w.join("n1")
			}
			ended := 0
			for _, g := range w.s.madeBy(keyOf(cronJob("tick", ""))) {
				if g.object != nil && g.run != nil && g.run.Over() {
					ended++
				}
				if g.run != nil && g.run.Succeeded > 1 {
					t.Fatalf("%s counts %d successes", g.key, g.run.Succeeded)
				}
			}
			if ended > int(kept)+1 {
				t.Fatalf("%d Jobs that have ended are kept", ended)
			}
		}
		made := map[string]bool{}
		for _, e := range w.events {
			if e.Reason != "SuccessfulCreate" || e.Object.Kind != kindCronJob {
				continue
			}
			if made[e.Message] {
				t.Fatalf("twice: %s", e.Message)
			}
			made[e.Message] = true
		}
	})
}

// TestTheOverviewOfRunsBeforeTheRevision: after a start the record has the Jobs
// of a CronJob before the revision is known.
func TestTheOverviewOfRunsBeforeTheRevision(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(cronJob("backup", "*/10 * * * *"), configMap("other", nil))
	w.at("12:10:00")
	w.settle()
	w.restart(true)
	w.join("n1")
	if h := w.health(jobKey("default", runName("backup", "12:10:00"))); h.Owner.Kind != kindCronJob {
		t.Errorf("the run is shown as %+v", h)
	}
}
