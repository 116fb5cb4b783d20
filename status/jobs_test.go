package status

import (
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/report"
	"github.com/tallyman-dev/tallyman/status/statustest"
)

// withJobs adds a CronJob with a Job of its, and a Job of Git.
func withJobs(o *nodes.Overview) *nodes.Overview {
	key := func(kind, name string) desired.Key {
		return desired.Key{Group: "batch", Kind: kind, Namespace: "shop", Name: name}
	}
	at := statustest.Now
	cron := nodes.ObjectHealth{Key: key("CronJob", "report"), Health: nodes.Healthy, Created: at, CronJob: &nodes.CronJobOverview{
		Schedule: "*/5 * * * *", TimeZone: "Europe/Berlin", Active: 1, Last: at.Add(-time.Minute), Next: at.Add(4 * time.Minute),
	}}
	made := nodes.ObjectHealth{Key: key("Job", "report-29"), Owner: cron.Key, Health: nodes.Progressing, Reason: "0 of 1 completion", Created: at, Job: &nodes.JobOverview{Completions: 1, Active: 1}}
	migrate := nodes.ObjectHealth{Key: key("Job", "migrate"), Health: nodes.Healthy, Created: at, Job: &nodes.JobOverview{
		Completions: 3, Succeeded: 3, Failed: 1, CompletedIndexes: "0-2", Condition: "Complete", Reason: "CompletionsReached", Started: at.Add(-time.Hour), Finished: at.Add(-time.Minute),
	}}
	o.Objects = append(o.Objects, cron, made, migrate)
	return o
}

func TestJobsAreShown(t *testing.T) {
	s, _ := newServer(t, withJobs(statustest.Healthy()))
	holds := func(what, text string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%s lacks %q:\n%s", what, part, text)
			}
		}
	}
	next := statustest.Now.Add(4 * time.Minute).UTC().Format("2006-01-02 15:04:05 UTC")
	holds("the Job's page", get(t, s.Handler(), "/object/Job.batch/shop/migrate").Body.String(), "3 of 3, 0 at work, 1 failed", "0-2", "Complete", "CompletionsReached")
	holds("the CronJob's page", get(t, s.Handler(), "/object/CronJob.batch/shop/report").Body.String(), "*/5 * * * *", "Europe/Berlin", next)
	holds("the workloads", get(t, s.Handler(), "/workloads").Body.String(), "3/3", "1 active")
	holds("the text", report.Status(withJobs(statustest.Healthy()), statustest.Now), "Job shop/migrate", "3/3", "CronJob shop/report", "1 active")
}
