package place

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// The tables below follow what Kubernetes' documentation says of each field.

func in(key string, values ...string) corev1.NodeSelectorRequirement {
	return corev1.NodeSelectorRequirement{Key: key, Operator: corev1.NodeSelectorOpIn, Values: values}
}

func required(terms ...corev1.NodeSelectorTerm) func(*nodes.Template) {
	return func(t *nodes.Template) {
		t.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}}}
	}
}

func labelled(name string, pairs ...string) *Node {
	return machine(name, func(s *nodes.NodeState) {
		s.Labels = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			s.Labels[pairs[i]] = pairs[i+1]
		}
	})
}

func TestNodeAffinity(t *testing.T) {
	a, b := labelled("a", "disk", "ssd", "cpus", "8"), labelled("b", "disk", "hdd", "gpu", "yes", "cpus", "16")
	none := "0/2 nodes fit: 2 do not match the pod's node selector or affinity"
	tests := map[string]struct {
		pod  func(*nodes.Template)
		want string
	}{
		"terms are ORed": {required(
			corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{in("disk", "tape")}},
			corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{in("gpu", "yes")}},
		), "b"},
		"expressions of a term are ANDed": {required(
			corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{in("disk", "ssd"), in("gpu", "yes")}},
		), none},
		"fields and expressions are ANDed": {required(corev1.NodeSelectorTerm{
			MatchExpressions: []corev1.NodeSelectorRequirement{in("disk", "ssd", "hdd")}, MatchFields: []corev1.NodeSelectorRequirement{in("metadata.name", "b")},
		}), "b"},
		"an empty term matches nothing": {required(corev1.NodeSelectorTerm{}), none},
		"exists":                        {required(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "gpu", Operator: corev1.NodeSelectorOpExists}}}), "b"},
		"does not exist":                {required(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "gpu", Operator: corev1.NodeSelectorOpDoesNotExist}}}), "a"},
		"not in":                        {required(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpNotIn, Values: []string{"ssd"}}}}), "b"},
		"greater":                       {required(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "cpus", Operator: corev1.NodeSelectorOpGt, Values: []string{"9"}}}}), "b"},
		"selector and affinity both": {func(t *nodes.Template) {
			required(corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{in("disk", "ssd")}})(t)
			t.Spec.NodeSelector = map[string]string{"gpu": "yes"}
		}, none},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := cluster(a, b).ask(request(test.pod)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// other is a pod with labels, in a namespace.
func other(namespace string, pairs ...string) *Request {
	labels := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		labels[pairs[i]] = pairs[i+1]
	}
	return Compile(System, namespace, &nodes.Template{Labels: labels, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}}})
}

func attracted(terms ...corev1.PodAffinityTerm) func(*nodes.Template) {
	return func(t *nodes.Template) {
		t.Labels = map[string]string{"app": "web", "version": "2"}
		t.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: terms}}
	}
}

func repelled(terms ...corev1.PodAffinityTerm) func(*nodes.Template) {
	return func(t *nodes.Template) {
		t.Labels = map[string]string{"app": "web", "version": "2"}
		t.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: terms}}
	}
}

