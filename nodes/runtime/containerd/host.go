package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/cap"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// cgroupRoot is where the machine's cgroups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// host is what the machine allows, found once.
type host struct {
	// unified tells cgroup v2 from v1.
	unified bool
	// caps are what this process, and so a privileged container, has at most.
	caps []string
	// minOOMScore is the lowest oom_score_adj that may be set.
	minOOMScore int
	// pages are the sizes of huge pages in bytes that cgroups limit.
	pages []int64
}

func probeHost() (host, error) {
	var h host
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &fs); err != nil {
		return h, fmt.Errorf("look at %s: %w", cgroupRoot, err)
	}
	h.unified = fs.Type == unix.CGROUP2_SUPER_MAGIC
	var err error
	if h.caps, err = cap.Current(); err != nil {
		return h, fmt.Errorf("read capabilities: %w", err)
	}
	h.minOOMScore = -1000
	if !slices.Contains(h.caps, "CAP_SYS_RESOURCE") {
		// Without the capability the kernel refuses anything lower than what we
		// inherited, and runc fails on that.
		if h.minOOMScore, err = readInt("/proc/self/oom_score_adj"); err != nil {
			return h, fmt.Errorf("read own oom_score_adj: %w", err)
		}
	}
	if h.limitsHugePages() {
		h.pages = pageSizes("/sys/kernel/mm/hugepages")
	}
	return h, nil
}

// limitsHugePages tells whether the machine's cgroups count huge pages.
func (h host) limitsHugePages() bool {
	if h.unified {
		text, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
		return err == nil && slices.Contains(strings.Fields(string(text)), "hugetlb")
	}
	var fs unix.Statfs_t
	err := unix.Statfs(filepath.Join(cgroupRoot, "hugetlb"), &fs)
	return err == nil && fs.Type == unix.CGROUP_SUPER_MAGIC
}

// pageSizes are the sizes of huge pages in bytes that the kernel has directories
// for.
func pageSizes(dir string) (sizes []int64) {
	entries, _ := os.ReadDir(dir) // a kernel without huge pages has none
	for _, e := range entries {
		text, isSize := strings.CutSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB")
		if kib, err := strconv.ParseInt(text, 10, 64); isSize && err == nil {
			sizes = append(sizes, kib<<10)
		}
	}
	return sizes
}

// pageName is how cgroups write the size of a huge page: 2MB.
func pageName(size int64) string {
	for i, unit := range []string{"KB", "MB", "GB"} {
		if n := size >> (10 * (i + 1)); n < 1<<10 || unit == "GB" {
			return strconv.FormatInt(n, 10) + unit
		}
	}
	return ""
}

// controller returns the directory of a cgroup's controller.
func (h host) controller(name, cgroup string) string {
	if h.unified {
		return filepath.Join(cgroupRoot, cgroup)
	}
	return filepath.Join(cgroupRoot, name, cgroup)
}

// oomKilled tells whether the memory killer struck in a cgroup that still exists.
func (h host) oomKilled(cgroup string) bool {
	file := "memory.oom_control"
	if h.unified {
		file = "memory.events"
	}
	n, err := readKey(filepath.Join(h.controller("memory", cgroup), file), "oom_kill")
	return err == nil && n > 0
}

// usage reads what a cgroup consumed. Memory is the working set: without the
// page cache that the kernel can drop at once.
func (h host) usage(cgroup string) (runtime.Usage, error) {
	memory := h.controller("memory", cgroup)
	if h.unified {
		cpu, err := readKey(filepath.Join(memory, "cpu.stat"), "usage_usec")
		if err != nil {
			return runtime.Usage{}, err
		}
		used, err := workingSet(memory, "memory.current", "inactive_file")
		return runtime.Usage{CPU: time.Duration(cpu) * time.Microsecond, Memory: used}, err
	}
	cpu, err := readInt(filepath.Join(h.controller("cpuacct", cgroup), "cpuacct.usage"))
	if err != nil {
		return runtime.Usage{}, err
	}
	used, err := workingSet(memory, "memory.usage_in_bytes", "total_inactive_file")
	return runtime.Usage{CPU: time.Duration(cpu), Memory: used}, err
}

func workingSet(dir, total, droppable string) (int64, error) {
	used, err := readInt(filepath.Join(dir, total))
	if err != nil {
		return 0, err
	}
	cache, err := readKey(filepath.Join(dir, "memory.stat"), droppable)
	if err != nil {
		return 0, err
	}
	return max(0, int64(used)-cache), nil
}

func readInt(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// readKey finds the number after a key in a file of "key number" lines.
func readKey(path, key string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, key)
}
