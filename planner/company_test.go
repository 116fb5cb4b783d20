package planner

import (
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/nodes"
)

// inZone is a Node of Git in a zone.
func inZone(name, zone string, taints ...corev1.Taint) *corev1.Node {
	n := machineOf(name, taints...)
	n.Labels = map[string]string{corev1.LabelTopologyZone: zone}
	return n
}

// apart keeps pods with some labels away from each other's domain.
func apart(key string, labels *metav1.LabelSelector) *corev1.Affinity {
	return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: key, LabelSelector: labels}}}}
}

// TestTheDeadKeepNobodyAway: a pod that is certain to have ended no longer keeps
// its successor out of its zone.
func TestTheDeadKeepNobodyAway(t *testing.T) {
	web := deployment("a", 2)
	web.Spec.Template.Spec.Affinity = apart(corev1.LabelTopologyZone, web.Spec.Selector)
	set := statefulSet("a", 2, func(s *appsv1.StatefulSet) {
		s.Annotations = fenced
		s.Spec.Template.Spec.Affinity = apart(corev1.LabelTopologyZone, s.Spec.Selector)
	})
	tests := map[string]struct {
		of  runtime.Object
		end func(w *world, node string, objects []runtime.Object)
	}{
		"out of service": {web, func(w *world, node string, objects []runtime.Object) {
			for i, o := range objects {
				if n, ok := o.(*corev1.Node); ok && n.Name == node {
					objects[i] = inZone(node, n.Labels[corev1.LabelTopologyZone], dead)
				}
			}
			w.push(objects...)
		}},
		"fenced": {set, func(w *world, node string, _ []runtime.Object) { w.lapse(node) }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2", "n3", "n4")
			objects := []runtime.Object{test.of, inZone("n1", "a"), inZone("n2", "a"), inZone("n3", "b"), inZone("n4", "b")}
			w.push(objects...)
			w.settle()
			lost := w.nodesOf("a")[0]
			w.promise(lost)
			w.fallSilent(lost)
			w.elapse(time.Hour)
			w.work(lost)
			if on := w.nodesOf("a"); name == "out of service" && !slices.Contains(on, "") {
				t.Fatalf("on %v: what may still run keeps others away", on)
			}
			test.end(w, lost, objects)
			w.elapse(time.Hour)
			w.work(lost)
			if on := w.nodesOf("a"); len(on) != 2 || slices.Contains(on, "") || slices.Contains(on, lost) {
				t.Fatalf("on %v: %s", on, w.last.Waiting)
			}
		})
	}
}

// TestTheDeadCountWhereTheirNodeAnswers: a node that is back may be back with
// them, until it has said that they are gone.
func TestTheDeadCountWhereTheirNodeAnswers(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	set := statefulSet("a", 2, func(s *appsv1.StatefulSet) {
		s.Annotations = fenced
		s.Spec.Template.Spec.Affinity = apart(corev1.LabelTopologyZone, s.Spec.Selector)
	})
	full := machineOf("n2")
	full.Labels, full.Spec.Unschedulable = map[string]string{corev1.LabelTopologyZone: "a"}, true
	w.push(set, inZone("n1", "a"), full, inZone("n3", "b"))
	w.settle()
	w.promise("n1")
	w.fallSilent("n1")
	w.lapse("n1")
	w.elapse(time.Hour)
	w.join("n1")
	w.push(set, inZone("n1", "a"), inZone("n2", "a"), inZone("n3", "b"))
	if on := w.nodesOf("a"); !slices.Equal(on, []string{"", "n3"}) {
		t.Fatalf("on %v: the node is back, perhaps with the pod", on)
	}
	w.next(Change{Nodes: []nodes.NodeState{{Node: info("n1"), Since: w.now, Reason: "no heartbeat", Lapsed: true}}})
	if on := w.nodesOf("a"); !slices.Equal(on, []string{"n2", "n3"}) {
		t.Fatalf("on %v: the node is silent again", on)
	}
}

// TestSpreadAfterAPodWasGivenUp: who waited for a spread is asked again when a
// pod that counts in it is given up.
func TestSpreadAfterAPodWasGivenUp(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	team := &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}}
	a := deployment("a", 1, func(d *appsv1.Deployment) {
		d.Spec.Template.Labels = map[string]string{"app": "a", "team": "x"}
		d.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n1"}
	})
	b := deployment("b", 1, spreadOut, func(d *appsv1.Deployment) {
		d.Spec.Template.Labels = map[string]string{"app": "b", "team": "x"}
		c := &d.Spec.Template.Spec.TopologySpreadConstraints[0]
		c.TopologyKey, c.LabelSelector = corev1.LabelTopologyZone, team
	})
	closed := inZone("n3", "b")
	closed.Spec.Unschedulable = true
	objects := []runtime.Object{a, inZone("n1", "a"), inZone("n2", "a"), closed}
	w.push(objects...)
	w.settle()
	w.push(append(objects, b)...)
	w.work()
	if on := w.nodesOf("b"); !slices.Equal(on, []string{""}) {
		t.Fatalf("on %v beside the other in its zone", on)
	}
	w.fallSilent("n1")
	w.elapse(time.Hour)
	w.work("n1")
	if on := w.nodesOf("b"); !slices.Equal(on, []string{"n2"}) {
		t.Errorf("on %v: %s", on, w.pods("b")[0].refusal)
	}
}

// TestSpreadHonoursSilence: to nodeTaintsPolicy Honor a silent node has a taint,
// so its domain takes no part.
func TestSpreadHonoursSilence(t *testing.T) {
	for policy, want := range map[corev1.NodeInclusionPolicy][]string{
		corev1.NodeInclusionPolicyHonor:  {"n2", "n2", "n3", "n4", "n5"},
		corev1.NodeInclusionPolicyIgnore: {"", "n2", "n3", "n4", "n5"},
	} {
		w := newWorld(t, "n1", "n2", "n3", "n4", "n5")
		d := deployment("a", 5, spreadOut)
		d.Spec.Template.Spec.TopologySpreadConstraints[0].NodeTaintsPolicy = &policy
		w.push(d)
		w.settle()
		w.fallSilent("n1")
		w.elapse(time.Hour)
		w.work("n1")
		if on := w.nodesOf("a"); !slices.Equal(on, want) {
			t.Errorf("%s: on %v, want %v", policy, on, want)
		}
	}
}