func TestPodAffinity(t *testing.T) {
	with := func(change func(*corev1.PodAffinityTerm)) corev1.PodAffinityTerm {
		term := near("db", "zone")[0]
		change(&term)
		return term
	}
	nowhere := "0/3 nodes fit: 3 have no pod that the pod affinity asks for"
	db, both := other("default", "app", "db"), other("default", "app", "db", "tier", "data")
	tier := corev1.PodAffinityTerm{LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "data"}}, TopologyKey: "zone"}
	tests := map[string]struct {
		pod  func(*nodes.Template)
		pods []Neighbour
		want string
	}{
		"all terms are about the same pod": {attracted(near("db", "zone")[0], tier), []Neighbour{
			{Node: "b", Request: db}, {Node: "b", Request: other("default", "tier", "data")}, {Node: "c", Request: both},
		}, "c"},
		"terms with several topologies": {attracted(near("db", "zone")[0], near("db", corev1.LabelHostname)[0]), []Neighbour{{Node: "b", Request: db}}, "b"},
		"another namespace":             {attracted(near("db", "zone")...), []Neighbour{{Node: "b", Request: other("prod", "app", "db")}}, nowhere},
		"a namespace by name":           {attracted(with(func(t *corev1.PodAffinityTerm) { t.Namespaces = []string{"prod"} })), []Neighbour{{Node: "b", Request: other("prod", "app", "db")}}, "b"},
		"namespaces by label": {attracted(with(func(t *corev1.PodAffinityTerm) {
			t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "prod"}}
		})), []Neighbour{{Node: "a", Request: db}, {Node: "b", Request: other("prod", "app", "db")}}, "b"},
		"an empty namespace selector is all": {attracted(with(func(t *corev1.PodAffinityTerm) { t.NamespaceSelector = &metav1.LabelSelector{} })), []Neighbour{{Node: "b", Request: other("prod", "app", "db")}}, "b"},
		"matchLabelKeys": {attracted(with(func(t *corev1.PodAffinityTerm) {
			t.LabelSelector, t.MatchLabelKeys = selector("web"), []string{"version"}
		})), []Neighbour{{Node: "b", Request: other("default", "app", "web", "version", "1")}, {Node: "c", Request: other("default", "app", "web", "version", "2")}}, "c"},
		"mismatchLabelKeys": {repelled(with(func(t *corev1.PodAffinityTerm) {
			t.LabelSelector, t.MismatchLabelKeys = selector("web"), []string{"version"}
		})), []Neighbour{{Node: "a", Request: other("default", "app", "web", "version", "1")}, {Node: "b", Request: other("default", "app", "web", "version", "2")}}, "b"},
		"no selector is about nobody": {attracted(with(func(t *corev1.PodAffinityTerm) { t.LabelSelector = nil })), []Neighbour{{Node: "b", Request: db}}, nowhere},
		"anti-affinity holds for those that come later": {nil, []Neighbour{
			{Node: "a", Request: request(repelled(near("web", "zone")...))}, {Node: "b", Request: request(repelled(near("web", corev1.LabelHostname)...))},
		}, "c"},
		"a pod that others require is drawn to them": {nil, []Neighbour{{Node: "b", Request: request(attracted(near("web", "zone")...))}}, "b"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := cluster(machine("a", nil), machine("b", nil), machine("c", nil))
			w.labels = func(name string) map[string]string { return map[string]string{"team": name} }
			w.pods = test.pods
			if got := w.ask(request(test.pod)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestSpread(t *testing.T) {
	constraint := func(change func(*corev1.TopologySpreadConstraint)) func(*nodes.Template) {
		return func(t *nodes.Template) {
			t.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
				MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selector("web"),
			}}
			if change != nil {
				change(&t.Spec.TopologySpreadConstraints[0])
			}
		}
	}
	web := request(nil)
	two := []Neighbour{{Node: "a", Request: web}, {Node: "b", Request: web}, {Node: "c", Request: web}, {Node: "a", Request: web}}
	honor, ignore, five := corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore, int32(5)
	tooMany := "0/3 nodes fit: 3 have too many of these pods to spread over zone (maxSkew 1)"
	tests := map[string]struct {
		pod  func(*nodes.Template)
		list []*Node
		pods []Neighbour
		want string
	}{
		"the fullest is left out": {constraint(nil), nil, two, "b"},
		"maxSkew 2 lets it in":    {constraint(func(c *corev1.TopologySpreadConstraint) { c.MaxSkew = 2 }), nil, append([]Neighbour{{Node: "b", Request: web}}, two[1:]...), "a"},
		"fewer domains than minDomains: none may have more than maxSkew": {
			constraint(func(c *corev1.TopologySpreadConstraint) { c.MinDomains = &five }), nil, two[:3], tooMany,
		},
		"enough domains": {constraint(func(c *corev1.TopologySpreadConstraint) { n := int32(3); c.MinDomains = &n }), nil, two[:3], "a"},
		"a pod that it does not select does not count": {func(t *nodes.Template) {
			constraint(nil)(t)
			t.Labels = map[string]string{"app": "other"}
		}, nil, []Neighbour{{Node: "a", Request: web}}, "a"},
		"nodes that the selector leaves out don't count": {func(t *nodes.Template) {
			constraint(nil)(t)
			t.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "a"}
		}, nil, two[:1], "a"},
		"unless the policy ignores it": {func(t *nodes.Template) {
			constraint(func(c *corev1.TopologySpreadConstraint) { c.NodeAffinityPolicy = &ignore })(t)
			t.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "a"}
		}, nil, two[:1], "0/3 nodes fit: 2 do not match the pod's node selector or affinity, 1 has too many of these pods to spread over zone (maxSkew 1)"},
		"tainted nodes count": {
			constraint(nil),
			[]*Node{machine("a", nil), machine("b", taint("gpu", ""))},
			two[:1],
			"0/2 nodes fit: 1 has too many of these pods to spread over zone (maxSkew 1), 1 has taint gpu:NoSchedule",
		},
		"unless the policy honors taints": {
			constraint(func(c *corev1.TopologySpreadConstraint) { c.NodeTaintsPolicy = &honor }),
			[]*Node{machine("a", nil), machine("b", taint("gpu", ""))},
			two[:1], "a",
		},
		"ScheduleAnyway only prefers": {
			constraint(func(c *corev1.TopologySpreadConstraint) { c.WhenUnsatisfiable = corev1.ScheduleAnyway }),
			nil,
			[]Neighbour{{Node: "a", Request: web}, {Node: "b", Request: web}},
			"c",
		},
		"matchLabelKeys": {constraint(func(c *corev1.TopologySpreadConstraint) {
			c.LabelSelector, c.MatchLabelKeys = &metav1.LabelSelector{}, []string{"app"}
		}), nil, append([]Neighbour{{Node: "b", Request: other("default", "app", "x")}, {Node: "b", Request: other("default", "app", "x")}}, two[0], two[2]), "b"},
		"an empty selector counts nobody": {constraint(func(c *corev1.TopologySpreadConstraint) { c.LabelSelector = &metav1.LabelSelector{} }), nil, two, "a"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.list == nil {
				test.list = []*Node{machine("a", nil), machine("b", nil), machine("c", nil)}
			}
			w := cluster(test.list...)
			w.pods = test.pods
			if got := w.ask(request(test.pod)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestHostPorts(t *testing.T) {
	port := func(ip string, protocol corev1.Protocol) *Request {
		return request(func(t *nodes.Template) {
			t.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 53, ContainerPort: 53, HostIP: ip, Protocol: protocol}}
		})
	}
	tests := map[string]struct {
		has, wants *Request
		fits       bool
	}{
		"same":            {port("", ""), port("", corev1.ProtocolTCP), false},
		"other protocol":  {port("", ""), port("", corev1.ProtocolUDP), true},
		"other address":   {port("10.0.0.1", ""), port("10.0.0.2", ""), true},
		"all and one":     {port("0.0.0.0", ""), port("10.0.0.2", ""), false},
		"one and all":     {port("10.0.0.2", ""), port("", ""), false},
		"same address":    {port("10.0.0.2", ""), port("10.0.0.2", ""), false},
		"loopback beside": {port("127.0.0.1", ""), port("10.0.0.2", ""), true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := machine("a", nil).With(test.has).MayRun(test.wants); got != test.fits {
				t.Errorf("fits: %v", got)
			}
		})
	}
}

