package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/proxy"
)

const (
	// convergeWithin is long enough for every back-off and deadline to end.
	convergeWithin = 30 * time.Minute
	// restFor is how long a converged cluster must do nothing at all.
	restFor = 3 * time.Minute
	// settled is how long after a disturbance of the way from agents to routes
	// every session is back: heartbeats, and the longest retry.
	settled = 40 * time.Second
)

// checkNow checks what must hold at any moment at which nothing disturbs the
// way from the agents to the routes.
func (w *world) checkNow() error {
	if err := w.witness.violation(); err != nil {
		return err
	}
	if err := w.runsOnce(); err != nil {
		return err
	}
	if err := w.addressesDiffer(); err != nil {
		return err
	}
	if !w.connected() || w.calm() < settled || !w.witness.knowsIntent(settled) || w.rng.IntN(3) > 0 {
		return nil
	}
	if err := w.schedulesAreKept(); err != nil {
		return err
	}
	return w.routesFollow()
}

// routesFollow: invariant 10. What agents have said for a second is in force
// everywhere.
func (w *world) routesFollow() error {
	ready := map[string]nodes.PodStatus{}
	for _, m := range w.nodes {
		for _, s := range m.statuses() {
			ready[s.IP] = s
		}
	}
	now := time.Now()
	for _, m := range w.nodes {
		t := m.kernel.table()
		if t == nil {
			continue
		}
		for _, v := range t.Services {
			if i := w.witness.truth().intent; i.services[serviceKey(v)].early {
				continue
			}
			for _, p := range v.Ports {
				for _, e := range p.Endpoints {
					s, found := ready[e.Addr.String()]
					if !found || !s.Ready && now.Sub(s.ReadySince) > 1100*time.Millisecond && !w.clocksDiffer() {
						return violated(10, "node %s leads %s/%s to %s of pod %s, which has not been ready since %s", m.name, v.Namespace, v.Name, e.Addr, e.Pod, s.ReadySince)
					}
				}
			}
		}
	}
	return nil
}

func serviceKey(v *proxy.Service) desired.Key {
	return desired.Key{Kind: kindService, Namespace: v.Namespace, Name: v.Name}
}

// converge waits for the cluster to agree with Git and to rest. It looks twice,
// for what nodes last said may still be under way at the first time.
func (w *world) converge() error {
	deadline := time.Now().Add(convergeWithin)
	var why error
	for agreed := 0; agreed < 2 && time.Now().Before(deadline); agreed++ {
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if err := w.checkNow(); err != nil {
			return err
		}
		if why = w.agrees(); why != nil {
			agreed = -1
		}
	}
	if why != nil {
		return fmt.Errorf("the faults are over and the cluster does not converge: %w\n%s", why, w.describe())
	}
	w.note("converged")
	if err := w.dataGoes(); err != nil {
		return err
	}
	return w.rests()
}

// rests checks that a converged cluster plans and does nothing, and that
// planning it from scratch says the same.
func (w *world) rests() error {
	before, _ := w.witness.activity()
	if err := w.plansTheSameFromScratch(); err != nil {
		return err
	}
	time.Sleep(restFor)
	synctest.Wait()
	if err := w.witness.violation(); err != nil {
		return err
	}
	if after, latest := w.witness.activity(); after != before {
		return violated(3, "a converged cluster planned or handed over %d more things in %v: %s", after-before, restFor, latest)
	}
	if err := w.agrees(); err != nil {
		return fmt.Errorf("a converged cluster changed: %w\n%s", err, w.describe())
	}
	return w.intentIsUntouched()
}

// intentIsUntouched: invariant 1.
func (w *world) intentIsUntouched() error {
	for _, c := range w.repo.order {
		if printObjects(c.snapshot) != c.objects {
			return violated(1, "the objects of revision %s were changed", c.revision.SHA[36:])
		}
	}
	return nil
}

// expected is the commit that must be in force in the end: the newest one
// unless it is invalid or the guard holds it. The guard is asked with what runs.
func (w *world) expected() *commit {
	head, truth := w.repo.head(), w.witness.truth()
	if head == truth || !head.valid {
		return truth
	}
	if truth != nil && w.witness.holds(head) {
		return truth
	}
	return head
}

