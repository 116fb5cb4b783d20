package manifest

import (
	"encoding/json"
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// autoscalerV2beta1 is a HorizontalPodAutoscaler as autoscaling/v2beta1 had it,
// which Kubernetes 1.25 removed, its types later.
type autoscalerV2beta1 struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   autoscalerSpecV2beta1 `json:"spec,omitempty"`
	Status runtime.RawExtension  `json:"status,omitempty"`
}

type autoscalerSpecV2beta1 struct {
	ScaleTargetRef autoscalingv2.CrossVersionObjectReference `json:"scaleTargetRef"`
	MinReplicas    *int32                                    `json:"minReplicas,omitempty"`
	MaxReplicas    int32                                     `json:"maxReplicas"`
	Metrics        []metricV2beta1                           `json:"metrics,omitempty"`
}

type metricV2beta1 struct {
	Type              autoscalingv2.MetricSourceType `json:"type"`
	Object            *objectMetricV2beta1           `json:"object,omitempty"`
	Pods              *podsMetricV2beta1             `json:"pods,omitempty"`
	Resource          *resourceMetricV2beta1         `json:"resource,omitempty"`
	ContainerResource *containerMetricV2beta1        `json:"containerResource,omitempty"`
	External          *externalMetricV2beta1         `json:"external,omitempty"`
}

type objectMetricV2beta1 struct {
	Target       autoscalingv2.CrossVersionObjectReference `json:"target"`
	MetricName   string                                    `json:"metricName"`
	TargetValue  resource.Quantity                         `json:"targetValue"`
	Selector     *metav1.LabelSelector                     `json:"selector,omitempty"`
	AverageValue *resource.Quantity                        `json:"averageValue,omitempty"`
}

type podsMetricV2beta1 struct {
	MetricName         string                `json:"metricName"`
	TargetAverageValue resource.Quantity     `json:"targetAverageValue"`
	Selector           *metav1.LabelSelector `json:"selector,omitempty"`
}

type resourceMetricV2beta1 struct {
	Name                     corev1.ResourceName `json:"name"`
	TargetAverageUtilization *int32              `json:"targetAverageUtilization,omitempty"`
	TargetAverageValue       *resource.Quantity  `json:"targetAverageValue,omitempty"`
}

type containerMetricV2beta1 struct {
	resourceMetricV2beta1 `json:",inline"`
	Container             string `json:"container"`
}

type externalMetricV2beta1 struct {
	MetricName         string                `json:"metricName"`
	MetricSelector     *metav1.LabelSelector `json:"metricSelector,omitempty"`
	TargetValue        *resource.Quantity    `json:"targetValue,omitempty"`
	TargetAverageValue *resource.Quantity    `json:"targetAverageValue,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (a *autoscalerV2beta1) DeepCopyObject() runtime.Object {
	data, err := json.Marshal(a)
	if err != nil { // a decoded object marshals
		panic(fmt.Sprintf("copy %T: %v", a, err))
	}
	c := &autoscalerV2beta1{}
	if err := json.Unmarshal(data, c); err != nil {
		panic(fmt.Sprintf("copy %T: %v", a, err))
	}
	return c
}

// behaviorAnnotation is where versions without a field kept the behavior.
const behaviorAnnotation = "autoscaling.alpha.kubernetes.io/behavior"

// convertAutoscaler gives the autoscaling/v2 form of an object of v2beta1. What
// is left open has the same default in both.
func convertAutoscaler(o runtime.Object) (runtime.Object, error) {
	old, ok := o.(*autoscalerV2beta1)
	if !ok {
		return nil, fmt.Errorf("convert to autoscaling/v2: got a %T", o)
	}
	out := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: *old.ObjectMeta.DeepCopy(),
		Spec:       autoscalingv2.HorizontalPodAutoscalerSpec{ScaleTargetRef: old.Spec.ScaleTargetRef, MinReplicas: old.Spec.MinReplicas, MaxReplicas: old.Spec.MaxReplicas},
	}
	for i := range old.Spec.Metrics {
		out.Spec.Metrics = append(out.Spec.Metrics, old.Spec.Metrics[i].current())
	}
	if text, ok := out.Annotations[behaviorAnnotation]; ok {
		if err := json.Unmarshal([]byte(text), &out.Spec.Behavior); err != nil {
			return nil, fmt.Errorf("annotation %s: %w", behaviorAnnotation, err)
		}
		delete(out.Annotations, behaviorAnnotation)
	}
	return out, nil
}

func (m *metricV2beta1) current() autoscalingv2.MetricSpec {
	out := autoscalingv2.MetricSpec{Type: m.Type}
	if o := m.Object; o != nil {
		target := autoscalingv2.MetricTarget{Type: autoscalingv2.ValueMetricType, Value: &o.TargetValue}
		if o.AverageValue != nil {
			target.Type, target.AverageValue = autoscalingv2.AverageValueMetricType, o.AverageValue
		}
		out.Object = &autoscalingv2.ObjectMetricSource{DescribedObject: o.Target, Target: target, Metric: identifier(o.MetricName, o.Selector)}
	}
	if p := m.Pods; p != nil {
		out.Pods = &autoscalingv2.PodsMetricSource{
			Metric: identifier(p.MetricName, p.Selector),
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: &p.TargetAverageValue},
		}
	}
	if r := m.Resource; r != nil {
		out.Resource = &autoscalingv2.ResourceMetricSource{Name: r.Name, Target: r.target()}
	}
	if c := m.ContainerResource; c != nil {
		out.ContainerResource = &autoscalingv2.ContainerResourceMetricSource{Name: c.Name, Container: c.Container, Target: c.target()}
	}
	if e := m.External; e != nil {
		target := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: e.TargetAverageValue, Value: e.TargetValue}
		if e.TargetValue != nil {
			target.Type = autoscalingv2.ValueMetricType
		}
		out.External = &autoscalingv2.ExternalMetricSource{Metric: identifier(e.MetricName, e.MetricSelector), Target: target}
	}
	return out
}

func (r *resourceMetricV2beta1) target() autoscalingv2.MetricTarget {
	t := autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: r.TargetAverageValue, AverageUtilization: r.TargetAverageUtilization}
	if r.TargetAverageUtilization != nil {
		t.Type = autoscalingv2.UtilizationMetricType
	}
	return t
}

func identifier(name string, selector *metav1.LabelSelector) autoscalingv2.MetricIdentifier {
	return autoscalingv2.MetricIdentifier{Name: name, Selector: selector}
}