// TestRequests follows Kubernetes' arithmetic of init containers and sidecars.
func TestRequests(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	container := func(cpu string, sidecar bool) corev1.Container {
		c := corev1.Container{Resources: corev1.ResourceRequirements{Requests: list("cpu", cpu)}}
		if sidecar {
			c.RestartPolicy = &always
		}
		return c
	}
	tests := map[string]struct {
		spec corev1.PodSpec
		want int64
	}{
		"containers together":        {corev1.PodSpec{Containers: []corev1.Container{container("1", false), container("500m", false)}}, 1500},
		"the largest init container": {corev1.PodSpec{Containers: []corev1.Container{container("1", false)}, InitContainers: []corev1.Container{container("3", false), container("2", false)}}, 3000},
		"a sidecar beside all":       {corev1.PodSpec{Containers: []corev1.Container{container("1", false)}, InitContainers: []corev1.Container{container("2", true)}}, 3000},
		"init containers beside the sidecars before them": {corev1.PodSpec{
			Containers: []corev1.Container{container("1", false)}, InitContainers: []corev1.Container{container("4", false), container("2", true), container("3", false)},
		}, 5000},
		"overhead": {corev1.PodSpec{Containers: []corev1.Container{container("1", false)}, Overhead: list("cpu", "250m")}, 1250},
		"of the pod as a whole": {corev1.PodSpec{
			Containers: []corev1.Container{container("1", false)}, Resources: &corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("7")}},
		}, 7000},
		"a limit stands for a request": {corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: list("cpu", "2")}}}}, 2000},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := requests(&test.spec).cpu; got != test.want {
				t.Errorf("%d thousandths, want %d", got, test.want)
			}
		})
	}
}

