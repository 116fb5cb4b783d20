package manifest

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
)

const tooManyPods = "too-many-pods"

// checkSizes bounds the pods that a revision asks for: each takes memory of the
// server, whether there is room for it on a node or not.
func (w *world) checkSizes() {
	total := int64(0)
	for _, e := range w.objects {
		field, pods, adds := size(e.object.Value)
		switch {
		case pods > maxPods:
			w.found.report(e, desired.Error, tooManyPods, field, fmt.Sprintf("%d pods: a revision may have %d", pods, maxPods), "")
		case adds && total+pods > maxPods:
			w.found.report(e, desired.Error, tooManyPods, field, fmt.Sprintf("%d pods and the %d of other objects: a revision may have %d", pods, total, maxPods), "")
		case adds:
			total += pods
		}
	}
}

// size gives how many pods an object has at a time, the field that says so, and
// whether they come on top of those of other objects.
func size(v runtime.Object) (field string, pods int64, adds bool) {
	switch v := v.(type) {
	case *appsv1.Deployment:
		return "spec.replicas", number(v.Spec.Replicas), true
	case *appsv1.ReplicaSet:
		return "spec.replicas", number(v.Spec.Replicas), true
	case *appsv1.StatefulSet:
		return "spec.replicas", number(v.Spec.Replicas), true
	case *corev1.ReplicationController:
		return "spec.replicas", number(v.Spec.Replicas), true
	case *batchv1.Job:
		return "spec.parallelism", parallel(&v.Spec), true
	case *batchv1.CronJob:
		return "spec.jobTemplate.spec.parallelism", parallel(&v.Spec.JobTemplate.Spec), true
	case *autoscalingv2.HorizontalPodAutoscaler:
		return "spec.maxReplicas", int64(v.Spec.MaxReplicas), false
	}
	return "", 0, false
}
