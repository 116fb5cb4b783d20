package scale

import (
	"errors"
	"fmt"
	"math"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// podLabel of a series names the pod that it is about.
const podLabel = "pod"

// Query is the text that a metrics' source is to be asked for a metric; ok is
// false for metrics that need none. In the text that the Cluster object has for
// a metric's name, $namespace stands for the autoscaler's namespace and $object
// for the name of the described object.
func Query(o *autoscalingv2.HorizontalPodAutoscaler, m *autoscalingv2.MetricSpec, texts map[string]string) (query string, ok bool, err error) {
	id, object := identifier(m)
	if id == nil {
		return "", false, nil
	}
	text, known := texts[id.Name]
	if !known {
		return "", true, fmt.Errorf("the Cluster object has no query for metric %s (spec.metrics.queries)", id.Name)
	}
	return strings.NewReplacer("$namespace", o.Namespace, "$object", object).Replace(text), true, nil
}

// identifier of a metric that comes from a metrics' source; nil for others.
func identifier(m *autoscalingv2.MetricSpec) (id *autoscalingv2.MetricIdentifier, object string) {
	switch {
	case m.Pods != nil && m.Type == autoscalingv2.PodsMetricSourceType:
		return &m.Pods.Metric, ""
	case m.Object != nil && m.Type == autoscalingv2.ObjectMetricSourceType:
		return &m.Object.Metric, m.Object.DescribedObject.Name
	case m.External != nil && m.Type == autoscalingv2.ExternalMetricSourceType:
		return &m.External.Metric, ""
	default:
		return nil, ""
	}
}

// series are those of an answer that a metric's selector takes.
func (in *Input) series(m *autoscalingv2.MetricSpec, id *autoscalingv2.MetricIdentifier) ([]Series, Sample, error) {
	answer, err := in.Sample(m)
	switch {
	case err != nil:
		return nil, answer, err
	case answer.Problem != "":
		return nil, answer, errors.New(answer.Problem)
	case in.Now.Sub(answer.At) > stale:
		return nil, answer, fmt.Errorf("the last value of metric %s is of %s", id.Name, answer.At.Format("15:04:05"))
	}
	selector, err := metav1.LabelSelectorAsSelector(id.Selector)
	if err != nil {
		return nil, answer, err
	}
	if id.Selector == nil {
		selector = labels.Everything()
	}
	var taken []Series
	for _, s := range answer.Series {
		if selector.Matches(labels.Set(s.Labels)) && !math.IsNaN(s.Value) && !math.IsInf(s.Value, 0) {
			taken = append(taken, s)
		}
	}
	return taken, answer, nil
}

// podsMetric proposes by the average of a metric over the target's pods.
func (in *Input) podsMetric(m *autoscalingv2.MetricSpec) (proposal, error) {
	target := m.Pods.Target.AverageValue
	if target == nil {
		return proposal{}, errors.New("a metric of pods needs an average value as its target")
	}
	list, answer, err := in.series(m, &m.Pods.Metric)
	if err != nil {
		return proposal{}, err
	}
	values := map[string]measured{}
	for _, s := range list {
		if ns, has := s.Labels["namespace"]; has && ns != in.Object.Namespace {
			continue
		}
		if pod := s.Labels[podLabel]; pod != "" {
			v := values[pod]
			values[pod] = measured{value: v.value + milli(s.Value), at: answer.At}
		}
	}
	return in.propose(in.group(values, false), average(target.MilliValue()))
}

// total proposes by one value, or the sum of several.
func (in *Input) total(m *autoscalingv2.MetricSpec, id *autoscalingv2.MetricIdentifier, target *autoscalingv2.MetricTarget) (proposal, error) {
	list, _, err := in.series(m, id)
	if err != nil {
		return proposal{}, err
	}
	if len(list) == 0 {
		return proposal{}, fmt.Errorf("the query for metric %s gave no value", id.Name)
	}
	sum := 0.0
	for _, s := range list {
		sum += float64(milli(s.Value))
	}
	within := tolerancesOf(in.Object.Spec.Behavior).within
	switch {
	case target.AverageValue != nil:
		goal := float64(target.AverageValue.MilliValue())
		ratio := sum / (goal * float64(in.Replicas))
		if within(ratio) {
			return proposal{in.Replicas, ratio}, nil
		}
		return proposal{ceil(sum / goal), ratio}, nil
	case target.Value != nil:
		ratio := sum / float64(target.Value.MilliValue())
		if within(ratio) {
			return proposal{in.Replicas, ratio}, nil
		}
		return proposal{ceil(ratio * float64(in.ready())), ratio}, nil
	default:
		return proposal{}, errors.New("neither a value target nor an average value target was set")
	}
}

func (in *Input) ready() int {
	n := 0
	for i := range in.Pods {
		if p := &in.Pods[i]; p.Phase == corev1.PodRunning && p.Ready && !p.Leaving {
			n++
		}
	}
	return n
}

// milli is a value in thousandths, rounded up, within bounds.
func milli(v float64) int64 {
	v = math.Ceil(v * 1000)
	return int64(max(-math.MaxInt64/4, min(math.MaxInt64/4, v)))
}
