package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
)

// hugePagesDir is where the kernel has a directory for each size.
const hugePagesDir = "/sys/kernel/mm/hugepages"

// hugePages are what the machine has set aside in huge pages, in bytes by
// resource. A kernel without them has none.
func hugePages(dir string) (corev1.ResourceList, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "hugepages-*kB"))
	if err != nil {
		return nil, err
	}
	list := corev1.ResourceList{}
	for _, path := range paths {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("size of huge pages: %w", err)
		}
		text, err := os.ReadFile(filepath.Join(path, "nr_hugepages"))
		if err != nil {
			return nil, fmt.Errorf("count huge pages: %w", err)
		}
		count, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("count huge pages: %w", err)
		}
		if count > 0 {
			list[nodes.HugePages(kib<<10)] = *resource.NewQuantity(count*kib<<10, resource.BinarySI)
		}
	}
	return list, nil
}

// withoutHugePages takes from the memory that pods may request what is set aside
// in huge pages: nothing else can be kept there.
func withoutHugePages(capacity, allocatable corev1.ResourceList) {
	left := allocatable[corev1.ResourceMemory].DeepCopy()
	for name, q := range capacity {
		if _, huge := nodes.HugePageSize(name); huge {
			left.Sub(q)
		}
	}
	if left.Sign() < 0 {
		left = resource.Quantity{Format: resource.BinarySI}
	}
	allocatable[corev1.ResourceMemory] = left
}