// agrees compares what runs with what the newest valid, unheld commit says:
// nil when they are the same.
func (w *world) agrees() error {
	want := w.expected()
	o := w.serving().loop.Overview()
	switch {
	case !w.connected():
		return errors.New("not every node is connected")
	case o.InForce == nil || want == nil || o.InForce.SHA != want.revision.SHA:
		return violated(2, "revision %v is in force instead of %s (sync %s: %s)", o.InForce, want.revision.SHA, o.Sync.State, o.Sync.Message)
	case !o.Plan.Converged:
		return fmt.Errorf("not converged: waiting %v, outcome %s", o.Plan.Waiting, o.Outcome)
	}
	ready, err := w.podsAgree(want.intent)
	if err != nil {
		return err
	}
	if err := w.drainedInTheEnd(want.intent); err != nil {
		return err
	}
	if err := w.dataAgrees(want.intent); err != nil {
		return err
	}
	if err := w.historyAgrees(want.intent, o); err != nil {
		return err
	}
	return w.routesAgree(want.intent, ready)
}

// podsAgree compares containers, and returns the addresses behind each app.
func (w *world) podsAgree(i *intent) (map[desired.Key][]netip.Addr, error) {
	have := map[desired.Key]int{}
	addrs := map[desired.Key][]netip.Addr{}
	for _, m := range w.nodes {
		pods := map[nodes.UID]bool{}
		for _, s := range m.statuses() {
			pods[s.UID] = s.Done() // those stay for their result
		}
		for _, c := range m.runtime.all() {
			k := workloadOf(c)
			v, wanted := i.workloads[k]
			_, scheduled := i.workloads[cronOf(k)]
			switch {
			case !wanted && k.Kind == kindJob && scheduled:
				if c.State == runtime.Running {
					return nil, fmt.Errorf("%s is at work", k)
				}
				continue
			case !wanted:
				return nil, violated(2, "container %s on %s is of %s, which Git does not have", c.ID, m.name, k)
			case c.State != runtime.Running:
				continue
			case c.Image != v.image && c.Image != "sha256:"+v.image:
				return nil, violated(2, "container %s of %s runs %s instead of %s", c.ID, k, c.Image, v.image)
			case !w.hasConfig(m, c, i, v.config):
				return nil, violated(2, "container %s of %s, made for revision %s, has another %s than %q: %v", c.ID, k, c.Labels[labelRevision], v.config, i.configs[v.config], m.runtime.envOf(c.ID))
			}
			have[k]++
			uid := nodes.UID(c.Labels[labelPod])
			pods[uid] = true
			app := desired.Key{Namespace: k.Namespace, Name: k.Name}
			addrs[app] = append(addrs[app], m.network.addrOf(uid))
		}
		if err := m.isSwept(pods); err != nil {
			return nil, err
		}
	}
	for k, v := range i.workloads {
		if k.Kind == kindJob || k.Kind == kindCronJob {
			v.replicas = 0 // all that is wanted has been done
		}
		if err := w.sizeAgrees(i, k, &v); err != nil {
			return nil, err
		}
		if have[k] != v.replicas {
			return nil, violated(2, "%s runs %d times instead of %d", k, have[k], v.replicas)
		}
	}
	return addrs, nil
}

// hasConfig reports whether a container has the value that its workload reads.
// One is let pass: a pod whose container started late, when the value had
// changed, stays when the revision returns to the value that the pod was made for.
func (w *world) hasConfig(m *machine, c runtime.Status, i *intent, k desired.Key) bool {
	if k.IsZero() || slices.Contains(m.runtime.envOf(c.ID), "VALUE="+i.configs[k]) {
		return true
	}
	made := w.repo.commit(c.Labels[labelRevision])
	return made != nil && made != w.repo.head() && made.intent.configs[k] == i.configs[k]
}

// workloadOf reads the label that names a container's workload.
func workloadOf(c runtime.Status) desired.Key {
	parts := strings.Split(c.Labels[labelWorkload], "/")
	if len(parts) != 4 {
		return desired.Key{Name: c.Labels[labelWorkload]}
	}
	return desired.Key{Group: parts[0], Kind: parts[1], Namespace: parts[2], Name: parts[3]}
}

// isSwept reports what is left of pods that are gone.
func (m *machine) isSwept(pods map[nodes.UID]bool) error {
	for _, uid := range append(m.network.uids(), m.volumes.uids()...) {
		if !pods[uid] {
			return fmt.Errorf("node %s: something is left of pod %s", m.name, uid)
		}
	}
	return nil
}

