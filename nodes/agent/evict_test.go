package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/pressure"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/fake"
)

// greedy says what containers use.
type greedy struct {
	runtime.Runtime
	mu           sync.Mutex
	memory, disk map[string]int64 // by container ID; memory is guarded by mu
}

func (g *greedy) Usage(_ context.Context, id string) (runtime.Usage, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return runtime.Usage{Memory: g.memory[id]}, nil
}

func (g *greedy) Written(_ context.Context, id string) (nodes.DiskUsage, error) {
	return nodes.DiskUsage{Bytes: g.disk[id]}, nil
}

func (w *world) reads(readings map[pressure.Signal]pressure.Reading) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readings = func() map[pressure.Signal]pressure.Reading { return readings }
}

// taints are those that the node last told of.
func (w *world) taints() []corev1.Taint {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range slices.Backward(w.reports) {
		if r.Info != nil {
			return r.Info.Taints
		}
	}
	return nil
}

func TestMemoryPressureEvictsInOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.reached = &greedy{Runtime: w.runtime, memory: map[string]int64{"u1_a_0": 300 << 20, "u2_a_0": 200 << 20}}
		a, kill := w.start()
		defer kill()
		modest := container("a")
		modest.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
		a.Assign(assign(
			pod("u1", corev1.PodSpec{Containers: []corev1.Container{modest}}),
			pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}}),
		))
		settle(time.Second)
		w.reads(map[pressure.Signal]pressure.Reading{pressure.Memory: {Available: 50 << 20, Capacity: 8 << 30}})
		settle(15 * time.Second)
		expectRunning(t, w, "u1_a_0")
		s := w.last("u2")
		if s.Phase != corev1.PodFailed || s.Reason != "Evicted" || !strings.HasPrefix(s.Message, "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi.") {
			t.Errorf("status %s %s: %s", s.Phase, s.Reason, s.Message)
		}
		if got := w.taints(); len(got) != 1 || got[0].Key != corev1.TaintNodeMemoryPressure {
			t.Errorf("taints %v", got)
		}
		// The shortage is over: nobody else goes, and after a while new pods may come.
		w.reads(map[pressure.Signal]pressure.Reading{pressure.Memory: {Available: 4 << 30, Capacity: 8 << 30}})
		settle(time.Minute)
		expectRunning(t, w, "u1_a_0")
		if len(w.taints()) != 1 {
			t.Error("new pods may come at once, and bring the shortage back")
		}
		settle(pressureLasts)
		if got := w.taints(); len(got) != 0 {
			t.Errorf("taints %v", got)
		}
	})
}

// TestMemoryPressureHurriesWhatEndsSlowly: a pod that is being stopped with a
// long grace keeps nobody else's place in the queue, and its memory no longer
// than an evicted pod would.
func TestMemoryPressureHurriesWhatEndsSlowly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.behave = func(runtime.Container) fake.Behaviour { return fake.Behaviour{IgnoresTerm: true} }
		w.reached = &greedy{Runtime: w.runtime, memory: map[string]int64{"u1_a_0": 300 << 20, "u2_a_0": 200 << 20}}
		a, kill := w.start()
		defer kill()
		slow, other := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(slow, other))
		settle(time.Second)
		stopped := *slow
		stopped.Stop = &nodes.Stop{Grace: time.Hour}
		a.Assign(assign(&stopped, other))
		settle(time.Second)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
		w.reads(map[pressure.Signal]pressure.Reading{pressure.Memory: {Available: 50 << 20, Capacity: 8 << 30}})
		settle(15 * time.Second)
		if !w.gone("u1") {
			t.Fatal("the pod keeps its hour, and the node stays short")
		}
		settle(15 * time.Second)
		expectRunning(t, w)
		if s := w.last("u2"); s.Reason != "Evicted" {
			t.Errorf("status %s: %s", s.Reason, s.Message)
		}
	})
}

func TestDiskPressureWaitsForImagesToGo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.reached = &greedy{Runtime: w.runtime, disk: map[string]int64{"u1_a_0": 1 << 30, "u2_a_0": 2 << 30}}
		w.onDisk = map[nodes.UID]map[string]nodes.DiskUsage{"u1": {"v": {Bytes: 3 << 30}}}
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})))
		settle(time.Second)
		w.reads(map[pressure.Signal]pressure.Reading{pressure.NodeFS: {Available: 5 << 30, Capacity: 100 << 30}})
		settle(time.Minute)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
		if got := w.taints(); len(got) != 1 || got[0].Key != corev1.TaintNodeDiskPressure {
			t.Errorf("taints %v", got)
		}
		settle(imagesFirst + pressureEvery - time.Minute)
		expectRunning(t, w, "u2_a_0")
	})
}

// full is a disk on which some containers can't be made.
type full struct {
	runtime.Runtime
	of nodes.UID
}

func (f *full) Create(ctx context.Context, c runtime.Container) error {
	if podOf(c.ID) == f.of {
		return fmt.Errorf("make log directory: %w", unix.ENOSPC)
	}
	return f.Runtime.Create(ctx, c)
}

// TestDiskPressureDeclinesWhatCannotBegin: elsewhere there may be room.
func TestDiskPressureDeclinesWhatCannotBegin(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.reached = &full{w.runtime, "u2"}
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})))
		settle(time.Minute)
		if s := w.last("u2"); s.Phase != corev1.PodPending {
			t.Fatalf("no disk of the node is short, and the pod is %s: %s", s.Phase, s.Message)
		}
		// Where images lie too, they go first.
		short := func(imagesOn uint64) map[pressure.Signal]pressure.Reading {
			return map[pressure.Signal]pressure.Reading{
				pressure.NodeFS:  {Capacity: 100 << 30, Device: 1},
				pressure.ImageFS: {Capacity: 100 << 30, Available: 100 << 30, Device: imagesOn},
			}
		}
		w.reads(short(1))
		settle(imagesFirst / 2)
		if s := w.last("u2"); s.Phase != corev1.PodPending {
			t.Fatalf("images may still make room, and the pod is %s: %s", s.Phase, s.Message)
		}
		w.reads(short(2))
		settle(pressureEvery)
		expectRunning(t, w, "u1_a_0")
		if s := w.last("u2"); s.Phase != corev1.PodFailed || s.Reason != "Evicted" || s.Message != "Pod was rejected: The node had condition: [DiskPressure]. " {
			t.Errorf("status %s %s: %s", s.Phase, s.Reason, s.Message)
		}
	})
}

func TestContainerBeyondItsStorageLimitIsEvicted(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.reached = &greedy{Runtime: w.runtime, disk: map[string]int64{"u1_a_0": 2 << 20, "u2_a_0": 2 << 20}}
		a, kill := w.start()
		defer kill()
		c := container("a")
		c.Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("1Mi")}
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{c}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})))
		settle(2 * time.Minute)
		expectRunning(t, w, "u2_a_0")
		if s := w.last("u1"); s.Reason != "Evicted" || s.Message != "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. " {
			t.Errorf("status %s: %s", s.Reason, s.Message)
		}
	})
}

func TestMachineIsRead(t *testing.T) {
	readings := MachineReadings(t.TempDir(), func(context.Context) (string, error) { return t.TempDir(), nil })(t.Context())
	for _, s := range []pressure.Signal{pressure.Memory, pressure.NodeFS, pressure.NodeFSFiles, pressure.ImageFS, pressure.ImageFSFiles} {
		if r := readings[s]; r.Available <= 0 || r.Capacity < r.Available {
			t.Errorf("%s: %+v", s, r)
		}
	}
}
