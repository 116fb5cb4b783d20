// Package cgroup makes the control groups that pods live in, with the limits
// of the pod as a whole, on hierarchies of version 1 and 2.
//
// It touches only groups below /tallyman. The groups of single containers are
// the runtime's.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// controllers that pods are limited by.
var controllers = []string{"cpu", "memory", "pids"}

// Tree is the machine's hierarchy. Safe for concurrent use.
type Tree struct {
	root string
	v2   bool
}

// New looks at the hierarchy mounted on root, usually /sys/fs/cgroup.
func New(root string) (*Tree, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(root, &s); err != nil {
		return nil, fmt.Errorf("look at control groups on %s: %w", root, err)
	}
	return &Tree{root: root, v2: s.Type == unix.CGROUP2_SUPER_MAGIC}, nil
}

// all is the group around everything that is ours.
const all = "/tallyman"

// Ensure makes the group parent ("/tallyman/…") and sets its limits. A group
// in between ("/tallyman/besteffort/…") holds what asks for nothing: all that
// is in it together gets the kernel's least share of the processor. The group
// around everything gets node, the shares that all pods together have against
// the machine's own programs: what the node has for pods, as below a kubelet.
func (t *Tree) Ensure(parent string, r runtime.Resources, node uint64) error {
	if err := check(parent); err != nil {
		return err
	}
	if between := filepath.Dir(parent); between != all {
		if err := t.ensure(between, runtime.Resources{CPUShares: minShares}); err != nil {
			return err
		}
	}
	if err := t.ensure(parent, r); err != nil {
		return err
	}
	return t.weigh(node)
}

// weigh gives the group around all pods its part of the processor. Limits that
// somebody else has set on it stay.
func (t *Tree) weigh(shares uint64) error {
	if t.v2 {
		return setting{dir: filepath.Join(t.root, all), file: "cpu.weight"}.write(strconv.FormatUint(weight(shares), 10))
	}
	return setting{dir: filepath.Join(t.root, "cpu", all), file: "cpu.shares"}.write(strconv.FormatUint(min(max(shares, minShares), maxShares), 10))
}

// minShares and maxShares are the least and the most that the kernel takes.
const (
	minShares = 2
	maxShares = 262144
)

func (t *Tree) ensure(parent string, r runtime.Resources) error {
	if t.v2 {
		return t.ensure2(parent, r)
	}
	return t.ensure1(parent, r)
}

func check(parent string) error {
	if clean := filepath.Clean(parent); clean != parent || !strings.HasPrefix(parent, all+"/") {
		return fmt.Errorf("control group %q is not below /tallyman", parent)
	}
	return nil
}

func (t *Tree) ensure1(parent string, r runtime.Resources) error {
	for _, c := range controllers {
		hierarchy := filepath.Join(t.root, c)
		if _, err := os.Stat(hierarchy); errors.Is(err, fs.ErrNotExist) {
			continue // not mounted: no such limits on this machine
		}
		if err := os.MkdirAll(filepath.Join(hierarchy, parent), 0o755); err != nil {
			return err
		}
	}
	cpu, memory := filepath.Join(t.root, "cpu", parent), filepath.Join(t.root, "memory", parent)
	values := []setting{{cpu, "cpu.shares", int64(max(r.CPUShares, minShares))}, {cpu, "cpu.cfs_quota_us", -1}, {memory, "memory.limit_in_bytes", -1}}
	if r.CPUQuota > 0 {
		values[1].value = r.CPUQuota
		values = append(values, setting{cpu, "cpu.cfs_period_us", int64(r.CPUPeriod)})
	}
	if r.Memory > 0 {
		values[2].value = r.Memory
	}
	for _, v := range values {
		if err := v.write(strconv.FormatInt(v.value, 10)); err != nil {
			return err
		}
	}
	return nil
}

type setting struct {
	dir, file string
	value     int64
}

// write sets a value unless it is so already. A file that this machine lacks
// means a limit that it cannot enforce.
func (s setting) write(text string) error {
	path := filepath.Join(s.dir, s.file)
	old, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || strings.TrimSpace(string(old)) == text {
		return nil
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func (t *Tree) ensure2(parent string, r runtime.Resources) error {
	dir := t.root
	for _, name := range strings.Split(strings.Trim(parent, "/"), "/") {
		for _, c := range controllers {
			// A controller that is not offered here cannot be enforced.
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
		}
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	quota, memory := "max 100000", "max"
	if r.CPUQuota > 0 {
		quota = fmt.Sprintf("%d %d", r.CPUQuota, r.CPUPeriod)
	}
	if r.Memory > 0 {
		memory = strconv.FormatInt(r.Memory, 10)
	}
	return errors.Join(
		setting{dir: dir, file: "cpu.weight"}.write(strconv.FormatUint(weight(r.CPUShares), 10)),
		setting{dir: dir, file: "cpu.max"}.write(quota),
		setting{dir: dir, file: "memory.max"}.write(memory),
	)
}

// weight converts version 1's shares (2…262144) to version 2's weight (1…10000).
func weight(shares uint64) uint64 {
	shares = min(max(shares, minShares), maxShares)
	return 1 + (shares-minShares)*9999/262142
}

// Remove removes the group and those below it. Groups that still hold processes
// are an error. When parent is empty, it removes all of ours, except those that
// hold processes: they are another instance's.
func (t *Tree) Remove(parent string) error {
	everything := parent == ""
	if everything {
		parent = all
	} else if err := check(parent); err != nil {
		return err
	}
	roots := []string{t.root}
	if !t.v2 {
		mounted, err := filepath.Glob(filepath.Join(t.root, "*"))
		if err != nil {
			return err
		}
		roots = mounted
	}
	var errs []error
	for _, root := range roots {
		err := removeTree(filepath.Join(root, parent))
		if !everything || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeTree removes directories bottom up; the files in them are the kernel's.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(append(errs, unix.Rmdir(dir))...)
}
