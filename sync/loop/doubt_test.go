package loop

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// second is a node beside the machine. It keeps no ledger of its own.
type second struct {
	m    *machine
	held map[nodes.UID]*nodes.Pod
	// ended counts the pods that it was to end.
	ended int
}

// join connects it to a server.
func (n *second) join(inputs chan Input, ledger []nodes.Decision) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	n.m.inputs = inputs
	quantities := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110")}
	info := nodes.Node{
		Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, PodCIDR: netip.MustParsePrefix("10.244.1.0/24"),
		Capacity: quantities, Allocatable: quantities, OS: "linux", Arch: "amd64",
	}
	report := nodes.Report{Node: "n2", Local: true, Complete: true, Info: &info, Ledger: ledger}
	for _, p := range n.held {
		report.Held = append(report.Held, p)
		report.Statuses = append(report.Statuses, n.m.status(p))
	}
	inputs <- Input{Node: &nodes.NodeState{Node: info, Ready: true, Since: time.Now()}, Report: &report}
}

// assign does what it is told; the caller holds the machine's mu.
func (n *second) assign(a nodes.Assignment) {
	report := nodes.Report{Node: "n2"}
	wanted := map[nodes.UID]bool{}
	for _, p := range a.Pods {
		wanted[p.UID] = p.Stop == nil
		if p.Stop != nil {
			report.Gone = append(report.Gone, p.UID)
			continue
		}
		n.held[p.UID] = p
		report.Statuses = append(report.Statuses, n.m.status(p))
	}
	before := len(n.held)
	maps.DeleteFunc(n.held, func(uid nodes.UID, _ *nodes.Pod) bool { return !wanted[uid] })
	n.ended += before - len(n.held)
	n.m.send(report)
}

// pods are those that run on each of the two.
func (n *second) pods() (first, second []nodes.UID) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	return slices.Sorted(maps.Keys(n.m.pods)), slices.Sorted(maps.Keys(n.held))
}

func statefulSet() *desired.Object {
	labels := map[string]string{"app": "db"}
	one, grace, limit := int32(1), int64(30), int32(10)
	return &desired.Object{
		Key: desired.Key{Group: "apps", Kind: "StatefulSet", Namespace: "default", Name: "db"}, Fingerprint: "db",
		Value: &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
			Spec: appsv1.StatefulSetSpec{
				Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}, ServiceName: "db", RevisionHistoryLimit: &limit,
				PodManagementPolicy: appsv1.OrderedReadyPodManagement, UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
					Containers: []corev1.Container{{Name: "c", Image: "db:1"}}, RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace,
				}},
			},
		},
	}
}

func (m *memory) copied() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{decisions: maps.Clone(m.decisions), states: maps.Clone(m.states), history: slices.Clone(m.history)}
}

// grownOld gives a world whose only pod was moved from the machine to a second
// node since the record was copied; the server has stopped.
func grownOld(w *world) (*second, *memory) {
	w.Helper()
	n2 := &second{m: w.machine, held: map[nodes.UID]*nodes.Pod{}}
	w.machine.second = n2
	drain := &desired.Object{Key: desired.Key{Kind: "Node", Name: "n1"}, Fingerprint: "d", Value: &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "drain", Effect: corev1.TaintEffectNoExecute}}},
	}}
	w.repository.commit("one", statefulSet())
	w.repository.commit("two", statefulSet(), drain)
	w.repository.commit("three", statefulSet())
	w.push("one")
	if err := w.ask("a", "before"); err != nil {
		w.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	backup := w.record.copied()
	n2.join(w.inputs, nil)
	time.Sleep(5 * time.Second)
	w.push("two")
	if err := w.ask("a", "since", replacing); err != nil {
		w.Fatal(err)
	}
	time.Sleep(time.Minute)
	w.push("three")
	time.Sleep(5 * time.Second)
	synctest.Wait()
	if first, second := n2.pods(); len(first) != 0 || len(second) != 1 {
		w.Fatalf("the pod has not moved: %v, %v", first, second)
	}
	w.stop()
	w.machine.owners = map[string]nodes.Member{}
	return n2, backup
}

