package planner

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/nodes"
)

func daemonSet(name string, with ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	d := deployment(name, 1)
	one, none := intstr.FromInt32(1), intstr.FromInt32(0)
	s := &appsv1.DaemonSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"}, ObjectMeta: d.ObjectMeta,
		Spec: appsv1.DaemonSetSpec{
			Selector: d.Spec.Selector, Template: d.Spec.Template,
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &one, MaxSurge: &none},
			},
		},
	}
	for _, w := range with {
		w(s)
	}
	return s
}

func surging(s *appsv1.DaemonSet) {
	r := s.Spec.UpdateStrategy.RollingUpdate
	r.MaxUnavailable, r.MaxSurge = r.MaxSurge, r.MaxUnavailable
}

func daemonImage(image string) func(*appsv1.DaemonSet) {
	return func(s *appsv1.DaemonSet) { s.Spec.Template.Spec.Containers[0].Image = image }
}

// spread is where the pods of a workload are that are not leaving.
func (w *world) spread(name string) []string {
	var out []string
	for _, p := range w.pods(name) {
		out = append(out, p.Node+" "+p.Template.Spec.Containers[0].Image)
	}
	slices.Sort(out)
	return out
}

// describe lets a node describe itself anew.
func (w *world) describe(name string, with func(*nodes.Node)) {
	n := info(name)
	with(&n)
	w.next(Change{Reports: []nodes.Report{{Node: name, Info: &n}}})
}

func TestDaemonSetNodes(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(daemonSet("logs", func(s *appsv1.DaemonSet) {
		s.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelOSStable: "linux"}
	}))
	w.settle()
	both := []string{"n1 app:1", "n2 app:1"}
	if diff := cmp.Diff(both, w.spread("logs")); diff != "" {
		t.Fatal(diff)
	}
	p := w.pods("logs")[0]
	if !strings.HasPrefix(p.Name, "logs-") || p.Owner != keyOf(daemonSet("logs")) || p.AllLabels()["controller-revision-hash"] != p.TemplateHash {
		t.Errorf("pod %s of %s with labels %v", p.Name, p.Owner, p.AllLabels())
	}

	w.machines["n3"] = &machine{name: "n3", held: map[nodes.UID]*nodes.Pod{}, status: map[nodes.UID]*nodes.PodStatus{}}
	w.join("n3")
	w.settle()
	all := []string{"n1 app:1", "n2 app:1", "n3 app:1"}
	if diff := cmp.Diff(all, w.spread("logs")); diff != "" {
		t.Fatal(diff)
	}

	w.describe("n3", func(n *nodes.Node) { n.OS = "plan9" })
	w.settle()
	if diff := cmp.Diff(both, w.spread("logs")); diff != "" {
		t.Fatal(diff)
	}
	w.describe("n3", func(n *nodes.Node) { n.Unschedulable = true })
	w.settle()
	if diff := cmp.Diff(all, w.spread("logs")); diff != "" {
		t.Fatal(diff)
	}
	w.describe("n3", func(n *nodes.Node) { n.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}} })
	w.settle()
	if diff := cmp.Diff(all, w.spread("logs")); diff != "" {
		t.Fatal("a taint that evicts nobody:", diff)
	}
	w.describe("n3", func(n *nodes.Node) { n.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoExecute}} })
	w.settle()
	if diff := cmp.Diff(both, w.spread("logs")); diff != "" {
		t.Fatal("a taint that evicts:", diff)
	}
}

func TestDaemonSetRollsAndReturns(t *testing.T) {
	for name, strategy := range map[string]func(*appsv1.DaemonSet){"max unavailable": func(*appsv1.DaemonSet) {}, "surge": surging} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			for _, image := range []string{"app:1", "app:2", "app:1"} {
				w.push(daemonSet("logs", strategy, daemonImage(image)))
				w.settle()
				if diff := cmp.Diff([]string{"n1 " + image, "n2 " + image}, w.spread("logs")); diff != "" {
					t.Fatal(diff)
				}
			}
		})
	}
}

// TestDaemonSetSilentNode goes on where the nodes answer, as far as one more
// may be without.
func TestDaemonSetSilentNode(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	two := func(s *appsv1.DaemonSet) {
		two := intstr.FromInt32(2)
		s.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &two
	}
	w.push(daemonSet("logs"))
	w.settle()
	w.next(Change{Nodes: []nodes.NodeState{{Node: info("n2"), Ready: false, Since: w.now, Reason: "no heartbeat"}}})
	w.push(daemonSet("logs", daemonImage("app:2")))
	for range 10 {
		w.turn()
	}
	if diff := cmp.Diff([]string{"n1 app:1", "n2 app:1"}, w.spread("logs")); diff != "" {
		t.Fatal(diff)
	}
	if lines := w.s.Progress(); len(lines) != 1 || !strings.HasSuffix(lines[0].Line, "0 of 1 updated pod available, 1 old pod still there, 1 node silent") {
		t.Errorf("progress: %+v", lines)
	}
	w.push(daemonSet("logs", daemonImage("app:2"), two))
	for range 10 {
		w.turn()
	}
	if diff := cmp.Diff([]string{"n1 app:2", "n2 app:1"}, w.spread("logs")); diff != "" {
		t.Fatal(diff)
	}
	w.join("n2")
	w.settle()
	if diff := cmp.Diff([]string{"n1 app:2", "n2 app:2"}, w.spread("logs")); diff != "" {
		t.Fatal(diff)
	}
}

// TestDaemonSetRefused keeps a pod for its node although there is no room, and
// says why.
func TestDaemonSetRefused(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	big := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("20")}
	w.push(daemonSet("logs", func(s *appsv1.DaemonSet) { s.Spec.Template.Spec.Containers[0].Resources.Requests = big }))
	for _, p := range w.pods("logs") {
		if p.Node != "" || p.refusal != "node "+p.aim+" lacks cpu (want 20, most free 16)" {
			t.Errorf("pod for %q on %q: %s", p.aim, p.Node, p.refusal)
		}
	}
	w.restart(true)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	w.join("n2")
	for _, name := range []string{"n1", "n2"} {
		w.describe(name, func(n *nodes.Node) { n.Allocatable[corev1.ResourceCPU] = resource.MustParse("32") })
	}
	w.settle()
	if diff := cmp.Diff([]string{"n1 app:1", "n2 app:1"}, w.spread("logs")); diff != "" {
		t.Fatal(diff)
	}
}

func TestReplicationController(t *testing.T) {
	w := newWorld(t, "n1")
	controller := func(image string, replicas int32) *corev1.ReplicationController {
		d := deployment("old", replicas)
		d.Spec.Template.Spec.Containers[0].Image = image
		return &corev1.ReplicationController{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ReplicationController"}, ObjectMeta: d.ObjectMeta,
			Spec: corev1.ReplicationControllerSpec{Replicas: &replicas, Selector: d.Spec.Template.Labels, Template: &d.Spec.Template},
		}
	}
	for _, image := range []string{"app:1", "app:2"} {
		plan := w.push(controller(image, 2), serviceFor("old"))
		if image == "app:2" && plan.Difference[0].Reason != "image app:1 → app:2, 2 pods to roll" {
			t.Errorf("difference: %s", plan.Difference[0])
		}
		w.settle()
		if diff := cmp.Diff([]string{"n1 " + image, "n1 " + image}, w.spread("old")); diff != "" {
			t.Fatal(diff)
		}
	}
	if owner := w.pods("old")[0].Owner; owner != keyOf(controller("", 1)) {
		t.Errorf("the pods belong to %s", owner)
	}
}
