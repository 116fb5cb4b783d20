package loop

import (
	"context"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/planner/scale"
)

// sampleEvery is how often the metrics' source is asked while an autoscaler in
// force needs it.
const sampleEvery = 15 * time.Second

// sampling is how far the loop is with asking the metrics' source. Without an
// autoscaler that needs it, no timer runs.
type sampling struct {
	results chan []scale.Sample
	// alarm rings for the next round; source and queries are those of the last.
	alarm   *time.Timer
	source  string
	queries []string
	busy    bool
	// problem is the last that was said.
	problem string
}

// sample has the metrics' source asked when that is due, or when something
// else is to be asked.
func (r *runner) sample(ctx context.Context, due bool) {
	source, queries := r.state.MetricsSource(), r.state.Queries()
	if r.o.Metrics == nil || source == "" || len(queries) == 0 {
		if !r.sampling.busy {
			r.sampling.alarm.Stop()
			r.sampling.source, r.sampling.queries = "", nil
		}
		return
	}
	changed := source != r.sampling.source || !slices.Equal(queries, r.sampling.queries)
	if r.sampling.busy || !due && !changed {
		return
	}
	r.sampling.busy, r.sampling.source, r.sampling.queries = true, source, queries
	r.group.Go(func() error {
		select {
		case r.sampling.results <- r.o.Metrics(ctx, source, queries):
		case <-ctx.Done():
		}
		return nil
	})
}

// sampled takes in what the metrics' source answered.
func (r *runner) sampled(samples []scale.Sample) {
	r.sampling.busy = false
	r.sampling.alarm.Reset(sampleEvery)
	r.change.Samples = append(r.change.Samples, samples...)
	problem := ""
	for _, s := range samples {
		if s.Problem != "" {
			problem = s.Problem
		}
	}
	switch {
	case problem != "" && problem != r.sampling.problem:
		r.o.Log.Warn("metrics for autoscalers are missing; nothing is scaled by them", "reason", problem)
	case problem == "" && r.sampling.problem != "":
		r.o.Log.Info("metrics for autoscalers are there again")
	}
	r.sampling.problem = problem
}
