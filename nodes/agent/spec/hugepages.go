package spec

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// HugePages are what a container may use of huge pages, in bytes by the size of a
// page in bytes. What it does not say is the pod's; sizes that neither names are
// not there, and it may use none of them.
func HugePages(s *corev1.PodSpec, c *corev1.Container) map[int64]int64 {
	var pages map[int64]int64
	add := func(list corev1.ResourceList) {
		for name, q := range list {
			size, huge := nodes.HugePageSize(name)
			if _, said := pages[size]; !huge || said {
				continue
			}
			if pages == nil {
				pages = map[int64]int64{}
			}
			pages[size] = q.Value()
		}
	}
	add(c.Resources.Limits)
	if s.Resources != nil {
		add(s.Resources.Limits)
	}
	return pages
}
