package planner

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/benbjohnson/immutable"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/scale"
)

const (
	kindAutoscaler = "HorizontalPodAutoscaler"
	// ambiguous is Kubernetes' word for two autoscalers of one target.
	ambiguous = "AmbiguousSelector"
)

// scaler is one HorizontalPodAutoscaler of Git. Immutable.
type scaler struct {
	key    desired.Key
	object *autoscalingv2.HorizontalPodAutoscaler
	target desired.Key
	// advice is the newest; judged is set once metrics have been looked at.
	advice scale.Advice
	judged bool
}

// size is how many replicas an autoscaler has given its target: a decision,
// which wins over the number in Git. Immutable.
type size struct {
	Target   desired.Key  `json:"target"`
	Replicas int32        `json:"replicas"`
	Memory   scale.Memory `json:"memory"`
}

// autoscaling is what the state knows of autoscalers. The zero value knows of
// none, which costs nothing.
type autoscaling struct {
	scalers *immutable.SortedMap[desired.Key, *scaler]
	// by finds the autoscaler of a workload.
	by    *immutable.Map[desired.Key, desired.Key]
	sizes *immutable.Map[desired.Key, *size]
	usage *immutable.Map[nodes.UID, *nodes.Usage]
	// samples by query.
	samples *immutable.Map[string, scale.Sample]
}

func newAutoscaling() autoscaling {
	return autoscaling{
		scalers: immutable.NewSortedMap[desired.Key, *scaler](comparer[desired.Key](desired.Key.Compare)),
		by:      immutable.NewMap[desired.Key, desired.Key](hasher[desired.Key](hashKey)),
		sizes:   immutable.NewMap[desired.Key, *size](hasher[desired.Key](hashKey)),
		usage:   immutable.NewMap[nodes.UID, *nodes.Usage](hasher[nodes.UID](func(u nodes.UID) uint32 { return hashText(string(u)) })),
		samples: immutable.NewMap[string, scale.Sample](hasher[string](hashText)),
	}
}

// targetOf is the workload that an autoscaler sizes.
func targetOf(namespace string, ref *autoscalingv2.CrossVersionObjectReference) desired.Key {
	group := ""
	if gv, err := schema.ParseGroupVersion(ref.APIVersion); err == nil {
		group = gv.Group
	}
	if group == "extensions" {
		group = "apps"
	}
	return desired.Key{Group: group, Kind: ref.Kind, Namespace: namespace, Name: ref.Name}
}

// autoscalersIn gives the autoscalers of a snapshot by what they size. Of
// several for one workload the first by name counts.
func autoscalersIn(s *desired.Snapshot) map[desired.Key]*desired.Object {
	found := map[desired.Key]*desired.Object{}
	if s == nil {
		return found
	}
	for _, o := range s.Kind(kindAutoscaler) {
		v, ok := o.Value.(*autoscalingv2.HorizontalPodAutoscaler)
		if !ok {
			continue
		}
		if k := targetOf(o.Key.Namespace, &v.Spec.ScaleTargetRef); found[k] == nil {
			found[k] = o
		}
	}
	return found
}

// scalable reports whether an object has replicas that an autoscaler may set,
// and how many Git says.
func scalable(o *desired.Object) (replicasInGit int32, ok bool) {
	if o == nil {
		return 0, false
	}
	switch v := o.Value.(type) {
	case *appsv1.Deployment:
		return replicas(v.Spec.Replicas), true
	case *appsv1.StatefulSet:
		return replicas(v.Spec.Replicas), true
	case *appsv1.ReplicaSet:
		return replicas(v.Spec.Replicas), true
	case *corev1.ReplicationController:
		return replicas(v.Spec.Replicas), true
	default:
		return 0, false
	}
}

// resized is an object with other replicas than Git says; everything else is
// shared.
func resized(o *desired.Object, n int32) *desired.Object {
	copied := *o
	switch v := o.Value.(type) {
	case *appsv1.Deployment:
		c := *v
		c.Spec.Replicas, copied.Value = &n, &c
	case *appsv1.StatefulSet:
		c := *v
		c.Spec.Replicas, copied.Value = &n, &c
	case *appsv1.ReplicaSet:
		c := *v
		c.Spec.Replicas, copied.Value = &n, &c
	case *corev1.ReplicationController:
		c := *v
		c.Spec.Replicas, copied.Value = &n, &c
	}
	return &copied
}

// sized is an object of Git as it is to run: with the size that its autoscaler
// gave it.
func (s *State) sized(o *desired.Object) *desired.Object {
	if o == nil || s.by.Len() == 0 {
		return o
	}
	if _, scaled := s.by.Get(o.Key); !scaled {
		return o
	}
	if z, ok := s.sizes.Get(o.Key); ok {
		return resized(o, z.Replicas)
	}
	return o
}

