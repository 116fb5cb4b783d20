package metrics

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/statustest"
)

func TestScrape(t *testing.T) {
	registry, err := New(Options{
		Overview: statustest.Troubled, Version: "0.1.0",
		Now:  func() time.Time { return statustest.Now },
		Loop: func() Loop { return Loop{Steps: 12, Revisions: map[nodes.Outcome]uint64{nodes.OutcomeRejected: 2}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `
# HELP tally_loop_steps_total Steps of the control loop.
# TYPE tally_loop_steps_total counter
tally_loop_steps_total 12
# HELP tally_container_restarts Restarts of the containers of the pods that are there now, by namespace.
# TYPE tally_container_restarts gauge
tally_container_restarts{namespace="monitoring"} 0
tally_container_restarts{namespace="shop"} 2
# HELP tally_healthy Whether everything runs as the newest revision says.
# TYPE tally_healthy gauge
tally_healthy 0
# HELP tally_pods Pods, by namespace and phase.
# TYPE tally_pods gauge
tally_pods{namespace="monitoring",phase="Running"} 1
tally_pods{namespace="shop",phase="Pending"} 1
tally_pods{namespace="shop",phase="Running"} 10
# HELP tally_problems Problems of the newest revision, by severity and code.
# TYPE tally_problems gauge
tally_problems{code="missing-configmap",severity="error"} 1
tally_problems{code="unknown-field",severity="error"} 1
# HELP tally_revisions_total Revisions, by outcome.
# TYPE tally_revisions_total counter
tally_revisions_total{outcome="rejected"} 2
# HELP tally_sync_last_answer_age_seconds How long ago the repository answered.
# TYPE tally_sync_last_answer_age_seconds gauge
tally_sync_last_answer_age_seconds 9
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "tally_loop_steps_total", "tally_container_restarts", "tally_healthy",
		"tally_pods", "tally_problems", "tally_revisions_total", "tally_sync_last_answer_age_seconds"); err != nil {
		t.Error(err)
	}
}

func TestScrapeIsWellFormed(t *testing.T) {
	for name, o := range map[string]*nodes.Overview{"empty": {}, "troubled": statustest.Troubled(), "hostile": hostile()} {
		registry, err := New(Options{Overview: func() *nodes.Overview { return o }})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := registry.Gather(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		problems, err := testutil.GatherAndLint(registry)
		if err != nil || len(problems) > 0 {
			t.Errorf("%s: %v %v", name, err, problems)
		}
	}
}

// hostile has names that no label may hold.
func hostile() *nodes.Overview {
	o := statustest.Troubled()
	o.Nodes[0].Name = "a\xff\n\"b"
	o.InForce.SHA = "\xfe"
	return o
}
