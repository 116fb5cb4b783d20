package planner

import (
	"maps"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// barePods stand in Git by themselves: a changed one is replaced, under the
// same name.
type barePods struct{ plain }

func (barePods) template(o *desired.Object) (podTemplate, bool) {
	v, ok := o.Value.(*corev1.Pod)
	if !ok {
		return podTemplate{}, false
	}
	return podTemplate{labels: v.Labels, annotations: v.Annotations, spec: &v.Spec}, true
}

func (barePods) reconcile(st *step, g *group) {
	st.resizeInPlace(g)
	s := st.single(g)
	st.carryOut(g, st.named(g, s.Next()))
}

func (barePods) assess(st *step, g *group) (workload.Verdict, string) {
	s := st.single(g)
	return s.Verdict(), st.named(g, s.Next()).Waits
}

// named gives the pod to create its name, unless a StatefulSet's pod has it.
func (st *step) named(g *group, steps workload.Steps) workload.Steps {
	for i := range steps.Creates {
		steps.Creates[i].Name = g.key.Name
	}
	if len(steps.Creates) > 0 && st.ordinalPod(g.key) {
		steps.Creates, steps.Waits = nil, "a StatefulSet has a pod of this name; rename one of them"
	}
	return steps
}

func (barePods) summary(o *desired.Object) string {
	return "image " + images(&o.Value.(*corev1.Pod).Spec)
}

func (barePods) change(was, is *desired.Object) (Op, string) {
	old, new := was.Value.(*corev1.Pod), is.Value.(*corev1.Pod)
	template := templateChange(
		&corev1.PodTemplateSpec{ObjectMeta: old.ObjectMeta, Spec: old.Spec}, &corev1.PodTemplateSpec{ObjectMeta: new.ObjectMeta, Spec: new.Spec},
	)
	if template == "" {
		return Update, "the pod stays as it was made"
	}
	if maps.Equal(old.Labels, new.Labels) && maps.Equal(old.Annotations, new.Annotations) && resizable(&old.Spec, &new.Spec) {
		return Update, "the pod's resources are changed in place"
	}
	return Replace, "the pod is replaced: " + template
}

func (st *step) single(g *group) workload.Single {
	r := st.rollout(g, workload.Rollout{})
	return workload.Single{Now: st.now, Revised: g.revised, Current: r.Current, Old: r.Old}
}
