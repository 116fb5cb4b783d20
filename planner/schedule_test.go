package planner

import (
	"maps"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
)

// TestStrategy: the Cluster object says where pods go of several nodes that fit.
func TestStrategy(t *testing.T) {
	for strategy, want := range map[string]string{"pack": "n1", "spread": "n2"} {
		t.Run(strategy, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			w.push(deployment("first", 1, requesting("4", "1Gi")))
			w.settle()
			plain := snapshotOf(2, "second", deployment("first", 1, requesting("4", "1Gi")), deployment("second", 1, requesting("1", "1Gi")))
			settings := desired.DefaultSettings()
			settings.Placement = strategy
			var objects []*desired.Object
			for o := range plain.All() {
				objects = append(objects, o)
			}
			w.next(Change{Snapshot: desired.NewSnapshot(plain.Revision(), settings, objects, nil), Source: w.source})
			if got := w.pods("second")[0].Node; got != want {
				t.Errorf("on %s, want %s", got, want)
			}
		})
	}
}

// nearTo keeps pods to nodes with a pod of an app.
func nearTo(app string) option {
	return func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: deployment(app, 1).Spec.Selector, TopologyKey: corev1.LabelHostname,
		}}}}
	}
}

// TestHelped: what happens brings back the pods that it may help, and no others.
func TestHelped(t *testing.T) {
	ssd := func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeSelector = map[string]string{"disk": "ssd"} }
	w := newWorld(t, "n1", "n2")
	w.push(deployment("runs", 1), deployment("large", 3, requesting("17", "1Gi")), deployment("choosy", 1, ssd), deployment("follower", 1, nearTo("leader")))
	count := func(what func(*step)) map[string]int {
		st := begin(w.s, w.now)
		what(st)
		out := map[string]int{}
		for _, uid := range st.helped() {
			g, _ := st.pod(uid)
			out[g.key.Name]++
		}
		return out
	}
	room := func(cpu string, labels map[string]string) func(*step) {
		return func(st *step) {
			n := st.nodeFor("n1")
			state := nodes.NodeState{Node: info("n1")}
			state.Labels = labels
			state.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse("4Gi")}
			n.load = place.NewNode(&state, "")
			st.nodes = st.nodes.Set("n1", n)
			st.stir.rooms["n1"] = true
		}
	}
	leader := place.Compile(place.Services, "default", &nodes.Template{Labels: map[string]string{"app": "leader"}})
	tests := map[string]struct {
		what func(*step)
		want map[string]int
	}{
		"nothing":         {func(*step) {}, map[string]int{}},
		"a little room":   {room("1", nil), map[string]int{"follower": 1}},
		"much room":       {room("20", nil), map[string]int{"large": 3, "follower": 1}},
		"another label":   {room("1", map[string]string{"disk": "ssd"}), map[string]int{"choosy": 1, "follower": 1}},
		"a pod that came": {func(st *step) { st.stirred(leader) }, map[string]int{"follower": 1}},
		"a claim":         {func(st *step) { st.stir.claims = true }, map[string]int{}},
		"a new revision":  {func(st *step) { st.stir.all = true }, map[string]int{"large": 3, "choosy": 1, "follower": 1}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := count(test.what); !maps.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
	// In the step that brings the leader, its follower comes, too.
	w.push(deployment("runs", 1), deployment("follower", 1, nearTo("leader")), deployment("leader", 1))
	leading, following := w.pods("leader")[0], w.pods("follower")[0]
	if leading.Node == "" || following.Node != leading.Node {
		t.Errorf("the leader is on %q, its follower on %q: %s", leading.Node, following.Node, following.refusal)
	}
}

// TestAPodThatNamesItsNode is asked by no scheduler: a cordon, a spread and
// others' wishes do not hold it, and its own are heeded by those after it.
func TestAPodThatNamesItsNode(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	cordoned := machineOf("n1")
	cordoned.Spec.Unschedulable = true
	d := deployment("a", 2, spreadOut, func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.NodeName = "n1"
		d.Spec.Template.Spec.Affinity = apart(corev1.LabelHostname, d.Spec.Selector)
	})
	w.push(cordoned, d)
	w.settle()
	if on := w.nodesOf("a"); !slices.Equal(on, []string{"n1", "n1"}) {
		t.Fatalf("on %v", on)
	}
	other := barePod("b", "app:1")
	other.Labels = d.Spec.Template.Labels
	w.push(d, other)
	w.settle()
	if on := w.nodesOf("b"); !slices.Equal(on, []string{"n2"}) {
		t.Errorf("on %v, beside a pod that keeps it away", on)
	}
}
