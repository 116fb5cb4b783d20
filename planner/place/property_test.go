package place

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestExact holds the quick way to what a look at everything says, over random
// clusters in which pods come, and go with the field begun anew.
func TestExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{strategy: Strategy(rapid.IntRange(0, 1).Draw(t, "strategy")), labels: func(name string) map[string]string {
			return map[string]string{corev1.LabelMetadataName: name, "team": name[:1]}
		}}
		for i := range rapid.IntRange(1, 8).Draw(t, "nodes") {
			w.list = append(w.list, drawNode(t, i))
		}
		if rapid.IntRange(0, 9).Draw(t, "many") == 0 { // more domains than are told apart by name
			for i := range maxNarrow {
				w.list = append(w.list, drawNode(t, 100+i))
			}
		}
		w.stock(t)
		var requests []*Request
		for i := range rapid.IntRange(1, 4).Draw(t, "templates") {
			requests = append(requests, drawRequest(t, i))
			w.particular = w.particular || slices.Contains(requests[i].Keyed(), "index")
		}
		f := w.field()
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			if rapid.IntRange(0, 6).Draw(t, "event") == 0 {
				w.happen(t)
				w.breakPromises()
				f = w.field()
				continue
			}
			r := rapid.SampledFrom(requests).Draw(t, "template")
			if rapid.IntRange(0, 3).Draw(t, "own") == 0 {
				r = r.WithOwn(map[string]string{"index": rapid.SampledFrom([]string{"0", "1"}).Draw(t, "index")})
			}
			var storage Storage
			if rapid.IntRange(0, 4).Draw(t, "claims") == 0 {
				only := rapid.SampledFrom(w.list).Draw(t, "only").Name()
				storage = func(n *Node) string {
					if n.Name() != only {
						return "is not " + only
					}
					return ""
				}
			}
			if rapid.IntRange(0, 9).Draw(t, "renew") == 0 {
				f.Renew()
			}
			w.compare(t, f, r, storage)
		}
	})
}

// stock gives the nodes images of which each size counts otherwise.
func (w *world) stock(t *rapid.T) {
	held := map[string][]Held{}
	for i := range w.list {
		w.list[i] = w.list[i].Numbered(int32(100 * (1 + i)))
	}
	for _, name := range []string{imageNames[0], imageNames[1], imageNames[1]} {
		h := Held{Image: &nodes.Image{Names: []string{nodes.ImageName(name)}, Size: rapid.Int64Range(0, 2*largeImages).Draw(t, "size")}}
		others := held[h.Image.Names[0]]
		for _, n := range w.list {
			if rapid.Bool().Draw(t, "has") && (len(others) == 0 || !slices.ContainsFunc(others, func(o Held) bool { return o.On.Without(n.number).Len() < o.On.Len() })) {
				h.On = h.On.With(n.number)
			}
		}
		held[h.Image.Names[0]] = append(others, h)
	}
	w.images = func(name string) []Held { return held[name] }
}

var imageNames = []string{"shop:1", "registry.example.org/tools/migrate"}

func (w *world) compare(t *rapid.T, f *Field, r *Request, storage Storage) {
	want, fits := w.choose(r, storage)
	got, did := f.Choose(r, storage)
	if got != want || did != fits {
		t.Fatalf("the quick way chose %q, a look at everything %q\n%s", got, want, f.Refusal(r, storage))
	}
	for _, n := range w.list {
		fits := w.fits(r, n) && (storage == nil || storage(n) == "")
		if why := f.Fits(r, storage, n.Name()); (why == "") != fits {
			t.Fatalf("node %s: fits %v, quick way says %q", n.Name(), fits, why)
		}
	}
	if !fits {
		return
	}
	i := slices.IndexFunc(w.list, func(n *Node) bool { return n.Name() == want })
	w.list[i] = w.list[i].With(r)
	if rapid.IntRange(0, 3).Draw(t, "promised") == 0 {
		w.promised = append(w.promised, Neighbour{Node: want, Request: r})
		f.Promise(w.list[i], r)
		return
	}
	w.pods = append(w.pods, Neighbour{Node: want, Request: r})
	f.Put(w.list[i], r)
}

// breakPromises ends a step: those that were promised a place ask again.
func (w *world) breakPromises() {
	for _, p := range w.promised {
		at := slices.IndexFunc(w.list, func(n *Node) bool { return n.Name() == p.Node })
		w.list[at] = w.list[at].Without(p.Request)
	}
	w.promised = nil
}

// happen lets a pod go, or begin to.
func (w *world) happen(t *rapid.T) {
	if len(w.pods) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.pods)-1).Draw(t, "pod")
	if !w.pods[i].Leaving && rapid.Bool().Draw(t, "leaves") {
		w.pods[i].Leaving = true
		return
	}
	p := w.pods[i]
	w.pods = slices.Delete(w.pods, i, i+1)
	at := slices.IndexFunc(w.list, func(n *Node) bool { return n.Name() == p.Node })
	w.list[at] = w.list[at].Without(p.Request)
}

