package sim

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/proxy"
)

// bugs are planted one by one; each must be noticed within a few seeds.
var bugs = []Bug{
	{Name: "starts one pod too many", Invariants: []int{1, 2}, Assign: func(_ *world, a nodes.Assignment) nodes.Assignment {
		if len(a.Pods) == 0 {
			return a
		}
		twin := *a.Pods[0]
		twin.UID, twin.Stop = "ffffffff-0000-4000-8000-000000000000", nil
		a.Pods = append(slices.Clone(a.Pods), &twin)
		return a
	}},
	{Name: "stops without draining", Invariants: []int{10}, Route: func(w *world, t *proxy.Table) *proxy.Table {
		if old := w.nodes[0].kernel.table(); old != nil { // what was in force stays so
			same := *t
			same.Services = old.Services
			return &same
		}
		return t
	}},
	{Name: "assigns nothing after a start", Invariants: []int{7, 9}, Assign: func(w *world, a nodes.Assignment) nodes.Assignment {
		if w.serving() != nil && time.Since(w.began) > 5*time.Second {
			a.Pods = nil
		}
		return a
	}},
	{Name: "applies half a revision", Invariants: []int{2, 4, 10}, Load: func(s *desired.Snapshot) *desired.Snapshot {
		objects := slices.Collect(s.All())
		return desired.NewSnapshot(s.Revision(), s.Settings(), objects[:max(0, len(objects)-1)], nil)
	}},
	{Name: "confirms every deletion itself", Invariants: []int{8}, Next: func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		state, plan := planner.Next(s, c, now)
		if plan.Hold == nil {
			return state, plan
		}
		r := c.Snapshot.Revision()
		r.Message = "confirmed\n\n" + plan.Hold.Confirm
		c.Snapshot = c.Snapshot.WithRevision(r)
		return planner.Next(s, c, now)
	}},
	{Name: "has too many pods", Invariants: []int{4, 2}, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withObjects(s, func(v runtime.Object) runtime.Object { return moreReplicas(v, 3) })
	}},
	{Name: "routes to pods that are not ready", Invariants: []int{10}, Next: func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		state, plan := planner.Next(s, c, now)
		plan.Routes = misled(plan.Routes)
		return state, plan
	}},
	{Name: "believes that what is told to stop is gone", Invariants: []int{5}, Next: func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		for _, h := range s.Overview(now).Objects {
			if h.Pod != nil && h.Pod.Stopping && h.Owner.Kind == kindStatefulSet {
				c.Reports = append(slices.Clip(c.Reports), nodes.Report{Node: h.Pod.Node, Gone: []nodes.UID{h.Pod.UID}})
			}
		}
		return planner.Next(s, c, now)
	}},
	{Name: "repeats Jobs with every revision", Invariants: []int{9}, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withObjects(s, func(v runtime.Object) runtime.Object {
			j, ok := v.(*batchv1.Job)
			if !ok {
				return v
			}
			j = j.DeepCopy()
			j.Annotations = map[string]string{"tallyman.dev/run": s.Revision().SHA}
			return j
		})
	}},
	{Name: "forgets the time of grace", Invariants: []int{5}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		settings := s.Settings()
		settings.KeepData = time.Second
		return desired.NewSnapshot(s.Revision(), settings, slices.Collect(s.All()), nil)
	}},
	{Name: "deletes data that was released", Invariants: []int{5}, Rich: true, Assign: func(_ *world, a nodes.Assignment) nodes.Assignment {
		return withVolumes(a, func(v *nodes.Volume) { v.Delete = !v.Released.IsZero() })
	}},
	{Name: "takes retained data for data to be deleted", Invariants: []int{5}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withObjects(s, func(v runtime.Object) runtime.Object {
			if c, ok := v.(*storagev1.StorageClass); ok {
				c = c.DeepCopy()
				c.ReclaimPolicy = nil
				return c
			}
			return v
		})
	}},
	{Name: "begins anew with an empty volume", Invariants: []int{5}, Rich: true, Assign: func(w *world, a nodes.Assignment) nodes.Assignment {
		if time.Since(w.began) < 10*time.Second {
			return a
		}
		return withVolumes(a, func(v *nodes.Volume) { v.UID, v.Made = "other", false })
	}},
	{Name: "gives claims the data of others", Invariants: []int{5}, Rich: true, Assign: func(w *world, a nodes.Assignment) nodes.Assignment {
		if n := len(a.Volumes); n > 1 && time.Since(w.began) > 10*time.Second {
			next := a.Volumes[0].Claim
			return withVolumes(a, func(v *nodes.Volume) { v.Claim, next = next, v.Claim })
		}
		return a
	}},
	{Name: "never grows volumes", Invariants: []int{2}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withObjects(s, func(v runtime.Object) runtime.Object {
			if c, ok := v.(*corev1.PersistentVolumeClaim); ok {
				return claimObject(c.ObjectMeta, 1)
			}
			return v
		})
	}},
	{Name: "deletes data without being told", Invariants: []int{5}, Rich: true, Assign: func(w *world, a nodes.Assignment) nodes.Assignment {
		return withVolumes(a, func(v *nodes.Volume) { v.Delete = true })
	}},
	{Name: "believes that routes are in force when they are handed over", Invariants: []int{10}, Next: func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		state, plan := planner.Next(s, c, now)
		o := state.Overview(now)
		stops := slices.ContainsFunc(o.Objects, func(h nodes.ObjectHealth) bool { return h.Pod != nil && h.Pod.Stopping })
		if plan.Routes == nil || stops {
			return state, plan // what drains is another matter
		}
		var believed planner.Change
		for _, n := range o.Nodes {
			believed.Reports = append(believed.Reports, nodes.Report{Node: n.Name, Routes: plan.Routes.Generation})
		}
		state, _ = planner.Next(state, believed, now)
		plan.Waiting = nil
		return state, plan
	}},
	{Name: "runs what is suspended", Invariants: []int{1}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withSchedules(s, func(c *batchv1.CronJob) { c.Spec.Suspend = nil })
	}},
	{Name: "runs at other times", Invariants: []int{1}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withSchedules(s, func(c *batchv1.CronJob) {
			if c.Spec.Schedule == "*/2 * * * *" {
				c.Spec.Schedule = "* * * * *"
			}
		})
	}},
	{Name: "runs later than it may", Invariants: []int{1}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withSchedules(s, func(c *batchv1.CronJob) { c.Spec.StartingDeadlineSeconds = nil })
	}},
	{Name: "lets runs overlap", Invariants: []int{9}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withSchedules(s, func(c *batchv1.CronJob) { c.Spec.ConcurrencyPolicy = batchv1.AllowConcurrent })
	}},
	{Name: "forgets to run", Invariants: []int{2}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withSchedules(s, func(c *batchv1.CronJob) { c.Spec.Suspend = new(true) })
	}},
	{Name: "keeps the Jobs of all runs", Invariants: []int{2}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withSchedules(s, func(c *batchv1.CronJob) { c.Spec.SuccessfulJobsHistoryLimit = nil })
	}},
	{Name: "exceeds what an autoscaler allows", Invariants: []int{1}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withScalers(s, func(v *autoscalingv2.HorizontalPodAutoscaler) { v.Spec.MaxReplicas += 3 })
	}},
	{Name: "sizes against the usage", Invariants: []int{1}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withScalers(s, func(v *autoscalingv2.HorizontalPodAutoscaler) {
			v.Spec.Metrics[0].Resource.Target.AverageValue = resource.NewMilliQuantity(10, resource.DecimalSI)
		})
	}},
	{Name: "never sizes", Invariants: []int{2}, Rich: true, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withScalers(s, func(v *autoscalingv2.HorizontalPodAutoscaler) {
			v.Spec.ScaleTargetRef.Name = "nobody"
		})
	}},
	{Name: "forgets that nodes differ", Invariants: []int{6}, Many: true, Load: withoutWishes(func(spec *corev1.PodSpec) {
		spec.NodeSelector, spec.Affinity = nil, nil
	})},
	{Name: "lets pods crowd", Invariants: []int{6}, Many: true, Load: withoutWishes(func(spec *corev1.PodSpec) {
		if spec.Affinity != nil {
			spec.Affinity.PodAntiAffinity = nil
		}
	})},
	{Name: "spreads nothing", Invariants: []int{6}, Many: true, Load: withoutWishes(func(spec *corev1.PodSpec) {
		spec.TopologySpreadConstraints = nil
	})},
	{Name: "gives a port twice", Invariants: []int{6}, Many: true, Load: withoutWishes(func(spec *corev1.PodSpec) {
		spec.Containers[0].Ports[0].HostPort = 0
	})},
	{Name: "believes machines to be larger than they are", Invariants: []int{6}, Many: true, Next: func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		c.Reports = slices.Clone(c.Reports)
		for i, r := range c.Reports {
			if r.Info == nil {
				continue
			}
			info := *r.Info
			info.Allocatable = maps.Clone(info.Allocatable)
			info.Allocatable[corev1.ResourceCPU] = resource.MustParse("64")
			c.Reports[i].Info = &info
		}
		return planner.Next(s, c, now)
	}},
	{Name: "takes silence for the end of leases", Invariants: []int{5}, Fenced: true, Next: withNodes(func(n *nodes.NodeState) {
		n.Lapsed = !n.Ready
	})},
	{Name: "takes silence for death", Invariants: []int{5, 7}, Fenced: true, Next: withNodes(func(n *nodes.NodeState) {
		if !n.Ready {
			n.Taints = append(slices.Clip(n.Taints), corev1.Taint{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute})
		}
	})},
	{Name: "gives up what would wait", Invariants: []int{5}, Fenced: true, Load: withoutWishes(func(spec *corev1.PodSpec) {
		spec.Tolerations = nil
	})},
	{Name: "counts leases by a clock that runs ahead", Invariants: []int{5}, Fenced: true, Hastes: true},
	{Name: "forgets at its start what earlier servers granted", Invariants: []int{5}, Fenced: true, Next: withNodes(func(n *nodes.NodeState) {
		n.Lapsed = n.Lapsed || !n.Ready && strings.Contains(n.Reason, "since the server started")
	})},
	{Name: "gives every node the same range", Invariants: []int{6}, Several: true, Assign: func(_ *world, a nodes.Assignment) nodes.Assignment {
		if a.PodCIDR.IsValid() {
			a.PodCIDR = netip.MustParsePrefix("10.244.77.0/24")
		}
		return a
	}},
	{Name: "goes on when another server leads", Invariants: []int{5}, Several: true, Clings: true},
	{Name: "never kills what is fenced", Invariants: []int{5}, Fenced: true, Spares: true},
	{Name: "gives leases to nodes that were not told what was given away", Invariants: []int{5}, Fenced: true, Assign: func(w *world, a nodes.Assignment) nodes.Assignment {
		if old := w.witness.assignmentOf(a.Node); old.Node != "" && old.Session != a.Session {
			old.Session = a.Session
			return old
		}
		return a
	}},
	{Name: "gives up in a storm", Invariants: []int{5, 7}, Fenced: true, Next: func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		return planner.Next(s, withStrangers(s, c, now), now)
	}},
	{Name: "drains what nobody drained", Invariants: []int{7}, Many: true, Next: withNodes(func(n *nodes.NodeState) {
		if n.Name < "n4" {
			n.Taints = append(slices.Clip(n.Taints), corev1.Taint{Key: drainTaint, Effect: corev1.TaintEffectNoExecute})
		}
	})},
	{Name: "takes more pods away at once than it may", Invariants: []int{4}, Load: func(s *desired.Snapshot) *desired.Snapshot {
		return withObjects(s, func(v runtime.Object) runtime.Object {
			if d, ok := v.(*appsv1.Deployment); ok && d.Spec.Strategy.RollingUpdate != nil {
				all := intstr.FromString("100%")
				d = d.DeepCopy()
				d.Spec.Strategy.RollingUpdate.MaxUnavailable = &all
				return d
			}
			return v
		})
	}},
	{Name: "hands out the Secrets of others", Invariants: []int{11}, Many: true, Assign: func(w *world, a nodes.Assignment) nodes.Assignment {
		for _, m := range w.nodes {
			for _, c := range w.witness.assignmentOf(m.name).Configs {
				if c.Key.Kind == kindSecret && !slices.ContainsFunc(a.Configs, func(o *nodes.Config) bool { return o.Key == c.Key }) {
					a.Configs = append(slices.Clip(a.Configs), c)
				}
			}
		}
		return a
	}},
	{Name: "binds pods to cordoned nodes", Invariants: []int{6}, Many: true, Tended: true, Load: withoutWords(func(n *corev1.Node) {
		n.Spec.Unschedulable = false
	})},
	{Name: "never drains", Invariants: []int{2}, Many: true, Tended: true, Load: withoutWords(func(n *corev1.Node) {
		for i := range n.Spec.Taints {
			if n.Spec.Taints[i].Key == drainTaint {
				n.Spec.Taints[i].Effect = corev1.TaintEffectNoSchedule
			}
		}
	})},
	{Name: "drains at once", Invariants: []int{9, 10}, Many: true, Tended: true, Assign: func(w *world, a nodes.Assignment) nodes.Assignment {
		truth := w.witness.truth()
		if truth == nil || !truth.intent.words[a.Node].drained {
			return a
		}
		a.Pods = slices.Clone(a.Pods)
		for i, p := range a.Pods {
			if p.Stop == nil && p.Workload.Kind != kindDaemonSet {
				goes := *p
				goes.Stop = &nodes.Stop{Grace: time.Second, Reason: "drained"}
				a.Pods[i] = &goes
			}
		}
		return a
	}},
	{Name: "takes what is out of service for silent", Invariants: []int{2}, Many: true, Tended: true, Load: withoutWords(func(n *corev1.Node) {
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
	})},
	{Name: "has watchdogs that do not bite", Invariants: []int{5}, Fenced: true, Tended: true, Tames: true},
	{Name: "lets time stand still while the clock is behind", Invariants: []int{10}, Many: true, Freezes: true},
	{Name: "plans by chance", Invariants: []int{3}, Next: func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		state, plan := planner.Next(s, c, now)
		chance++
		plan.Actions = append(plan.Actions, planner.Action{Verb: "start", Reason: time.Duration(chance).String()})
		return state, plan
	}},
}

