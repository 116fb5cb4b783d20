//go:build e2e

package cluster_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// TestNodes has Git say things about nodes, and machines say things that are
// not so.
func TestNodes(t *testing.T) {
	w := newWorld(t)
	for i := range 3 {
		w.join(fmt.Sprintf("node%d", i+1), "--zone", fmt.Sprintf("zone%d", i%2+1))
	}
	w.awaitReady()
	t.Run("same name twice", func(t *testing.T) { sameName(w.in(t)) })
	t.Run("labels and taints", func(t *testing.T) { labels(w.in(t)) })
	t.Run("no pod network", func(t *testing.T) { noPodNetwork(w.in(t)) })
	t.Run("drain", func(t *testing.T) { drain(w.in(t)) })
	t.Run("revoke", func(t *testing.T) { revoke(w.in(t)) })
	t.Run("remove", func(t *testing.T) { remove(w.in(t)) })
}

// webOnNodes is how many pods web has here: two on each node.
const webOnNodes = 6

// sameName has a second machine ask for the name of the first.
func sameName(w *world) {
	other := w.MachineOff("other")
	other.BootBare()
	r := other.Run("tally", append(w.server.JoinLine(), "--node-name", "node1")...)
	if r.Code == 0 || !strings.Contains(r.Err, "node1 is already joined") {
		w.t.Errorf("the second node1: %+v", r)
	}
	if !w.server.LogHas("node1 is already joined") {
		w.t.Error("the server's log does not tell of the second node1")
	}
	w.Eventually(patience, "the page of node1 tells of the second", func() error {
		r := w.server.Run("sh", "-c", `curl -sS -H "Authorization: Bearer $(cat /run/tallyman/token)" "http://`+machine.PageAddress+`/api/v1/events?kind=Node&name=node1"`)
		if r.Code != 0 || !strings.Contains(r.Out, "node1 is already joined") {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	other.Die()
	w.awaitReady()
}

// noPodNetwork starts an agent where something else has the name of its bridge:
// the node answers and says so, and gets a network when the name is free.
func noPodNetwork(w *world) {
	m := w.nodes[1]
	w.silentAfter(longSilence)
	defer w.silentAfter(defaultSilence)
	before := w.processes()
	m.TallyProcess().Stop()
	usurp := func(change func(netlink.Link) error) {
		if err := m.InNetwork(func() {
			bridge, err := netlink.LinkByName("tally0")
			if err == nil {
				err = netlink.LinkDel(bridge)
			}
			if err == nil && change != nil {
				err = change(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "tally0"}, PeerName: "other0"})
			}
			if err != nil {
				w.t.Error(err)
			}
		}); err != nil {
			w.t.Fatal(err)
		}
	}
	usurp(netlink.LinkAdd)
	m.StartTallyAgain()
	const trouble = "link tally0 exists and is a veth"
	var since time.Time
	noted := func(want bool) func() error {
		return func() error {
			o, err := w.server.Overview()
			if err != nil {
				return err
			}
			n := node(o, m.Name)
			if n == nil || !n.Ready || strings.Contains(fmt.Sprint(n.Notes), trouble) != want {
				return fmt.Errorf("%+v", n)
			}
			since = n.Since
			return nil
		}
	}
	w.Eventually(patience, "the node says what is wrong", noted(true))
	const silence = 10 * time.Second
	w.silentAfter(silence)
	first := since
	time.Sleep(silence + silence/4)
	w.Eventually(patience, "the node is ready and says what is wrong", noted(true))
	if since != first {
		w.t.Errorf("the node was silent: ready since %s, and before since %s", since, first)
	}
	w.same(before)
	usurp(nil)
	w.Eventually(patience, "the node has a network", noted(false))
	w.obeyed(m, "no pod network")
	w.same(before)
}

// nodeManifest is what Git says of a node.
func nodeManifest(name, metadata, spec string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: %s, %s}\nspec: {%s}\n", name, metadata, spec)
}

