package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// maxPods is how many pods a node takes unless Options.Capacity says otherwise.
const maxPods = 110

// describe is the machine as reports tell it, and its memory in bytes.
func describe(o Options) (nodes.Node, int64, error) {
	boot, err := bootID(o.BootID)
	if err != nil {
		return nodes.Node{}, 0, fmt.Errorf("describe machine: %w", err)
	}
	memory, err := machineMemory()
	if err != nil {
		return nodes.Node{}, 0, fmt.Errorf("describe machine: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nodes.Node{}, 0, fmt.Errorf("describe machine: uname: %w", err)
	}
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(goruntime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memory, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(maxPods, resource.DecimalSI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(diskSize(o.DataDir), resource.BinarySI),
	}
	huge, err := hugePages(hugePagesDir)
	if err != nil {
		return nodes.Node{}, 0, fmt.Errorf("describe machine: %w", err)
	}
	maps.Copy(capacity, huge)
	maps.Copy(capacity, o.Capacity)
	allocatable := allocatable(capacity, o.Reserved)
	withoutHugePages(capacity, allocatable)
	return nodes.Node{
		Name: o.Name, Labels: o.Labels, Addrs: o.Addrs,
		Capacity: capacity, Allocatable: allocatable,
		OS: goruntime.GOOS, Arch: goruntime.GOARCH, Kernel: unix.ByteSliceToString(uts.Release[:]),
		Version: o.Version, BootID: boot,
	}, memory, nil
}

// bootID names this boot of the machine.
func bootID(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}

func allocatable(capacity, reserved corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, q := range capacity {
		left := q.DeepCopy()
		if r, found := reserved[name]; found {
			left.Sub(r)
		}
		if left.Sign() < 0 {
			left = resource.Quantity{Format: q.Format}
		}
		out[name] = left
	}
	return out
}

// machineMemory is the machine's memory in bytes. A control group that confines
// this process does not count: pods live outside of it.
func machineMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) >= 2 && words[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(words[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemTotal")
}

func diskSize(dir string) int64 {
	var s unix.Statfs_t
	for unix.Statfs(dir, &s) != nil {
		if i := strings.LastIndexByte(dir, '/'); i > 0 {
			dir = dir[:i]
			continue
		}
		if err := unix.Statfs("/", &s); err != nil {
			return 0
		}
		break
	}
	return int64(s.Blocks) * s.Bsize
}

// Reset removes every container, pod network, volume and rule that this
// instance made, at once and without grace. Persistent volumes are unmounted and
// keep their data unless data is set. Run must have ended.
func (a *Agent) Reset(ctx context.Context, data bool) error {
	all, err := a.o.Runtime.List(ctx)
	if err != nil {
		// The rest can go all the same.
		err = fmt.Errorf("list containers: %w", err)
	}
	errs := make(chan error, len(all))
	for _, s := range all {
		a.ports.slots <- struct{}{}
		go func() {
			defer func() { <-a.ports.slots }()
			errs <- a.resetContainer(ctx, s)
		}()
	}
	for range all {
		err = errors.Join(err, <-errs)
	}
	a.fences.recall(ctx)
	err = errors.Join(err, a.fences.release(ctx, func(nodes.UID) bool { return false }), a.o.Network.Close(ctx), a.o.Volumes.Reset(ctx), a.o.Persistent.Reset(ctx, data), a.o.Runtime.ReleaseImages(ctx, ""), a.o.Proxy.Close(ctx), os.RemoveAll(a.on.logs))
	if a.o.Cgroups != nil {
		err = errors.Join(err, a.o.Cgroups.Remove(""))
	}
	if err != nil {
		return fmt.Errorf("reset node: %w", err)
	}
	return a.store.clear()
}

func (a *Agent) resetContainer(ctx context.Context, s runtime.Status) error {
	err := a.o.Runtime.Delete(ctx, s.ID)
	if errors.Is(err, runtime.ErrNotFound) {
		err = nil
	}
	return errors.Join(err, a.o.Keeper.CloseLog(ctx, s.ID))
}
