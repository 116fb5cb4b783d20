//go:build e2e

package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// waiter is a program that starts and waits.
const waiter = image.Program

// overBare is the bar for many pods: this many times as long as the yardstick.
const overBare = 1.6

// benchMany measures how long many pods take, beside a bare client that makes
// as many containers, in turns.
func benchMany(t *testing.T, all *figures) {
	m := machine.New(t)
	binary, err := image.BuildBinary(context.Background(), waiter, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	built, err := image.Build(image.Spec{Binaries: map[string]string{"/program": binary}, Entrypoint: []string{"/program"}})
	if err != nil {
		t.Fatal(err)
	}
	ref := machine.RegistryAddress + "/waiter:1"
	if err := image.Push(context.Background(), ref, built, "", ""); err != nil {
		t.Fatal(err)
	}
	m.Up()
	b := &manyBench{podBench: podBench{t: t, m: m, image: ref}, kind: "Deployment"}
	b.clone, b.watch = m.Clone(), newWatch(t, m)
	b.write("model", 1)
	push(t, b.clone, "the model")
	b.bare = newBare(t, m, ref, built, onePod(t, m, "model").Status.Containers[0].ID)

	value, yardstick := b.measure(0, 100, 3)
	all.add(t, lower("0-to-100-ready", value, "s", overBare*yardstick).beside(yardstick))
	value, yardstick = b.measure(1, 30, 5)
	all.add(t, lower("1-to-30-ready", value, "s", overBare*yardstick).beside(yardstick))
	b.more = "\n  serviceName: many\n  podManagementPolicy: Parallel"
	b.kind = "StatefulSet"
	value, yardstick = b.measure(0, 30, 5)
	all.add(t, lower("statefulset-0-to-30-ready", value, "s", overBare*yardstick).beside(yardstick))
}

type manyBench struct {
	podBench
	bare *bare
	// kind of the workload, and what its spec has more than others.
	kind, more string
}

// write puts a workload of waiting pods into the working copy.
func (b *manyBench) write(name string, replicas int) {
	b.clone.Write(name+".yaml", fmt.Sprintf(`apiVersion: apps/v1
kind: %[4]s
metadata: {name: %[1]s}
spec:
  replicas: %[2]d%[5]s
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: waiter, image: %[3]s}]
`, name, replicas, b.image, b.kind, b.more))
}

// measure scales from one number to another, in turns with the yardstick, and
// returns the medians in seconds.
func (b *manyBench) measure(from, to, rounds int) (value, yardstick float64) {
	b.t.Helper()
	var took, plain []time.Duration
	for range rounds {
		b.scale(from)
		plain = append(plain, b.bare.start(to-from))
		took = append(took, b.scale(to))
	}
	b.scale(0)
	return median(b.t, fmt.Sprintf("%d → %d ready", from, to), took).Seconds(),
		median(b.t, fmt.Sprintf("bare containerd, %d", to-from), plain).Seconds()
}

// scale returns the time from the start of git push until all pods are ready;
// it means nothing when pods were only taken away.
func (b *manyBench) scale(to int) time.Duration {
	b.t.Helper()
	b.write("many", to)
	begun, _ := push(b.t, b.clone, b.generation())
	o, err := b.m.Overview()
	if err != nil {
		b.t.Fatal(err)
	}
	pods := machine.Pods(o, "default", "many-")
	if len(pods) != to {
		b.t.Fatalf("%d pods, want %d", len(pods), to)
	}
	return lastReady(b.t, pods).Sub(begun)
}

// lastReady is when the last of the pods became ready. The agents say so, not a
// watcher: to show a hundred pods again and again would cost what is measured.
func lastReady(t *testing.T, pods []nodes.ObjectHealth) time.Time {
	t.Helper()
	var last time.Time
	for _, p := range pods {
		if !p.Pod.Status.Ready {
			t.Fatalf("pod %s is not ready after the push has converged", p.Key.Name)
		}
		if since := p.Pod.Status.ReadySince; since.After(last) {
			last = since
		}
	}
	return last
}
