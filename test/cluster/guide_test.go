//go:build e2e

package cluster_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine/cluster"
	"github.com/tallyman-dev/tallyman/test/machine/guide"
)

// TestGuides follows the guides on machines that have nothing, in the order in
// which they build on each other.
func TestGuides(t *testing.T) {
	w := &world{Cluster: cluster.New(t), t: t}
	w.PushImage(inside, "inside:1")
	machines := map[string]*cluster.Machine{}
	for _, name := range []string{"first", "second", "third"} {
		machines[name] = w.Machine(name)
		w.nodes = append(w.nodes, machines[name])
	}
	walk := guide.New(t, w.Cluster, machines)
	for i, m := range w.nodes {
		walk.Words[fmt.Sprintf("192.0.2.%d", i+1)] = m.Address
	}
	walk.Follow("docs/install/cluster.md")
	before := w.processes()
	if len(before) != 6 {
		t.Fatalf("containers of the first guide: %v, want 6", before)
	}
	w.server = machines["first"]
	w.guideSilentAfter(longSilence)
	sessions, processes := w.sessions(), w.tallies()
	walk.Follow("docs/install/upgrades.md")
	for name, pid := range w.tallies() {
		if pid == processes[name] {
			t.Errorf("on %s process %d runs on: nothing was upgraded", name, pid)
		}
	}
	w.awaitSessionsAfter(sessions)
	w.same(before)
	w.guideSilentAfter(defaultSilence)

	stays := machines["second"].Containers()
	walk.Follow("docs/install/disasters.md")
	after := w.processes()
	for _, one := range stays {
		if !slices.Contains(after, one) {
			t.Errorf("of the machine that was not lost, %s is gone", one)
		}
	}
	w.once(6)
}

// guideSilentAfter says in the guide's repository how long a node may say nothing.
func (w *world) guideSilentAfter(d time.Duration) {
	w.t.Helper()
	const push = `export HOME=/root GIT_CONFIG_NOSYSTEM=1
cd /root/cluster
echo 'apiVersion: tallyman.dev/v1alpha1
kind: Cluster
metadata: {name: cluster}
spec: {nodes: {silentAfter: %s}}' >cluster.yaml
git add . && git commit -qm 'silence' && git push -q origin HEAD:main`
	if r := w.server.Run("sh", "-ec", fmt.Sprintf(push, d)); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
}

// tallies are the processes of server and agents by machine.
func (w *world) tallies() map[string]int {
	w.t.Helper()
	found := map[string]int{}
	for _, m := range w.nodes {
		command := "tally agent"
		if m == w.server {
			command = "tally up"
		}
		pids := m.Processes("/usr/local/bin/" + command)
		if len(pids) != 1 {
			w.t.Fatalf("%s: processes %v of %s, want one", m.Name, pids, command)
		}
		found[m.Name] = pids[0]
	}
	return found
}

// sessions are the numbers of the nodes' sessions.
func (w *world) sessions() map[string]uint64 {
	w.t.Helper()
	o, err := w.server.Overview()
	if err != nil {
		w.t.Fatal(err)
	}
	numbers := map[string]uint64{}
	for i := range o.Nodes {
		numbers[o.Nodes[i].Name] = o.Nodes[i].Session
	}
	return numbers
}

// awaitSessionsAfter waits until every node has begun a session since, with a
// report of what it found.
func (w *world) awaitSessionsAfter(before map[string]uint64) {
	w.t.Helper()
	w.Eventually(patience, "every node has begun another session", func() error {
		o, err := w.server.Overview()
		if err != nil {
			return err
		}
		for name, number := range before {
			if n := node(o, name); n == nil || !n.Ready || n.Session <= number {
				return fmt.Errorf("%s: %+v, want a session after %d", name, n, number)
			}
		}
		return nil
	})
}
