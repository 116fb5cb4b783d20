//go:build e2e

package bench

import (
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// Strategies of the rollouts that are measured.
const (
	standard = "{maxSurge: 25%, maxUnavailable: 25%}"
	together = "{maxSurge: 100%, maxUnavailable: 0}"
)

// benchPods measures what a user waits for: pushes, rollouts, routes, restarts.
func benchPods(t *testing.T, all *figures) {
	m := machine.New(t)
	b := &podBench{t: t, m: m, image: m.PushImage(app, "app:1")}
	m.Up()
	b.clone, b.watch = m.Clone(), newWatch(t, m)
	all.add(t, lower("push-to-3-ready", b.rollouts("three", 3, together, 9).Seconds(), "s", 0.6))
	all.add(t, lower("push-to-3-ready-one-by-one", b.rollouts("sequence", 3, standard, 5).Seconds(), "s", 0.6))
	all.add(t, lower("rolling-update-10", b.rollouts("ten", 10, standard, 5).Seconds(), "s", 1.5))
	all.add(t, lower("ready-to-reachable", b.reachable(7).Seconds()*1000, "ms", 50))
	all.add(t, lower("killed-to-serving", b.killed(7).Seconds(), "s", 0.3))
}

// podBench is one cluster that is measured again and again.
type podBench struct {
	t     *testing.T
	m     *machine.Machine
	clone *machine.Clone
	watch *watch
	image string
	count int
}

// generation is a fresh value for the template and the commit's message.
func (b *podBench) generation() string {
	b.count++
	return fmt.Sprintf("generation %d", b.count)
}

// remove takes a Deployment away.
func (b *podBench) remove(name string) {
	b.clone.Git("rm", "--quiet", name+".yaml")
	b.clone.Write("keep.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: keep}\n")
	b.pushConfirmed()
}

// pushConfirmed pushes what the guard would otherwise hold.
func (b *podBench) pushConfirmed() {
	b.t.Helper()
	push(b.t, b.clone, b.generation()+"\n\nTally-Confirm: delete 2")
}

// rollouts measures from the start of git push until every replica of a new
// template is available and none of the old one is left.
func (b *podBench) rollouts(name string, replicas int, strategy string, rounds int) time.Duration {
	b.t.Helper()
	var took []time.Duration
	for round := range rounds + 1 {
		g := b.generation()
		deployment(b.clone, name, b.image, replicas, strategy, g)
		seen := b.watch.until(name+" is ready", allReady(name, replicas, g))
		begun, _ := push(b.t, b.clone, g)
		if at := seen(); round > 0 { // the first round makes the Deployment and pulls
			took = append(took, at.Sub(begun))
		}
	}
	b.remove(name)
	return median(b.t, fmt.Sprintf("push → %d ready, %s", replicas, strategy), took)
}

// reachable measures from the instant at which the agent finds a pod ready
// until its service's address answers; before, there is no other endpoint.
func (b *podBench) reachable(rounds int) time.Duration {
	b.t.Helper()
	const name = "reach"
	scale := func(replicas int) {
		g := b.generation()
		deployment(b.clone, name, b.image, replicas, standard, "same")
		push(b.t, b.clone, g)
	}
	scale(0)
	addr := serviceAddr(b.t, b.m, name)
	var took []time.Duration
	for range rounds {
		if err := ask(addr); err == nil {
			b.t.Fatalf("%s answers without pods", addr)
		}
		answered := make(chan time.Time, 1)
		go func() { answered <- serving(b.t, addr) }()
		scale(1)
		ready := onePod(b.t, b.m, name).Status.ReadySince
		took = append(took, (<-answered).Sub(ready))
		scale(0)
	}
	b.remove(name)
	return median(b.t, "pod ready → reachable", took)
}

// killed measures from the end of a container's process until the service's
// address answers again. Each time it is a fresh pod, so that no back-off counts.
func (b *podBench) killed(rounds int) time.Duration {
	b.t.Helper()
	const name = "killed"
	var took []time.Duration
	for range rounds {
		g := b.generation()
		deployment(b.clone, name, b.image, 1, standard, g)
		push(b.t, b.clone, g)
		addr := serviceAddr(b.t, b.m, name)
		serving(b.t, addr)
		pid := containerProcess(b.t, b.m, onePod(b.t, b.m, name).Status.Containers[0].ID)
		begun := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			b.t.Fatal(err)
		}
		awaitEnd(b.t, pid)
		took = append(took, serving(b.t, addr).Sub(begun))
		b.m.Eventually(patience, "the pod shows its restart", func() error {
			if n := onePod(b.t, b.m, name).Status.Restarts(); n != 1 {
				return fmt.Errorf("%d restarts, want 1", n)
			}
			return nil
		})
	}
	b.remove(name)
	return median(b.t, "container killed → serving", took)
}

// awaitEnd returns when a process is gone, so that no answer of the old one
// counts for the new.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || processState(state) == 'Z' {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end", pid)
		}
		time.Sleep(100 * time.Microsecond)
	}
}
