package planner

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// leaving counts the pods that are on their way out.
func (w *world) leaving() (n int) {
	for _, g := range entries(w.s.groups) {
		for _, p := range g.pods {
			if p.goes() {
				n++
			}
		}
	}
	return n
}

// TestDrainUnderOneBudget: a budget over several workloads, or over pods without
// a scale, counts those that are on their way out as expected, so that one goes
// after the other.
func TestDrainUnderOneBudget(t *testing.T) {
	team := map[string]string{"team": "etcd"}
	one, most := intstr.FromInt32(1), intstr.FromString("34%")
	budgets := map[string]policyv1.PodDisruptionBudgetSpec{"maxUnavailable 1": {MaxUnavailable: &one}, "minAvailable 34%": {MinAvailable: &most}}
	workloads := map[string]func(i int) runtime.Object{
		"stateful sets": func(i int) runtime.Object {
			return statefulSet(fmt.Sprint("etcd", i), 1, func(s *appsv1.StatefulSet) { s.Spec.Template.Labels = map[string]string{"app": s.Name, "team": "etcd"} })
		},
		"recreated deployments": func(i int) runtime.Object {
			return deployment(fmt.Sprint("d", i), 1, recreate, func(d *appsv1.Deployment) { d.Spec.Template.Labels = map[string]string{"app": d.Name, "team": "etcd"} })
		},
		"jobs": func(i int) runtime.Object {
			return job(fmt.Sprint("j", i), 1, 1, func(j *batchv1.Job) { j.Spec.Template.Labels = team })
		},
		"bare pods": func(i int) runtime.Object {
			p := barePod(fmt.Sprint("p", i), "app:1")
			p.Labels = team
			return p
		},
	}
	for kind, make := range workloads {
		for rule, spec := range budgets {
			t.Run(kind+", "+rule, func(t *testing.T) {
				spec.Selector = &metav1.LabelSelector{MatchLabels: team}
				objects := []runtime.Object{&policyv1.PodDisruptionBudget{
					TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"}, Spec: spec,
				}}
				for i := range 3 {
					objects = append(objects, make(i))
				}
				w := newWorld(t, "n1", "n2")
				away := machineOf("n2")
				away.Spec.Unschedulable = true
				w.push(append(objects, away)...)
				w.work()
				w.push(append(objects, machineOf("n1", drainNow))...)
				for range 200 {
					if n := w.leaving(); n > 1 {
						t.Fatalf("%d of 3 leave at once", n)
					}
					if !w.turn() {
						break
					}
				}
				if n, _ := w.s.nodes.Get("n1"); n.pods.Len() > 0 {
					t.Errorf("%d pods are left: %v", n.pods.Len(), w.last.Waiting)
				}
			})
		}
	}
}
