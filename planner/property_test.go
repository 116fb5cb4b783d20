package planner

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// TestInvariants drives a random cluster through pushes, crashes, restarts
// and lost records, and checks the invariants after each step.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &chaos{t: t, world: newWorld(t, "n1", "n2")}
		c.pace(time.Duration(rapid.SampledFrom([]int{0, 20, 1000}).Draw(t, "pace")) * time.Millisecond)
		c.push()
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			c.step()
		}
		c.heal()
		c.settle()
		c.checkConverged()
	})
}

// chaos is a world whose events are drawn at random.
type chaos struct {
	*world
	t       *rapid.T
	objects []runtime.Object
}

func (c *chaos) step() {
	before := c.s
	switch rapid.IntRange(0, 11).Draw(c.t, "event") {
	case 0, 1:
		c.push()
	case 2, 3, 4, 5:
		c.nodesWork()
	case 6:
		c.crash()
	case 7, 8:
		c.now = c.now.Add(time.Duration(rapid.IntRange(1, 3000).Draw(c.t, "ms")) * time.Millisecond)
		c.next(Change{})
	case 9:
		c.restartServer(rapid.Bool().Draw(c.t, "with record"))
		return
	case 10:
		c.silence()
	case 11:
		c.next(Change{Reports: []nodes.Report{c.route(c.someNode())}})
	}
	c.check(before)
}

func (c *chaos) someNode() string {
	return rapid.SampledFrom(slices.Sorted(maps.Keys(c.machines))).Draw(c.t, "node")
}

func (c *chaos) push() {
	c.objects = []runtime.Object{namespace("default"), configMap("conf", map[string]string{"a": rapid.SampledFrom([]string{"1", "2"}).Draw(c.t, "conf")})}
	for _, name := range []string{"a", "b"} {
		if name == "b" && rapid.IntRange(0, 4).Draw(c.t, "has b") == 0 {
			continue
		}
		d := deployment(name, int32(rapid.IntRange(0, 6).Draw(c.t, "replicas")),
			image(rapid.SampledFrom([]string{"app:1", "app:2", "app:3"}).Draw(c.t, "image")),
			strategy(rapid.SampledFrom([]string{"1", "25%", "100%"}).Draw(c.t, "surge"), rapid.SampledFrom([]string{"0", "1", "25%"}).Draw(c.t, "unavailable")))
		d.Spec.MinReadySeconds = int32(rapid.IntRange(0, 2).Draw(c.t, "min ready"))
		d.Spec.Paused = rapid.IntRange(0, 6).Draw(c.t, "paused") == 0
		if rapid.Bool().Draw(c.t, "reads config") {
			envFrom("conf")(d)
		}
		if rapid.IntRange(0, 5).Draw(c.t, "recreate") == 0 {
			recreate(d)
		}
		c.objects = append(c.objects, d, serviceFor(name))
	}
	if rapid.Bool().Draw(c.t, "has pod") {
		c.objects = append(c.objects, barePod("solo", rapid.SampledFrom([]string{"app:1", "app:2"}).Draw(c.t, "image")))
	}
	c.pushSets()
	c.world.push(c.objects...)
}

// pushSets adds a StatefulSet and a DaemonSet.
func (c *chaos) pushSets() {
	if rapid.Bool().Draw(c.t, "has db") {
		s := statefulSet("db", int32(rapid.IntRange(0, 4).Draw(c.t, "db replicas")), setImage(rapid.SampledFrom([]string{"app:1", "app:2", "app:3"}).Draw(c.t, "db image")))
		if rapid.Bool().Draw(c.t, "parallel") {
			inParallel(s)
		}
		partitioned(int32(rapid.IntRange(-4, 2).Draw(c.t, "partition")))(s)
		if p := s.Spec.UpdateStrategy.RollingUpdate.Partition; *p < 0 {
			*p = 0
		}
		s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: int32(rapid.IntRange(0, 1).Draw(c.t, "start"))}
		s.Spec.MinReadySeconds = int32(rapid.IntRange(0, 2).Draw(c.t, "db min ready"))
		c.objects = append(c.objects, s, headless("db"))
	}
	if rapid.Bool().Draw(c.t, "has logs") {
		s := daemonSet("logs", daemonImage(rapid.SampledFrom([]string{"app:1", "app:2", "app:3"}).Draw(c.t, "logs image")))
		if rapid.Bool().Draw(c.t, "surging") {
			surging(s)
		}
		s.Spec.MinReadySeconds = int32(rapid.IntRange(0, 2).Draw(c.t, "logs min ready"))
		c.objects = append(c.objects, s)
	}
}

