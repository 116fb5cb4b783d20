//go:build e2e

package cluster_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

// set is a StatefulSet of one, told apart by its port.
func set(name string, port int, annotations string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: StatefulSet
metadata: {name: %s, annotations: {%s}}
spec:
  serviceName: %[1]s
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}, annotations: {%[2]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - {name: main, image: %[3]s, args: [serve, -listen, ":%[4]d"], readinessProbe: {tcpSocket: {port: %[4]d}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {clusterIP: None, selector: {app: %[1]s}, ports: [{port: %[4]d}]}
`, name, annotations, insideImage, port)
}

// tenYears is by how much clocks jump: a lease that went by them would not end on
// the node, or be over on the server at once.
const tenYears = 10 * 365 * 24 * time.Hour

// TestStatefulSetsNeverRunTwice takes the node of a StatefulSet's pod away in
// several ways. A fenced one moves, one that is not waits; neither ever runs on
// two machines.
func TestStatefulSetsNeverRunTwice(t *testing.T) {
	w := newWorld(t)
	w.server.TallyProcess().Stop()
	w.server.OwnClock()
	w.server.StartTallyAgain()
	for i := range 3 {
		m := w.MachineOff(fmt.Sprintf("node%d", i+1))
		m.SmallDisk(64 << 20)
		m.OwnClock()
		m.Boot()
		m.Join(w.server)
		w.nodes = append(w.nodes, m)
	}
	w.awaitReady()
	w.clone.Write("fenced.yaml", set("fenced", 8101, "tallyman.dev/failover: fenced"))
	w.clone.Write("waits.yaml", set("waits", 8102, ""))
	w.clone.Apply("two sets")

	for name, f := range map[string]struct{ make, mend func(*cluster.Machine) }{
		"agent frozen":              {func(m *cluster.Machine) { m.TallyProcess().Signal(syscall.SIGSTOP) }, func(m *cluster.Machine) { m.TallyProcess().Signal(syscall.SIGCONT) }},
		"node cut off":              {(*cluster.Machine).Partition, (*cluster.Machine).Mend},
		"node muted":                {(*cluster.Machine).Mute, (*cluster.Machine).Mend},
		"node deafened":             {(*cluster.Machine).Deafen, (*cluster.Machine).Mend},
		"node rebooted":             {(*cluster.Machine).Die, func(m *cluster.Machine) { m.Boot(); m.StartTallyAgain() }},
		"agent is killed":           {func(m *cluster.Machine) { m.TallyProcess().Kill() }, (*cluster.Machine).StartTallyAgain},
		"disk frozen, node cut off": {func(m *cluster.Machine) { m.FreezeDisk(); m.Partition() }, func(m *cluster.Machine) { m.ThawDisk(); m.Mend() }},
		"clocks jump, node cut off": {func(m *cluster.Machine) {
			m.Partition()
			m.SetClock(-tenYears)
			w.server.SetClock(tenYears)
			w.awaitYear(m, -tenYears)
			w.awaitYear(w.server, tenYears)
		}, func(m *cluster.Machine) {
			m.SetClock(0)
			w.server.SetClock(0)
			m.Mend()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.in(t)
			watch := w.watch(8101, 8102)
			victim := w.holder("fenced-0")
			other := w.holder("waits-0")
			begun := time.Now()
			f.make(victim)
			w.awaitPods("fenced-0", 1, victim.Name)
			w.t.Logf("ready elsewhere after %s", time.Since(begun).Round(time.Millisecond))
			if now := w.holder("waits-0"); now != other {
				t.Errorf("waits-0 moved from %s to %s", other.Name, now.Name)
			}
			f.mend(victim)
			w.awaitReady()
			w.awaitPods("fenced-0", 1)
			w.awaitPods("waits-0", 1)
			w.once(2)
			watch()
		})
	}
}

// awaitYear waits until what tally logs on a machine is of another year.
func (w *world) awaitYear(m *cluster.Machine, ahead time.Duration) {
	w.t.Helper()
	year := time.Now().Add(ahead).Format("time=2006-")
	w.Eventually(patience, m.Name+" has another time", func() error {
		if !m.LogHas(year) {
			return fmt.Errorf("no line with %s", year)
		}
		return nil
	})
}

// holder is the machine that a pod is bound to.
func (w *world) holder(name string) *cluster.Machine {
	w.t.Helper()
	pods := w.pods(name)
	if len(pods) != 1 {
		w.t.Fatalf("%d pods %s", len(pods), name)
	}
	i := slices.IndexFunc(w.nodes, func(m *cluster.Machine) bool { return m.Name == pods[0].Pod.Node })
	return w.nodes[i]
}

// watch looks all the time on how many machines a program with a port runs; the
// function that it returns ends that, and fails the test if there were ever two.
func (w *world) watch(ports ...int) func() {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	var twice []string
	var looks int
	done.Go(func() {
		for ; ctx.Err() == nil; looks++ {
			for _, port := range ports {
				if found := w.processes(fmt.Sprintf("-listen :%d", port)); len(found) > 1 {
					twice = append(twice, fmt.Sprintf("%d: %v", port, found))
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	stop := func() { cancel(); done.Wait() }
	w.t.Cleanup(stop)
	return func() {
		w.t.Helper()
		stop()
		if len(twice) > 0 {
			w.t.Errorf("in %d of %d looks a pod ran twice, first %s", len(twice), looks, twice[0])
		}
	}
}