// TestAnOldCopyOfTheRecordIsNotUsed: the nodes keep a newer ledger, and nothing of
// what they do is changed by what the copy says, whenever and in which order they come.
func TestAnOldCopyOfTheRecordIsNotUsed(t *testing.T) {
	for _, c := range []struct {
		name              string
		late, secondComes time.Duration
		machineComesFirst bool
	}{
		{name: "in time", machineComesFirst: true},
		{name: "the one without a ledger first"},
		{name: "the one without a ledger first, and the other 3 s later", secondComes: 3 * time.Second},
		{name: "nobody before the grace is over", late: 20 * time.Second, machineComesFirst: true},
		{name: "nobody before, and the one without a ledger first", late: 20 * time.Second, secondComes: 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			runWith(t, func(w *world) { w.several = true }, func(w *world) {
				n2, backup := grownOld(w)
				kept, held := n2.pods()
				edition, started := w.machine.edition(), w.machine.started
				w.record = backup
				w.start()
				w.repository.heads <- Head{Revision: revision("three")}
				time.Sleep(c.late)
				if c.machineComesFirst {
					w.machine.connect(w.inputs)
				} else {
					n2.join(w.inputs, nil)
				}
				time.Sleep(c.secondComes)
				if c.machineComesFirst {
					n2.join(w.inputs, nil)
				} else {
					w.machine.connect(w.inputs)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if first, second := n2.pods(); !slices.Equal(first, kept) || !slices.Equal(second, held) || w.machine.started != started || n2.ended > 0 {
					t.Errorf("the machine runs %v, the second node %v, and they ran %v and %v", first, second, kept, held)
				}
				if got := w.inForce(); got != "three" {
					t.Errorf("in force is %q", got)
				}
				w.expectOwner("a", "since")
				if err := w.ask("a", "before", assumed); err == nil {
					t.Error("a machine that was replaced since the copy is the node again")
				}
				if got := w.machine.edition(); got <= edition {
					t.Errorf("the ledger has edition %d, and had %d", got, edition)
				}
				recorded, err := w.record.Decisions()
				if got := editionOf(recorded); err != nil || got != w.machine.edition() {
					t.Errorf("recorded is edition %d, %v", got, err)
				}
				if w.outcome("two") == "" {
					t.Error("the history is that of the copy")
				}
				w.anew(w.record)
				n2.join(w.inputs, nil)
				time.Sleep(time.Minute)
				synctest.Wait()
				if first, second := n2.pods(); !slices.Equal(first, kept) || !slices.Equal(second, held) {
					t.Errorf("after another start the machine runs %v, the second node %v", first, second)
				}
			})
		})
	}
}

// TestANewerLedgerThatComesTooLateIsSaid: the server went by an old copy of the
// record when a ledger came that is newer.
func TestANewerLedgerThatComesTooLateIsSaid(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		n2, backup := grownOld(w)
		away := maps.Clone(w.machine.ledger)
		w.record = backup
		w.start()
		n2.join(w.inputs, nil)
		time.Sleep(time.Minute)
		w.machine.mu.Lock()
		w.machine.ledger = away
		w.machine.mu.Unlock()
		w.machine.connect(w.inputs)
		synctest.Wait()
		if !slices.ContainsFunc(w.record.events, func(e nodes.Event) bool { return e.Reason == "NewerLedger" && e.Object.Name == "n1" && e.Warning }) {
			t.Errorf("no event says so: %v", w.record.events)
		}
		w.expectOwner("a", "since")
	})
}

// TestTheNewestRecordIsUsedAtOnce when one node has shown its ledger and all have reported.
func TestTheNewestRecordIsUsedAtOnce(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		w.repository.commit("three", statefulSet())
		w.push("three")
		n2 := &second{m: w.machine, held: map[nodes.UID]*nodes.Pod{}}
		n2.join(w.inputs, nil)
		time.Sleep(5 * time.Second)
		w.stop()
		began := time.Now()
		w.start()
		w.machine.connect(w.inputs)
		n2.join(w.inputs, nil)
		synctest.Wait()
		if got := w.inForce(); got != "three" || !time.Now().Equal(began) {
			t.Errorf("in force is %q after %v", got, time.Since(began))
		}
		w.stop()
		kept := maps.Clone(w.machine.ledger)
		clear(w.machine.ledger)
		w.start()
		w.machine.connect(w.inputs)
		n2.join(w.inputs, slices.Collect(maps.Values(kept)))
		synctest.Wait()
		if len(w.machine.ledger) < len(kept) {
			t.Errorf("nodes are told %d decisions to keep, want %d", len(w.machine.ledger), len(kept))
		}
	})
}