// nodesWork lets some pods get ready and some stopping pods go.
func (c *chaos) nodesWork() {
	name := c.someNode()
	n, _ := c.s.nodes.Get(name)
	if !n.live() {
		return
	}
	m := c.machines[name]
	r := nodes.Report{Node: name}
	if rapid.Bool().Draw(c.t, "routes too") {
		r = c.route(name)
	}
	for _, uid := range slices.Sorted(maps.Keys(m.held)) {
		if rapid.IntRange(0, 2).Draw(c.t, "acts") == 0 {
			continue
		}
		if m.held[uid].Stop != nil {
			r.Gone = append(r.Gone, m.gone(uid))
		} else if m.status[uid] == nil || !m.status[uid].Ready {
			r.Statuses = append(r.Statuses, m.setReady(uid, rapid.IntRange(0, 5).Draw(c.t, "ready") > 0, c.now))
		}
	}
	c.next(Change{Reports: []nodes.Report{r}})
}

func (c *chaos) crash() {
	name := c.someNode()
	m := c.machines[name]
	n, _ := c.s.nodes.Get(name)
	if len(m.status) == 0 || !n.live() {
		return
	}
	uid := rapid.SampledFrom(slices.Sorted(maps.Keys(m.status))).Draw(c.t, "pod")
	s := m.setReady(uid, false, c.now)
	if m.held[uid].Owner.Kind != "Pod" && rapid.Bool().Draw(c.t, "for good") {
		s.Phase, s.Reason = corev1.PodFailed, "Evicted"
		m.status[uid] = &s
	}
	c.next(Change{Reports: []nodes.Report{{Node: name, Statuses: []nodes.PodStatus{s}}}})
}

func (c *chaos) silence() {
	name := c.someNode()
	n, _ := c.s.nodes.Get(name)
	if before := c.s; n.Ready {
		c.next(Change{Nodes: []nodes.NodeState{{Node: info(name), Ready: false, Since: c.now, Reason: "no heartbeat"}}})
		c.noStops(before, "a silent node")
		return
	}
	c.join(name)
}

// restartServer loses the server, perhaps with its record: no pod may be
// stopped or made for that.
func (c *chaos) restartServer(withRecord bool) {
	c.heal()
	c.settle()
	before := c.running()
	c.restart(withRecord)
	c.now = c.now.Add(time.Millisecond)
	steps := []func(){
		func() { c.next(Change{Snapshot: c.snapshot, Source: c.source}) },
		func() { c.join("n1") },
		func() { c.join("n2") },
	}
	if !withRecord {
		// Without a record the nodes must have spoken before anything is known.
		steps = []func(){steps[1], steps[2], steps[0]}
	}
	for _, step := range steps {
		before := c.s
		step()
		c.noStops(before, "a restart")
	}
	if diff := gocmp.Diff(before, c.running()); diff != "" {
		c.t.Fatalf("a restart (record: %v) changed what runs:\n%s", withRecord, diff)
	}
	c.settle()
	if diff := gocmp.Diff(before, c.running()); diff != "" {
		c.t.Fatalf("after a restart (record: %v) what runs has changed:\n%s", withRecord, diff)
	}
}

func (c *chaos) running() []string {
	var out []string
	for _, m := range c.machines {
		for uid, p := range m.held {
			out = append(out, fmt.Sprintf("%s %s on %s, stop %v", uid, p.Name, m.name, p.Stop != nil))
		}
	}
	slices.Sort(out)
	return out
}

// noStops is invariant 7: ignorance takes nothing away. What was leaving
// already may go on leaving.
func (c *chaos) noStops(before *State, why string) {
	for _, g := range entries(c.s.groups) {
		for _, p := range g.pods {
			if _, old := before.pod(p.UID); p.leaving != "" && (old == nil || old.leaving == "") {
				c.t.Fatalf("%s took away %s: %s", why, p.Name, p.leaving)
			}
		}
	}
}

// heal brings every node back.
func (c *chaos) heal() {
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		if n, _ := c.s.nodes.Get(name); !n.live() {
			c.join(name)
		}
	}
}

func (c *chaos) check(before *State) {
	c.checkRollouts(before)
	c.checkOrdinals()
	c.checkDaemons()
	c.checkRoutes()
	c.checkStops(before)
	c.checkFixpoint()
	c.checkIndexes()
}

