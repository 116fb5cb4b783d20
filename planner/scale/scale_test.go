package scale_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/scale"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// pod requests 100m of cpu and uses cpu thousandths of a core; it has been
// ready for an hour.
func pod(i int, cpu int64) scale.Pod {
	started := now.Add(-time.Hour)
	p := scale.Pod{
		Name: fmt.Sprintf("p%d", i), Phase: corev1.PodRunning, Ready: true, Started: started, ReadySince: started,
		Spec: &corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("100")}},
		}}},
	}
	if cpu >= 0 {
		p.Usage = &nodes.Usage{At: now, Window: 5 * time.Second, Containers: []nodes.ContainerUsage{{Name: "main", CPU: cpu * 1e6, Memory: cpu}}}
	}
	return p
}

func pods(n int, cpu int64) []scale.Pod {
	var all []scale.Pod
	for i := range n {
		all = append(all, pod(i, cpu))
	}
	return all
}

func autoscaler(low, high int32, metrics ...autoscalingv2.MetricSpec) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{MinReplicas: &low, MaxReplicas: high, Metrics: metrics},
	}
}

func resourceMetric(name corev1.ResourceName, percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: name, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}

func averageCPU(value string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
		Name: "cpu", Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr(resource.MustParse(value))},
	}}
}

func containerCPU(container string, percent int32) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: &autoscalingv2.ContainerResourceMetricSource{
		Name: "cpu", Container: container, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
	}}
}

func external(name string, target autoscalingv2.MetricTarget, selector map[string]string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: name, Selector: &metav1.LabelSelector{MatchLabels: selector}}, Target: target,
	}}
}

func podsMetric(name, target string) autoscalingv2.MetricSpec {
	return autoscalingv2.MetricSpec{Type: autoscalingv2.PodsMetricSourceType, Pods: &autoscalingv2.PodsMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: name}, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr(resource.MustParse(target))},
	}}
}

func value(v string) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: ptr(resource.MustParse(v))}
}

func perPod(v string) autoscalingv2.MetricTarget {
	return autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: ptr(resource.MustParse(v))}
}

// samples answers every metric with the same series.
func samples(series ...scale.Series) func(*autoscalingv2.MetricSpec) (scale.Sample, error) {
	return func(*autoscalingv2.MetricSpec) (scale.Sample, error) {
		return scale.Sample{At: now, Series: series}, nil
	}
}

func starting(p scale.Pod, ready bool) scale.Pod {
	p.Ready, p.Started, p.ReadySince = ready, now.Add(-time.Minute), now.Add(-2*time.Second)
	return p
}

