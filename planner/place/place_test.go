package place

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

func machine(name string, change func(*nodes.NodeState)) *Node {
	s := &nodes.NodeState{Ready: true}
	s.Name, s.Allocatable = name, list("cpu", "2", "memory", "4Gi", "pods", "10")
	s.Labels = map[string]string{"zone": "z-" + name}
	if change != nil {
		change(s)
	}
	return NewNode(s, "")
}

func request(change func(*nodes.Template)) *Request {
	t := &nodes.Template{Labels: map[string]string{"app": "web"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}}}
	if change != nil {
		change(t)
	}
	return Compile(System, "default", t)
}

func needs(pairs ...string) func(*nodes.Template) {
	return func(t *nodes.Template) { t.Spec.Containers[0].Resources.Requests = list(pairs...) }
}

func taint(text, value string) func(*nodes.NodeState) {
	return func(s *nodes.NodeState) {
		s.Taints = []corev1.Taint{{Key: text, Value: value, Effect: corev1.TaintEffectNoSchedule}}
	}
}

func cluster(nodes ...*Node) *world {
	return &world{list: nodes, labels: func(string) map[string]string { return nil }}
}

// ask gives the node, or why there is none.
func (w *world) ask(r *Request) string {
	f := w.field()
	if node, fits := f.Choose(r, nil); fits {
		return node
	}
	return f.Refusal(r, nil)
}

func TestRefusals(t *testing.T) {
	hostPort := func(t *nodes.Template) {
		t.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, ContainerPort: 80}}
	}
	tests := map[string]struct {
		pod   func(*nodes.Template)
		nodes []*Node
		want  string
	}{
		"no nodes": {nil, nil, "no node has joined the cluster yet"},
		"cpu": {needs("cpu", "2"), []*Node{
			machine("a", nil).With(request(needs("cpu", "500m"))), machine("b", nil).With(request(needs("cpu", "1"))),
			machine("c", nil).With(request(needs("cpu", "1"))), machine("d", taint("gpu", "true")), machine("e", taint("gpu", "true")),
		}, "0/5 nodes fit: 3 lack cpu (want 2, most free 1.5), 2 have taint gpu=true:NoSchedule"},
		"memory":    {needs("memory", "8Gi"), []*Node{machine("a", nil)}, "0/1 nodes fit: 1 lacks memory (want 8Gi, most free 4Gi)"},
		"extended":  {needs("example.com/gpu", "1"), []*Node{machine("a", nil)}, "0/1 nodes fit: 1 lacks example.com/gpu (want 1, most free 0)"},
		"pods":      {nil, []*Node{machine("a", func(s *nodes.NodeState) { s.Allocatable = list("pods", "1") }).With(request(nil))}, "0/1 nodes fit: 1 has no room for another pod (limit 1)"},
		"selector":  {func(t *nodes.Template) { t.Spec.NodeSelector = map[string]string{"disk": "ssd"} }, []*Node{machine("a", nil)}, "0/1 nodes fit: 1 does not match the pod's node selector or affinity"},
		"node name": {func(t *nodes.Template) { t.Spec.NodeName = "z" }, []*Node{machine("a", nil)}, "0/1 nodes fit: 1 is not the node named in spec.nodeName (z)"},
		"cordoned":  {nil, []*Node{machine("a", func(s *nodes.NodeState) { s.Unschedulable = true })}, "0/1 nodes fit: 1 is unschedulable"},
		"silent":    {nil, []*Node{machine("a", nil).Change(&nodes.NodeState{}, "is silent")}, "0/1 nodes fit: 1 is silent"},
		"host port": {hostPort, []*Node{machine("a", nil).With(request(hostPort))}, "0/1 nodes fit: 1 has no free host port 80"},
		"init is more": {func(t *nodes.Template) {
			t.Spec.InitContainers = []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: list("cpu", "3")}}}
		}, []*Node{machine("a", nil)}, "0/1 nodes fit: 1 lacks cpu (want 3, most free 2)"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := cluster(test.nodes...).ask(request(test.pod)); got != test.want {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestChoices(t *testing.T) {
	tests := map[string]struct {
		pod   func(*nodes.Template)
		nodes []*Node
		want  string
	}{
		"tie goes to the first name": {nil, []*Node{machine("a", nil), machine("b", nil)}, "a"},
		"the node in use":            {needs("cpu", "1"), []*Node{machine("a", nil), machine("b", nil).With(request(needs("cpu", "1")))}, "b"},
		"tolerated": {func(t *nodes.Template) {
			t.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
		}, []*Node{machine("a", taint("gpu", "true"))}, "a"},
		"preferred": {func(t *nodes.Template) {
			t.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
				Weight: 1, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"z-b"}}}},
			}}}}
		}, []*Node{machine("a", nil).With(request(needs("cpu", "1"))), machine("b", nil)}, "b"},
		"hostname is a label": {func(t *nodes.Template) { t.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "b"} }, []*Node{machine("a", nil), machine("b", nil)}, "b"},
		"freed again":         {needs("cpu", "2"), []*Node{machine("a", nil).With(request(needs("cpu", "2"))).Without(request(needs("cpu", "2")))}, "a"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := cluster(test.nodes...).ask(request(test.pod)); got != test.want {
				t.Errorf("got %s", got)
			}
		})
	}
}