// withNodes changes what the planner hears of connections.
func withNodes(change func(*nodes.NodeState)) func(*planner.State, planner.Change, time.Time) (*planner.State, *planner.Plan) {
	return func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		c.Nodes = slices.Clone(c.Nodes)
		for i := range c.Nodes {
			change(&c.Nodes[i])
		}
		return planner.Next(s, c, now)
	}
}

// withoutWishes changes what the pods of Deployments and StatefulSets ask for.
func withoutWishes(change func(*corev1.PodSpec)) func(s *desired.Snapshot) *desired.Snapshot {
	return func(s *desired.Snapshot) *desired.Snapshot {
		return withObjects(s, func(v runtime.Object) runtime.Object {
			v = v.DeepCopyObject()
			switch v := v.(type) {
			case *appsv1.Deployment:
				change(&v.Spec.Template.Spec)
			case *appsv1.StatefulSet:
				change(&v.Spec.Template.Spec)
			}
			return v
		})
	}
}

// withStrangers has the planner hear of many nodes more that take no pods, route
// what others route, and are never silent.
func withStrangers(s *planner.State, c planner.Change, now time.Time) planner.Change {
	known, routes := map[string]nodes.NodeState{}, uint64(0)
	for _, n := range s.Overview(now).Nodes {
		known[n.Name] = n.NodeState
		routes = max(routes, n.Routes)
	}
	for i := range c.Reports {
		routes = max(routes, c.Reports[i].Routes)
	}
	c.Nodes, c.Reports = slices.Clip(c.Nodes), slices.Clip(c.Reports)
	for i := range 30 {
		n := nodes.Node{Name: "stranger-" + strconv.Itoa(i), Unschedulable: true}
		n.Labels = map[string]string{corev1.LabelTopologyZone: "zone-" + strconv.Itoa(i%3)}
		switch is := known[n.Name]; {
		case !is.Ready:
			c.Nodes = append(c.Nodes, nodes.NodeState{Node: n, Ready: true, Since: now})
			c.Reports = append(c.Reports, nodes.Report{Node: n.Name, Complete: true, Info: &n, Routes: routes})
		case is.Routes < routes:
			c.Reports = append(c.Reports, nodes.Report{Node: n.Name, Routes: routes})
		}
	}
	return c
}

