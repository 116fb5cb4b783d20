package planner

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// machineOf is a Node of Git.
func machineOf(name string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: taints},
	}
}

var (
	dead     = corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}
	drainNow = corev1.Taint{Key: "drain", Effect: corev1.TaintEffectNoExecute}
)

// fallSilent has the server stop hearing from nodes.
func (w *world) fallSilent(names ...string) {
	w.t.Helper()
	var c Change
	for _, name := range names {
		c.Nodes = append(c.Nodes, nodes.NodeState{Node: info(name), Since: w.now, Reason: "no heartbeat"})
	}
	w.next(c)
}

// lapse ends a silent node's lease.
func (w *world) lapse(name string) {
	w.t.Helper()
	w.next(Change{Nodes: []nodes.NodeState{{Node: info(name), Since: w.now, Reason: "no heartbeat", Lapsed: true}}})
}

// elapse lets time pass, waking the planner whenever it asks for it.
func (w *world) elapse(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); ; {
		if w.last.Wake.IsZero() || w.last.Wake.After(end) {
			w.now = end
			w.next(Change{})
			return
		}
		w.now = w.last.Wake
		w.next(Change{})
	}
}

// work lets the nodes that answer do what they are told, all but some.
func (w *world) work(but ...string) {
	w.t.Helper()
	all := w.machines
	w.machines = map[string]*machine{}
	for name, m := range all {
		if !slices.Contains(but, name) {
			w.machines[name] = m
		}
	}
	defer func() { w.machines = all }()
	for range 100 {
		if !w.turn() {
			return
		}
	}
	w.t.Fatalf("the cluster does not settle: %v", w.s.Progress())
}

// on lists the pods of a workload that stay, as "name node".
func (w *world) on(name string) (out []string) {
	for _, p := range w.pods(name) {
		out = append(out, p.Name+" "+p.Node)
	}
	slices.Sort(out)
	return out
}

// nodesOf are the nodes that a workload's pods are on.
func (w *world) nodesOf(name string) (out []string) {
	for _, p := range w.pods(name) {
		out = append(out, p.Node)
	}
	slices.Sort(out)
	return out
}

// spreadOut spreads pods over the nodes.
func spreadOut(d *appsv1.Deployment) {
	d.Spec.Template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: d.Spec.Selector,
	}}
}

func tolerating(key string, seconds int64) option {
	return func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds}}
	}
}

func TestSilentNode(t *testing.T) {
	type wait struct {
		after time.Duration
		still bool
	}
	tests := map[string]struct {
		pods option
		// waits tell whether the pods are still on the silent node after a time.
		waits []wait
	}{
		"no toleration":              {nil, []wait{{100 * time.Millisecond, true}, {2 * time.Second, false}}},
		"unreachable for a minute":   {tolerating(corev1.TaintNodeUnreachable, 60), []wait{{59 * time.Second, true}, {2 * time.Second, false}}},
		"not ready for a minute":     {tolerating(corev1.TaintNodeNotReady, 60), []wait{{59 * time.Second, true}, {2 * time.Second, false}}},
		"another taint for a minute": {tolerating("other", 60), []wait{{2 * time.Second, false}}},
		"everything, for ever": {func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}, []wait{{24 * time.Hour, true}}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			options := []option{spreadOut}
			if test.pods != nil {
				options = append(options, test.pods)
			}
			w.push(deployment("a", 2, options...), serviceFor("a"))
			w.settle()
			w.fallSilent("n1")
			for _, wait := range test.waits {
				w.elapse(wait.after)
				if still := slices.Contains(w.nodesOf("a"), "n1"); still != wait.still {
					t.Fatalf("%s later: on %v", wait.after, w.nodesOf("a"))
				}
			}
		})
	}
}

