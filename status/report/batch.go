package report

import (
	"fmt"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// JobTook is how long a Job's run took; empty while it has not ended.
func JobTook(j *nodes.JobOverview) string {
	if j.Started.IsZero() || j.Finished.IsZero() {
		return ""
	}
	return Duration(j.Finished.Sub(j.Started))
}

// timing tells when a Job ended and how long it took; empty for other workloads.
func timing(w *Workload, now time.Time) string {
	if w.Job == nil || w.Job.Condition == "" {
		return ""
	}
	text := fmt.Sprintf("%s %s ago", w.Job.Condition, Age(w.Job.Finished, now))
	if took := JobTook(w.Job); took != "" {
		text += ", took " + took
	}
	return text
}