// routesAgree compares what every node routes with the services of Git.
func (w *world) routesAgree(i *intent, ready map[desired.Key][]netip.Addr) error {
	for _, m := range w.nodes {
		t := m.kernel.table()
		if t == nil {
			return violated(10, "node %s has no routes", m.name)
		}
		if len(t.Services) != len(i.services) {
			return violated(10, "node %s routes %d services, Git has %d", m.name, len(t.Services), len(i.services))
		}
		for _, v := range t.Services {
			s, wanted := i.services[serviceKey(v)]
			if !wanted {
				return violated(10, "node %s routes service %s/%s, which Git does not have", m.name, v.Namespace, v.Name)
			}
			want := slices.SortedFunc(slices.Values(ready[desired.Key{Namespace: v.Namespace, Name: s.app}]), netip.Addr.Compare)
			var have []netip.Addr
			for _, e := range v.Ports[0].Endpoints {
				have = append(have, e.Addr)
			}
			if !slices.Equal(have, want) {
				return violated(10, "node %s leads service %s/%s to %v instead of %v", m.name, v.Namespace, v.Name, have, want)
			}
		}
	}
	return nil
}

// plansTheSameFromScratch: invariant 3. A planner that is given the record,
// the revision and the nodes' complete reports comes to what runs, twice alike.
func (w *world) plansTheSameFromScratch() error {
	decisions, err := w.serving().record.Decisions()
	if err != nil {
		return err
	}
	change := planner.Change{Decisions: decisions, Snapshot: w.expected().snapshot, Source: w.witness.from()}
	for _, m := range w.nodes {
		report, err := m.agent.Hello(context.Background())
		if err != nil {
			return err
		}
		change.Nodes = append(change.Nodes, nodes.NodeState{Node: *report.Info, Ready: true, Since: w.began, Routes: report.Routes})
		change.Reports = append(change.Reports, report)
	}
	now := w.serving().loop.Overview().At // by the server's clock
	state, plan := planner.Next(planner.New(plannerConfig), change, now)
	_, again := planner.Next(planner.New(plannerConfig), change, now)
	if !reflect.DeepEqual(plan, again) {
		return violated(3, "planning from scratch twice gave two plans")
	}
	_, rest := planner.Next(state, w.routed(plan.Routes), now)
	if len(plan.Difference)+len(plan.Actions)+len(rest.Waiting) > 0 {
		return violated(3, "planning what converged from scratch differs: %v; actions %v; waiting %v", plan.Difference, plan.Actions, rest.Waiting)
	}
	return w.witness.handedTheSame(plan.Assignments)
}

// routed is what the nodes say once they have a table in force.
func (w *world) routed(t *proxy.Table) (c planner.Change) {
	for _, m := range w.nodes {
		c.Reports = append(c.Reports, nodes.Report{Node: m.name, Routes: t.Generation})
	}
	return c
}

// handedTheSame compares assignments with those that were handed over last.
func (x *witness) handedTheSame(list []nodes.Assignment) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, a := range list {
		if want, have := printAssignment(x.handed[a.Node]), printAssignment(a); have != want {
			return violated(3, "from scratch node %s would be assigned\n%sinstead of\n%s", a.Node, have, want)
		}
	}
	return nil
}

func printAssignment(a nodes.Assignment) string {
	var b strings.Builder
	for _, p := range a.Pods {
		fmt.Fprintf(&b, "%s %s/%s template %s stop %v\n", p.UID, p.Namespace, p.Name, p.TemplateHash, p.Stop)
	}
	for _, c := range a.Configs {
		fmt.Fprintf(&b, "%s %s\n", c.Key, c.Version)
	}
	for _, v := range a.Volumes {
		fmt.Fprintf(&b, "%s %s of %s, %s, released %v, delete %v\n", v.Name, v.UID, v.Claim, v.Spec.Capacity.Storage(), v.Released, v.Delete)
	}
	return b.String()
}

// describe prints the world, for whoever looks at a failure.
func (w *world) describe() string {
	var b strings.Builder
	o := w.serving().loop.Overview()
	for _, h := range o.Objects {
		if h.Health != nodes.Healthy || h.Pod != nil {
			fmt.Fprintf(&b, "%s %s %s", h.Key, h.Health, h.Reason)
			if h.Pod != nil {
				fmt.Fprintf(&b, " %s", h.Pod.UID)
			}
			b.WriteString("\n")
		}
	}
	for _, n := range o.Nodes {
		fmt.Fprintf(&b, "node %s ready %v %s\n", n.Name, n.Ready, n.Reason)
	}
	for _, m := range w.nodes {
		fmt.Fprintf(&b, "%s:\n%s%s", m.name, m.runtime, m.disk)
		for _, s := range m.statuses() {
			fmt.Fprintf(&b, "agent says %s %s ready %v since %s %s\n", s.UID, s.Phase, s.Ready, s.ReadySince, s.Message)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(w.repo.head().intent.workloads), desired.Key.Compare) {
		fmt.Fprintf(&b, "want %s %+v\n", k, w.repo.head().intent.workloads[k])
	}
	return b.String()
}