// TestGiveUp: what is given up is replaced at once, and stopped by its node
// when that is back, after it has taken the routes.
func TestGiveUp(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	w.push(deployment("a", 3, spreadOut), serviceFor("a"), barePod("solo", "app:1"))
	w.settle()
	gone := w.pods("solo")[0].Node
	w.fallSilent(gone)
	w.elapse(2 * time.Second)
	w.work(gone)
	if slices.Contains(w.nodesOf("a"), gone) || len(w.pods("a")) != 3 && !strings.Contains(fmt.Sprint(w.s.Progress()), "spread") {
		t.Fatalf("a runs on %v: %v", w.nodesOf("a"), w.s.Progress())
	}
	if on := w.nodesOf("solo"); len(on) != 1 || on[0] == gone {
		t.Fatalf("the bare pod runs on %v", on)
	}
	w.join(gone)
	if held := w.machines[gone].held; len(held) == 0 {
		t.Fatal("the node has forgotten its pods")
	}
	w.settle()
	w.checkHeldOnce(t)
}

// checkHeldOnce: every pod that a machine holds is wanted there.
func (w *world) checkHeldOnce(t *testing.T) {
	t.Helper()
	for _, m := range w.machines {
		for uid := range m.held {
			if _, p := w.s.pod(uid); p == nil || p.leaving != "" || p.Node != m.name {
				t.Errorf("node %s still holds %s", m.name, uid)
			}
		}
	}
}

// TestReturnInTime: nothing happens to the pods of a node that is back before
// they were given up.
func TestReturnInTime(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("a", 4, spreadOut), serviceFor("a"))
	w.settle()
	before := w.uids("a")
	w.fallSilent("n1")
	w.elapse(500 * time.Millisecond)
	w.join("n1")
	w.settle()
	if after := w.uids("a"); !slices.Equal(before, after) {
		t.Fatalf("before %v\nafter  %v", before, after)
	}
}

// TestTolerationSurvivesRestart: a pod's time goes on while the server is away.
func TestTolerationSurvivesRestart(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("a", 2, spreadOut, tolerating(corev1.TaintNodeUnreachable, 600)))
	w.settle()
	w.fallSilent("n1")
	w.elapse(9 * time.Minute)
	w.restart(true)
	w.next(Change{
		Nodes:    []nodes.NodeState{{Node: info("n1"), Since: w.now, Reason: "has not reported since the server started"}, {Node: info("n2"), Ready: true}},
		Reports:  []nodes.Report{w.machines["n2"].complete()},
		Snapshot: w.snapshot, Source: w.source,
	})
	w.elapse(50 * time.Second)
	if on := w.nodesOf("a"); !slices.Equal(on, []string{"n1", "n2"}) {
		t.Fatalf("too early: %v", on)
	}
	w.elapse(20 * time.Second)
	if on := w.nodesOf("a"); slices.Contains(on, "n1") {
		t.Fatalf("the time began anew: %v", on)
	}
}

// TestStorm: when most nodes fall silent together nothing is given up, until
// enough are back, or are declared dead.
func TestStorm(t *testing.T) {
	names := []string{"n1", "n2", "n3", "n4", "n5"}
	begin := func(t *testing.T) (*world, *appsv1.Deployment) {
		w := newWorld(t, names...)
		d := deployment("a", 5, spreadOut)
		w.push(d)
		w.settle()
		w.fallSilent("n1", "n2", "n3")
		w.elapse(time.Minute)
		if on := w.nodesOf("a"); !slices.Equal(on, names) {
			t.Fatalf("given up in a storm: %v", on)
		}
		if said := fmt.Sprint(w.last.Waiting); !strings.Contains(said, "3 of 5 nodes are silent at once") {
			t.Fatalf("nobody says why: %s", said)
		}
		return w, d
	}
	t.Run("enough are back", func(t *testing.T) {
		w, _ := begin(t)
		w.join("n1")
		w.elapse(afterStorm - time.Second)
		if on := w.nodesOf("a"); !slices.Equal(on, names) {
			t.Fatalf("given up as soon as the first was back: %v", on)
		}
		w.elapse(2 * time.Second)
		if on := w.nodesOf("a"); slices.Contains(on, "n2") || slices.Contains(on, "n3") || !slices.Contains(on, "n1") {
			t.Fatalf("on %v", on)
		}
	})
	t.Run("declared dead", func(t *testing.T) {
		w, d := begin(t)
		w.push(d, machineOf("n2", dead))
		w.elapse(afterStorm + 2*time.Second)
		if on := w.nodesOf("a"); slices.Contains(on, "n2") || slices.Contains(on, "n1") {
			t.Fatalf("on %v: %v", on, w.last.Waiting)
		}
	})
	t.Run("one after the other", func(t *testing.T) {
		w := newWorld(t, names...)
		w.push(deployment("a", 5, spreadOut))
		w.settle()
		for _, name := range names[:3] {
			w.fallSilent(name)
			w.elapse(300 * time.Millisecond)
		}
		w.elapse(time.Minute)
		if on := w.nodesOf("a"); !slices.Equal(on, names) {
			t.Fatalf("given up before all had fallen silent: %v", on)
		}
	})
}

