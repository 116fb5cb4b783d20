package sim

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// TestTheSameRunTwiceIsNoticed: no planted bug gets past what the planner
// remembers in three places, so the check is shown the step itself.
func TestTheSameRunTwiceIsNoticed(t *testing.T) {
	maker := desired.Key{Group: "batch", Kind: kindCronJob, Namespace: "shop", Name: "cron-0"}
	job := desired.Key{Group: "batch", Kind: kindJob, Namespace: "shop", Name: "cron-0-10"}
	i := newIntent(time.Hour)
	i.workloads[maker] = workload{schedule: schedule{every: 1, policy: batchv1.AllowConcurrent}}
	none, one := newView(&nodes.Overview{}), newView(&nodes.Overview{Objects: []nodes.ObjectHealth{{Key: job, Owner: maker, Job: &nodes.JobOverview{}}}})
	crons := map[desired.Key]*cron{maker: {every: 1, awake: time.Unix(1, 0), made: map[desired.Key]bool{}}}
	for run, want := range []int{0, 9} {
		if err := schedulesMakeJobs(&step{now: time.Unix(610, 0), intent: i, before: none, after: one, crons: crons}); Invariant(err) != want {
			t.Errorf("run %d: %v, want invariant %d", run+1, err, want)
		}
	}
}
