package planner

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/nodes"
)

// atLeast is a PodDisruptionBudget for the pods of a workload.
func atLeast(app string, least int) *policyv1.PodDisruptionBudget {
	min := intstr.FromInt(least)
	return &policyv1.PodDisruptionBudget{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: app},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &min, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
	}
}

// serving counts the pods of a workload that serve.
func (w *world) serving(name string) (n int) {
	for _, p := range w.pods(name) {
		if p.serving() {
			n++
		}
	}
	return n
}

// workWatching lets the nodes work and fails when fewer than least pods serve.
func (w *world) workWatching(t *testing.T, name string, least int) {
	t.Helper()
	for range 200 {
		if n := w.serving(name); n < least {
			t.Fatalf("only %d pods of %s serve", n, name)
		}
		if !w.turn() {
			return
		}
	}
	t.Fatalf("the cluster does not settle: %v", w.s.Progress())
}

func TestDrain(t *testing.T) {
	tests := map[string]struct {
		objects []runtime.Object
		name    string
		least   int
	}{
		"a single pod":       {[]runtime.Object{deployment("a", 1)}, "a", 1},
		"several":            {[]runtime.Object{deployment("a", 4)}, "a", 3},
		"without a surge":    {[]runtime.Object{deployment("a", 3, strategy("0", "1")), atLeast("a", 2)}, "a", 2},
		"recreated":          {[]runtime.Object{deployment("a", 2, recreate), atLeast("a", 1)}, "a", 1},
		"paused":             {[]runtime.Object{deployment("a", 2, paused), atLeast("a", 1)}, "a", 1},
		"a stateful set":     {[]runtime.Object{statefulSet("a", 3)}, "a", 2},
		"with a wide budget": {[]runtime.Object{statefulSet("a", 3), atLeast("a", 1)}, "a", 2},
		"a bare pod":         {[]runtime.Object{barePod("a", "app:1")}, "a", 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			for _, o := range test.objects {
				if d, ok := o.(*appsDeployment); ok && d.Spec.Paused {
					// A paused Deployment begins nothing.
					running := d.DeepCopy()
					running.Spec.Paused = false
					w.push(append([]runtime.Object{running, serviceFor("a")}, test.objects[1:]...)...)
					w.settle()
				}
			}
			objects := slices.Clone(test.objects)
			if test.least > 0 {
				objects = append(objects, serviceFor("a"))
			}
			w.push(objects...)
			w.work()
			if on := w.nodesOf(test.name); !slices.Contains(on, "n1") {
				t.Fatalf("on %v", on)
			}
			w.push(append(objects, machineOf("n1", drainNow))...)
			if converged, _ := w.s.Settled(); converged {
				t.Error("converged before it is drained")
			}
			w.workWatching(t, test.name, test.least)
			if on := w.nodesOf(test.name); slices.Contains(on, "n1") || len(on) == 0 {
				t.Fatalf("on %v: %v", on, w.last.Waiting)
			}
			if converged, failed := w.s.Settled(); !converged {
				t.Errorf("not converged: %s %v", failed, w.last.Waiting)
			}
			w.checkHeldOnce(t)
		})
	}
}

// TestDrainWaitsForBudget: a budget that allows nothing holds the drain, says
// so, and lets it go on when it allows something; taking the taint back ends it.
func TestDrainWaitsForBudget(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	both := statefulSet("a", 2)
	both.Spec.Template.Spec.NodeSelector = map[string]string{"here": "yes"}
	here, there := machineOf("n1"), machineOf("n2")
	here.Labels, there.Labels = map[string]string{"here": "yes"}, map[string]string{"here": "yes"}
	objects := []runtime.Object{both, serviceFor("a")}
	w.push(append(objects, atLeast("a", 2), here)...)
	w.settle()
	objects = append(objects, there)
	w.push(append(objects, atLeast("a", 2), here)...)
	before := w.uids("a")
	drained := machineOf("n1", drainNow)
	drained.Labels = here.Labels
	w.push(append(objects, atLeast("a", 2), drained)...)
	w.work()
	if after := w.uids("a"); !slices.Equal(before, after) {
		t.Fatalf("evicted against the budget: %v", after)
	}
	said := fmt.Sprint(w.last.Waiting)
	for _, want := range []string{"is drained: 2 of 2 pods left", "PodDisruptionBudget default/a needs 2 of its 2 pods ready, and 2 are"} {
		if !strings.Contains(said, want) {
			t.Errorf("nobody says %q: %s", want, said)
		}
	}
	w.push(append(objects, atLeast("a", 2), here)...)
	w.settle()
	if after := w.uids("a"); !slices.Equal(before, after) {
		t.Fatalf("evicted after it was taken back: %v", after)
	}
	w.push(append(objects, atLeast("a", 1), drained)...)
	w.workWatching(t, "a", 1)
	if on := w.nodesOf("a"); !slices.Equal(on, []string{"n2", "n2"}) {
		t.Fatalf("on %v", on)
	}
}

// TestDrainWithoutRoom: where no other can be made first, the pod goes as far as
// budgets allow.
func TestDrainWithoutRoom(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	d := deployment("a", 2, spreadOut)
	w.push(d)
	w.settle()
	w.push(d, machineOf("n1", drainNow))
	w.work()
	if on := w.nodesOf("a"); slices.Contains(on, "n1") {
		t.Fatalf("on %v", on)
	}
}

