package volume

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// isHugePages tells the media HugePages and HugePages-SIZE.
func isHugePages(m corev1.StorageMedium) bool {
	return m == corev1.StorageMediumHugePages || strings.HasPrefix(string(m), string(corev1.StorageMediumHugePagesPrefix))
}

// hugeDir makes an emptyDir of huge pages.
func (m *Manager) hugeDir(pod *nodes.Pod, dir string, e *corev1.EmptyDirVolumeSource) error {
	size, err := pageSize(&pod.Template.Spec, e.Medium)
	if err != nil {
		return err
	}
	if err := makeTree(dir); err != nil {
		return err
	}
	mounted, err := isMount(dir)
	if err != nil || mounted {
		return err
	}
	options := "pagesize=" + strconv.FormatInt(size, 10)
	if limit := e.SizeLimit; limit != nil && limit.Sign() > 0 {
		options += ",size=" + strconv.FormatInt(limit.Value(), 10)
	}
	if err := unix.Mount("tallyman", dir, "hugetlbfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount huge pages (%s) on %s: %w", options, dir, err)
	}
	if err := own(dir, fsGroup(pod), 0o777); err != nil { // hugetlbfs takes no setgid among its options
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		return err
	}
	return nil
}

// pageSize is that of a medium in bytes, which the pod must request: of the one
// size that it requests when the medium names none.
func pageSize(s *corev1.PodSpec, medium corev1.StorageMedium) (int64, error) {
	requested := requestedPages(s)
	if medium != corev1.StorageMediumHugePages {
		name := corev1.ResourceName(corev1.ResourceHugePagesPrefix + strings.TrimPrefix(string(medium), string(corev1.StorageMediumHugePagesPrefix)))
		size, ok := nodes.HugePageSize(name)
		if !ok || !requested[size] {
			return 0, fmt.Errorf("medium %s: no container of the pod requests %s", medium, name)
		}
		return size, nil
	}
	if len(requested) != 1 {
		return 0, fmt.Errorf("medium %s: the pod's containers request huge pages of %d sizes, want one; say which: %s2Mi", medium, len(requested), corev1.StorageMediumHugePagesPrefix)
	}
	for size := range requested {
		return size, nil
	}
	return 0, nil
}

// requestedPages are the sizes of huge pages that a pod or its containers
// request, in bytes.
func requestedPages(s *corev1.PodSpec) map[int64]bool {
	sizes := map[int64]bool{}
	add := func(list corev1.ResourceList) {
		for name := range list {
			if size, huge := nodes.HugePageSize(name); huge {
				sizes[size] = true
			}
		}
	}
	if s.Resources != nil {
		add(s.Resources.Requests)
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			add(list[i].Resources.Requests)
		}
	}
	return sizes
}
