package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// stored is the agent's store as it is on the disk now.
func (w *world) stored() []byte {
	w.t.Helper()
	content, err := os.ReadFile(filepath.Join(w.dir, "agent.db"))
	if err != nil {
		w.t.Fatal(err)
	}
	return content
}

// restore puts an older store back, as if what was written since was lost with
// an agent that was killed.
func (w *world) restore(content []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, "agent.db"), content, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// always is a pod whose image is asked of the registry by every new container.
func always() corev1.PodSpec {
	c := container("a")
	c.ImagePullPolicy = corev1.PullAlways
	return corev1.PodSpec{Containers: []corev1.Container{c}}
}

// TestRunThatWasNotWrittenDownIsTakenUp: kill -9 between the start of a
// container and the write that tells of it.
func TestRunThatWasNotWrittenDownIsTakenUp(t *testing.T) {
	t.Run("first run", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			w.noPull.Store(new("no such host"))
			a, kill := w.start()
			a.Assign(assign(pod("u1", always())))
			settle(time.Second)
			before := w.stored()
			w.noPull.Store(nil)
			settle(20 * time.Second)
			expectRunning(t, w, "u1_a_0")
			kill()
			w.restore(before)
			w.noPull.Store(new("no such host"))
			_, kill = w.start()
			defer kill()
			settle(time.Minute)
			expectRunning(t, w, "u1_a_0")
			if s := w.last("u1"); !s.Ready || s.Containers[0].Restarts != 0 {
				t.Errorf("status %+v", s)
			}
		})
	})
	t.Run("restart", func(t *testing.T) {
		inWorld(t, func(t *testing.T, w *world) {
			a, kill := w.start()
			a.Assign(assign(pod("u1", always())))
			settle(time.Second)
			before := w.stored()
			if err := w.runtime.Exit("u1_a_0", 1, false); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
			expectRunning(t, w, "u1_a_1")
			kill()
			w.restore(before)
			_, kill = w.start()
			defer kill()
			settle(time.Minute)
			expectRunning(t, w, "u1_a_1")
			if s := w.last("u1"); !s.Ready || s.Containers[0].Restarts != 1 {
				t.Errorf("status %+v", s)
			}
		})
	})
}

// TestAnAdoptedPodHasItsAddress: from the first status on, that of containers
// that run, which a pod that went down with the machine has no more.
func TestAnAdoptedPodHasItsAddress(t *testing.T) {
	p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
	ip := netip.MustParseAddr("10.244.0.9")
	s := runtime.Status{ID: "u1_a_0", State: runtime.Running, Labels: labels(p, "a", 0, ip)}
	if got := adopt(p, []runtime.Status{s}, "boot", time.Now()).IP; got != ip {
		t.Errorf("a running pod has the address %s, want %s", got, ip)
	}
	s.State = runtime.Exited
	if got := adopt(p, []runtime.Status{s}, "boot", time.Now()).IP; got.IsValid() {
		t.Errorf("a pod of which nothing runs has the address %s", got)
	}
}
