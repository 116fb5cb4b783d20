//go:build e2e

package cluster_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

// TestFaults breaks a cluster of four nodes in one way after the other.
func TestFaults(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.join(fmt.Sprintf("node%d", i+1), "--zone", fmt.Sprintf("zone%d", i%2+1))
	}
	w.joinSmall("node4", 64<<20, "--zone", "zone2")
	w.awaitReady()
	w.clone.Write("web.yaml", web(4, "first"))
	w.clone.Apply("four pods")
	w.awaitPods("web-", 4)
	w.awaitPods("asker", 4)
	w.once(4 + 4)

	t.Run("rollout", func(t *testing.T) { rollout(w.in(t)) })
	for _, f := range harmless() {
		t.Run(f.name, func(t *testing.T) { unnoticed(w.in(t), f) })
	}
	for _, f := range fatal() {
		t.Run(f.name, func(t *testing.T) { replaced(w.in(t), f) })
	}
	next := buildNext(t)
	t.Run("disk full", func(t *testing.T) { diskFull(w.in(t)) })
	t.Run("upgrade", func(t *testing.T) { upgrade(w.in(t), next) })
}

// rollout replaces all pods without a failed request.
func rollout(w *world) {
	before := w.pods("web-")
	traffic := w.begin(append(w.ways(w.nodes[0]), w.ways(w.nodes[3])...))
	traffic.settled(w)
	begun := time.Now()
	w.clone.Write("web.yaml", web(8, "second"))
	w.clone.Apply("eight other pods")
	w.awaitOthers("web-", 8, before)
	traffic.settled(w)
	if failed := traffic.end(w.t, "rollout", begun); failed > 0 {
		w.t.Errorf("%d requests failed", failed)
	}
	on := map[string]int{}
	for _, p := range w.pods("web-") {
		on[p.Pod.Node]++
	}
	for _, n := range w.nodes {
		if on[n.Name] == 0 {
			w.t.Errorf("pods by node: %v, want some on each", on)
		}
	}
}

// fault breaks something and returns what mends it again.
type fault struct {
	name string
	make func(w *world, victim *cluster.Machine) (mend func())
	// lasts is how long a harmless fault lasts.
	lasts time.Duration
	// away faults keep an agent from its server: how long it needs to be back is
	// not what they are about, so the server waits for it.
	away bool
	// lossy faults lose packets of what they break: some requests may fail.
	lossy bool
	// forgets is a fault of who answers for names: the question it had in hand is
	// lost, and resolvers ask again after five seconds.
	forgets bool
}

// harmless faults are those that no request and no container may notice.
func harmless() []fault {
	return []fault{
		{name: "agent killed", away: true, lasts: time.Second, make: func(_ *world, m *cluster.Machine) func() {
			m.TallyProcess().Kill()
			return m.StartTallyAgain
		}},
		{name: "agent frozen", away: true, lasts: 2 * time.Second, make: func(_ *world, m *cluster.Machine) func() {
			m.TallyProcess().Signal(syscall.SIGSTOP)
			return func() { m.TallyProcess().Signal(syscall.SIGCONT) }
		}},
		{name: "containerd killed", lasts: 3 * time.Second, make: func(_ *world, m *cluster.Machine) func() {
			m.Containerd().Kill()
			return m.StartContainerd
		}},
		{name: "keeper killed", forgets: true, make: killKeeper},
		{name: "server killed", lasts: 3 * time.Second, make: func(w *world, _ *cluster.Machine) func() {
			w.server.TallyProcess().Kill()
			return w.server.StartTallyAgain
		}},
		{name: "server partitioned", lasts: 10 * time.Second, make: func(w *world, _ *cluster.Machine) func() {
			w.server.Partition()
			return w.server.Mend
		}},
		{name: "packets lost and late", lossy: true, lasts: 10 * time.Second, make: func(_ *world, m *cluster.Machine) func() {
			m.Delay(50 * time.Millisecond)
			m.Lose(0.02)
			return m.Mend
		}},
	}
}

