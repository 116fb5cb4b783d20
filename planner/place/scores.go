package place

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	scheduling "k8s.io/component-helpers/scheduling/corev1"
)

// Weights of the scores, each of 0 to 100, in Kubernetes' default profile.
const (
	taintWeight    = 3
	affinityWeight = 2
	spreadWeight   = 2
	companyWeight  = 2
	imagesWeight   = 1
	// hardWeight is what a required affinity of a pod that is there counts when
	// it is about the new one (hardPodAffinityWeight).
	hardWeight = 1

	full = 100
)

// room is the score for what would be left on a node.
func (s Strategy) room(r *Request, n *slot) int64 {
	total, parts := int64(0), int64(0)
	for _, amount := range [2][2]int64{{n.felt.cpu + r.felt.cpu, n.can.cpu}, {n.felt.memory + r.felt.memory, n.can.memory}} {
		used, can := amount[0], amount[1]
		if can <= 0 {
			continue
		}
		parts++
		switch {
		case s == Pack:
			total += min(used, can) * full / can
		case used < can:
			total += (can - used) * full / can
		}
	}
	if parts == 0 {
		return 0
	}
	return total / parts
}

// wary reports whether there are taints that pods better avoid.
func (n *Node) wary() bool { return n.avoided(nil) > 0 }

// avoided counts the taints with the effect PreferNoSchedule that aren't tolerated.
func (n *Node) avoided(tolerations []corev1.Toleration) int64 {
	count := int64(0)
	for i := range n.kube.Spec.Taints {
		t := n.kube.Spec.Taints[i : i+1]
		if t[0].Effect != corev1.TaintEffectPreferNoSchedule {
			continue
		}
		if _, hit := scheduling.FindMatchingUntoleratedTaint(klog.Logger{}, t, tolerations, nil, false); hit {
			count++
		}
	}
	return count
}

// raw is what fixed scores are made from.
type raw struct{ preferred, avoided int64 }

func (f *Field) raw(r *Request, n *Node) (out raw) {
	if r.preferred != nil {
		out.preferred = r.preferred.Score(n.kube)
	}
	if f.wary {
		out.avoided = n.avoided(r.spec.Tolerations)
	}
	return out
}

// fixed is the part of a node's score that no pod changes; most is the most of
// all nodes that the pod may run on.
func (v raw) fixed(most raw) int64 {
	score := int64(0)
	if most.preferred > 0 {
		score += affinityWeight * (full * v.preferred / most.preferred)
	}
	if most.avoided > 0 {
		score += taintWeight * (full - full*v.avoided/most.avoided)
	}
	return score
}

// sizeWeight keeps the counts of a topology with few domains from drowning in
// those of one with many.
func sizeWeight(domains int) float64 { return math.Log(float64(domains + 2)) }

// crowd is what a count means to a constraint that need not hold.
func (c *constraint) crowd(count int64, weight float64) float64 {
	return float64(count)*weight + float64(c.skew-1)
}

// bounds are the least and the most of a score among the nodes that a pod may run on.
type bounds struct{ least, most int64 }

func noBounds() bounds { return bounds{math.MaxInt64, math.MinInt64} }

func (b *bounds) take(v int64) { b.least, b.most = min(b.least, v), max(b.most, v) }

// spread turns a crowd into a score.
func (b bounds) spread(v int64) int64 {
	if b.most <= 0 {
		return full
	}
	return full * (b.most + b.least - v) / b.most
}

// company turns a sum of preferences into a score.
func (b bounds) company(v int64) int64 {
	if b.most <= b.least {
		return 0
	}
	return int64(full * (float64(v-b.least) / float64(b.most-b.least)))
}
