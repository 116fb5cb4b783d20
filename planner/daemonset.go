package planner

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/benbjohnson/immutable"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/place"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// daemonSets have one pod on each node that they are for.
type daemonSets struct{ plain }

func (daemonSets) spec(o *desired.Object) *appsv1.DaemonSetSpec {
	return &o.Value.(*appsv1.DaemonSet).Spec
}

// template has, besides what stands in Git, the tolerations that every
// DaemonSet has: it stays where others would go.
func (daemonSets) template(o *desired.Object) (podTemplate, bool) {
	v := o.Value.(*appsv1.DaemonSet)
	t := templateOf(&v.Spec.Template, v.Annotations)
	spec := *t.spec
	spec.Tolerations = slices.Clone(spec.Tolerations)
	for _, own := range daemonTolerations(&spec) {
		same := func(t corev1.Toleration) bool {
			return t.Key == own.Key && t.Effect == own.Effect && t.Operator == own.Operator && t.Value == own.Value
		}
		if i := slices.IndexFunc(spec.Tolerations, same); i >= 0 {
			spec.Tolerations[i] = own
		} else {
			spec.Tolerations = append(spec.Tolerations, own)
		}
	}
	t.spec = &spec
	return t, true
}

func daemonTolerations(spec *corev1.PodSpec) []corev1.Toleration {
	tolerate := func(key string, effect corev1.TaintEffect) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
	}
	out := []corev1.Toleration{
		tolerate(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute),
		tolerate(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute),
		tolerate(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule),
		tolerate(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule),
		tolerate(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule),
		tolerate(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule),
	}
	if spec.HostNetwork {
		out = append(out, tolerate(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule))
	}
	return out
}

func (daemonSets) stamp(_ desired.Key, hash string) map[string]string {
	return map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: hash}
}

// frozen is never the whole: what is on a silent node is left alone, the other
// nodes go on.
func (daemonSets) frozen(*State, *group) string { return "" }

func (k daemonSets) history(g *group) int {
	return int(valueOr(k.spec(g.object).RevisionHistoryLimit, 10))
}

func (k daemonSets) rules(st *step, g *group) workload.Daemon {
	d := workload.DaemonSet(k.spec(g.object))
	d.Deadline = deadline(g.object)
	r := st.rollout(g, workload.Rollout{})
	d.Now, d.Revised, d.Update, d.Old, d.WasComplete = r.Now, r.Revised, r.Current, r.Old, r.WasComplete
	d.Failures = g.failures
	if g.current == nil {
		return d
	}
	d.Nodes = make([]workload.DaemonNode, 0, st.nodes.Len())
	for name, n := range entries(st.nodes) {
		runs, stays := place.Eligible(g.current.request, n.load)
		d.Nodes = append(d.Nodes, workload.DaemonNode{Name: name, Runs: runs, Stays: stays, Silent: !n.live()})
	}
	return d
}

// daemonLook is what a DaemonSet was found to need. It holds for assess, too, as
// long as pods and nodes are the same.
type daemonLook struct {
	pods  []*pod
	nodes *immutable.SortedMap[string, *node]
	set   *set
	rules workload.Daemon
	wake  time.Time
}

func (k daemonSets) reconcile(st *step, g *group) {
	d := k.rules(st, g)
	steps, failures, wake := d.Next()
	if len(steps.Creates)+len(steps.Removes) == 0 && maps.Equal(failures, g.failures) {
		st.daemons[g.key] = &daemonLook{pods: slices.Clone(g.pods), nodes: st.nodes, set: g.current, rules: d, wake: wake}
		return
	}
	if !maps.Equal(failures, g.failures) {
		g.failures = failures
		st.recordWorkload(g)
	}
	st.carryOut(g, steps)
}

func (k daemonSets) assess(st *step, g *group) (workload.Verdict, string) {
	look := st.daemons[g.key]
	if look == nil || look.nodes != st.nodes || look.set != g.current || !slices.Equal(look.pods, g.pods) {
		look = &daemonLook{rules: k.rules(st, g)}
		_, _, look.wake = look.rules.Next()
	}
	v := look.rules.Verdict()
	st.announceLate(g, &v)
	if wake := look.wake; !wake.IsZero() && (v.Wake.IsZero() || wake.Before(v.Wake)) {
		v.Wake = wake
	}
	return v, ""
}

func (k daemonSets) summary(o *desired.Object) string {
	return "a pod on each node that matches, image " + images(&k.spec(o).Template.Spec)
}

func (k daemonSets) change(was, is *desired.Object) (Op, string) {
	old, new := k.spec(was), k.spec(is)
	change := templateChange(&old.Template, &new.Template)
	switch {
	case change == "":
		return Update, "no pod is touched"
	case new.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType:
		return Update, change + ", update strategy OnDelete: pods keep their template until they end"
	default:
		return Update, strings.Join([]string{change, "the pod of each node to roll"}, ", ")
	}
}

// wakeDaemons looks again at the workloads that have a pod on each node, when a
// node is another.
func (st *step) wakeDaemons() {
	if !st.stir.nodes {
		return
	}
	for k := range keys(st.groups) {
		if k.Kind == kindDaemonSet && k.Group == "apps" {
			st.dirtyGroups[k] = true
		}
	}
}
