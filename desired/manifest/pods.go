package manifest

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
)

// podTemplate is what an object says about pods.
type podTemplate struct {
	spec   *corev1.PodSpec
	labels map[string]string
	// meta is the metadata of the pods, of which labels are a part.
	meta *metav1.ObjectMeta
	// path leads from the object to the pod's spec.
	path string
}

// templateOf gives the pods that an object makes; ok is false for other kinds.
func templateOf(o *desired.Object) (podTemplate, bool) {
	const path = "spec.template.spec"
	switch v := o.Value.(type) {
	case *corev1.Pod:
		return podTemplate{&v.Spec, v.Labels, &v.ObjectMeta, "spec"}, true
	case *corev1.ReplicationController:
		if v.Spec.Template == nil {
			return podTemplate{}, false
		}
		return template(v.Spec.Template, path), true
	case *appsv1.ReplicaSet:
		return template(&v.Spec.Template, path), true
	case *appsv1.Deployment:
		return template(&v.Spec.Template, path), true
	case *appsv1.StatefulSet:
		return template(&v.Spec.Template, path), true
	case *appsv1.DaemonSet:
		return template(&v.Spec.Template, path), true
	case *batchv1.Job:
		return template(&v.Spec.Template, path), true
	case *batchv1.CronJob:
		return template(&v.Spec.JobTemplate.Spec.Template, "spec.jobTemplate."+path), true
	}
	return podTemplate{}, false
}

func template(t *corev1.PodTemplateSpec, path string) podTemplate {
	return podTemplate{&t.Spec, t.Labels, &t.ObjectMeta, path}
}

// label is one label in one namespace.
type label struct{ namespace, key, value string }

// podIndex finds the objects whose pods bear labels.
type podIndex map[label][]podTemplate

func indexPods(objects []*entry) podIndex {
	index := podIndex{}
	for _, e := range objects {
		t, ok := templateOf(e.object)
		if !ok {
			continue
		}
		for k, v := range t.labels {
			l := label{e.key.Namespace, k, v}
			index[l] = append(index[l], t)
		}
	}
	return index
}

// selected gives the templates that bear all labels of a selector that is not
// empty: those with the rarest of the labels are looked through.
func (x podIndex) selected(namespace string, selector map[string]string) []podTemplate {
	var rarest []podTemplate
	first := true
	for k, v := range selector {
		if with := x[label{namespace, k, v}]; first || len(with) < len(rarest) {
			rarest, first = with, false
		}
	}
	var out []podTemplate
	for _, t := range rarest {
		if bears(t.labels, selector) {
			out = append(out, t)
		}
	}
	return out
}

func bears(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// portNames are the names of all ports of a pod.
func (t podTemplate) portNames(into map[string]bool) {
	for _, list := range [][]corev1.Container{t.spec.InitContainers, t.spec.Containers} {
		for i := range list {
			for _, p := range list[i].Ports {
				into[p.Name] = true
			}
		}
	}
}

// portRef is a port that a probe or hook of a container names.
type portRef struct {
	name, field string
}

// portRefs lists the ports that a container's probes and hooks name.
func portRefs(c *corev1.Container) []portRef {
	var refs []portRef
	add := func(field string, port intstr.IntOrString) {
		if port.Type == intstr.String {
			refs = append(refs, portRef{port.StrVal, field})
		}
	}
	probe := func(field string, p *corev1.Probe) {
		if p == nil {
			return
		}
		if p.HTTPGet != nil {
			add(field+".httpGet.port", p.HTTPGet.Port)
		}
		if p.TCPSocket != nil {
			add(field+".tcpSocket.port", p.TCPSocket.Port)
		}
	}
	probe("livenessProbe", c.LivenessProbe)
	probe("readinessProbe", c.ReadinessProbe)
	probe("startupProbe", c.StartupProbe)
	if c.Lifecycle != nil {
		if h := c.Lifecycle.PostStart; h != nil && h.HTTPGet != nil {
			add("lifecycle.postStart.httpGet.port", h.HTTPGet.Port)
		}
		if h := c.Lifecycle.PreStop; h != nil && h.HTTPGet != nil {
			add("lifecycle.preStop.httpGet.port", h.HTTPGet.Port)
		}
	}
	return refs
}