// withoutWords changes what Git says about nodes.
func withoutWords(change func(*corev1.Node)) func(s *desired.Snapshot) *desired.Snapshot {
	return func(s *desired.Snapshot) *desired.Snapshot {
		return withObjects(s, func(v runtime.Object) runtime.Object {
			if n, ok := v.(*corev1.Node); ok {
				n = n.DeepCopy()
				change(n)
				return n
			}
			return v
		})
	}
}

func withSchedules(s *desired.Snapshot, with func(*batchv1.CronJob)) *desired.Snapshot {
	return withObjects(s, func(v runtime.Object) runtime.Object {
		if c, ok := v.(*batchv1.CronJob); ok {
			c = c.DeepCopy()
			with(c)
			return c
		}
		return v
	})
}

func withScalers(s *desired.Snapshot, with func(*autoscalingv2.HorizontalPodAutoscaler)) *desired.Snapshot {
	return withObjects(s, func(v runtime.Object) runtime.Object {
		if a, ok := v.(*autoscalingv2.HorizontalPodAutoscaler); ok {
			a = a.DeepCopy()
			with(a)
			return a
		}
		return v
	})
}

// withVolumes changes the volumes of an assignment.
func withVolumes(a nodes.Assignment, with func(*nodes.Volume)) nodes.Assignment {
	a.Volumes = slices.Clone(a.Volumes)
	for i, v := range a.Volumes {
		changed := *v
		with(&changed)
		a.Volumes[i] = &changed
	}
	return a
}

