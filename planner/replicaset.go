package planner

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// replicaSets stand in Git by themselves: ReplicaSets, and
// ReplicationControllers, which are the same under an older name.
type replicaSets struct{ plain }

// spec is that of a ReplicaSet.
func (replicaSets) spec(o *desired.Object) *appsv1.ReplicaSetSpec {
	if v, ok := o.Value.(*appsv1.ReplicaSet); ok {
		return &v.Spec
	}
	old := o.Value.(*corev1.ReplicationController).Spec
	spec := &appsv1.ReplicaSetSpec{Replicas: old.Replicas, MinReadySeconds: old.MinReadySeconds}
	if old.Template != nil {
		spec.Template = *old.Template
	}
	return spec
}

func (s replicaSets) template(o *desired.Object) (podTemplate, bool) {
	var own map[string]string
	switch v := o.Value.(type) {
	case *appsv1.ReplicaSet:
		own = v.Annotations
	case *corev1.ReplicationController:
		own = v.Annotations
	}
	return templateOf(&s.spec(o).Template, own), true
}

func (s replicaSets) rules(st *step, g *group) workload.Rollout {
	r := st.rollout(g, workload.ReplicaSet(s.spec(g.object)))
	r.Deadline = deadline(g.object)
	return r
}

func (s replicaSets) reconcile(st *step, g *group) {
	r := st.relocate(g, s.rules(st, g))
	st.carryOut(g, st.within(r.Next()))
}

func (s replicaSets) assess(st *step, g *group) (workload.Verdict, string) {
	r := s.rules(st, g)
	v := r.Verdict()
	st.announceLate(g, &v)
	return v, ""
}

func (s replicaSets) summary(o *desired.Object) string {
	spec := s.spec(o)
	return count(int(replicas(spec.Replicas)), "pod") + ", image " + images(&spec.Template.Spec)
}

func (s replicaSets) change(was, is *desired.Object) (Op, string) {
	old, new := s.spec(was), s.spec(is)
	return Update, workloadChange(replicas(old.Replicas), replicas(new.Replicas), &old.Template, &new.Template)
}
