package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestMachines: what Git says about a node is added to what its agent says,
// and goes with its manifest.
func TestMachines(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	m := machineOf("n1", corev1.Taint{Key: "gpu", Value: "true", Effect: corev1.TaintEffectNoSchedule})
	m.Labels = map[string]string{"disk": "ssd", corev1.LabelHostname: "other", corev1.LabelOSStable: "plan9"}
	cordoned := machineOf("n2")
	cordoned.Spec.Unschedulable = true
	onDisk := deployment("a", 1, func(d *appsDeployment) { d.Spec.Template.Spec.NodeSelector = map[string]string{"disk": "ssd"} })
	w.push(m, cordoned, onDisk, machineOf("later"))
	w.work()
	if p := w.pods("a")[0]; p.refusal != "0/2 nodes fit: 1 does not match the pod's node selector or affinity, 1 has taint gpu=true:NoSchedule" {
		t.Errorf("refused: %q on %q", p.refusal, p.Node)
	}
	n, _ := w.s.nodes.Get("n1")
	if labels := n.load.Labels(); labels[corev1.LabelHostname] != "n1" || labels[corev1.LabelOSStable] != "linux" || labels["disk"] != "ssd" {
		t.Errorf("labels: %v", labels)
	}
	m = m.DeepCopy()
	m.Spec.Taints = nil
	w.push(m, cordoned, onDisk, machineOf("later"))
	w.settle()
	if on := w.nodesOf("a"); !slices.Equal(on, []string{"n1"}) {
		t.Errorf("a is on %v", on)
	}
	w.push(onDisk)
	n, _ = w.s.nodes.Get("n1")
	if labels := n.load.Labels(); labels["disk"] != "" {
		t.Errorf("the manifest is gone and its labels are not: %v", labels)
	}
	if n, _ = w.s.nodes.Get("n2"); n.state.Unschedulable {
		t.Error("the manifest is gone and its cordon is not")
	}
}

// TestMachineBeforeItJoins: what Git says holds from the first moment on.
func TestMachineBeforeItJoins(t *testing.T) {
	w := newWorld(t, "n1")
	w.machines["n2"] = &machine{name: "n2", held: map[nodes.UID]*nodes.Pod{}, status: map[nodes.UID]*nodes.PodStatus{}, disk: map[string]*nodes.Volume{}}
	w.push(deployment("a", 2, spreadOut), machineOf("n2", drainNow))
	w.settleBut(t)
	w.join("n2")
	if on := w.nodesOf("a"); slices.Contains(on, "n2") {
		t.Errorf("a is on %v", on)
	}
}

// settleBut lets everything happen that can; not all needs to converge.
func (w *world) settleBut(t *testing.T) {
	t.Helper()
	w.work()
}

func (w *world) ranges() map[string]string {
	out := map[string]string{}
	for name, n := range entries(w.s.nodes) {
		out[name] = n.kept.PodCIDR
	}
	return out
}

// report joins a node that says which range it uses.
func (w *world) joinWith(name, cidr string) *Plan {
	n := info(name)
	n.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	if cidr != "" {
		n.PodCIDR = netip.MustParsePrefix(cidr)
	}
	if w.machines[name] == nil {
		w.machines[name] = &machine{name: name, held: map[nodes.UID]*nodes.Pod{}, status: map[nodes.UID]*nodes.PodStatus{}, disk: map[string]*nodes.Volume{}}
	}
	r := w.machines[name].complete()
	r.Info = &n
	return w.next(Change{Nodes: []nodes.NodeState{{Node: n, Ready: true, Since: w.now}}, Reports: []nodes.Report{r}})
}

// eventsOf are the warnings about a node.
func (w *world) eventsOf(node string) (out []string) {
	for _, e := range w.events {
		if e.Object == nodeKey(node) && e.Warning {
			out = append(out, e.Message)
		}
	}
	return out
}

