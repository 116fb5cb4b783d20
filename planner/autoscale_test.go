package planner

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/scale"
)

// autoscaler keeps the cpu of a workload at half of what it requests.
func autoscaler(name, kind string, low, high int32) *autoscalingv2.HorizontalPodAutoscaler {
	half := int32(50)
	api := "apps/v1"
	if kind == kindReplicationController {
		api = "v1"
	}
	return &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: kindAutoscaler},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: api, Kind: kind, Name: name}, MinReplicas: &low, MaxReplicas: high,
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &half},
			}}},
		},
	}
}

func requests(cpu string) option {
	return func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	}
}

// burn has all pods of a workload use so much cpu, as their nodes report it
// after a while.
func (w *world) burn(name string, milli int64) *Plan {
	w.t.Helper()
	w.now = w.now.Add(20 * time.Second)
	byNode := map[string][]nodes.Usage{}
	for _, p := range w.pods(name) {
		byNode[p.Node] = append(byNode[p.Node], nodes.Usage{
			Pod: p.UID, At: w.now, Window: 5 * time.Second, Containers: []nodes.ContainerUsage{{Name: "main", CPU: milli * 1e6, Memory: 1 << 20}},
		})
	}
	var reports []nodes.Report
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		reports = append(reports, nodes.Report{Node: node, Usage: byNode[node]})
	}
	return w.next(Change{Reports: reports})
}

func (w *world) expectPods(name string, want int) {
	w.t.Helper()
	if got := len(w.pods(name)); got != want {
		w.t.Fatalf("%d pods of %s, want %d; %+v", got, name, want, w.s.Overview(w.now).Objects)
	}
}

func (w *world) rescales() []string {
	var all []string
	for _, e := range w.events {
		if e.Reason == "SuccessfulRescale" {
			all = append(all, e.Message)
		}
	}
	return all
}

func TestAutoscalerFollowsTheLoad(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	objects := []runtime.Object{deployment("web", 2, requests("100m")), autoscaler("web", kindDeployment, 1, 6)}
	w.push(objects...)
	w.settle()
	w.expectPods("web", 2)
	if p := w.burn("web", 50); !p.Empty() {
		t.Fatalf("usage at its target gives a plan: %+v", p)
	}
	plan := w.burn("web", 100)
	w.settle()
	w.expectPods("web", 4)
	if !slices.ContainsFunc(plan.Actions, func(a Action) bool { return a.Verb == "scale" && strings.Contains(a.Reason, "2 → 4 replicas") }) {
		t.Errorf("no action says that it scales: %v", plan.Actions)
	}
	shown := w.health(keyOf(objects[1])).Autoscaler
	want := nodes.AutoscalerOverview{
		Target: keyOf(objects[0]), Replicas: 4, Min: 1, Max: 6, Scaled: shown.Scaled, Metrics: []nodes.MetricOverview{{Name: "cpu", Current: "100%", Target: "50%"}},
	}
	if diff := cmp.Diff(want, *shown); diff != "" || shown.Scaled.IsZero() {
		t.Errorf("overview (-want +got):\n%s", diff)
	}
	if got := w.rescales(); len(got) != 1 || got[0] != "New size: 4; reason: cpu resource utilization (percentage of request) above target" {
		t.Errorf("events %v", got)
	}

	// Less load changes nothing before the window is over.
	w.burn("web", 1)
	w.settle()
	w.expectPods("web", 4)
	for range 16 {
		w.burn("web", 1)
		w.settle()
	}
	w.expectPods("web", 1)
	if p := w.next(Change{}); !p.Empty() {
		t.Errorf("a converged cluster gives a plan: %+v", p)
	}
}

