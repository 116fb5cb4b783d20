package nodes

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
)

// HugePages names the resource of huge pages of a size in bytes, as Kubernetes
// does: hugepages-2Mi.
func HugePages(size int64) corev1.ResourceName {
	return corev1.ResourceName(corev1.ResourceHugePagesPrefix + resource.NewQuantity(size, resource.BinarySI).String())
}

// HugePageSize reads the size in bytes from such a name; ok is false for
// another resource.
func HugePageSize(name corev1.ResourceName) (size int64, ok bool) {
	text, ok := strings.CutPrefix(string(name), corev1.ResourceHugePagesPrefix)
	if !ok {
		return 0, false
	}
	q, err := desired.ParseQuantity(text)
	return q.Value(), err == nil && q.Sign() > 0
}