func TestStormOfZone(t *testing.T) {
	names := []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"}
	w := newWorld(t, names...)
	objects := []runtime.Object{deployment("a", 8, spreadOut)}
	for i, name := range names {
		m := machineOf(name)
		m.Labels = map[string]string{corev1.LabelTopologyZone: fmt.Sprintf("z%d", i/4)}
		objects = append(objects, m)
	}
	w.push(objects...)
	w.settle()
	w.fallSilent("n1", "n2", "n3", "n5")
	w.elapse(time.Minute)
	on := w.nodesOf("a")
	if slices.Contains(on, "n5") || !slices.Contains(on, "n1") {
		t.Fatalf("on %v, and zone z0 is in a storm", on)
	}
}

func TestLastNode(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("a", 2), serviceFor("a"))
	w.settle()
	before, table := w.uids("a"), w.s.routes
	w.fallSilent("n1")
	w.elapse(time.Hour)
	if after := w.uids("a"); !slices.Equal(before, after) || w.s.routes != table {
		t.Fatalf("the only node's pods were given up: %v", after)
	}
}

// stateful pods of db, one on each of n1 to n3.
func fencedSet(annotations map[string]string) *appsv1.StatefulSet {
	s := statefulSet("db", 3)
	s.Annotations = annotations
	s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	s.Spec.Template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: s.Spec.Selector,
	}}
	return s
}

var fenced = map[string]string{desired.FailoverAnnotation: desired.FailoverFenced}

// promise has a node's keeper fence what the newest assignment asks for.
func (w *world) promise(name string) {
	w.t.Helper()
	n, _ := w.s.nodes.Get(name)
	w.next(Change{Reports: []nodes.Report{{Node: name, Fenced: w.s.fencedOn(n)}}})
}

// holderOf gives the pod of an ordinal and its node.
func (w *world) holderOf(ordinal int) (nodes.UID, string) {
	for _, p := range w.pods("db") {
		if p.Ordinal == ordinal {
			return p.UID, p.Node
		}
	}
	return "", ""
}

func TestFencedFailover(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	w.push(fencedSet(fenced))
	w.settle()
	uid, node := w.holderOf(1)
	w.promise(node)
	w.fallSilent(node)
	w.elapse(time.Hour)
	if now, _ := w.holderOf(1); now != uid {
		t.Fatal("given away while its lease may be valid")
	}
	w.lapse(node)
	w.work(node)
	now, other := w.holderOf(1)
	if now == uid || now == "" || other == node || other == "" {
		t.Fatalf("db-1 is %s on %q: %v", now, other, w.last.Waiting)
	}
	if _, p := w.s.pod(now); !p.serving() {
		t.Fatal("the successor is not up")
	}
	// The node is back with what its keeper has killed: it stops the rest of it.
	if p := w.join(node); len(p.Assignments) == 0 || p.Assignments[len(p.Assignments)-1].Pods[0].Stop == nil && len(p.Assignments[len(p.Assignments)-1].Pods) == 1 {
		t.Fatalf("the returning node is not told to stop it: %+v", p.Assignments)
	}
	w.settle()
	w.checkHeldOnce(t)
}