// applyAutoscalers takes over the autoscalers of a revision. The size of a
// workload that gets its first one is what Git says; of one that loses its last
// one it is that again. No replicas in Git mean none, as in Kubernetes: that
// switches the autoscaler off.
func (st *step) applyAutoscalers(c *comparison) {
	found := autoscalersIn(c.next)
	if len(found) == 0 && st.scalers.Len() == 0 && st.sizes.Len() == 0 {
		return
	}
	altered := map[desired.Key]bool{}
	for _, k := range c.changed {
		altered[k] = true
	}
	old, before := st.scalers, st.by
	st.scalers, st.by = newAutoscaling().scalers, newAutoscaling().by
	for _, o := range c.next.Kind(kindAutoscaler) {
		if v, ok := o.Value.(*autoscalingv2.HorizontalPodAutoscaler); ok {
			st.applyAutoscaler(o.Key, v, old, altered[o.Key])
		}
	}
	for _, target := range slices.SortedFunc(maps.Keys(found), desired.Key.Compare) {
		if n, ok := scalable(c.next.Get(target)); ok {
			st.by = st.by.Set(target, found[target].Key)
			st.takeSize(target, n)
		}
	}
	st.releaseSizes()
	for _, target := range slices.Concat(sortedKeys(before), sortedKeys(st.by)) {
		was, had := before.Get(target)
		is, has := st.by.Get(target)
		if had != has || altered[was] || altered[is] {
			st.lookAtTarget(target, c.next.Get(target))
		}
	}
}

func (st *step) applyAutoscaler(k desired.Key, v *autoscalingv2.HorizontalPodAutoscaler, old *immutable.SortedMap[desired.Key, *scaler], altered bool) {
	sc := &scaler{key: k, object: v, target: targetOf(k.Namespace, &v.Spec.ScaleTargetRef)}
	was, known := old.Get(k)
	if known && was.target == sc.target {
		sc.advice, sc.judged = was.advice, was.judged
	}
	st.scalers = st.scalers.Set(k, sc)
	if altered || !known {
		st.dueScalers[k] = true
	}
}

// takeSize begins with the number in Git.
func (st *step) takeSize(target desired.Key, inGit int32) {
	z, known := st.sizes.Get(target)
	if known && (z.Replicas == inGit || z.Replicas != 0 && inGit != 0) {
		return
	}
	st.setSize(&size{Target: target, Replicas: inGit})
	if by, ok := st.by.Get(target); ok {
		st.dueScalers[by] = true
	}
}

// releaseSizes forgets the sizes of workloads without an autoscaler.
func (st *step) releaseSizes() {
	for _, target := range sortedKeys(st.sizes) {
		if _, still := st.by.Get(target); !still {
			st.sizes = st.sizes.Delete(target)
			st.decide(kindOfScale, keyText(target), nil)
		}
	}
	if st.by.Len() == 0 {
		st.usage, st.samples = newAutoscaling().usage, newAutoscaling().samples
	}
}

// lookAtTarget looks anew at a workload whose autoscaler changed, and at the
// nodes of its pods: what is to be measured there may be something else.
func (st *step) lookAtTarget(target desired.Key, o *desired.Object) {
	if o != nil {
		st.applyWorkload(target, o)
	}
	g, ok := st.groups.Get(target)
	if !ok {
		return
	}
	for _, p := range g.pods {
		if p.Node != "" {
			st.dirtyNodes[p.Node] = true
		}
	}
}

func sortedKeys[V any](m *immutable.Map[desired.Key, V]) []desired.Key {
	var list []desired.Key
	for itr := m.Iterator(); !itr.Done(); {
		k, _, _ := itr.Next()
		list = append(list, k)
	}
	slices.SortFunc(list, desired.Key.Compare)
	return list
}

func (st *step) setSize(z *size) {
	st.sizes = st.sizes.Set(z.Target, z)
	st.decide(kindOfScale, keyText(z.Target), z)
}

// measured takes in what pods use.
func (st *step) measured(from string, all []nodes.Usage) {
	for i := range all {
		g, p := st.pod(all[i].Pod)
		if p == nil || p.Node != from {
			continue
		}
		if key, ok := st.by.Get(g.key); ok {
			st.usage = st.usage.Set(p.UID, &all[i])
			st.dueScalers[key] = true
		}
	}
}