// misled is a table that leads to a pod which is not there.
func misled(t *proxy.Table) *proxy.Table {
	if t == nil || len(t.Services) == 0 {
		return t
	}
	table, service, port := *t, *t.Services[0], t.Services[0].Ports[0]
	port.Endpoints = append(slices.Clone(port.Endpoints), proxy.Endpoint{Addr: netip.MustParseAddr("10.244.9.9"), Port: 1, Pod: "nobody"})
	service.Ports = []proxy.Port{port}
	table.Services = append([]*proxy.Service{&service}, t.Services[1:]...)
	return &table
}

// chance is what one of the bugs above is about; its test plays one seed at a time.
var chance int

// withObjects changes the objects of a snapshot.
func withObjects(s *desired.Snapshot, with func(runtime.Object) runtime.Object) *desired.Snapshot {
	var objects []*desired.Object
	for o := range s.All() {
		clone := *o
		clone.Value = with(o.Value)
		clone.Fingerprint = mustJSON(clone.Value)
		objects = append(objects, &clone)
	}
	return desired.NewSnapshot(s.Revision(), s.Settings(), objects, nil)
}

func moreReplicas(v runtime.Object, more int32) runtime.Object {
	d, ok := v.(*appsv1.Deployment)
	if !ok {
		return v
	}
	d = d.DeepCopy()
	*d.Spec.Replicas += more
	return d
}

// TestPlantedBugsAreFound shows that the simulator can fail.
func TestPlantedBugsAreFound(t *testing.T) {
	const tries = 200
	for _, b := range bugs {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			for n := range uint64(tries) {
				r := play(t, Options{Seed: n + 1, Rich: b.Rich, Many: b.Many, Fenced: b.Fenced, Several: b.Several, Tended: b.Tended, Bug: &b})
				if r.Err == nil {
					continue
				}
				if slices.Contains(b.Invariants, Invariant(r.Err)) {
					return
				}
				t.Logf("seed %d: %v", n+1, r.Err)
			}
			t.Errorf("none of %d seeds broke one of the invariants %v", tries, b.Invariants)
		})
	}
}
