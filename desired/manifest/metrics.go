package manifest

import (
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// checkMetrics warns of metrics that an autoscaler cannot judge: Kubernetes
// accepts them, and then the target is not scaled down, or not at all.
func (w *world) checkMetrics(e *entry, a *autoscalingv2.HorizontalPodAutoscaler, target *desired.Object, config desired.Settings) {
	for i := range a.Spec.Metrics {
		path := fmt.Sprintf("spec.metrics[%d]", i)
		switch m := &a.Spec.Metrics[i]; {
		case m.Pods != nil:
			w.checkQuery(e, path+".pods", m.Pods.Metric.Name, config)
		case m.Object != nil:
			w.checkQuery(e, path+".object", m.Object.Metric.Name, config)
		case m.External != nil:
			w.checkQuery(e, path+".external", m.External.Metric.Name, config)
		case m.Resource != nil && m.Resource.Target.AverageUtilization != nil:
			w.checkRequests(e, path+".resource", m.Resource.Name, "", true, target)
		case m.ContainerResource != nil:
			c := m.ContainerResource
			w.checkRequests(e, path+".containerResource", c.Name, c.Container, c.Target.AverageUtilization != nil, target)
		}
	}
}

func (w *world) checkQuery(e *entry, path, metric string, config desired.Settings) {
	if metric == "" || config.Queries[metric] != "" {
		return
	}
	w.found.report(e, desired.Warning, "missing-query", path+".metric.name", fmt.Sprintf("the Cluster object has no query for metric %q: it is never judged", metric),
		"name a Prometheus and a query in spec.metrics of the Cluster object")
}

// checkRequests looks for the container of a metric, and, where its target is a
// share, for what that is a share of: the requests of the named container, or
// of all that last.
func (w *world) checkRequests(e *entry, path string, resource corev1.ResourceName, container string, share bool, target *desired.Object) {
	t, ok := templateOf(target)
	if !ok || container == "" && t.spec.Resources != nil {
		return
	}
	found := container == ""
	for _, c := range lasting(t.spec) {
		if container != "" && c.Name != container {
			continue
		}
		found = true
		_, requested := c.Resources.Requests[resource]
		_, limited := c.Resources.Limits[resource]
		if share && !requested && !limited {
			w.found.report(e, desired.Warning, "missing-request", path+".target.averageUtilization",
				fmt.Sprintf("container %q of %s requests no %s, of which utilization is a share: the metric is never judged", c.Name, target.Key, resource),
				fmt.Sprintf("set resources.requests.%s, or a target of type AverageValue", resource))
		}
	}
	if !found {
		w.found.report(e, desired.Warning, "missing-container", path+".container", fmt.Sprintf("%s has no container %q: the metric is never judged", target.Key, container), "")
	}
}

// lasting are the containers that run as long as their pod: sidecars too.
func lasting(spec *corev1.PodSpec) []corev1.Container {
	var all []corev1.Container
	for _, c := range spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return append(all, spec.Containers...)
}