// checkRollouts is invariant 4.
func (c *chaos) checkRollouts(before *State) {
	for k, g := range entries(c.s.groups) {
		if g.object == nil || c.s.frozen(g) != "" {
			continue
		}
		d, ok := g.object.Value.(*appsv1.Deployment)
		if !ok {
			continue
		}
		r := workload.Deployment(&d.Spec)
		live, available := c.count(g, r)
		if !r.Recreate && live > r.Replicas+r.Surge {
			c.t.Fatalf("%s has %d pods, more than %d replicas + %d surge", k, live, r.Replicas, r.Surge)
		}
		taken := 0
		for _, p := range g.pods {
			_, old := before.pod(p.UID)
			if p.leaving != "" && old != nil && old.leaving == "" && c.available(p, r) {
				taken++
			}
		}
		if !r.Recreate && taken > 0 && available < r.Replicas-r.Unavailable {
			c.t.Fatalf("%s: %d available pods were taken away, %d are left of %d − %d", k, taken, available, r.Replicas, r.Unavailable)
		}
	}
}

// available: what a silent node runs counts for nothing while another lives.
func (c *chaos) available(p *pod, r workload.Rollout) bool {
	if n, _ := c.s.nodes.Get(p.Node); n.silent() && c.s.anyLive() {
		return false
	}
	return p.status != nil && p.status.Ready && !p.done() && !p.status.ReadySince.Add(r.MinReady).After(c.now)
}

func (c *chaos) count(g *group, r workload.Rollout) (live, available int) {
	for _, p := range g.pods {
		if p.leaving != "" || p.Stop != nil || p.done() {
			continue
		}
		live++
		if c.available(p, r) {
			available++
		}
	}
	return live, available
}

// checkOrdinals is invariant 5, by what the machines hold, silent ones
// included.
func (c *chaos) checkOrdinals() {
	holder := map[int]nodes.UID{}
	for _, name := range slices.Sorted(maps.Keys(c.machines)) {
		for uid, p := range c.machines[name].held {
			if p.Ordinal < 0 {
				continue
			}
			if other, taken := holder[p.Ordinal]; taken {
				c.t.Fatalf("the pods %s and %s both have ordinal %d", other, uid, p.Ordinal)
			}
			holder[p.Ordinal] = uid
			if p.Name != fmt.Sprintf("db-%d", p.Ordinal) {
				c.t.Fatalf("ordinal %d is called %s", p.Ordinal, p.Name)
			}
		}
	}
}

// checkDaemons: a DaemonSet's pods are where they are meant to be, at most two
// on a node.
func (c *chaos) checkDaemons() {
	at := map[string]int{}
	for _, p := range c.pods("logs") {
		if p.aim == "" && p.Node == "" || p.aim != "" && p.Node != "" && p.aim != p.Node {
			c.t.Fatalf("%s is for %q and runs on %q", p.Name, p.aim, p.Node)
		}
		if at[cmp.Or(p.Node, p.aim)]++; at[cmp.Or(p.Node, p.aim)] > 2 {
			c.t.Fatalf("more than two pods of the DaemonSet on node %s", cmp.Or(p.Node, p.aim))
		}
	}
}

// checkRoutes is the first half of invariant 10: only ready endpoints. What has
// changed since the last table comes with the next, and that is due.
func (c *chaos) checkRoutes() {
	if c.s.routes == nil {
		return
	}
	if c.s.routesChanged {
		if due := c.s.routed.Add(c.s.routePause()); c.last.Wake.IsZero() || c.last.Wake.After(due) || !c.now.Before(due) {
			c.t.Fatalf("at %s the next table is due at %s, and the planner wakes at %s", c.now, due, c.last.Wake)
		}
		return
	}
	byName := map[string]*pod{}
	for _, g := range entries(c.s.groups) {
		for _, p := range g.pods {
			if p.leaving == "" {
				byName[p.Name] = p
			}
		}
	}
	for _, svc := range c.s.routes.Services {
		for _, port := range svc.Ports {
			for _, e := range port.Endpoints {
				if p := byName[e.Pod]; p == nil || !p.serving() {
					c.t.Fatalf("service %s leads to %s, which is not ready", svc.Name, e.Pod)
				}
			}
		}
	}
}

// checkStops is the second half: drained before stopped.
func (c *chaos) checkStops(before *State) {
	for _, g := range entries(c.s.groups) {
		for _, p := range g.pods {
			_, old := before.pod(p.UID)
			if p.Stop == nil || old == nil || old.Stop != nil || !p.drainBy.IsZero() && !c.now.Before(p.drainBy) {
				continue
			}
			for _, m := range c.machines {
				if n, _ := c.s.nodes.Get(m.name); n.live() && m.routesTo(old) {
					c.t.Fatalf("pod %s was stopped while node %s still routes to it", p.Name, m.name)
				}
			}
		}
	}
}

// routesTo goes by the address: a StatefulSet's pods bear the names of those
// before them.
func (m *machine) routesTo(p *pod) bool {
	if m.table == nil || p.status == nil {
		return false
	}
	for _, svc := range m.table.Services {
		for _, port := range svc.Ports {
			for _, e := range port.Endpoints {
				if e.Pod == p.Name && e.Addr.String() == p.status.IP {
					return true
				}
			}
		}
	}
	return false
}

