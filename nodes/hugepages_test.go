package nodes

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestHugePagesAreNamedByTheirSize(t *testing.T) {
	for name, want := range map[corev1.ResourceName]int64{"hugepages-64Ki": 64 << 10, "hugepages-2Mi": 2 << 20, "hugepages-1Gi": 1 << 30} {
		if size, ok := HugePageSize(name); !ok || size != want || HugePages(size) != name {
			t.Errorf("%s: %d, %t; back %s", name, size, ok, HugePages(size))
		}
	}
	for _, name := range []corev1.ResourceName{"memory", "hugepages-", "hugepages-0", "hugepages-x", "requests.hugepages-2Mi"} {
		if size, ok := HugePageSize(name); ok {
			t.Errorf("%s is of size %d", name, size)
		}
	}
}
