package planner

import (
	appsv1 "k8s.io/api/apps/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// replicaSets stand in Git by themselves.
type replicaSets struct{ plain }

func (replicaSets) spec(o *desired.Object) *appsv1.ReplicaSetSpec {
	return &o.Value.(*appsv1.ReplicaSet).Spec
}

func (replicaSets) template(o *desired.Object) (podTemplate, bool) {
	v := o.Value.(*appsv1.ReplicaSet)
	return templateOf(&v.Spec.Template, v.Annotations), true
}

func (s replicaSets) reconcile(st *step, g *group) {
	r := st.rollout(g, workload.ReplicaSet(s.spec(g.object)))
	st.carryOut(g, r.Next())
}

func (s replicaSets) assess(st *step, g *group) (workload.Verdict, string) {
	r := st.rollout(g, workload.ReplicaSet(s.spec(g.object)))
	return r.Verdict(), ""
}

func (s replicaSets) summary(o *desired.Object) string {
	spec := s.spec(o)
	return count(int(replicas(spec.Replicas)), "pod") + ", image " + images(&spec.Template.Spec)
}

func (s replicaSets) change(was, is *desired.Object) (Op, string) {
	old, new := s.spec(was), s.spec(is)
	return Update, workloadChange(replicas(old.Replicas), replicas(new.Replicas), &old.Template, &new.Template)
}
