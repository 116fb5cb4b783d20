package manifest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

func TestDefaultPodSpec(t *testing.T) {
	spec := corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web:1"}}}
	DefaultPodSpec(&spec)
	if spec.RestartPolicy != corev1.RestartPolicyAlways || spec.Containers[0].ImagePullPolicy != corev1.PullIfNotPresent {
		t.Errorf("defaults are missing: %+v", spec)
	}
	again := *spec.DeepCopy()
	DefaultPodSpec(&again)
	if diff := cmp.Diff(spec, again); diff != "" {
		t.Errorf("a second time changes it:\n%s", diff)
	}
}