// TestPromiseOfBefore: a fence was taken back, and is asked for again. A promise
// that was on its way meanwhile says nothing of what the keeper holds now, whether
// there was another before it or not.
func TestPromiseOfBefore(t *testing.T) {
	for name, first := range map[string]bool{"another was heard before": true, "none was heard before": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2", "n3")
			w.push(fencedSet(fenced))
			w.settle()
			uid, node := w.holderOf(1)
			session := func(number uint64) {
				w.next(Change{
					Nodes:   []nodes.NodeState{{Node: info(node), Ready: true, Since: w.now, Session: number}},
					Reports: []nodes.Report{w.machines[node].complete()},
				})
			}
			lapse := func(number uint64) {
				w.next(Change{Nodes: []nodes.NodeState{{Node: info(node), Since: w.now, Lapsed: true, Session: number}}})
				w.elapse(time.Minute)
			}
			session(1)
			if first {
				w.promise(node)
			}
			w.push(fencedSet(nil))
			w.push(fencedSet(fenced))
			w.promise(node) // sent before the fence was taken back
			lapse(1)
			if now, _ := w.holderOf(1); now != uid {
				t.Fatal("given away though nobody knows that a keeper holds its fence")
			}
			session(2)
			w.promise(node)
			lapse(2)
			if now, _ := w.holderOf(1); now == uid {
				t.Fatalf("not given away though its keeper promised in a new session: %v", w.last.Waiting)
			}
		})
	}
}

// TestAPodThatRunsIsFencedLater: a promise counts in the session in which the
// fence was first asked for.
func TestAPodThatRunsIsFencedLater(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	w.push(fencedSet(nil))
	w.settle()
	uid, node := w.holderOf(1)
	w.push(fencedSet(fenced))
	w.promise(node)
	w.fallSilent(node)
	w.elapse(time.Minute)
	w.lapse(node)
	if now, _ := w.holderOf(1); now == uid {
		t.Fatalf("not given away: %v", w.last.Waiting)
	}
}

func TestWaitsForItsNode(t *testing.T) {
	tests := map[string]struct {
		annotations map[string]string
		promised    bool
		want        string
	}{
		"not fenced":           {nil, false, "is not fenced"},
		"fence never reported": {fenced, false, "is not fenced"},
		"lease not over":       {fenced, true, "until the node's lease is over"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2", "n3")
			set := fencedSet(test.annotations)
			w.push(set)
			w.settle()
			uid, node := w.holderOf(1)
			if test.promised {
				w.promise(node)
			} else {
				defer func() {
					w.lapse(node)
					if now, _ := w.holderOf(1); now != uid {
						t.Error("given away without a fence")
					}
				}()
			}
			w.fallSilent(node)
			w.elapse(time.Hour)
			if now, _ := w.holderOf(1); now != uid {
				t.Fatal("given away")
			}
			if said := fmt.Sprint(w.last.Waiting); !strings.Contains(said, test.want) {
				t.Fatalf("nobody says why: %s", said)
			}
		})
	}
}

// TestOutOfService: what Git has declared dead is dead; while the node answers
// the taint only evicts.
func TestOutOfService(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	set := fencedSet(nil)
	w.push(set, deployment("a", 3, spreadOut))
	w.settle()
	uid, node := w.holderOf(1)
	w.fallSilent(node)
	w.elapse(time.Minute)
	w.push(set, deployment("a", 3, spreadOut), machineOf(node, dead))
	w.work(node)
	now, other := w.holderOf(1)
	if now == uid || other == node || other == "" {
		t.Fatalf("db-1 is %s on %q: %v", now, other, w.last.Waiting)
	}
	if converged, failed := w.s.Settled(); failed != "" {
		t.Fatalf("settled %v, %q", converged, failed)
	}
	w.join(node)
	w.push(set, deployment("a", 3, spreadOut))
	w.settle()
	w.checkHeldOnce(t)
}

// TestLostJobPod: a pod that is lost counts as failed, as one that is taken away.
func TestLostJobPod(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	j := job("once", 1, 1, func(j *batchv1.Job) { j.Spec.BackoffLimit = new(int32(3)) })
	w.push(j)
	p := w.working("once")[0]
	w.machines[p.Node].setReady(p.UID, true, w.now)
	w.fallSilent(p.Node)
	w.elapse(30 * time.Second)
	again := w.working("once")
	if len(again) != 1 || again[0].UID == p.UID || again[0].Node == p.Node || again[0].Node == "" {
		t.Fatalf("at work: %+v", again)
	}
	if g, _ := w.s.groups.Get(keyOf(j)); g.run.Failed != 1 {
		t.Fatalf("%d failed", g.run.Failed)
	}
}