// labels has Git give nodes labels and taints, and places pods by them.
func labels(w *world) {
	w.clone.Write("node2.yaml", nodeManifest("node2", "labels: {disk: ssd}", ""))
	w.clone.Write("node3.yaml", nodeManifest("node3", "labels: {disk: ssd}", "taints: [{key: reserved, effect: NoSchedule}]"))
	w.clone.Write("picky.yaml", picky("picky", "nodeSelector: {disk: ssd}"))
	w.clone.Write("zoned.yaml", picky("zoned", "nodeSelector: {topology.kubernetes.io/zone: zone1}, tolerations: [{operator: Exists}]"))
	w.clone.Apply("labels and taints")
	for _, c := range []struct {
		prefix string
		may    []string
	}{{"picky-", []string{"node2"}}, {"zoned-", []string{"node1", "node3"}}} {
		for _, p := range w.pods(c.prefix) {
			if !slices.Contains(c.may, p.Pod.Node) {
				w.t.Errorf("%s runs on %s, want one of %v", p.Key.Name, p.Pod.Node, c.may)
			}
		}
	}
	w.clone.Git("rm", "--quiet", "node2.yaml", "node3.yaml", "picky.yaml", "zoned.yaml")
	w.clone.Write("web.yaml", web(webOnNodes, "nodes"))
	w.clone.Commit("web in place of them\n\nTally-Confirm: delete 4")
	if r := w.clone.Push(); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
	w.awaitPods("web-", webOnNodes)
	w.awaitPods("picky-", 0)
}