func TestReplicasInGitAreOnlyTheStart(t *testing.T) {
	w := newWorld(t, "n1")
	hpa := autoscaler("web", kindDeployment, 1, 6)
	w.push(deployment("web", 2, requests("100m")), hpa)
	w.settle()
	w.burn("web", 100)
	w.settle()
	w.expectPods("web", 4)

	plan := w.push(deployment("web", 3, requests("100m")), hpa)
	w.settle()
	w.expectPods("web", 4)
	if len(plan.Difference) != 1 || len(plan.Difference[0].Fields) != 0 ||
		plan.Difference[0].Reason != "no pod is touched; replicas are the autoscaler's: 2 → 3 in Git is only another start, HorizontalPodAutoscaler default/web has it at 4" {
		t.Errorf("difference: %+v", plan.Difference)
	}

	// A rollout keeps the size, and so does a start with and without the record.
	w.push(deployment("web", 3, requests("100m"), image("app:2")), hpa)
	w.settle()
	w.expectPods("web", 4)
	for _, withRecord := range []bool{true, false} {
		w.restart(withRecord)
		w.next(Change{Reports: []nodes.Report{w.machines["n1"].complete()}})
		w.next(Change{Snapshot: w.snapshot, Source: w.source})
		w.settle()
		w.expectPods("web", 4)
	}

	plan = w.push(deployment("web", 3, requests("100m"), image("app:2")))
	w.settle()
	w.expectPods("web", 3)
	if got := plan.Difference[0].Reason; got != "no longer in Git, Deployment default/web has as many replicas as Git says again" {
		t.Errorf("difference: %q", got)
	}
	if len(w.machines["n1"].measured) != 0 {
		t.Errorf("still measured: %v", w.machines["n1"].measured)
	}
	for id := range w.record {
		if id.kind == kindOfScale {
			t.Errorf("decision %v is left", id)
		}
	}
}

func TestNoReplicasInGitSwitchTheAutoscalerOff(t *testing.T) {
	w := newWorld(t, "n1")
	hpa := autoscaler("web", kindDeployment, 2, 6)
	w.push(deployment("web", 1, requests("100m")), hpa)
	w.settle()
	w.expectPods("web", 2)
	w.push(deployment("web", 0, requests("100m")), hpa)
	w.settle()
	w.expectPods("web", 0)
	w.push(deployment("web", 5, requests("100m")), hpa)
	w.settle()
	w.expectPods("web", 5)
}

func TestOnlyPodsOfAnAutoscalerAreMeasured(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 1, requests("100m")), deployment("other", 1))
	w.settle()
	m := w.machines["n1"]
	if len(m.measured) != 0 {
		t.Fatalf("measured without an autoscaler: %v", m.measured)
	}
	w.push(deployment("web", 1, requests("100m")), deployment("other", 1), autoscaler("web", kindDeployment, 1, 6))
	w.settle()
	if want := []nodes.UID{w.pods("web")[0].UID}; !slices.Equal(m.measured, want) {
		t.Errorf("measured %v, want %v", m.measured, want)
	}
}

// TestAutoscalersOfEveryKind looks at each kind that has replicas.
func TestAutoscalersOfEveryKind(t *testing.T) {
	d := deployment("web", 2, requests("100m"))
	for kind, object := range map[string]runtime.Object{
		kindDeployment: d,
		kindReplicaSet: &appsv1.ReplicaSet{
			TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: kindReplicaSet}, ObjectMeta: d.ObjectMeta,
			Spec: appsv1.ReplicaSetSpec{Replicas: d.Spec.Replicas, Selector: d.Spec.Selector, Template: d.Spec.Template},
		},
		kindStatefulSet: &appsv1.StatefulSet{
			TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: kindStatefulSet}, ObjectMeta: d.ObjectMeta,
			Spec: appsv1.StatefulSetSpec{Replicas: d.Spec.Replicas, Selector: d.Spec.Selector, Template: d.Spec.Template, PodManagementPolicy: appsv1.ParallelPodManagement},
		},
		kindReplicationController: &corev1.ReplicationController{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: kindReplicationController}, ObjectMeta: d.ObjectMeta,
			Spec: corev1.ReplicationControllerSpec{Replicas: d.Spec.Replicas, Selector: d.Spec.Selector.MatchLabels, Template: &d.Spec.Template},
		},
	} {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, "n1")
			w.push(object, autoscaler("web", kind, 1, 6))
			w.settle()
			w.burn("web", 100)
			w.settle()
			w.expectPods("web", 4)
		})
	}
}

