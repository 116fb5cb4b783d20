package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

const (
	kindScaler = "HorizontalPodAutoscaler"

	// targetUsage is what autoscalers aim at, in thousandths of a core a pod;
	// idle and busy pods use so much.
	targetUsage, idleUsage, busyUsage = 100, 20, 300
	// usageTells is for how long a usage that is over may still be acted on.
	usageTells = 2 * time.Minute
)

// scaler is a HorizontalPodAutoscaler; its name is that of its target.
type scaler struct {
	target   desired.Key
	min, max int
}

func scalerKey(target desired.Key) desired.Key {
	return desired.Key{Group: "autoscaling", Kind: kindScaler, Namespace: target.Namespace, Name: target.Name}
}

// scalerOf finds the one that sizes a workload. One whose replicas are none in
// Git is switched off.
func (i *intent) scalerOf(k desired.Key) (scaler, bool) {
	s, found := i.scalers[scalerKey(k)]
	return s, found && s.target == k && i.workloads[k].replicas > 0
}

func scalerObject(meta metav1.ObjectMeta, s scaler) *autoscalingv2.HorizontalPodAutoscaler {
	low, window, at, all, most := int32(s.min), int32(15), int32(0), int32(100), autoscalingv2.MaxChangePolicySelect
	double := autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: all, PeriodSeconds: 15}
	return &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: meta, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: s.target.Kind, Name: s.target.Name},
		MinReplicas:    &low, MaxReplicas: int32(s.max),
		Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{
				Type: autoscalingv2.AverageValueMetricType, AverageValue: resource.NewMilliQuantity(targetUsage, resource.DecimalSI),
			},
		}}},
		Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{
			ScaleUp:   &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &at, SelectPolicy: &most, Policies: []autoscalingv2.HPAScalingPolicy{double}},
			ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: &window, SelectPolicy: &most, Policies: []autoscalingv2.HPAScalingPolicy{double}},
		},
	}}
}

// changeScaler adds, changes or drops an autoscaler, and says what.
func (x *extras) changeScaler(w *world, i *intent) string {
	keys := slices.DeleteFunc(slices.SortedFunc(maps.Keys(i.workloads), desired.Key.Compare), func(k desired.Key) bool {
		return k.Kind != kindDeployment && k.Kind != kindStatefulSet && k.Kind != kindReplicaSet
	})
	if len(keys) == 0 {
		return "nothing"
	}
	k := pick(x.rng, keys...)
	if _, found := i.scalers[scalerKey(k)]; found && x.rng.IntN(4) == 0 {
		delete(i.scalers, scalerKey(k))
		return "no autoscaler of " + k.String()
	}
	low := 1 + x.rng.IntN(3)
	i.scalers[scalerKey(k)] = scaler{target: k, min: low, max: low + x.rng.IntN(min(w.shape.replicas, 5))}
	return fmt.Sprintf("autoscaler of %s: %+v", k, i.scalers[scalerKey(k)])
}

// demand is what the pods of each workload use. Safe for concurrent use.
type demand struct {
	mu sync.Mutex
	// guarded by mu
	now map[desired.Key]int64
	// was is when a workload last used something else, and what.
	was map[desired.Key]map[int64]time.Time
}

func newDemand() *demand {
	return &demand{now: map[desired.Key]int64{}, was: map[desired.Key]map[int64]time.Time{}}
}

// of is the usage of each pod of a workload, in thousandths of a core.
func (d *demand) of(k desired.Key) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.usage(k)
}

// usage is of for those who hold mu.
func (d *demand) usage(k desired.Key) int64 {
	if n, set := d.now[k]; set {
		return n
	}
	return targetUsage
}

func (d *demand) set(k desired.Key, usage int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.was[k] == nil {
		d.was[k] = map[int64]time.Time{}
	}
	d.was[k][d.usage(k)] = time.Now()
	d.now[k] = usage
}

// lately reports whether a workload uses so much, or did when that may still be acted on.
func (d *demand) lately(k desired.Key, usage int64, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.usage(k) == usage || now.Sub(d.was[k][usage]) < usageTells
}

// changeDemand lets the pods of a workload that is autoscaled do more or less.
func (x *extras) changeDemand(w *world) {
	keys := slices.SortedFunc(maps.Keys(w.repo.head().intent.scalers), desired.Key.Compare)
	if len(keys) == 0 {
		return
	}
	k := w.repo.head().intent.scalers[pick(x.rng, keys...)].target
	usage := pick(x.rng, int64(idleUsage), targetUsage, busyUsage, busyUsage)
	w.note("pods of %s use %dm", k, usage)
	w.demand.set(k, usage)
}

// meter is what a container has used so far.
type meter struct {
	at  time.Time
	cpu time.Duration
}

// Usage implements runtime.Runtime.
func (c *containers) Usage(ctx context.Context, id string) (runtime.Usage, error) {
	used, err := c.Runtime.Usage(ctx, id)
	if err != nil {
		return used, err
	}
	s, err := c.Runtime.Status(ctx, id)
	if err != nil {
		return used, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m, known := c.meters[id]
	if !known {
		m.at = s.Started
	}
	now := time.Now()
	m.cpu += now.Sub(m.at) * time.Duration(c.machine.world.demand.of(workloadOf(s))) / 1000
	m.at = now
	c.meters[id] = m
	used.CPU = m.cpu
	return used, nil
}

// sizesFollowUsage: invariant 1. An autoscaler gives its target no size outside
// of its bounds, and another one only when the pods use more or less.
func sizesFollowUsage(s *step) error {
	if s.intent == nil || s.before.force != s.after.force {
		return nil
	}
	for k := range s.intent.workloads {
		sc, scaled := s.intent.scalerOf(k)
		was, is := s.before.wanted[k], s.after.wanted[k]
		switch {
		case !scaled || was == is || was == 0:
		case is < sc.min || is > sc.max:
			return violated(1, "%s is sized %d → %d, its autoscaler allows %d to %d", k, was, is, sc.min, sc.max)
		case was < sc.min || was > sc.max:
		case is > was && !s.demand.lately(k, busyUsage, s.now), is < was && !s.demand.lately(k, idleUsage, s.now):
			return violated(1, "%s is sized %d → %d, and each pod uses %dm", k, was, is, s.demand.of(k))
		}
	}
	return nil
}

var errUnsized = errors.New("the autoscaler is not where the usage leads")

// sizeAgrees sets the size that a workload must have in the end.
func (w *world) sizeAgrees(i *intent, k desired.Key, v *workload) error {
	sc, scaled := i.scalerOf(k)
	if !scaled {
		return nil
	}
	have := w.witness.wantedOf(k)
	switch usage := w.demand.of(k); {
	case usage == busyUsage && have != sc.max, usage == idleUsage && have != sc.min, have < sc.min, have > sc.max:
		return violated(2, "%s: %v: %d of %d to %d, each pod uses %dm", k, errUnsized, have, sc.min, sc.max, usage)
	}
	v.replicas = have
	return nil
}

func (x *witness) wantedOf(k desired.Key) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last.wanted[k]
}