// sampled takes in what the metrics' source answered.
func (st *step) sampled(all []scale.Sample) {
	if len(all) == 0 {
		return
	}
	asked := map[string]bool{}
	for _, q := range st.Queries() {
		asked[q] = true
	}
	for itr := st.samples.Iterator(); !itr.Done(); {
		if q, _, _ := itr.Next(); !asked[q] {
			st.samples = st.samples.Delete(q)
		}
	}
	for _, s := range all {
		if asked[s.Query] {
			st.samples = st.samples.Set(s.Query, s)
		}
	}
	for key := range keys(st.scalers) {
		st.dueScalers[key] = true
	}
}

// Queries are what the metrics' source is to be asked, sorted; empty when no
// autoscaler in force needs it.
func (s *State) Queries() []string {
	if s.snapshot == nil || s.scalers.Len() == 0 || s.snapshot.Settings().Prometheus == "" {
		return nil
	}
	found := map[string]bool{}
	for _, sc := range entries(s.scalers) {
		for i := range sc.object.Spec.Metrics {
			if q, ok, err := scale.Query(sc.object, &sc.object.Spec.Metrics[i], s.snapshot.Settings().Queries); ok && err == nil {
				found[q] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// MetricsSource is the address of the Prometheus that answers Queries.
func (s *State) MetricsSource() string {
	if s.snapshot == nil {
		return ""
	}
	return s.snapshot.Settings().Prometheus
}

// autoscale looks again at the autoscalers for which something came in.
func (st *step) autoscale() {
	for _, k := range slices.SortedFunc(maps.Keys(st.dueScalers), desired.Key.Compare) {
		if sc, ok := st.scalers.Get(k); ok {
			st.rescale(sc)
		}
	}
}

func (st *step) rescale(sc *scaler) {
	next := *sc
	defer func() { st.scalers = st.scalers.Set(next.key, &next) }()
	z, known := st.sizes.Get(sc.target)
	g, _ := st.groups.Get(sc.target)
	if owner, ok := st.by.Get(sc.target); !ok || !known || g == nil {
		next.advice.Problem = scale.Condition{Reason: "FailedGetScale", Message: "the target " + sc.target.String() + " is not in Git or has no replicas"}
		return
	} else if owner != sc.key {
		next.advice.Problem = scale.Condition{Reason: ambiguous, Message: owner.String() + " sizes the same target"}
		return
	}
	if st.frozen(g) != "" {
		return
	}
	memory := sc.advice.Memory
	if len(memory.Recommended) == 0 {
		memory = z.Memory
		memory.Recommended = nil // a start must not act on what was true long ago
	}
	next.advice = scale.Advise(scale.Input{
		Now: st.now, Object: sc.object, Replicas: z.Replicas, Pods: st.scalePods(g), Sample: st.sampleFor(sc), Memory: memory,
	})
	next.judged = next.judged || st.hasUsage(g)
	if next.advice.Replicas != z.Replicas {
		st.setReplicas(sc, z, &next.advice)
	}
}

// setReplicas gives a target another size.
func (st *step) setReplicas(sc *scaler, z *size, advice *scale.Advice) {
	st.setSize(&size{Target: z.Target, Replicas: advice.Replicas, Memory: advice.Memory})
	st.event(sc.key, false, "SuccessfulRescale", fmt.Sprintf("New size: %d; reason: %s", advice.Replicas, advice.Reason))
	st.act("scale", z.Target, "", fmt.Sprintf("%d → %s: %s", z.Replicas, count(int(advice.Replicas), "replica"), advice.Reason))
	g := st.edit(z.Target)
	g.object = st.sized(st.snapshot.Get(z.Target))
	st.dirtyGroups[z.Target] = true
}

func (st *step) scalePods(g *group) []scale.Pod {
	all := make([]scale.Pod, 0, len(g.pods))
	for _, p := range g.pods {
		v := scale.Pod{Name: p.Name, Leaving: p.leaving != "" || p.Stop != nil, Spec: &p.Template.Spec}
		if p.status != nil {
			v.Phase, v.Ready, v.ReadySince, v.Started = p.status.Phase, p.status.Ready, p.status.ReadySince, p.status.Started
		}
		v.Usage, _ = st.usage.Get(p.UID)
		all = append(all, v)
	}
	return all
}

func (st *step) hasUsage(g *group) bool {
	return slices.ContainsFunc(g.pods, func(p *pod) bool { _, ok := st.usage.Get(p.UID); return ok })
}

func (st *step) sampleFor(sc *scaler) func(m *autoscalingv2.MetricSpec) (scale.Sample, error) {
	settings := st.snapshot.Settings()
	return func(m *autoscalingv2.MetricSpec) (scale.Sample, error) {
		query, _, err := scale.Query(sc.object, m, settings.Queries)
		if err != nil {
			return scale.Sample{}, err
		}
		answer, ok := st.samples.Get(query)
		if !ok {
			return answer, fmt.Errorf("no answer yet from Prometheus at %s", settings.Prometheus)
		}
		return answer, nil
	}
}

// measures lists the pods of a node whose usage is wanted, sorted.
func (s *State) measures(n *node) []nodes.UID {
	if s.by.Len() == 0 {
		return nil
	}
	var wanted []nodes.UID
	for uid, p := range entries(n.pods) {
		key, ok := s.by.Get(p.Workload)
		if !ok || p.Stop != nil {
			continue
		}
		if sc, ok := s.scalers.Get(key); ok && scale.Measures(sc.object) {
			wanted = append(wanted, uid)
		}
	}
	return wanted
}

// health of an autoscaler. One that cannot judge its metrics changes nothing,
// and says so.
func (s *State) scalerHealth(sc *scaler) (nodes.Health, string) {
	problem := sc.advice.Problem
	z, _ := s.sizes.Get(sc.target)
	begins := !sc.judged && scale.Measures(sc.object)
	switch {
	case problem.Reason == "" || problem.Reason == "ScalingDisabled":
	case sc.advice.Metric != "":
		return nodes.Degraded, "a metric cannot be judged, so the target can only grow: " + problem.String()
	case !begins || z == nil || problem.Reason == ambiguous:
		return nodes.Degraded, "ScalingActive is false: " + problem.String()
	}
	if z == nil {
		return nodes.Progressing, "not looked at yet"
	}
	parts := []string{fmt.Sprintf("%s, of %d to %d", count(int(z.Replicas), "replica"), scale.MinReplicas(sc.object), sc.object.Spec.MaxReplicas)}
	switch {
	case problem.Reason == "ScalingDisabled":
		parts = append(parts, problem.String())
	case begins:
		parts = append(parts, "waiting for the first measurements")
	case sc.advice.Metric != "":
		parts = append(parts, "by "+sc.advice.Metric)
	}
	for _, c := range []scale.Condition{sc.advice.Unable, sc.advice.Limited} {
		if c.Reason != "" {
			parts = append(parts, c.String())
		}
	}
	return nodes.Healthy, strings.Join(parts, "; ")
}

// scalerOverview is what pages show of an autoscaler.
func (s *State) scalerOverview(sc *scaler) *nodes.AutoscalerOverview {
	o := &nodes.AutoscalerOverview{
		Target: sc.target, Min: int(scale.MinReplicas(sc.object)), Max: int(sc.object.Spec.MaxReplicas), Problem: sc.advice.Problem.String(),
	}
	if z, ok := s.sizes.Get(sc.target); ok && sc.advice.Problem.Reason != ambiguous {
		o.Replicas, o.Scaled = int(z.Replicas), z.Memory.Last
	}
	for _, r := range sc.advice.Readings {
		o.Metrics = append(o.Metrics, nodes.MetricOverview{Name: r.Metric, Current: r.Current, Target: r.Target})
	}
	for _, c := range []scale.Condition{sc.advice.Unable, sc.advice.Limited} {
		if c.Reason != "" {
			o.Limits = append(o.Limits, c.String())
		}
	}
	return o
}

// scaledDifference compares two versions of a workload whose replicas are an
// autoscaler's: the numbers in Git are no difference, only worth a note.
func (st *step) scaledDifference(was, is *desired.Object, autoscaler *desired.Object) (before, after *desired.Object, note string) {
	from, _ := scalable(was)
	to, ok := scalable(is)
	if !ok || from == 0 || to == 0 {
		return was, is, ""
	}
	now := to
	if z, known := st.sizes.Get(is.Key); known {
		now = z.Replicas
	}
	if from != to {
		note = fmt.Sprintf("replicas are the autoscaler's: %d → %d in Git is only another start, %s has it at %d", from, to, autoscaler.Key, now)
	}
	return resized(was, now), resized(is, now), note
}

// autoscalerSummary says what a new autoscaler does.
func autoscalerSummary(v *autoscalingv2.HorizontalPodAutoscaler) string {
	ref := v.Spec.ScaleTargetRef
	return fmt.Sprintf("%d to %s of %s %s", scale.MinReplicas(v), count(int(v.Spec.MaxReplicas), "replica"), ref.Kind, ref.Name)
}

func (st *step) forgetUsage(uid nodes.UID) {
	if st.usage.Len() > 0 {
		st.usage = st.usage.Delete(uid)
	}
}
