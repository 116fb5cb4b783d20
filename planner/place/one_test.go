package place

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestFits asks one node that a pod is for.
func TestFits(t *testing.T) {
	tests := map[string]struct {
		pod        func(*nodes.Template)
		node, want string
	}{
		"room":          {nil, "a", ""},
		"no room":       {needs("cpu", "3"), "a", "node a lacks cpu (want 3, most free 2)"},
		"no huge pages": {needs("hugepages-2Mi", "4Mi"), "a", "node a lacks hugepages-2Mi (want 4Mi, most free 0)"},
		"no room for its overhead": {func(t *nodes.Template) {
			t.Spec.Overhead = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2500m")}
		}, "a", "node a lacks cpu (want 2.5, most free 2)"},
		"taint":  {nil, "b", "node b has taint gpu=true:NoSchedule"},
		"cordon": {nil, "c", "node c is unschedulable"},
		"cordon tolerated": {func(t *nodes.Template) {
			t.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists}}
		}, "c", ""},
		"unknown":               {nil, "d", "node d has not joined the cluster"},
		"taint, by name":        {named("b"), "b", ""},
		"cordon, by name":       {named("c"), "c", ""},
		"drained, by name":      {named("e"), "e", "node e has taint drain:NoExecute"},
		"another node, by name": {named("a"), "b", "node b is not the node named in spec.nodeName (a)"},
		"no room, by name":      {func(t *nodes.Template) { named("a")(t); needs("cpu", "3")(t) }, "a", "node a lacks cpu (want 3, most free 2)"},
	}
	c := cluster(machine("a", nil), machine("b", taint("gpu", "true")), machine("c", func(s *nodes.NodeState) { s.Unschedulable = true }),
		machine("e", func(s *nodes.NodeState) {
			s.Taints = []corev1.Taint{{Key: "drain", Effect: corev1.TaintEffectNoExecute}}
		}))
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := c.field().Fits(request(test.pod), nil, test.node); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func named(node string) func(*nodes.Template) {
	return func(t *nodes.Template) { t.Spec.NodeName = node }
}

func TestEligible(t *testing.T) {
	evicting := func(s *nodes.NodeState) {
		s.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoExecute}}
	}
	tests := map[string]struct {
		pod         func(*nodes.Template)
		node        func(*nodes.NodeState)
		runs, stays bool
	}{
		"plain":              {nil, nil, true, true},
		"full":               {needs("cpu", "100"), nil, true, true},
		"selector":           {func(t *nodes.Template) { t.Spec.NodeSelector = map[string]string{"disk": "ssd"} }, nil, false, false},
		"name":               {func(t *nodes.Template) { t.Spec.NodeName = "other" }, nil, false, false},
		"taint, by name":     {named("a"), taint("gpu", "true"), false, true},
		"taint for new pods": {nil, taint("gpu", "true"), false, true},
		"taint for all":      {nil, evicting, false, false},
		"unschedulable":      {nil, func(s *nodes.NodeState) { s.Unschedulable = true }, false, true},
		"preferred elsewhere": {nil, func(s *nodes.NodeState) {
			s.Taints = []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectPreferNoSchedule}}
		}, true, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if runs, stays := Eligible(request(test.pod), machine("a", test.node)); runs != test.runs || stays != test.stays {
				t.Errorf("runs %v, stays %v", runs, stays)
			}
		})
	}
}

// TestOwnLabels keeps a pod away from the one that has the same label of its
// own, and from no other.
func TestOwnLabels(t *testing.T) {
	apart := func(t *nodes.Template) {
		t.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, MatchLabelKeys: []string{"index"}, TopologyKey: corev1.LabelHostname,
		}}}}
	}
	pod := func(index string) *Request {
		return request(apart).WithOwn(map[string]string{"index": index})
	}
	c := cluster(machine("a", nil))
	c.pods = []Neighbour{{Node: "a", Request: pod("0")}}
	if got := c.field().Fits(pod("1"), nil, "a"); got != "" {
		t.Errorf("a pod with another index: %s", got)
	}
	if got := c.field().Fits(pod("0"), nil, "a"); got == "" {
		t.Error("a pod with the same index fits")
	}
}

func TestAlike(t *testing.T) {
	plain := machine("a", nil)
	if !Alike(plain, plain.With(request(needs("cpu", "1")))) {
		t.Error("what runs on a node makes it another one")
	}
	for name, changed := range map[string]*Node{
		"taint": machine("a", taint("x", "")), "cordon": machine("a", func(s *nodes.NodeState) { s.Unschedulable = true }),
		"label": machine("a", func(s *nodes.NodeState) { s.Labels["zone"] = "other" }), "silence": plain.Change(plain.state, "is silent"),
	} {
		if Alike(plain, changed) {
			t.Errorf("%s: no difference", name)
		}
	}
}