// killKeeper is mended by the agent, which starts another.
func killKeeper(w *world, m *cluster.Machine) func() {
	killed := m.Keeper()
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		w.Eventually(patience, "there is a keeper again", func() error {
			if now := m.Keeper(); now == 0 || now == killed {
				return fmt.Errorf("process %d, and %d was killed", now, killed)
			}
			return nil
		})
	}
}

func unnoticed(w *world, f fault) {
	victim := w.nodes[1]
	if f.away {
		w.silentAfter(longSilence)
		defer w.silentAfter(defaultSilence)
	}
	before := w.processes()
	ways := w.ways(victim)
	if f.forgets {
		ways = ways[:2] // by address
	}
	traffic := w.begin(append(w.ways(w.nodes[0]), ways...))
	traffic.settled(w)
	begun := time.Now()
	mend := f.make(w, victim)
	count := traffic.count()
	time.Sleep(f.lasts)
	if f.lossy {
		count.mostAnswered(w.t)
	}
	mend()
	w.awaitReady()
	w.obeyed(victim, f.name)
	w.awaitPods("web-", 8)
	traffic.settled(w)
	if failed := traffic.end(w.t, f.name, begun); failed > 0 && !f.lossy {
		w.t.Errorf("%d requests failed", failed)
	}
	w.same(before)
}

// fatal faults take a node's pods away from everyone else.
func fatal() []fault {
	return []fault{
		{name: "node partitioned", make: func(_ *world, m *cluster.Machine) func() { m.Partition(); return m.Mend }},
		{name: "node muted", make: func(_ *world, m *cluster.Machine) func() { m.Mute(); return m.Mend }},
		{name: "node deafened", make: func(_ *world, m *cluster.Machine) func() { m.Deafen(); return m.Mend }},
		{name: "node killed", make: func(_ *world, m *cluster.Machine) func() {
			m.Die()
			return func() {
				m.Boot()
				m.StartTallyAgain()
			}
		}},
	}
}

// replaced looks that a lost node's pods are ready elsewhere, that requests on
// other nodes are answered again, and that of each pod one is left when the
// node is back.
func replaced(w *world, f fault) {
	victim := w.nodes[2]
	w.clone.Write("web.yaml", web(8, f.name)) // spread anew
	w.clone.Apply("before: " + f.name)
	if len(victim.Containers()) < 2 {
		w.t.Fatalf("%s runs %v, want a pod of web besides", victim.Name, victim.Containers())
	}
	traffic := w.begin(append(w.ways(w.nodes[0]), w.ways(w.nodes[3])...))
	traffic.settled(w)
	begun := time.Now()
	mend := f.make(w, victim)
	w.awaitPods("web-", 8, victim.Name)
	w.t.Logf("%s: replaced after %s", f.name, time.Since(begun).Round(time.Millisecond))
	traffic.settled(w)
	traffic.end(w.t, f.name, begun)

	mend()
	w.awaitReady()
	w.awaitPods("web-", 8)
	w.awaitPods("asker", 4)
	w.once(8 + 4)
}

// diskFull takes all room from an agent, rolls out nonetheless, and gives it back.
func diskFull(w *world) {
	victim := w.nodes[3]
	before := w.pods("web-")
	traffic := w.begin(append(w.ways(w.nodes[0]), w.ways(w.nodes[1])...))
	traffic.settled(w)
	begun := time.Now()
	victim.FillDisk()
	w.clone.Write("web.yaml", web(8, "while a disk is full"))
	w.clone.Commit("while a disk is full")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
	w.awaitOthers("web-", 8, before)
	select {
	case <-victim.TallyProcess().Ended():
		w.t.Error("the agent with a full disk ended")
	default:
	}
	victim.FreeDisk()
	w.awaitReady()
	w.obeyed(victim, "disk full")
	w.clone.WaitConverged(w.clone.Git("rev-parse", "HEAD"), patience)
	traffic.settled(w)
	if failed := traffic.end(w.t, "disk full", begun); failed > 0 {
		w.t.Errorf("%d requests failed", failed)
	}
	w.once(8 + 4)
}
