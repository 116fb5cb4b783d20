package loop

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/scale"
)

// source answers every query with one value, or a problem.
type source struct {
	mu      sync.Mutex
	value   float64
	problem string
	asked   [][]string
}

func (s *source) ask(_ context.Context, address string, queries []string) []scale.Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, append([]string{address}, queries...))
	var samples []scale.Sample
	for _, q := range queries {
		samples = append(samples, scale.Sample{Query: q, At: time.Now(), Series: []scale.Series{{Value: s.value}}, Problem: s.problem})
	}
	return samples
}

func (s *source) set(value float64, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.value, s.problem = value, problem
}

func (s *source) rounds() [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func autoscaler(name string) *desired.Object {
	ten := resource.MustParse("10")
	return &desired.Object{
		Key: desired.Key{Group: "autoscaling", Kind: "HorizontalPodAutoscaler", Namespace: "default", Name: name}, Fingerprint: name,
		Value: &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: name}, MaxReplicas: 5,
				Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ExternalMetricSourceType, External: &autoscalingv2.ExternalMetricSource{
					Metric: autoscalingv2.MetricIdentifier{Name: "queue"},
					Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &ten},
				}}},
			},
		},
	}
}

func TestMetricsAreAskedForOnlyWhileSomethingNeedsThem(t *testing.T) {
	prometheus := &source{value: 10}
	runWith(t, func(w *world) {
		w.metrics = prometheus.ask
		w.repository.settings.Prometheus = "http://prometheus:9090"
		w.repository.settings.Queries = map[string]string{"queue": "depth"}
	}, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
		w.repository.commit("bbbbbbbb", deployment("web", "web:1", 1), autoscaler("web"))
		w.push("aaaaaaaa")
		time.Sleep(time.Minute)
		if n := len(prometheus.rounds()); n != 0 {
			t.Fatalf("asked %d times for nothing", n)
		}

		w.push("bbbbbbbb")
		synctest.Wait()
		if got := prometheus.rounds(); len(got) != 1 || !slices.Equal(got[0], []string{"http://prometheus:9090", "depth"}) {
			t.Fatalf("asked %v, want depth at once", got)
		}
		prometheus.set(40, "")
		time.Sleep(sampleEvery)
		synctest.Wait()
		if got := w.machine.counts(); got[0] != 4 {
			t.Fatalf("%d pods, want 4", got[0])
		}

		// No answer changes nothing, and is asked for again.
		prometheus.set(0, "connection refused")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := w.machine.counts(); got[0] != 4 {
			t.Fatalf("%d pods without an answer, want 4", got[0])
		}
		prometheus.set(1, "")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := w.machine.counts(); got[0] != 1 {
			t.Fatalf("%d pods after the load, want 1", got[0])
		}

		w.push("aaaaaaaa")
		time.Sleep(sampleEvery)
		before := len(prometheus.rounds())
		time.Sleep(10 * time.Minute)
		if after := len(prometheus.rounds()); after != before {
			t.Errorf("asked %d times more for nothing", after-before)
		}
	})
}