// TestRecommendations follows the algorithm that Kubernetes documents:
// ceil(current × usage ÷ target), and what it assumes of pods that say nothing.
func TestRecommendations(t *testing.T) {
	long := scale.Memory{Recommended: []scale.Change{{At: now, Replicas: 0}}}
	for name, c := range map[string]struct {
		object   *autoscalingv2.HorizontalPodAutoscaler
		replicas int32
		pods     []scale.Pod
		sample   func(*autoscalingv2.MetricSpec) (scale.Sample, error)
		want     int32
		problem  string
		limited  string
	}{
		"twice the target":         {object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 3, pods: pods(3, 100), want: 6},
		"half the target":          {object: autoscaler(1, 10, resourceMetric("cpu", 100)), replicas: 4, pods: pods(4, 50), want: 2},
		"within the tolerance":     {object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 3, pods: pods(3, 55), want: 3},
		"above the tolerance":      {object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 3, pods: pods(3, 56), want: 4},
		"at most twice":            {object: autoscaler(1, 100, resourceMetric("cpu", 10)), replicas: 5, pods: pods(5, 100), want: 10, limited: "ScaleUpLimit"},
		"one may become four":      {object: autoscaler(1, 100, resourceMetric("cpu", 10)), replicas: 1, pods: pods(1, 100), want: 4, limited: "ScaleUpLimit"},
		"the maximum":              {object: autoscaler(1, 5, resourceMetric("cpu", 10)), replicas: 3, pods: pods(3, 100), want: 5, limited: "TooManyReplicas"},
		"the minimum":              {object: autoscaler(2, 5, resourceMetric("cpu", 100)), replicas: 3, pods: pods(3, 1), want: 2, limited: "TooFewReplicas"},
		"above the maximum":        {object: autoscaler(1, 5, resourceMetric("cpu", 50)), replicas: 9, want: 5},
		"below the minimum":        {object: autoscaler(4, 5, resourceMetric("cpu", 50)), replicas: 1, want: 4},
		"no replicas in Git":       {object: autoscaler(1, 5, resourceMetric("cpu", 50)), replicas: 0, want: 0, problem: "ScalingDisabled"},
		"memory":                   {object: autoscaler(1, 10, resourceMetric("memory", 50)), replicas: 2, pods: pods(2, 100), want: 4},
		"an average value":         {object: autoscaler(1, 10, averageCPU("50m")), replicas: 2, pods: pods(2, 100), want: 4},
		"a container":              {object: autoscaler(1, 10, containerCPU("main", 50)), replicas: 2, pods: pods(2, 100), want: 4},
		"no such container":        {object: autoscaler(1, 10, containerCPU("other", 50)), replicas: 2, pods: pods(2, 100), want: 2, problem: "FailedGetContainerResourceMetric: the HPA was unable"},
		"the highest of several":   {object: autoscaler(1, 10, resourceMetric("cpu", 100), resourceMetric("memory", 50)), replicas: 2, pods: pods(2, 100), want: 4},
		"nothing is known":         {object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 2, pods: pods(2, -1), want: 2, problem: "did not receive metrics"},
		"up: missing ones use 0":   {object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 3, pods: append(pods(2, 100), pod(2, -1)), want: 4},
		"up: missing turn it":      {object: autoscaler(1, 10, resourceMetric("cpu", 90)), replicas: 3, pods: append(pods(2, 100), pod(2, -1)), want: 3},
		"down: missing ones use 1": {object: autoscaler(1, 10, resourceMetric("cpu", 100)), replicas: 4, pods: append(pods(3, 10), pod(3, -1)), want: 2},
		"down: unready don't count": {
			object: autoscaler(1, 10, resourceMetric("cpu", 100)), replicas: 4, pods: append(pods(3, 50), starting(pod(3, 500), false)), want: 2,
		},
		"up: unready ones use 0": {
			object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 4, pods: append(pods(2, 100), starting(pod(2, 500), false), starting(pod(3, 500), true)), want: 4,
		},
		"unready memory counts": {
			object: autoscaler(1, 10, resourceMetric("memory", 50)), replicas: 2, pods: []scale.Pod{pod(0, 100), starting(pod(1, 100), false)}, want: 4,
		},
		"leaving ones are left out": {
			object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 2,
			pods: append(pods(2, 100), func() scale.Pod { p := pod(2, 0); p.Leaving = true; return p }()), want: 4,
		},
		"no request": {
			object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 1,
			pods: []scale.Pod{func() scale.Pod {
				p := pod(0, 50)
				p.Spec = &corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}}
				return p
			}()},
			want: 1, problem: "missing request for cpu in container main of Pod p0",
		},
		"an old measurement": {
			object: autoscaler(1, 10, resourceMetric("cpu", 50)), replicas: 1,
			pods: []scale.Pod{func() scale.Pod { p := pod(0, 100); p.Usage.At = now.Add(-2 * time.Minute); return p }()},
			want: 1, problem: "did not receive metrics",
		},
		"external, in all":    {object: autoscaler(1, 10, external("queue", value("10"), nil)), replicas: 2, pods: pods(2, 0), sample: samples(scale.Series{Value: 15}, scale.Series{Value: 15}), want: 4, limited: "ScaleUpLimit"},
		"external, each pod":  {object: autoscaler(1, 10, external("queue", perPod("10"), nil)), replicas: 2, pods: pods(2, 0), sample: samples(scale.Series{Value: 25}), want: 3},
		"external, selected":  {object: autoscaler(1, 10, external("queue", perPod("10"), map[string]string{"q": "a"})), replicas: 2, pods: pods(2, 0), sample: samples(scale.Series{Value: 25}, scale.Series{Labels: map[string]string{"q": "a"}, Value: 40}), want: 4},
		"external, no answer": {object: autoscaler(1, 10, external("queue", perPod("10"), nil)), replicas: 2, pods: pods(2, 0), sample: samples(), want: 2, problem: "gave no value"},
		"external, it is down": {object: autoscaler(1, 10, external("queue", perPod("10"), nil)), replicas: 2, pods: pods(2, 0), sample: func(*autoscalingv2.MetricSpec) (scale.Sample, error) {
			return scale.Sample{Problem: "connection refused"}, nil
		}, want: 2, problem: "connection refused"},
		"pods metric": {
			object: autoscaler(1, 10, podsMetric("hits", "10")), replicas: 2, pods: pods(2, 0),
			sample: samples(scale.Series{Labels: map[string]string{"pod": "p0"}, Value: 10}, scale.Series{Labels: map[string]string{"pod": "p1", "namespace": "default"}, Value: 30}, scale.Series{Labels: map[string]string{"pod": "p1", "namespace": "other"}, Value: 300}),
			want:   4,
		},
		"one fails, others want more": {object: autoscaler(1, 10, containerCPU("other", 50), resourceMetric("cpu", 50)), replicas: 2, pods: pods(2, 100), want: 4, problem: "did not receive metrics"},
		"one fails, others want less": {object: autoscaler(1, 10, containerCPU("other", 50), resourceMetric("cpu", 50)), replicas: 2, pods: pods(2, 1), want: 2, problem: "did not receive metrics"},
	} {
		t.Run(name, func(t *testing.T) {
			got := scale.Advise(scale.Input{Now: now, Object: c.object, Replicas: c.replicas, Pods: c.pods, Sample: c.sample, Memory: long})
			if got.Replicas != c.want {
				t.Errorf("replicas %d, want %d (%+v)", got.Replicas, c.want, got)
			}
			if (got.Replicas != c.replicas) != (got.Reason != "") {
				t.Errorf("reason %q for %d → %d", got.Reason, c.replicas, got.Replicas)
			}
			if !strings.Contains(got.Problem.String(), c.problem) || c.problem == "" && got.Problem.Reason != "" {
				t.Errorf("problem %q, want %q", got.Problem, c.problem)
			}
			if got.Limited.Reason != c.limited {
				t.Errorf("limited: %q, want %q", got.Limited, c.limited)
			}
		})
	}
}