func TestScores(t *testing.T) {
	busy := machine("b", nil).With(request(needs("cpu", "1", "memory", "1Gi")))
	avoided := func(s *nodes.NodeState) {
		s.Taints = []corev1.Taint{{Key: "old", Effect: corev1.TaintEffectPreferNoSchedule}}
	}
	service := func(t *nodes.Template) *Request { return Compile(Services, "default", t) }
	plain := &nodes.Template{Labels: map[string]string{"app": "web"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}}}
	self := service(plain)
	zoned := func(name, zone string) *Node { return labelled(name, corev1.LabelTopologyZone, zone) }
	tests := map[string]struct {
		strategy Strategy
		list     []*Node
		pods     []Neighbour
		pod      *Request
		want     string
	}{
		"packed":                        {Pack, []*Node{machine("a", nil), busy}, nil, request(nil), "b"},
		"spread":                        {Spread, []*Node{busy, machine("c", nil)}, nil, request(nil), "c"},
		"PreferNoSchedule":              {Pack, []*Node{machine("a", nil), machine("b", avoided).With(request(needs("cpu", "1")))}, nil, request(nil), "a"},
		"replicas on other nodes":       {Pack, []*Node{zoned("a", "x"), zoned("b", "x")}, []Neighbour{{Node: "a", Request: self}}, self, "b"},
		"replicas in other zones":       {Pack, []*Node{zoned("a", "x"), zoned("b", "x"), zoned("c", "y")}, []Neighbour{{Node: "a", Request: self}}, self, "c"},
		"pods of others don't count":    {Pack, []*Node{zoned("a", "x"), zoned("b", "x")}, []Neighbour{{Node: "a", Request: service(plain)}}, self, "a"},
		"those that leave don't either": {Pack, []*Node{zoned("a", "x"), zoned("b", "x")}, []Neighbour{{Node: "a", Request: self, Leaving: true}}, self, "a"},
		"no default spread of batch work": {
			Pack,
			[]*Node{machine("a", nil), machine("b", nil)},
			[]Neighbour{{Node: "a", Request: self}},
			Compile(Batch, "default", plain), "a",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := cluster(test.list...)
			w.strategy, w.pods = test.strategy, test.pods
			if got := w.ask(test.pod); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// TestSample: batch work is content with the best of a sample, and takes any
// node that fits when those are full.
func TestSample(t *testing.T) {
	var list []*Node
	for i := range 3 * sampleSize {
		list = append(list, machine(string(rune('a'+i/100))+string(rune('a'+i/10%10))+string(rune('a'+i%10)), func(s *nodes.NodeState) {
			s.Allocatable["pods"] = resource.MustParse("1")
		}))
	}
	w := cluster(list...)
	f, batch := w.field(), Compile(Batch, "default", &nodes.Template{Hash: "x", Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}}})
	seen := map[string]bool{}
	for range list {
		node, fits := f.Choose(batch, nil)
		if !fits || seen[node] {
			t.Fatalf("after %d pods: node %q, fits %v", len(seen), node, fits)
		}
		seen[node] = true
		f.Put(f.Node(node).With(batch), batch)
	}
	if node, fits := f.Choose(batch, nil); fits {
		t.Errorf("node %s is full", node)
	}
}