// TestWhatSaysThatItIsFenced: of no pod that says so two run, of whatever kind.
func TestWhatSaysThatItIsFenced(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	d := deployment("a", 1)
	d.Annotations = fenced
	w.push(d)
	w.settle()
	before := w.pods("a")[0]
	w.promise(before.Node)
	w.fallSilent(before.Node)
	w.elapse(time.Hour)
	if after := w.pods("a"); len(after) != 1 || after[0].UID != before.UID {
		t.Fatalf("given up while its lease may be valid: %v", w.uids("a"))
	}
	w.lapse(before.Node)
	w.work(before.Node)
	if after := w.pods("a"); len(after) != 1 || after[0].UID == before.UID || !after[0].serving() {
		t.Fatalf("not given away: %v, %v", w.uids("a"), w.last.Waiting)
	}
}

// inOrder is a StatefulSet over the nodes that starts one pod after the other.
func inOrder(replicas int32) *appsv1.StatefulSet {
	s := fencedSet(nil)
	s.Spec.Replicas, s.Spec.PodManagementPolicy = &replicas, appsv1.OrderedReadyPodManagement
	return s
}

func parallel(replicas int32) *appsv1.StatefulSet {
	s := fencedSet(nil)
	s.Spec.Replicas = &replicas
	return s
}

// TestStatefulSetWithASilentPod: in order it waits for that pod, as for any that
// is not ready; in parallel the others go on. Its ordinal is nobody else's.
func TestStatefulSetWithASilentPod(t *testing.T) {
	newer := func(s *appsv1.StatefulSet) *appsv1.StatefulSet {
		s.Spec.Template.Spec.Containers[0].Image = "app:2"
		return s
	}
	tests := map[string]struct {
		before, after *appsv1.StatefulSet
		silent        int
		// want are the pods that are there then, the silent one included, and how many
		// of them have the newer template; says is what is waited for.
		want    []int
		updated int
		says    string
	}{
		"in order, more":     {inOrder(3), inOrder(4), 1, []int{0, 1, 2}, 0, "is not fenced"},
		"in order, fewer":    {inOrder(3), inOrder(2), 0, []int{0, 1, 2}, 0, "is not fenced"},
		"in order, newer":    {inOrder(3), newer(inOrder(3)), 0, []int{0, 1, 2}, 0, "is not fenced"},
		"in parallel, more":  {parallel(3), parallel(5), 1, []int{0, 1, 2, 3, 4}, 0, "is not fenced"},
		"in parallel, fewer": {parallel(3), parallel(2), 0, []int{0, 1}, 0, "is not fenced"},
		"in parallel, newer": {parallel(3), newer(parallel(3)), 1, []int{0, 1, 2}, 0, "is not fenced"},
		"in parallel, newer, room for two": {parallel(3), func() *appsv1.StatefulSet {
			s := newer(parallel(3))
			two := intstr.FromInt32(2)
			s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{
				Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{MaxUnavailable: &two},
			}
			return s
		}(), 1, []int{0, 1, 2}, 2, "is not fenced"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2", "n3")
			w.push(test.before)
			w.settle()
			uid, node := w.holderOf(test.silent)
			w.fallSilent(node)
			w.elapse(time.Minute)
			w.push(test.after)
			w.work(node)
			var got []int
			updated := 0
			for _, p := range w.pods("db") {
				got = append(got, p.Ordinal)
				if p.Template.Spec.Containers[0].Image == "app:2" {
					updated++
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, test.want) || updated != test.updated {
				t.Errorf("ordinals %v, want %v; %d updated, want %d", got, test.want, updated, test.updated)
			}
			if said := fmt.Sprint(w.last.Waiting); !strings.Contains(said, test.says) {
				t.Errorf("want %q in %s", test.says, said)
			}
			if _, p := w.s.pod(uid); p == nil || p.lost != "" {
				t.Error("the silent pod was forgotten")
			}
			w.join(node)
			w.settle()
			w.checkHeldOnce(t)
		})
	}
}
