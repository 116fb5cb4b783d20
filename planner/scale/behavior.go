package scale

import (
	"math"
	"slices"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
)

// Memory is what an autoscaler remembers. The zero Memory knows nothing.
type Memory struct {
	// Recommended are recommendations of the longest window, the oldest first;
	// equal ones in a row are kept once, with the time of the newest.
	Recommended []Change `json:"recommended,omitempty"`
	// Ups and Downs are by how much the target grew and shrank.
	Ups   []Change `json:"ups,omitempty"`
	Downs []Change `json:"downs,omitempty"`
	// Last is when the target's size last changed.
	Last time.Time `json:"last,omitzero"`
}

// Change is a number of replicas at one instant.
type Change struct {
	At       time.Time `json:"at"`
	Replicas int32     `json:"replicas"`
}

func (m Memory) clone() Memory {
	m.Recommended, m.Ups, m.Downs = slices.Clone(m.Recommended), slices.Clone(m.Ups), slices.Clone(m.Downs)
	return m
}

// begin takes the present size for a recommendation where nothing is known: a
// server that has just started must not shrink what another one has enlarged.
func (m *Memory) begin(now time.Time, replicas int32) {
	if len(m.Recommended) == 0 {
		m.Recommended = []Change{{now, replicas}}
	}
}

func (m *Memory) recommend(now time.Time, replicas int32) {
	if last := len(m.Recommended) - 1; last >= 0 && m.Recommended[last].Replicas == replicas {
		m.Recommended[last].At = now
		return
	}
	m.Recommended = append(m.Recommended, Change{now, replicas})
}

func (m *Memory) scaled(now time.Time, from, to int32) {
	m.Last = now
	if to > from {
		m.Ups = append(m.Ups, Change{now, to - from})
	} else {
		m.Downs = append(m.Downs, Change{now, from - to})
	}
}

// trim forgets what no window and no policy reaches any more.
func (m *Memory) trim(now time.Time, b *autoscalingv2.HorizontalPodAutoscalerBehavior) {
	up, down := rules(b)
	window := max(windowOf(up, 0), windowOf(down, downWindow))
	old := func(reach time.Duration) func(Change) bool {
		return func(c Change) bool { return c.At.Before(now.Add(-reach)) }
	}
	m.Recommended = slices.DeleteFunc(m.Recommended, old(window))
	reach := max(longest(up), longest(down))
	m.Ups, m.Downs = slices.DeleteFunc(m.Ups, old(reach)), slices.DeleteFunc(m.Downs, old(reach))
}

func rules(b *autoscalingv2.HorizontalPodAutoscalerBehavior) (up, down *autoscalingv2.HPAScalingRules) {
	if b == nil {
		return nil, nil
	}
	return b.ScaleUp, b.ScaleDown
}

func windowOf(r *autoscalingv2.HPAScalingRules, unsaid time.Duration) time.Duration {
	if r == nil || r.StabilizationWindowSeconds == nil {
		return unsaid
	}
	return time.Duration(*r.StabilizationWindowSeconds) * time.Second
}

func longest(r *autoscalingv2.HPAScalingRules) time.Duration {
	period := time.Duration(0)
	if r != nil {
		for _, p := range r.Policies {
			period = max(period, time.Duration(p.PeriodSeconds)*time.Second)
		}
	}
	return period
}

// stabilize holds a recommendation against the recent ones: the target grows
// no further than the lowest of the window for growing wants, and shrinks no
// further than the highest of the window for shrinking.
func (m *Memory) stabilize(in *Input, wanted int32) int32 {
	up, down := rules(in.Object.Spec.Behavior)
	grow, shrink := in.Now.Add(-windowOf(up, 0)), in.Now.Add(-windowOf(down, downWindow))
	lowest, highest := wanted, wanted
	for _, c := range m.Recommended {
		if c.At.After(grow) {
			lowest = min(lowest, c.Replicas)
		}
		if c.At.After(shrink) {
			highest = max(highest, c.Replicas)
		}
	}
	m.recommend(in.Now, wanted)
	if in.Object.Spec.Behavior == nil {
		return highest
	}
	return min(max(in.Replicas, lowest), highest)
}