func TestAutoscalerWithMetricsOfASource(t *testing.T) {
	w := newWorld(t, "n1")
	hpa := autoscaler("web", kindDeployment, 1, 6)
	target := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: new(resource.MustParse("10"))}
	hpa.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "queue"}, Target: target,
	}}}
	objects := []*desired.Object{}
	for _, v := range []runtime.Object{deployment("web", 1), hpa} {
		objects = append(objects, &desired.Object{Key: keyOf(v), Value: v, Fingerprint: string(mustJSON(v))})
	}
	settings := desired.DefaultSettings()
	settings.Prometheus, settings.Queries = "http://prometheus:9090", map[string]string{"queue": `sum(depth{namespace="$namespace"})`}
	w.snapshot = desired.NewSnapshot(desired.Revision{SHA: "1"}, settings, objects, nil)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.settle()
	queries := w.s.Queries()
	if len(queries) != 1 || queries[0] != `sum(depth{namespace="default"})` || w.s.MetricsSource() != settings.Prometheus {
		t.Fatalf("queries %v to %s", queries, w.s.MetricsSource())
	}
	if h := w.scalerHealth(hpa); h.Health != nodes.Degraded || !strings.Contains(h.Reason, "no answer yet") {
		t.Errorf("health before the first answer: %+v", h)
	}
	w.next(Change{Samples: []scale.Sample{{Query: queries[0], At: w.now, Series: []scale.Series{{Value: 35}}}}})
	w.settle()
	w.expectPods("web", 4)
	if h := w.scalerHealth(hpa); h.Health != nodes.Healthy || h.Reason != "4 replicas, of 1 to 6; by external metric queue" {
		t.Errorf("health: %+v", h)
	}
	w.next(Change{Samples: []scale.Sample{{Query: queries[0], At: w.now, Problem: "connection refused"}}})
	w.settle()
	w.expectPods("web", 4)
	if h := w.scalerHealth(hpa); h.Health != nodes.Degraded || !strings.Contains(h.Reason, "connection refused") {
		t.Errorf("health without an answer: %+v", h)
	}
}

func (w *world) scalerHealth(v runtime.Object) nodes.ObjectHealth {
	w.t.Helper()
	for _, h := range w.s.Overview(w.now).Objects {
		if h.Key == keyOf(v) {
			return h
		}
	}
	w.t.Fatalf("%s is not shown", keyOf(v))
	return nodes.ObjectHealth{}
}

func TestAutoscalersThatCannotWork(t *testing.T) {
	for name, c := range map[string]struct {
		objects []runtime.Object
		want    string
	}{
		"no target":  {[]runtime.Object{autoscaler("web", kindDeployment, 1, 6)}, "FailedGetScale"},
		"no request": {[]runtime.Object{deployment("web", 1), autoscaler("web", kindDeployment, 1, 6)}, "missing request for cpu in container main"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1")
			w.push(c.objects...)
			w.settle()
			w.burn("web", 100)
			if h := w.scalerHealth(c.objects[len(c.objects)-1]); h.Health != nodes.Degraded || !strings.Contains(h.Reason, c.want) {
				t.Errorf("health %+v, want %q", h, c.want)
			}
		})
	}
	two := autoscaler("web", kindDeployment, 1, 6)
	two.Name = "zweb"
	w := newWorld(t, "n1")
	w.push(deployment("web", 2, requests("100m")), autoscaler("web", kindDeployment, 1, 6), two)
	w.settle()
	if h := w.scalerHealth(two); !strings.Contains(h.Reason, "HorizontalPodAutoscaler default/web sizes the same target") {
		t.Errorf("health of the second: %+v", h)
	}
}

// TestAutoscalerWithAMetricThatFails grows by the other, and says what fails.
func TestAutoscalerWithAMetricThatFails(t *testing.T) {
	hpa := autoscaler("web", kindDeployment, 1, 6)
	hpa.Spec.Metrics = append(hpa.Spec.Metrics, autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "queue"},
		Target: autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: new(resource.MustParse("10"))},
	}})
	w := newWorld(t, "n1")
	w.push(deployment("web", 2, requests("100m")), hpa)
	w.settle()
	w.burn("web", 100)
	w.settle()
	w.expectPods("web", 4)
	const want = "a metric cannot be judged, so the target can only grow: FailedGetExternalMetric"
	if h := w.scalerHealth(hpa); h.Health != nodes.Degraded || !strings.HasPrefix(h.Reason, want) {
		t.Errorf("health %+v", h)
	}
}
