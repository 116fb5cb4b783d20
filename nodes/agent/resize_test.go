package agent

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// sized is a pod of one container with limits.
func sized(hash, cpu, memory string, policy ...corev1.ContainerResizePolicy) *nodes.Pod {
	c := container("a")
	c.ResizePolicy = policy
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	p := pod("u1", corev1.PodSpec{RestartPolicy: corev1.RestartPolicyOnFailure, Containers: []corev1.Container{c}})
	p.TemplateHash, p.Template.Hash = hash, hash
	return p
}

func TestContainersAreResizedInPlace(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		a.Assign(assign(sized("one", "1", "64Mi")))
		settle(time.Second)
		expectResources(t, w, "u1_a_0", 100_000, 64<<20)
		a.Assign(assign(sized("two", "2", "128Mi")))
		settle(time.Second)
		expectRunning(t, w, "u1_a_0")
		expectResources(t, w, "u1_a_0", 200_000, 128<<20)
		if !slices.Contains(w.reasons(), "ResizeCompleted") {
			t.Errorf("events %v", w.reasons())
		}
		// What changed while no agent ran is made up for.
		kill()
		a, kill = w.start()
		defer kill()
		a.Assign(assign(sized("three", "500m", "64Mi")))
		settle(time.Second)
		expectRunning(t, w, "u1_a_0")
		expectResources(t, w, "u1_a_0", 50_000, 64<<20)
	})
}

// TestResizeRestartsWhatWantsIt: although the program ends well, which its
// pod's policy would leave at that.
func TestResizeRestartsWhatWantsIt(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		policy := corev1.ContainerResizePolicy{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}
		a.Assign(assign(sized("one", "1", "64Mi", policy)))
		settle(time.Second)
		a.Assign(assign(sized("two", "2", "64Mi", policy)))
		settle(time.Second)
		expectRunning(t, w, "u1_a_0")
		expectResources(t, w, "u1_a_0", 200_000, 64<<20)
		a.Assign(assign(sized("three", "2", "128Mi", policy)))
		settle(time.Minute)
		expectRunning(t, w, "u1_a_1")
		expectResources(t, w, "u1_a_1", 200_000, 128<<20)
	})
}

func expectResources(t *testing.T, w *world, id string, quota, memory int64) {
	t.Helper()
	c, found := w.runtime.Container(id)
	if want := (runtime.Resources{CPUShares: c.Resources.CPUShares, CPUQuota: quota, CPUPeriod: 100_000, Memory: memory}); !found || c.Resources != want {
		t.Errorf("container %s has %+v, want %+v", id, c.Resources, want)
	}
}

// TestMemoryInUseIsNotTakenAway: the kernel would kill for it.
func TestMemoryInUseIsNotTakenAway(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		uses := &greedy{Runtime: w.runtime, memory: map[string]int64{"u1_a_0": 100 << 20}}
		w.reached = uses
		a, kill := w.start()
		defer kill()
		a.Assign(assign(sized("one", "1", "128Mi")))
		settle(time.Second)
		a.Assign(assign(sized("two", "1", "64Mi")))
		settle(time.Minute)
		expectResources(t, w, "u1_a_0", 100_000, 128<<20)
		if group := w.group("u1"); group.Memory != 128<<20 {
			t.Errorf("the group around the pod has %d bytes, while 100 MiB are in use", group.Memory)
		}
		if !slices.Contains(w.reasons(), "ResizeError") {
			t.Errorf("events %v", w.reasons())
		}
		// A new agent does not shrink the group either.
		kill()
		w.start()
		settle(time.Minute)
		if group := w.group("u1"); group.Memory != 128<<20 || !w.last("u1").Ready {
			t.Errorf("the group has %d bytes, status %+v", group.Memory, w.last("u1"))
		}
		uses.mu.Lock()
		uses.memory["u1_a_0"] = 10 << 20
		uses.mu.Unlock()
		settle(3 * time.Minute)
		expectRunning(t, w, "u1_a_0")
		expectResources(t, w, "u1_a_0", 100_000, 64<<20)
		if group := w.group("u1"); group.Memory != 64<<20 {
			t.Errorf("the group around the pod has %d bytes", group.Memory)
		}
	})
}

// group is the control group around a pod that requests something.
func (w *world) group(uid nodes.UID) runtime.Resources {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.groups[spec.CgroupParents(uid)[0]]
}