func TestRanges(t *testing.T) {
	w := newWorld(t)
	w.joinWith("b", "10.244.0.0/24")
	w.push(namespace("default"))
	w.joinWith("a", "")
	w.joinWith("c", "10.244.9.0/24")
	w.joinWith("d", "10.244.9.0/24") // taken
	w.joinWith("e", "10.1.0.0/24")   // not the cluster's
	if said := w.eventsOf("d"); len(said) != 1 || !strings.Contains(said[0], "10.244.9.0/24 is the range of node c") {
		t.Errorf("said of d: %q", said)
	}
	want := map[string]string{"a": "10.244.1.0/24", "b": "10.244.0.0/24", "c": "10.244.9.0/24", "d": "10.244.2.0/24", "e": "10.244.3.0/24"}
	if diff := cmp.Diff(want, w.ranges()); diff != "" {
		t.Fatal(diff)
	}
	if got := len(w.s.routes.Nodes); got != 5 || w.s.routes.Nodes[0].Name != "a" || w.s.routes.Nodes[0].PodCIDR.String() != "10.244.1.0/24" {
		t.Errorf("the table lists %v", w.s.routes.Nodes)
	}
	if a := w.last.Assignments; len(a) != 1 || a[0].PodCIDR.String() != "10.244.3.0/24" {
		t.Errorf("the node is not told: %+v", a)
	}
	for _, record := range []bool{true, false} {
		w.restart(record)
		w.next(Change{Snapshot: w.snapshot, Source: w.source})
		for _, name := range []string{"e", "d", "a", "c", "b"} {
			w.joinWith(name, map[bool]string{false: want[name]}[record])
		}
		if diff := cmp.Diff(want, w.ranges()); diff != "" {
			t.Errorf("after a restart (record: %v): %s", record, diff)
		}
	}
}

// TestRangesRunOut: a node that gets none says so, and gets no pods.
func TestRangesRunOut(t *testing.T) {
	w := newWorld(t)
	w.push(namespace("default"))
	for i := range 256 {
		w.joinWith(fmt.Sprintf("n%03d", i), "")
	}
	w.joinWith("z", "")
	if n, _ := w.s.nodes.Get("z"); n.kept.PodCIDR != "" {
		t.Fatalf("z has %s", n.kept.PodCIDR)
	}
	w.push(namespace("default"), deployment("a", 1, func(d *appsDeployment) {
		d.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "z"}
	}))
	want := "0/257 nodes fit: 256 do not match the pod's node selector or affinity, 1 has no range of pod addresses: all of 10.244.0.0/16 are given"
	if p := w.pods("a")[0]; p.refusal != want {
		t.Errorf("refused: %q", p.refusal)
	}
	why := "all 256 ranges of 10.244.0.0/16 are given: remove nodes that are gone for good"
	if said := w.eventsOf("z"); len(said) != 1 || !strings.Contains(said[0], why) {
		t.Errorf("said of z: %q", said)
	}
	for _, n := range w.s.Overview(w.now).Nodes {
		if noted := strings.Contains(fmt.Sprint(n.Notes), why); noted != (n.Name == "z") {
			t.Errorf("node %s: %q", n.Name, n.Notes)
		}
	}
}

// TestTableFollowsNodes: a label or key that changes gives another table.
func TestTableFollowsNodes(t *testing.T) {
	w := newWorld(t)
	w.joinWith("a", "")
	w.push(namespace("default"))
	before := w.s.routes.Generation
	zoned := machineOf("a")
	zoned.Labels = map[string]string{corev1.LabelTopologyZone: "north"}
	w.push(namespace("default"), zoned)
	if table := w.s.routes; table.Generation <= before || table.Nodes[0].Zone != "north" {
		t.Errorf("generation %d after %d: %+v", table.Generation, before, table.Nodes)
	}
}

// TestNodeOverview: page and commands tell what a node carries and what is
// special about it.
func TestNodeOverview(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	d := deployment("a", 2, spreadOut, requesting("500m", "1Gi"))
	w.push(d)
	w.settle()
	cordoned := machineOf("n1", corev1.Taint{Key: "gpu", Effect: corev1.TaintEffectNoSchedule})
	cordoned.Spec.Unschedulable = true
	w.push(d, cordoned, machineOf("n9"))
	w.fallSilent("n2")
	o := w.s.Overview(w.now)
	n1, n2 := o.Nodes[0], o.Nodes[1]
	if n1.Pods != 1 || n1.RequestedCPU != 500 || n1.RequestedMemory != 1<<30 || !slices.Equal(n1.Notes, []string{"is cordoned: no new pods"}) {
		t.Errorf("n1: %d pods, %d cpu, %d memory, %q", n1.Pods, n1.RequestedCPU, n1.RequestedMemory, n1.Notes)
	}
	if got := fmt.Sprint(n1.Taints); len(n1.Taints) != 2 {
		t.Errorf("n1 has taints %s", got)
	}
	if len(n2.Taints) != 2 || n2.Taints[1].Key != corev1.TaintNodeUnreachable {
		t.Errorf("n2 has taints %v", n2.Taints)
	}
	if h := w.health(nodeKey("n9")); h.Health != nodes.Healthy || h.Reason != "no machine of this name has joined" {
		t.Errorf("n9 is %s: %s", h.Health, h.Reason)
	}
	if h := w.health(w.pods("a")[1].Key()); h.Health != nodes.Degraded && w.pods("a")[1].Node == "n2" {
		t.Errorf("a pod of a silent node is %s: %s", h.Health, h.Reason)
	}
}