func TestReadings(t *testing.T) {
	object := autoscaler(1, 10, resourceMetric("cpu", 70), averageCPU("50m"), containerCPU("other", 50), external("queue", perPod("10"), nil))
	got := scale.Advise(scale.Input{Now: now, Object: object, Replicas: 2, Pods: pods(2, 64), Sample: samples(scale.Series{Value: 25}), Memory: scale.Memory{}})
	want := []scale.Reading{
		{Metric: "cpu", Current: "64%", Target: "70%"},
		{Metric: "cpu", Current: "64m", Target: "50m"},
		{Metric: "cpu of other", Target: "50%"},
		{Metric: "queue", Current: "12500m", Target: "10"},
	}
	if diff := cmp.Diff(want, got.Readings); diff != "" {
		t.Errorf("readings (-want +got):\n%s", diff)
	}
}

func TestQuery(t *testing.T) {
	o := autoscaler(1, 2)
	texts := map[string]string{"queue": `sum(depth{ns="$namespace",queue="$object"})`}
	object := autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
		Metric: autoscalingv2.MetricIdentifier{Name: "queue"}, DescribedObject: autoscalingv2.CrossVersionObjectReference{Kind: "Service", Name: "jobs"},
	}}
	if got, ok, err := scale.Query(o, &object, texts); got != `sum(depth{ns="default",queue="jobs"})` || !ok || err != nil {
		t.Errorf("query %q, %t, %v", got, ok, err)
	}
	unknown := podsMetric("hits", "1")
	if _, ok, err := scale.Query(o, &unknown, texts); !ok || err == nil || !strings.Contains(err.Error(), "spec.metrics.queries") {
		t.Errorf("a metric without a query: %t, %v", ok, err)
	}
	cpu := resourceMetric("cpu", 50)
	if _, ok, err := scale.Query(o, &cpu, texts); ok || err != nil {
		t.Errorf("cpu needs a query: %t, %v", ok, err)
	}
}