func TestDrainAfterTolerationSeconds(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	d := deployment("a", 2, tolerating("drain", 300))
	w.push(d)
	w.settle()
	before := w.nodesOf("a")
	cordoned := machineOf("n1", drainNow)
	cordoned.Spec.Unschedulable = true
	w.push(d, cordoned)
	w.elapse(299 * time.Second)
	if on := w.nodesOf("a"); !slices.Equal(on, before) || !slices.Contains(on, "n1") {
		t.Fatalf("too early: %v", on)
	}
	w.elapse(2 * time.Second)
	w.work()
	if on := w.nodesOf("a"); slices.Contains(on, "n1") {
		t.Fatalf("on %v", on)
	}
}

// TestDrainLeavesDaemons: a DaemonSet's pods go by its own rules.
func TestDrainLeavesDaemons(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	everywhere := daemonSet("logs")
	everywhere.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	w.push(everywhere, daemonSet("other"))
	w.settle()
	w.push(everywhere, daemonSet("other"), machineOf("n1", drainNow))
	w.work()
	if on := w.nodesOf("logs"); !slices.Equal(on, []string{"n1", "n2"}) {
		t.Errorf("logs on %v", on)
	}
	if on := w.nodesOf("other"); !slices.Equal(on, []string{"n2"}) {
		t.Errorf("other on %v", on)
	}
}

// TestUnhealthyPods: a pod that is not ready goes unless its budget is broken
// already, or says that it may go always.
func TestUnhealthyPods(t *testing.T) {
	for name, policy := range map[string]policyv1.UnhealthyPodEvictionPolicyType{"if the budget is healthy": policyv1.IfHealthyBudget, "always": policyv1.AlwaysAllow} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			b := atLeast("a", 1)
			b.Spec.UnhealthyPodEvictionPolicy = &policy
			set := statefulSet("a", 1)
			w.push(set, b)
			w.settle()
			p := w.pods("a")[0]
			s := w.machines["n1"].setReady(p.UID, false, w.now)
			w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{s}}}})
			w.push(set, b, machineOf("n1", drainNow))
			if _, p := w.s.pod(p.UID); (p.leaving != "") != (policy == policyv1.AlwaysAllow) {
				t.Errorf("leaving: %q, held: %q", p.leaving, p.held)
			}
		})
	}
}

// TestDaemonsTolerationEnds: a pod of a DaemonSet goes when its time with a taint
// is over, and the next one has as much: its node is still one that it is for.
func TestDaemonsTolerationEnds(t *testing.T) {
	w := newWorld(t, "n1")
	d := daemonSet("agent", func(d *appsv1.DaemonSet) {
		d.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: "drain", Operator: corev1.TolerationOpExists, TolerationSeconds: new(int64(60))}}
	})
	w.push(d, machineOf("n1", drainNow))
	for range 3 {
		first := w.uids("agent")
		w.elapse(58 * time.Second)
		if now := w.uids("agent"); len(first) != 1 || !slices.Equal(now, first) {
			t.Fatalf("%v after %v: too early", now, first)
		}
		w.elapse(4 * time.Second)
		w.work()
		if now := w.uids("agent"); len(now) != 1 || slices.Equal(now, first) {
			t.Fatalf("%v after %v: not replaced", now, first)
		}
	}
	w.push(d)
	w.settle()
	last := w.uids("agent")
	w.elapse(time.Hour)
	if now := w.uids("agent"); !slices.Equal(now, last) {
		t.Errorf("%v after %v, and the taint is gone", now, last)
	}
}

// TestTolerationBeginsWithThePod: one that is made on a node with the taint has
// its whole time.
func TestTolerationBeginsWithThePod(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(machineOf("n1", drainNow), namespace("default"))
	w.elapse(time.Hour)
	w.push(machineOf("n1", drainNow), namespace("default"), deployment("a", 1, tolerating("drain", 60)))
	w.work()
	first := w.uids("a")
	w.elapse(50 * time.Second)
	if now := w.uids("a"); !slices.Equal(now, first) {
		t.Errorf("%v after %v: too early", now, first)
	}
	w.elapse(20 * time.Second)
	w.work()
	if now := w.uids("a"); slices.Equal(now, first) {
		t.Error("not replaced")
	}
}

// TestDrainTellsHowFar: how many pods are left of how many.
func TestDrainTellsHowFar(t *testing.T) {
	w := newWorld(t, "n1")
	d := deployment("a", 3, strategy("0", "1"))
	w.push(d)
	w.settle()
	w.machines["n2"] = &machine{name: "n2", index: 1, held: map[nodes.UID]*nodes.Pod{}, status: map[nodes.UID]*nodes.PodStatus{}, disk: map[string]*nodes.Volume{}}
	w.join("n2")
	for range 2 { // the second drain counts anew
		var said []string
		w.push(d, machineOf("n1", drainNow))
		for range 100 {
			for _, item := range w.last.Waiting {
				if text, _, _ := strings.Cut(item.Reason, ";"); strings.HasPrefix(text, "is drained") && !slices.Contains(said, text) {
					said = append(said, text)
				}
			}
			w.turn()
		}
		if len(said) < 2 || said[0] != "is drained: 3 of 3 pods left" || said[len(said)-1] != "is drained: 1 of 3 pods left" {
			t.Fatalf("said %q", said)
		}
		w.push(d, machineOf("n2", drainNow))
		w.settle()
	}
}
