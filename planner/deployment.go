package planner

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// deployments roll from template to template, each with a ReplicaSet between.
type deployments struct{ plain }

func (deployments) spec(o *desired.Object) *appsv1.DeploymentSpec {
	return &o.Value.(*appsv1.Deployment).Spec
}

func (d deployments) template(o *desired.Object) (podTemplate, bool) {
	v := o.Value.(*appsv1.Deployment)
	return templateOf(&v.Spec.Template, v.Annotations), true
}

func (deployments) stamp(_ desired.Key, hash string) map[string]string {
	return map[string]string{appsv1.DefaultDeploymentUniqueLabelKey: hash}
}

func (deployments) owner(workload desired.Key, hash string) desired.Key {
	return desired.Key{Group: "apps", Kind: kindReplicaSet, Namespace: workload.Namespace, Name: workload.Name + "-" + hash}
}

func (d deployments) paused(o *desired.Object) bool { return d.spec(o).Paused }

func (d deployments) reconcile(st *step, g *group) {
	r := st.relocate(g, st.rollout(g, workload.Deployment(d.spec(g.object))))
	st.announceScaling(g, st.carryOut(g, st.within(r.Next())))
	g.scaledMax = r.Max()
}

func (d deployments) assess(st *step, g *group) (v workload.Verdict, waits string) {
	r := st.rollout(g, workload.Deployment(d.spec(g.object)))
	v = r.Verdict()
	st.announceLate(g, &v)
	if r.Recreate && !v.Complete {
		waits = r.Next().Waits
	}
	return v, waits
}

// history is trimmed once the current template is fully there.
func (d deployments) history(g *group) int {
	if g.current == nil || !g.current.complete {
		return len(g.sets)
	}
	return workload.HistoryLimit(d.spec(g.object))
}

func (d deployments) summary(o *desired.Object) string {
	spec := d.spec(o)
	return count(int(replicas(spec.Replicas)), "pod") + ", image " + images(&spec.Template.Spec)
}

func (d deployments) change(was, is *desired.Object) (Op, string) {
	old, new := d.spec(was), d.spec(is)
	reason := workloadChange(replicas(old.Replicas), replicas(new.Replicas), &old.Template, &new.Template)
	if new.Paused {
		reason += " (paused: no rollout)"
	}
	return Update, reason
}

// announceScaling says what happened to a Deployment's sets, as Kubernetes does.
func (st *step) announceScaling(g *group, sizes map[string]int) {
	for _, s := range g.sets {
		change := sizes[s.hash]
		if change == 0 {
			continue
		}
		now := 0
		for _, p := range g.pods {
			if p.set.hash == s.hash && p.leaving == "" {
				now++
			}
		}
		direction := "up"
		if change < 0 {
			direction = "down"
		}
		st.event(g.key, false, "ScalingReplicaSet", fmt.Sprintf("Scaled %s replica set %s from %d to %d", direction, g.owner(s).Name, now-change, now))
	}
}
