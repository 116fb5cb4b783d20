package scale_test

import (
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/planner/scale"
)

// history is what an autoscaler did under a load that comes and goes: what the
// load of the moment asked for, and what it advised.
type history struct {
	at                        time.Time
	replicas, wanted, advised int32
}

// drive has an autoscaler look at a random load, one look after the other.
func drive(t *rapid.T, o *autoscalingv2.HorizontalPodAutoscaler) []history {
	replicas := rapid.Int32Range(1, 20).Draw(t, "replicas")
	var memory scale.Memory
	var all []history
	at := now
	for range rapid.IntRange(1, 60).Draw(t, "looks") {
		at = at.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "seconds")) * time.Second)
		load := pods(int(replicas), rapid.Int64Range(0, 400).Draw(t, "load"))
		for i := range load {
			load[i].Usage.At = at
		}
		got := scale.Advise(scale.Input{Now: at, Object: o, Replicas: replicas, Pods: load, Memory: memory})
		h := history{at: at, replicas: replicas, advised: got.Replicas}
		for _, c := range got.Memory.Recommended {
			if c.At.Equal(at) {
				h.wanted = c.Replicas
			}
		}
		all = append(all, h)
		replicas, memory = got.Replicas, got.Memory
	}
	return all
}

func drawRules(t *rapid.T, name string) *autoscalingv2.HPAScalingRules {
	r := &autoscalingv2.HPAScalingRules{
		StabilizationWindowSeconds: ptr(rapid.Int32Range(0, 300).Draw(t, name+" window")),
		SelectPolicy:               ptr(rapid.SampledFrom([]autoscalingv2.ScalingPolicySelect{"Max", "Min", "Disabled"}).Draw(t, name+" select")),
	}
	for range rapid.IntRange(1, 3).Draw(t, name+" policies") {
		r.Policies = append(r.Policies, autoscalingv2.HPAScalingPolicy{
			Type:  rapid.SampledFrom([]autoscalingv2.HPAScalingPolicyType{"Pods", "Percent"}).Draw(t, name+" type"),
			Value: rapid.Int32Range(1, 100).Draw(t, name+" value"), PeriodSeconds: rapid.Int32Range(1, 180).Draw(t, name+" period"),
		})
	}
	return r
}

func drawAutoscaler(t *rapid.T) *autoscalingv2.HorizontalPodAutoscaler {
	low := rapid.Int32Range(1, 10).Draw(t, "min")
	o := autoscaler(low, low+rapid.Int32Range(0, 30).Draw(t, "room"), resourceMetric("cpu", rapid.Int32Range(1, 200).Draw(t, "target")))
	if rapid.Bool().Draw(t, "behavior") {
		o.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: drawRules(t, "up"), ScaleDown: drawRules(t, "down")}
	}
	return o
}

func TestNeverOutsideOfTheBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawAutoscaler(t)
		for _, h := range drive(t, o) {
			if h.advised < *o.Spec.MinReplicas || h.advised > o.Spec.MaxReplicas {
				t.Fatalf("%d replicas, bounds are %d and %d", h.advised, *o.Spec.MinReplicas, o.Spec.MaxReplicas)
			}
		}
	})
}

// TestDisabledDirections says that a direction that is switched off is never
// taken for a metric's sake.
func TestDisabledDirections(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := autoscaler(1, 100, resourceMetric("cpu", rapid.Int32Range(1, 200).Draw(t, "target")))
		up, down := drawRules(t, "up"), drawRules(t, "down")
		o.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: up, ScaleDown: down}
		for _, h := range drive(t, o) {
			if *up.SelectPolicy == autoscalingv2.DisabledPolicySelect && h.advised > h.replicas {
				t.Fatalf("%d → %d although growing is disabled", h.replicas, h.advised)
			}
			if *down.SelectPolicy == autoscalingv2.DisabledPolicySelect && h.advised < h.replicas {
				t.Fatalf("%d → %d although shrinking is disabled", h.replicas, h.advised)
			}
		}
	})
}

// TestAnIncreaseStays says that what was needed within the window of scaling
// down stays: the target never flaps. The window begins with the need, not with
// the growth, which the rates may have put off.
func TestAnIncreaseStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := autoscaler(1, 100, resourceMetric("cpu", rapid.Int32Range(20, 200).Draw(t, "target")))
		window := 5 * time.Minute
		if rapid.Bool().Draw(t, "behavior") {
			o.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: drawRules(t, "up"), ScaleDown: drawRules(t, "down")}
			window = time.Duration(*o.Spec.Behavior.ScaleDown.StabilizationWindowSeconds) * time.Second
		}
		all := drive(t, o)
		for i, needed := range all {
			for _, later := range all[i+1:] {
				if later.at.Sub(needed.at) < window && later.advised < later.replicas && later.advised < needed.wanted {
					t.Fatalf("%d wanted at %s, then %d → %d at %s, within %s", needed.wanted, needed.at.Format(time.TimeOnly), later.replicas, later.advised, later.at.Format(time.TimeOnly), window)
				}
			}
		}
	})
}

// TestPoliciesBoundTheRate looks at one policy of so many pods a period: no
// change takes the size farther than that from what it was a period before.
func TestPoliciesBoundTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := autoscaler(1, 100, resourceMetric("cpu", rapid.Int32Range(1, 200).Draw(t, "target")))
		policy := autoscalingv2.HPAScalingPolicy{Type: "Pods", Value: rapid.Int32Range(1, 10).Draw(t, "pods"), PeriodSeconds: rapid.Int32Range(1, 180).Draw(t, "period")}
		rules := &autoscalingv2.HPAScalingRules{Policies: []autoscalingv2.HPAScalingPolicy{policy}}
		o.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: rules, ScaleDown: rules}
		all := drive(t, o)
		period := time.Duration(policy.PeriodSeconds) * time.Second
		for i, h := range all {
			start := all[0].replicas
			for _, before := range all[:i] {
				if h.at.Sub(before.at) >= period {
					start = before.advised
				}
			}
			if net := h.advised - start; h.advised > h.replicas && net > policy.Value || h.advised < h.replicas && net < -policy.Value {
				t.Fatalf("%+d pods within %s, the policy allows %d", net, period, policy.Value)
			}
		}
	})
}

// TestNoTwoChangesInARow says that the size rests between two changes.
func TestNoTwoChangesInARow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var last time.Time
		for _, h := range drive(t, autoscaler(1, 100, resourceMetric("cpu", 50))) {
			if h.advised == h.replicas {
				continue
			}
			if !last.IsZero() && h.at.Sub(last) < scale.Interval {
				t.Fatalf("changed again after %s", h.at.Sub(last))
			}
			last = h.at
		}
	})
}
