package planner

import (
	"maps"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestInvariantsOfNodes drives a random cluster whose nodes Git cordons, taints,
// declares dead and removes, and which fall silent, lose their leases, die and
// come back, and looks after each step at who runs what.
func TestInvariantsOfNodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"n1", "n2", "n3", "n4"}
		f := &harbour{
			chaos: &chaos{t: t, world: newWorld(t, names...)}, names: names, said: map[string]*corev1.Node{}, off: map[string]bool{},
			given: map[string]bool{}, fences: map[string]map[nodes.UID]bool{}, killed: map[nodes.UID]bool{},
		}
		f.pushAnew()
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			before := f.s
			f.act()
			f.checkHarbour(before)
		}
		clear(f.said)
		f.pushAll()
		for _, name := range names {
			f.comeBack(name)
		}
		f.settle()
		f.checkHarbour(f.s)
		if on := f.on("db"); len(on) != 3 {
			t.Fatalf("in the end the StatefulSet has %v", on)
		}
	})
}

// harbour is a world of machines that may be cut off or switched off.
type harbour struct {
	*chaos
	names     []string
	workloads []runtime.Object
	// said is what Git says about nodes.
	said map[string]*corev1.Node
	// off are the machines that are switched off, given those that were declared
	// dead since: they are cleared before they are switched on again.
	off, given map[string]bool
	// fences are what each keeper holds, killed what one has killed.
	fences map[string]map[nodes.UID]bool
	killed map[nodes.UID]bool
}

func (f *harbour) act() {
	switch rapid.IntRange(0, 12).Draw(f.t, "event") {
	case 0:
		f.pushAnew()
	case 1, 2:
		f.saySomething(f.someNode())
	case 3, 4, 5:
		f.nodesWork()
	case 6:
		f.elapse(time.Duration(rapid.IntRange(1, 3000).Draw(f.t, "ms")) * time.Millisecond)
	case 7:
		f.elapse(time.Duration(rapid.IntRange(1, 120).Draw(f.t, "seconds")) * time.Second)
	case 8:
		f.goSilent(f.someNode(), rapid.Bool().Draw(f.t, "off"))
	case 9:
		f.loseLease(f.someNode())
	case 10:
		f.comeBack(f.someNode())
	case 11:
		f.fence(f.someNode())
	case 12:
		f.startServerAgain()
	}
}

// pushAnew has Git describe other workloads.
func (f *harbour) pushAnew() {
	big := func(spec *corev1.PodSpec) {
		d := &appsv1.Deployment{}
		d.Spec.Template.Spec = *spec
		requesting("3", "1Gi")(d)
		*spec = d.Spec.Template.Spec
	}
	s := fencedSet(nil)
	if rapid.Bool().Draw(f.t, "fenced") {
		s.Annotations = fenced
	}
	if rapid.Bool().Draw(f.t, "in order") {
		s.Spec.PodManagementPolicy = appsv1.OrderedReadyPodManagement
	}
	setImage(rapid.SampledFrom([]string{"app:1", "app:2"}).Draw(f.t, "db image"))(s)
	big(&s.Spec.Template.Spec)
	d := deployment("a", int32(rapid.IntRange(1, 6).Draw(f.t, "replicas")), image(rapid.SampledFrom([]string{"app:1", "app:2"}).Draw(f.t, "image")))
	big(&d.Spec.Template.Spec)
	if rapid.Bool().Draw(f.t, "tolerant") {
		tolerating("drain", 30)(d)
	}
	logs := daemonSet("logs")
	if rapid.Bool().Draw(f.t, "tolerant logs") {
		logs.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: "drain", Operator: corev1.TolerationOpExists, TolerationSeconds: new(int64(30))}}
	}
	f.workloads = []runtime.Object{namespace("default"), s, d, serviceFor("a"), logs, atLeast("a", 1)}
	f.pushAll()
}

func (f *harbour) pushAll() {
	f.objects = slices.Clone(f.workloads)
	for _, name := range slices.Sorted(maps.Keys(f.said)) {
		f.objects = append(f.objects, f.said[name])
	}
	if p := f.world.push(f.objects...); p.Hold != nil {
		f.t.Fatalf("held: %+v", p.Hold)
	}
}

// saySomething has Git say something else about a node. Only of a machine that is
// off does it say that it is dead.
func (f *harbour) saySomething(name string) {
	cordoned := machineOf(name)
	cordoned.Spec.Unschedulable = true
	words := []*corev1.Node{nil, cordoned, machineOf(name, drainNow), machineOf(name, corev1.Taint{Key: "gpu", Effect: corev1.TaintEffectNoSchedule})}
	if f.off[name] {
		words = append(words, machineOf(name, dead), removed(name))
	}
	word := rapid.SampledFrom(words).Draw(f.t, "word")
	if word == nil {
		delete(f.said, name)
	} else {
		f.said[name] = word
		f.given[name] = f.given[name] || declaredDead(word.Spec.Taints)
	}
	f.pushAll()
}