func stabilized(wanted, now int32) Condition {
	if wanted >= now {
		return Condition{"ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation"}
	}
	return Condition{"ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation"}
}

var (
	tooFew  = Condition{"TooFewReplicas", "the desired replica count is less than the minimum replica count"}
	tooMany = Condition{"TooManyReplicas", "the desired replica count is more than the maximum replica count"}
	tooFast = Condition{"ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"}
	tooSoon = Condition{"ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"}
)

// limit holds a recommendation to the bounds and to the rates of the policies,
// and says what limits it.
func (m *Memory) limit(in *Input, wanted int32) (int32, Condition) {
	low, high := MinReplicas(in.Object), in.Object.Spec.MaxReplicas
	floor, ceiling, slow, fast := low, high, tooFew, tooMany
	if in.Object.Spec.Behavior == nil {
		// Without rules of its own a target at most doubles, or grows to four.
		if most := max(2*in.Replicas, 4); most < ceiling {
			ceiling, fast = most, tooFast
		}
	} else {
		up, down := rules(in.Object.Spec.Behavior)
		if most := max(in.Replicas, m.most(in, up)); most < ceiling {
			ceiling, fast = most, tooFast
		}
		if least := min(in.Replicas, m.least(in, down)); least > floor {
			floor, slow = least, tooSoon
		}
	}
	switch {
	case wanted > in.Replicas && wanted > ceiling, wanted > high:
		return min(ceiling, high), fast
	case wanted < in.Replicas && wanted < floor, wanted < low:
		return max(floor, low), slow
	default:
		return wanted, Condition{}
	}
}

// most is how far the policies let a target grow.
func (m *Memory) most(in *Input, r *autoscalingv2.HPAScalingRules) int32 {
	return m.reach(in, r, func(start int32, p *autoscalingv2.HPAScalingPolicy) int32 {
		if p.Type == autoscalingv2.PodsScalingPolicy {
			return start + p.Value
		}
		return ceil(float64(start) * (1 + float64(p.Value)/100))
	}, math.MaxInt32, 1)
}

// least is how far the policies let a target shrink.
func (m *Memory) least(in *Input, r *autoscalingv2.HPAScalingRules) int32 {
	return m.reach(in, r, func(start int32, p *autoscalingv2.HPAScalingPolicy) int32 {
		if p.Type == autoscalingv2.PodsScalingPolicy {
			return start - p.Value
		}
		return int32(float64(start) * (1 - float64(p.Value)/100))
	}, 0, -1)
}

// reach selects among the policies the largest change, or the smallest where
// the rules say so. Direction is 1 for growing and -1 for shrinking.
func (m *Memory) reach(in *Input, r *autoscalingv2.HPAScalingRules, apply func(start int32, p *autoscalingv2.HPAScalingPolicy) int32, unlimited, direction int32) int32 {
	choice := autoscalingv2.MaxChangePolicySelect
	if r != nil && r.SelectPolicy != nil {
		choice = *r.SelectPolicy
	}
	switch {
	case choice == autoscalingv2.DisabledPolicySelect:
		return in.Replicas
	case r == nil || len(r.Policies) == 0:
		return unlimited
	}
	var result int32
	for i := range r.Policies {
		p := &r.Policies[i]
		since := in.Now.Add(-time.Duration(p.PeriodSeconds) * time.Second)
		start := in.Replicas - sum(m.Ups, since) + sum(m.Downs, since)
		proposed := apply(start, p)
		farther := direction*proposed > direction*result
		if i == 0 || farther == (choice == autoscalingv2.MaxChangePolicySelect) {
			result = proposed
		}
	}
	return result
}

func sum(changes []Change, since time.Time) int32 {
	total := int32(0)
	for _, c := range changes {
		if c.At.After(since) {
			total += c.Replicas
		}
	}
	return total
}
