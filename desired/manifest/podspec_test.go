package manifest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestDefaultPodSpec(t *testing.T) {
	limit := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	spec := corev1.PodSpec{HostNetwork: true, Containers: []corev1.Container{{
		Name: "web", Image: "web:1", Ports: []corev1.ContainerPort{{ContainerPort: 80}}, Resources: corev1.ResourceRequirements{Limits: limit},
	}}}
	DefaultPodSpec(&spec)
	if c := spec.Containers[0]; c.Ports[0].HostPort != 80 || !cmp.Equal(limit, c.Resources.Requests) {
		t.Errorf("what pods alone default is missing: %+v", c)
	}
	if spec.RestartPolicy != corev1.RestartPolicyAlways || spec.Containers[0].ImagePullPolicy != corev1.PullIfNotPresent {
		t.Errorf("defaults are missing: %+v", spec)
	}
	again := *spec.DeepCopy()
	DefaultPodSpec(&again)
	if diff := cmp.Diff(spec, again); diff != "" {
		t.Errorf("a second time changes it:\n%s", diff)
	}
}
