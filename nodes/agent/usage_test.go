package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// usages are all that was reported so far, by pod.
func (w *world) usages() map[nodes.UID][]nodes.Usage {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[nodes.UID][]nodes.Usage{}
	for _, r := range w.reports {
		for _, u := range r.Usage {
			all[u.Pod] = append(all[u.Pod], u)
		}
	}
	return all
}

func TestUsageOfMeasuredPods(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		one := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a"), container("b")}})
		two := pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(one, two))
		settle(time.Minute)
		if all := w.usages(); len(all) > 0 {
			t.Fatalf("measured without being asked: %v", all)
		}

		x := assign(one, two)
		x.Measured = []nodes.UID{"u1", "gone"}
		a.Assign(x)
		settle(usageEvery + time.Second)
		all := w.usages()
		want := []nodes.ContainerUsage{{Name: "a", CPU: 1e6, Memory: 1 << 20}, {Name: "b", CPU: 1e6, Memory: 1 << 20}}
		if len(all) != 1 || len(all["u1"]) != 1 {
			t.Fatalf("usage of %v, want one of u1", all)
		}
		u := all["u1"][0]
		if u.Window != usageEvery || cmp.Diff(want, u.Containers) != "" {
			t.Errorf("usage %+v, want %v over %s", u, want, usageEvery)
		}

		a.Assign(assign(one, two))
		settle(time.Second)
		before := len(w.usages()["u1"])
		settle(time.Minute)
		if after := len(w.usages()["u1"]); after != before {
			t.Errorf("%d readings more after the last one was asked for", after-before)
		}
	})
}

// burning is a runtime in which containers use what a test says.
type burning struct {
	runtime.Runtime
	cpu atomic.Int64 // nanoseconds
}

func (b *burning) Usage(context.Context, string) (runtime.Usage, error) {
	return runtime.Usage{CPU: time.Duration(b.cpu.Load()), Memory: 5}, nil
}

func TestARestartIsNoNegativeUsage(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		b := &burning{Runtime: w.runtime}
		b.cpu.Store(int64(time.Hour))
		w.reached = b
		a, kill := w.start()
		defer kill()
		p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(p))
		settle(time.Second)
		x := assign(p)
		x.Measured = []nodes.UID{"u1"}
		a.Assign(x)
		settle(time.Second)
		b.cpu.Store(int64(time.Second)) // counted anew
		settle(usageEvery)
		b.cpu.Add(int64(usageEvery / 2))
		settle(usageEvery)
		all := w.usages()["u1"]
		if len(all) != 2 || all[0].Containers[0].CPU != 0 || all[1].Containers[0].CPU != 5e8 {
			t.Errorf("usage %+v, want none, then half a core", all)
		}
	})
}