func (f *harbour) goSilent(name string, off bool) {
	if n, known := f.s.nodes.Get(name); known && n.Ready {
		f.fallSilent(name)
	}
	f.off[name] = f.off[name] || off
}

// loseLease ends a silent node's lease: its keeper has killed what it fenced.
func (f *harbour) loseLease(name string) {
	if n, known := f.s.nodes.Get(name); !known || n.Ready {
		return
	}
	for uid := range f.fences[name] {
		f.killed[uid] = true
	}
	f.lapse(name)
}

// fence has a live node's keeper hold what is asked of it.
func (f *harbour) fence(name string) {
	n, known := f.s.nodes.Get(name)
	if !known || !n.live() {
		return
	}
	f.fences[name] = map[nodes.UID]bool{}
	for _, uid := range f.s.fencedOn(n) {
		f.fences[name][uid] = true
	}
	f.promise(name)
}

// comeBack mends a node's cable, or switches its machine on. One that was declared
// dead was cleared before, and stays away while Git says so.
func (f *harbour) comeBack(name string) {
	if n, known := f.s.nodes.Get(name); known && n.Ready || f.said[name] != nil && declaredDead(f.said[name].Spec.Taints) {
		return
	}
	m := f.machines[name]
	if f.given[name] {
		clear(m.held)
		clear(m.status)
		m.ledger, m.table = nil, nil
		delete(f.fences, name)
	}
	delete(f.off, name)
	delete(f.given, name)
	f.join(name)
	for uid := range m.held {
		delete(f.killed, uid) // it starts again with the lease
	}
}

func (f *harbour) startServerAgain() {
	live := map[string]bool{}
	for name, n := range entries(f.s.nodes) {
		live[name] = n.Ready
	}
	f.restart(true)
	f.now = f.now.Add(time.Millisecond)
	f.next(Change{Snapshot: f.snapshot, Source: f.source})
	for _, name := range slices.Sorted(maps.Keys(live)) {
		if live[name] {
			f.join(name)
		} else {
			f.fallSilent(name)
		}
	}
}

func (f *harbour) checkHarbour(before *State) {
	f.forgetFences()
	f.checkRunning()
	f.checkRoom()
	f.checkBindings(before)
	f.checkIndexes()
	ranges := map[string]string{}
	for name, n := range entries(f.s.nodes) {
		if other, taken := ranges[n.kept.PodCIDR]; taken && n.kept.PodCIDR != "" {
			f.t.Fatalf("%s and %s have the range %s", name, other, n.kept.PodCIDR)
		}
		ranges[n.kept.PodCIDR] = name
	}
	for _, name := range f.s.Removed() {
		if left := f.mentions(name); len(left) > 0 {
			f.t.Fatalf("node %s was removed, and the record has it in %v", name, left)
		}
	}
}

// forgetFences has the keepers that hear of it let go what is no longer asked for.
func (f *harbour) forgetFences() {
	for name, held := range f.fences {
		n, known := f.s.nodes.Get(name)
		if !known || !n.live() {
			continue
		}
		asked := f.s.fencedOn(n)
		maps.DeleteFunc(held, func(uid nodes.UID, _ bool) bool { return !slices.Contains(asked, uid) })
	}
}

// checkRunning is invariant 5, by what really runs.
func (f *harbour) checkRunning() {
	running := map[int]string{}
	for _, name := range f.names {
		for uid, p := range f.machines[name].held {
			if p.Ordinal < 0 || f.off[name] || f.killed[uid] || f.machines[name].never[uid] {
				continue
			}
			if other, twice := running[p.Ordinal]; twice {
				f.t.Fatalf("db-%d runs on %s and on %s", p.Ordinal, other, name)
			}
			running[p.Ordinal] = name
		}
	}
}

// checkRoom is invariant 6.
func (f *harbour) checkRoom() {
	for name, n := range entries(f.s.nodes) {
		used := int64(0)
		for uid := range keys(n.pods) {
			if _, p := f.s.pod(uid); p != nil && !p.released {
				cpu, _ := p.request.Asks()
				used += cpu
			}
		}
		if used > 16_000 {
			f.t.Fatalf("node %s has %d of 16000 cpu requested", name, used)
		}
	}
}

// checkBindings: pods go only to nodes that answer and let them in.
func (f *harbour) checkBindings(before *State) {
	for _, g := range entries(f.s.groups) {
		for _, p := range g.pods {
			if _, old := before.pod(p.UID); p.Node == "" || old != nil && old.Node != "" || old == nil && !p.Created.Equal(f.now) {
				continue
			}
			n, _ := f.s.nodes.Get(p.Node)
			cordoned := n.state.Unschedulable && g.key.Kind != kindDaemonSet
			if _, at, evicts := departure(p, n, 0); !n.live() || cordoned || evicts && len(p.Template.Spec.Tolerations) == 0 {
				f.t.Fatalf("%s was placed on %s: %+v, taint %s", p.Name, p.Node, n.NodeState, at)
			}
		}
	}
}