func drawNode(t *rapid.T, i int) *Node {
	maybe := func(what string) bool { return rapid.IntRange(0, 5).Draw(t, what) == 0 }
	s := &nodes.NodeState{Ready: true}
	s.Name, s.OS, s.Labels = fmt.Sprintf("n%03d", i), "linux", map[string]string{}
	s.Allocatable = list("cpu", fmt.Sprint(rapid.IntRange(1, 4).Draw(t, "cpu")), "memory", "4Gi", "pods", "6")
	if !maybe("no zone") {
		s.Labels[corev1.LabelTopologyZone] = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "zone")
	}
	if !maybe("no rack") {
		s.Labels["rack"] = fmt.Sprint(i / 2)
	}
	if maybe("ssd") {
		s.Labels["disk"] = "ssd"
	}
	switch rapid.IntRange(0, 9).Draw(t, "taint") {
	case 0:
		s.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}
	case 1:
		s.Taints = []corev1.Taint{{Key: "old", Effect: corev1.TaintEffectPreferNoSchedule}}
	case 2:
		s.Unschedulable = true
	}
	return NewNode(s, "")
}

func drawSelector(t *rapid.T) *metav1.LabelSelector {
	switch rapid.IntRange(0, 5).Draw(t, "selector") {
	case 0:
		return &metav1.LabelSelector{}
	case 1:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"app0"}}}}
	case 2:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"app1", "app0"}}}}
	default:
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": rapid.SampledFrom([]string{"app0", "app1"}).Draw(t, "app")}}
	}
}

var keys = []string{corev1.LabelTopologyZone, "rack", corev1.LabelHostname}

func drawTerm(t *rapid.T) corev1.PodAffinityTerm {
	out := corev1.PodAffinityTerm{LabelSelector: drawSelector(t), TopologyKey: rapid.SampledFrom(keys).Draw(t, "key")}
	switch rapid.IntRange(0, 5).Draw(t, "reach") {
	case 0:
		out.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "d"}}
	case 1:
		out.Namespaces = []string{"default", "dev"}
	case 2:
		out.MatchLabelKeys = []string{"index"}
	}
	return out
}

func drawTerms(t *rapid.T, what string) (out []corev1.PodAffinityTerm) {
	for range max(0, rapid.IntRange(-4, 2).Draw(t, what)) {
		out = append(out, drawTerm(t))
	}
	return out
}

func drawWeighted(t *rapid.T, what string) (out []corev1.WeightedPodAffinityTerm) {
	for range max(0, rapid.IntRange(-3, 2).Draw(t, what)) {
		out = append(out, corev1.WeightedPodAffinityTerm{Weight: int32(rapid.IntRange(1, 100).Draw(t, "weight")), PodAffinityTerm: drawTerm(t)})
	}
	return out
}

func drawRequest(t *rapid.T, i int) *Request {
	maybe := func(what string) bool { return rapid.IntRange(0, 4).Draw(t, what) == 0 }
	template := &nodes.Template{Labels: map[string]string{"app": fmt.Sprintf("app%d", i)}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}}}
	spec := &template.Spec
	spec.Containers[0].Image = rapid.SampledFrom(imageNames).Draw(t, "image")
	if maybe("migrates") {
		spec.InitContainers = []corev1.Container{{Name: "migrate", Image: imageNames[1]}}
	}
	if !maybe("nothing") {
		spec.Containers[0].Resources.Requests = list("cpu", fmt.Sprintf("%dm", 100*rapid.IntRange(1, 9).Draw(t, "cpu")))
	}
	if maybe("port") {
		spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, ContainerPort: 80}}
	}
	if maybe("tolerates") {
		spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
	}
	if maybe("knows its node") {
		spec.NodeName = "n000"
	}
	if maybe("chooses") {
		spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: "a"}
	}
	spec.Affinity = &corev1.Affinity{
		PodAffinity: &corev1.PodAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: drawTerms(t, "attracts"), PreferredDuringSchedulingIgnoredDuringExecution: drawWeighted(t, "likes"),
		},
		PodAntiAffinity: &corev1.PodAntiAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: drawTerms(t, "repels"), PreferredDuringSchedulingIgnoredDuringExecution: drawWeighted(t, "dislikes"),
		},
	}
	if maybe("prefers") {
		spec.Affinity.NodeAffinity = &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
			Weight: 3, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpExists}}},
		}}}
	}
	for range max(0, rapid.IntRange(-2, 2).Draw(t, "constraints")) {
		spec.TopologySpreadConstraints = append(spec.TopologySpreadConstraints, drawConstraint(t))
	}
	return Compile(Profile(2*rapid.IntRange(0, 1).Draw(t, "profile")), rapid.SampledFrom([]string{"default", "dev", "prod"}).Draw(t, "namespace"), template)
}

func drawConstraint(t *rapid.T) corev1.TopologySpreadConstraint {
	c := corev1.TopologySpreadConstraint{
		MaxSkew: int32(rapid.IntRange(1, 2).Draw(t, "skew")), TopologyKey: rapid.SampledFrom(keys).Draw(t, "key"), LabelSelector: drawSelector(t),
		WhenUnsatisfiable: rapid.SampledFrom([]corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway}).Draw(t, "action"),
	}
	if c.WhenUnsatisfiable == corev1.DoNotSchedule && rapid.Bool().Draw(t, "domains") {
		n := int32(rapid.IntRange(1, 4).Draw(t, "least domains"))
		c.MinDomains = &n
	}
	policies := []corev1.NodeInclusionPolicy{corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore}
	if rapid.Bool().Draw(t, "policies") {
		a, b := rapid.SampledFrom(policies).Draw(t, "affinity"), rapid.SampledFrom(policies).Draw(t, "taints")
		c.NodeAffinityPolicy, c.NodeTaintsPolicy = &a, &b
	}
	return c
}