// checkFixpoint: planning everything from scratch in the state that the
// steps have led to finds nothing that they have missed, and planning twice
// gives the same.
func (c *chaos) checkFixpoint() {
	if c.s.snapshot == nil || !c.s.informed {
		return
	}
	st := begin(c.s, c.now)
	for k := range keys(st.groups) {
		st.dirtyGroups[k] = true
		st.touched[k] = true
		st.edit(k).stale = st.owned[k].object != nil
	}
	for k := range keys(st.services) {
		st.dirtyServices[k] = true
	}
	st.stir.all, st.storageDirty = true, true
	st.reconcile()
	st.settleStorage()
	st.schedule()
	st.routeServices()
	st.drainPods()
	st.assess()
	_, p := st.finish()
	if len(p.Actions)+len(p.Assignments)+len(p.Decisions) > 0 || p.Routes != nil {
		for i := range p.Decisions {
			if p.Decisions[i].Kind != kindOfSet {
				p.Decisions[i].Value = nil
			}
		}
		c.t.Fatalf("planning everything anew finds more to do: %v %s, %d assignments, routes:\n%s", p.Actions, p.Decisions, len(p.Assignments), gocmp.Diff(c.s.routes, p.Routes, gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })))
	}
	if diff := gocmp.Diff(c.last.Waiting, p.Waiting); diff != "" {
		c.t.Fatalf("planning everything anew waits for something else:\n%s", diff)
	}
}

// checkIndexes compares what is kept incrementally with what it stands for.
func (c *chaos) checkIndexes() {
	bound := map[string]int{}
	total := 0
	for _, g := range entries(c.s.groups) {
		for _, p := range g.pods {
			total++
			if p.Node != "" {
				bound[p.Node]++
			}
			if _, found := c.s.pod(p.UID); found != p {
				c.t.Fatalf("pod %s is not found by its uid", p.Name)
			}
		}
	}
	if total != c.s.pods.Len() {
		c.t.Fatalf("%d pods, %d in the index", total, c.s.pods.Len())
	}
	for name, n := range entries(c.s.nodes) {
		if n.pods.Len() != bound[name] {
			c.t.Fatalf("node %s has %d pods, its groups say %d", name, n.pods.Len(), bound[name])
		}
	}
}

func (c *chaos) checkConverged() {
	if p := c.next(Change{}); !p.Empty() {
		c.t.Fatalf("a converged cluster gives a plan: %+v", p)
	}
	for _, v := range c.objects {
		c.checkConvergedSet(v)
		d, ok := v.(*appsv1.Deployment)
		if !ok {
			continue
		}
		r := workload.Deployment(&d.Spec)
		g, _ := c.s.groups.Get(keyOf(d))
		if live, available := c.count(g, r); !r.Paused && (live != r.Replicas || available != r.Replicas) {
			c.t.Fatalf("%s converged with %d pods, %d available, of %d", d.Name, live, available, r.Replicas)
		}
		for _, p := range g.pods {
			if !r.Paused && p.Template.Spec.Containers[0].Image != d.Spec.Template.Spec.Containers[0].Image {
				c.t.Fatalf("%s converged with a pod of image %s", d.Name, p.Template.Spec.Containers[0].Image)
			}
		}
	}
}

func (c *chaos) checkConvergedSet(v runtime.Object) {
	switch s := v.(type) {
	case *appsv1.StatefulSet:
		var want []string
		for i := range *s.Spec.Replicas {
			want = append(want, fmt.Sprintf("db-%d", s.Spec.Ordinals.Start+i))
		}
		var got []string
		for _, p := range c.pods("db") {
			got = append(got, p.Name)
			kept := p.Ordinal < int(s.Spec.Ordinals.Start+*s.Spec.UpdateStrategy.RollingUpdate.Partition)
			if !kept && p.Template.Spec.Containers[0].Image != s.Spec.Template.Spec.Containers[0].Image {
				c.t.Fatalf("%s converged with image %s", p.Name, p.Template.Spec.Containers[0].Image)
			}
		}
		slices.Sort(got)
		if !slices.Equal(want, got) {
			c.t.Fatalf("the StatefulSet converged with %v, not %v", got, want)
		}
	case *appsv1.DaemonSet:
		image := s.Spec.Template.Spec.Containers[0].Image
		if diff := gocmp.Diff([]string{"n1 " + image, "n2 " + image}, c.spread("logs")); diff != "" {
			c.t.Fatalf("the DaemonSet converged otherwise:\n%s", diff)
		}
	}
}
