package manifest

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// checkAnnotations reads the annotations that ask something of Tallyman.
func (w *world) checkAnnotations() {
	for _, e := range w.objects {
		if meta, ok := e.object.Value.(metav1.Object); ok {
			w.checkFailover(e, meta.GetAnnotations(), "metadata")
		}
		if t, ok := templateOf(e.object); ok && e.key.Kind != "Pod" {
			w.checkFailover(e, t.meta.Annotations, strings.TrimSuffix(t.path, "spec")+"metadata")
		}
	}
	w.checkDeadlines()
}

func (w *world) checkFailover(e *entry, annotations map[string]string, path string) {
	switch annotations[desired.FailoverAnnotation] {
	case "", desired.FailoverFenced, desired.FailoverWait:
	default:
		w.found.report(e, desired.Error, "invalid", path+".annotations["+desired.FailoverAnnotation+"]",
			"must be "+desired.FailoverFenced+" or "+desired.FailoverWait, "")
	}
}

func (w *world) checkDeadlines() {
	const field = "metadata.annotations[" + desired.ProgressDeadlineAnnotation + "]"
	for _, e := range w.objects {
		meta, ok := e.object.Value.(metav1.Object)
		if !ok {
			continue
		}
		if _, found := meta.GetAnnotations()[desired.ProgressDeadlineAnnotation]; !found {
			continue
		}
		if _, err := desired.ProgressDeadline(meta.GetAnnotations()); err != nil {
			w.found.report(e, desired.Error, "invalid", field, err.Error(), `write it as a text: "120"`)
		}
		switch e.object.Value.(type) {
		case *appsv1.StatefulSet, *appsv1.DaemonSet, *appsv1.ReplicaSet, *corev1.ReplicationController:
		case *appsv1.Deployment:
			w.found.report(e, desired.Warning, "no-effect", field, "a Deployment has a field for it", "set spec.progressDeadlineSeconds")
		default:
			w.found.report(e, desired.Warning, "no-effect", field, fmt.Sprintf("a %s has no rollout", e.key.Kind), "remove it")
		}
	}
}
