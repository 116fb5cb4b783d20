package spec

import (
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestHugePagesOfAContainer(t *testing.T) {
	limits := func(list ...string) *corev1.ResourceRequirements {
		r := &corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}}
		for i := 0; i < len(list); i += 2 {
			r.Limits[corev1.ResourceName(list[i])] = resource.MustParse(list[i+1])
		}
		return r
	}
	for name, c := range map[string]struct {
		pod, own *corev1.ResourceRequirements
		want     map[int64]int64
	}{
		"none":                   {nil, limits(), nil},
		"its own":                {nil, limits("hugepages-2Mi", "4Mi", "hugepages-1Gi", "1Gi"), map[int64]int64{2 << 20: 4 << 20, 1 << 30: 1 << 30}},
		"the pod's":              {limits("hugepages-2Mi", "8Mi"), limits(), map[int64]int64{2 << 20: 8 << 20}},
		"less than the pod's":    {limits("hugepages-2Mi", "8Mi"), limits("hugepages-2Mi", "2Mi"), map[int64]int64{2 << 20: 2 << 20}},
		"another than the pod's": {limits("hugepages-2Mi", "8Mi"), limits("hugepages-1Gi", "1Gi"), map[int64]int64{2 << 20: 8 << 20, 1 << 30: 1 << 30}},
	} {
		got := HugePages(&corev1.PodSpec{Resources: c.pod}, &corev1.Container{Resources: *c.own})
		if !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