func picky(name, spec string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  replicas: 2
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {containers: [{name: main, image: %s}], %s}
`, name, insideImage, spec)
}

// drain empties a node by a taint, under traffic and a budget, and fills it again.
func drain(w *world) {
	w.clone.Write("budget.yaml", "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: web}\nspec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}\n")
	w.clone.Write("web.yaml", strings.Replace(web(webOnNodes, "nodes"), "  template:", "  strategy: {rollingUpdate: {maxUnavailable: 100%}}\n  template:", 1))
	w.clone.Apply("a budget, and nothing else that keeps pods")
	victim := w.nodes[1]
	if running := victim.Containers(); len(running) < 3 {
		w.t.Fatalf("node2 runs %v, want two pods of web besides: the budget would hold nothing", running)
	}
	fewest := w.watchReady("web-")
	traffic := w.begin(append(w.ways(w.nodes[0]), w.ways(w.nodes[2])...))
	traffic.settled(w)
	begun := time.Now()
	w.clone.Write("node2.yaml", nodeManifest(victim.Name, "annotations: {why: repair}", "taints: [{key: repair, effect: NoExecute}]"))
	w.clone.Commit("repair node2")
	if r := w.clone.Push(); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
	w.awaitPods("web-", webOnNodes, victim.Name)
	w.Eventually(patience, "node2 runs no containers", func() error {
		if running := victim.Containers(); len(running) > 0 {
			return fmt.Errorf("it runs %v", running)
		}
		return nil
	})
	traffic.settled(w)
	if failed := traffic.end(w.t, "drain", begun); failed > 0 {
		w.t.Errorf("%d requests failed", failed)
	}
	least := fewest()
	w.t.Logf("drain: %d pods of %d were ready at all times", least, webOnNodes)
	if least < webOnNodes-1 {
		w.t.Errorf("%d pods of web were ready at a time, and the budget wants %d", least, webOnNodes-1)
	}
	w.clone.Git("revert", "--no-edit", "HEAD")
	w.clone.Push()
	w.awaitPods("asker", len(w.nodes))
}

// watchReady looks all the time how many pods of a workload are ready and not
// stopping; the function that it returns ends that and gives the fewest.
func (w *world) watchReady(prefix string) (fewest func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	least := math.MaxInt
	done.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			o, err := w.server.Overview()
			if err != nil {
				continue
			}
			ready := 0
			for _, p := range machine.Pods(o, "default", prefix) {
				if p.Pod.Status.Ready && !p.Pod.Stopping {
					ready++
				}
			}
			least = min(least, ready)
		}
	})
	stop := func() { cancel(); done.Wait() }
	w.t.Cleanup(stop)
	return func() int { stop(); return least }
}

// revoke shuts a node out and lets it in again.
func revoke(w *world) {
	victim := w.nodes[2]
	w.clone.Write("node3.yaml", nodeManifest(victim.Name, `annotations: {tallyman.dev/revoked: "stolen"}`, ""))
	w.clone.Commit("node3 is stolen")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
	w.Eventually(patience, "node3 is shut out", func() error {
		o, err := w.server.Overview()
		if err != nil {
			return err
		}
		if n := node(o, victim.Name); n != nil && n.Ready {
			return fmt.Errorf("%+v", n)
		}
		return nil
	})
	w.awaitPods("web-", webOnNodes, victim.Name)
	w.Eventually(patience, "its agent knows why", func() error {
		if !victim.LogHas("revoked in Git") {
			return fmt.Errorf("its log does not say so")
		}
		return nil
	})
	w.clone.Git("revert", "--no-edit", "HEAD")
	w.clone.Push()
	w.awaitReady()
	w.once(webOnNodes + len(w.nodes))
}

// remove takes a machine that died out of the cluster, and lets it in as a new
// node when it is clean.
func remove(w *world) {
	victim := w.nodes[2]
	o, err := w.server.Overview()
	if err != nil {
		w.t.Fatal(err)
	}
	before := node(o, victim.Name).PodCIDR
	victim.Die()
	w.clone.Write("node3.yaml", nodeManifest(victim.Name, `annotations: {tallyman.dev/revoked: "broken"}`,
		"taints: [{key: node.kubernetes.io/out-of-service, value: nodeshutdown, effect: NoExecute}]"))
	w.clone.Commit("node3 is gone for good")
	if r := w.clone.Push(); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
	w.Eventually(patience, "node3 is forgotten", func() error {
		o, err := w.server.Overview()
		if err == nil && node(o, victim.Name) != nil {
			err = fmt.Errorf("%+v", node(o, victim.Name))
		}
		return err
	})
	w.awaitPods("web-", webOnNodes, victim.Name)
	w.clone.Git("revert", "--no-edit", "HEAD")
	w.clone.Push()
	victim.Boot()
	victim.StartTallyAgain()
	w.Eventually(patience, "its certificate is good for nothing", func() error {
		if !victim.LogHas("was removed from the cluster") {
			return fmt.Errorf("its log does not say so")
		}
		return nil
	})
	victim.TallyProcess().Stop()
	if r := victim.Tally("reset"); r.Code != 0 {
		w.t.Fatalf("reset: %+v", r)
	}
	if r := victim.Run("rm", "-r", "/var/lib/tallyman/agent/tls"); r.Code != 0 {
		w.t.Fatalf("remove the certificate: %+v", r)
	}
	victim.Join(w.server, "--zone", "zone1")
	w.awaitReady()
	if o, err = w.server.Overview(); err != nil {
		w.t.Fatal(err)
	}
	if now := node(o, victim.Name).PodCIDR; now != before {
		w.t.Errorf("the new node has %s, and %s was free", now, before)
	}
	w.awaitPods("asker", len(w.nodes))
	w.once(webOnNodes + len(w.nodes))
}

// once waits until so many containers run on all nodes together.
func (w *world) once(count int) {
	w.t.Helper()
	w.Eventually(patience, fmt.Sprintf("%d containers run", count), func() error {
		if running := w.processes(); len(running) != count {
			return fmt.Errorf("%d: %s", len(running), strings.Join(running, ", "))
		}
		return nil
	})
}
