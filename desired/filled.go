package desired

import (
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// FilledAnnotation names, by spaces, what of a pod's specification is not
// written in Git but was filled in from other objects: "priorityClassName",
// "priority", "preemptionPolicy", "imagePullSecrets", "overhead", and
// "containers/NAME/requests/RESOURCE" for a container. Only pods that are made
// once have it: bare ones, and those of Jobs.
const FilledAnnotation = "tallyman.dev/filled-in"

// LimitAnnotation is where Kubernetes, too, says what LimitRanges set.
const LimitAnnotation = "kubernetes.io/limit-ranger"

// AsWritten gives the pods of a specification as Git has them, without what
// was filled in. Kubernetes fills it in when a pod or Job is made and lets it
// be when the other objects change; so it decides nothing about whether one is
// made again. The arguments are not changed.
func AsWritten(spec *corev1.PodSpec, annotations map[string]string) (*corev1.PodSpec, map[string]string) {
	filled, ok := annotations[FilledAnnotation]
	if !ok {
		return spec, annotations
	}
	spec, annotations = spec.DeepCopy(), maps.Clone(annotations)
	delete(annotations, FilledAnnotation)
	if strings.Contains(filled, "/") {
		delete(annotations, LimitAnnotation)
	}
	for field := range strings.FieldsSeq(filled) {
		clearField(spec, field)
	}
	if len(annotations) == 0 {
		annotations = nil
	}
	return spec, annotations
}

func clearField(spec *corev1.PodSpec, field string) {
	switch field {
	case "priorityClassName":
		spec.PriorityClassName = ""
	case "priority":
		spec.Priority = nil
	case "preemptionPolicy":
		spec.PreemptionPolicy = nil
	case "imagePullSecrets":
		spec.ImagePullSecrets = nil
	case "overhead":
		spec.Overhead = nil
	default:
		clearResource(spec, field)
	}
}

// clearResource forgets one request or limit of a container.
func clearResource(spec *corev1.PodSpec, field string) {
	parts := strings.SplitN(field, "/", 4)
	if len(parts) < 4 {
		return
	}
	list := spec.Containers
	if parts[0] == "initContainers" {
		list = spec.InitContainers
	}
	for i := range list {
		if list[i].Name != parts[1] {
			continue
		}
		r := &list[i].Resources
		if parts[2] == "limits" {
			delete(r.Limits, corev1.ResourceName(parts[3]))
		} else {
			delete(r.Requests, corev1.ResourceName(parts[3]))
		}
	}
}