func selector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

func near(app, topology string) []corev1.PodAffinityTerm {
	return []corev1.PodAffinityTerm{{LabelSelector: selector(app), TopologyKey: topology}}
}

func TestCompany(t *testing.T) {
	attracted := func(t *nodes.Template) {
		t.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: near("db", "zone")}}
	}
	repelled := func(t *nodes.Template) {
		t.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: near("web", "zone")}}
	}
	toItself := func(t *nodes.Template) {
		t.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: near("web", "zone")}}
	}
	spread := func(t *nodes.Template) {
		t.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selector("web")}}
	}
	db := request(func(t *nodes.Template) { t.Labels = map[string]string{"app": "db"} })
	web := request(nil)
	tests := map[string]struct {
		pod        func(*nodes.Template)
		neighbours []Neighbour
		want       string
	}{
		"affinity":                 {attracted, []Neighbour{{Node: "b", Request: db}}, "b"},
		"affinity to nobody":       {attracted, nil, "0/2 nodes fit: 2 have no pod that the pod affinity asks for"},
		"affinity to itself":       {toItself, nil, "a"},
		"anti-affinity":            {repelled, []Neighbour{{Node: "a", Request: web}}, "b"},
		"anti-affinity everywhere": {repelled, []Neighbour{{Node: "a", Request: web}, {Node: "b", Request: web}}, "0/2 nodes fit: 2 have a pod that the pod anti-affinity keeps away from"},
		"anti-affinity of others":  {nil, []Neighbour{{Node: "a", Request: request(repelled)}}, "b"},
		"spread":                   {spread, []Neighbour{{Node: "a", Request: web}}, "b"},
		"spread evenly":            {spread, []Neighbour{{Node: "a", Request: web}, {Node: "b", Request: web}}, "a"},
		"spread as if those that leave were gone": {spread, []Neighbour{{Node: "a", Request: web, Leaving: true}, {Node: "b", Request: web}}, "a"},
		"anti-affinity to one that leaves":        {repelled, []Neighbour{{Node: "a", Request: web, Leaving: true}}, "b"},
		"spread over nothing known":               {func(t *nodes.Template) { spread(t); t.Spec.TopologySpreadConstraints[0].TopologyKey = "rack" }, nil, "0/2 nodes fit: 2 lack the label rack to spread over"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := cluster(machine("a", nil), machine("b", nil))
			c.pods = test.neighbours
			if got := c.ask(request(test.pod)); got != test.want {
				t.Errorf("got %s", got)
			}
		})
	}
}
