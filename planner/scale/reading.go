package scale

import (
	"fmt"
	"math"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	"k8s.io/apimachinery/pkg/api/resource"
)

// reading puts a metric into words; ratio is that of its value to its target.
func reading(m *autoscalingv2.MetricSpec, ratio float64, err error) Reading {
	r := Reading{Metric: string(m.Type)}
	target := &autoscalingv2.MetricTarget{}
	switch {
	case m.Resource != nil && m.Type == autoscalingv2.ResourceMetricSourceType:
		r.Metric, target = string(m.Resource.Name), &m.Resource.Target
	case m.ContainerResource != nil && m.Type == autoscalingv2.ContainerResourceMetricSourceType:
		r.Metric, target = string(m.ContainerResource.Name)+" of "+m.ContainerResource.Container, &m.ContainerResource.Target
	case m.Pods != nil && m.Type == autoscalingv2.PodsMetricSourceType:
		r.Metric, target = m.Pods.Metric.Name, &m.Pods.Target
	case m.Object != nil && m.Type == autoscalingv2.ObjectMetricSourceType:
		r.Metric, target = m.Object.Metric.Name+" of "+m.Object.DescribedObject.Kind+" "+m.Object.DescribedObject.Name, &m.Object.Target
	case m.External != nil && m.Type == autoscalingv2.ExternalMetricSourceType:
		r.Metric, target = m.External.Metric.Name, &m.External.Target
	}
	known := err == nil
	switch {
	case target.AverageUtilization != nil && target.AverageValue == nil:
		r.Target = fmt.Sprintf("%d%%", *target.AverageUtilization)
		if known {
			r.Current = fmt.Sprintf("%d%%", int64(math.Round(ratio*float64(*target.AverageUtilization))))
		}
	case target.AverageValue != nil:
		r.Current, r.Target = quantities(target.AverageValue, ratio, known)
	case target.Value != nil:
		r.Current, r.Target = quantities(target.Value, ratio, known)
	}
	return r
}

func quantities(target *resource.Quantity, ratio float64, known bool) (current, wanted string) {
	if known {
		// The present value in the units that the target is written in.
		milli := int64(math.Round(ratio * float64(target.MilliValue())))
		current = resource.NewMilliQuantity(milli, target.Format).String()
		if target.Format == resource.BinarySI {
			current = resource.NewQuantity(milli/1000, target.Format).String()
		}
	}
	return current, target.String()
}
