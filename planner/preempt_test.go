package planner

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
)

// important pods have a priority and request some of a node's 16 cores.
func important(name string, replicas, priority int32, cores string, more ...option) *appsv1.Deployment {
	d := deployment(name, replicas, more...)
	d.Spec.Template.Spec.Priority = &priority
	d.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cores)}
	return d
}

// placedOn counts the pods of a workload on each node that stay.
func (w *world) placedOn(name string) map[string]int {
	count := map[string]int{}
	for _, p := range w.pods(name) {
		if p.Stop == nil && p.leaving == "" {
			count[p.Node]++
		}
	}
	return count
}

// rest lets the nodes do all that they can.
func (w *world) rest() {
	for w.turn() {
		w.now = w.now.Add(time.Millisecond)
	}
}

// TestPreemption: a pod of higher priority has as few go as it takes, and nobody
// takes the room while they end; they come back when there is room.
func TestPreemption(t *testing.T) {
	w := newWorld(t, "n1")
	low, lower := important("low", 3, 5, "4"), important("lower", 1, -1, "3")
	w.push(low, lower)
	w.settle()
	before := w.uids("lower")
	w.push(low, lower, important("high", 1, 10, "9"))
	// One core is free. Two pods of four cores make nine, so that the least of
	// all may stay.
	if got := fmt.Sprint(w.placedOn("low"), w.placedOn("lower")); got != "map[:2 n1:1] map[n1:1]" {
		t.Fatalf("low and lower: %s", got)
	}
	if got, want := w.pods("high")[0].refusal, "waits for pods of lower priority to leave node n1"; got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
	if w.count("Preempted") != 2 {
		t.Errorf("events: %v", w.events)
	}
	m := w.machines["n1"]
	for _, uid := range slices.Sorted(maps.Keys(m.held)) {
		stop := m.held[uid].Stop
		if stop == nil {
			continue
		}
		if !strings.HasPrefix(stop.Reason, "preempted by pod ") {
			t.Errorf("a pod stops because %s", stop.Reason)
		}
		w.next(Change{Reports: []nodes.Report{{Node: "n1", Gone: []nodes.UID{m.gone(uid)}}}})
		if got := fmt.Sprint(w.placedOn("low"), w.placedOn("lower")); got != "map[:2 n1:1] map[n1:1]" {
			t.Fatalf("low and lower while others end: %s", got)
		}
	}
	w.rest()
	if got := fmt.Sprint(w.placedOn("high"), w.placedOn("low"), w.uids("lower")); got != fmt.Sprint("map[n1:1] map[:2 n1:1] ", before) {
		t.Errorf("high, low and lower: %s", got)
	}
	w.push(low, lower)
	w.settle()
	if got := fmt.Sprint(w.placedOn("low"), w.uids("lower")); got != fmt.Sprint("map[n1:3] ", before) {
		t.Errorf("afterwards: %s", got)
	}
}

// TestPreemptionOutlivesTheServer: what has begun goes on, and no more is begun.
func TestPreemptionOutlivesTheServer(t *testing.T) {
	w := newWorld(t, "n1")
	low, high := important("low", 4, 0, "4"), important("high", 1, 10, "8")
	w.push(low)
	w.settle()
	w.push(low, high)
	w.restart(true)
	w.join("n1")
	w.push(low, high)
	if got := fmt.Sprint(w.placedOn("high"), w.placedOn("low")); got != "map[:1] map[:2 n1:2]" {
		t.Errorf("high and low: %s", got)
	}
	w.rest()
	if got := fmt.Sprint(w.placedOn("high"), w.placedOn("low")); got != "map[n1:1] map[:2 n1:2]" {
		t.Errorf("high and low: %s", got)
	}
}

// TestWhoIsNotPreempted: others stay where it would not help, or must not.
// TestPreemptionByPodsThatKeepApart: those that were promised a node count there
// for the ones after them, so that each makes room on a node of its own at once.
func TestPreemptionByPodsThatKeepApart(t *testing.T) {
	keeps := map[string]option{
		"anti-affinity": func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Affinity = apart(corev1.LabelHostname, d.Spec.Selector)
		},
		"spread": spreadOut,
	}
	for name, keep := range keeps {
		for _, size := range []int{2, 4, 6} {
			t.Run(fmt.Sprintf("%s over %d nodes", name, size), func(t *testing.T) {
				var names []string
				for i := range size {
					names = append(names, fmt.Sprint("n", i))
				}
				w := newWorld(t, names...)
				low := important("low", int32(4*size), 0, "4")
				w.push(low)
				w.settle()
				w.push(low, important("high", int32(size), 100, "4", keep))
				w.rest()
				if n := w.count("Preempted"); n != size {
					t.Errorf("%d pods had to go for %d", n, size)
				}
				if on := w.placedOn("high"); len(on) != size || on[""] > 0 {
					t.Errorf("on %v", on)
				}
			})
		}
	}
}

// TestAPromiseKeepsOthersAway: whom the pod that was promised a node repels is not
// bound there meanwhile, though there is room.
func TestAPromiseKeepsOthersAway(t *testing.T) {
	w := newWorld(t, "n1")
	low := important("low", 2, 0, "1")
	w.push(low)
	w.settle()
	w.push(low, important("high", 1, 100, "1", func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Affinity = apart(corev1.LabelHostname, low.Spec.Selector)
	}))
	if got, want := w.pods("low")[0].refusal, "0/1 nodes fit: 1 keeps room for a pod that is to be apart from this one"; got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
	w.work()
	if n := w.count("Preempted"); n != 2 {
		t.Errorf("%d pods had to go", n)
	}
	if on := w.nodesOf("high"); !slices.Equal(on, []string{"n1"}) {
		t.Errorf("on %v", on)
	}
}

func TestWhoIsNotPreempted(t *testing.T) {
	never := func(d *appsv1.Deployment) { d.Spec.Template.Spec.PreemptionPolicy = new(corev1.PreemptNever) }
	for name, c := range map[string]*appsv1.Deployment{
		"of the same priority":        important("new", 1, 5, "8"),
		"for one that must not":       important("new", 1, 10, "8", never),
		"for one that fits nowhere":   important("new", 1, 10, "17"),
		"for one that fits elsewhere": important("new", 1, 10, "1"),
		"for one that selects nodes that are not there": important("new", 1, 10, "8", func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.NodeSelector = map[string]string{"a": "b"}
		}),
	} {
		w := newWorld(t, "n1")
		w.push(important("low", 3, 5, "5"))
		w.settle()
		before := w.uids("low")
		w.push(important("low", 3, 5, "5"), c)
		w.rest()
		if got := w.uids("low"); !slices.Equal(got, before) {
			t.Errorf("%s: %v, before %v", name, got, before)
		}
	}
}

// TestPreemptionChoosesTheCheapestNode: where the most important of those that
// have to go is the least important, then where fewer go.
func TestPreemptionChoosesTheCheapestNode(t *testing.T) {
	on := func(node string) option {
		return func(d *appsv1.Deployment) { d.Spec.Template.Spec.NodeName = node }
	}
	for _, c := range []struct {
		name string
		have []runtime.Object
		want string
	}{
		{"less important", []runtime.Object{important("a", 1, 7, "16", on("n1")), important("b", 2, 5, "8", on("n2"))}, "n2"},
		{"fewer", []runtime.Object{important("a", 4, 5, "4", on("n1")), important("b", 2, 5, "8", on("n2"))}, "n2"},
		{"nobody at all", []runtime.Object{important("a", 1, 5, "16", on("n1")), important("b", 1, 5, "1", on("n2"))}, "n2"},
	} {
		w := newWorld(t, "n1", "n2")
		w.push(c.have...)
		w.settle()
		w.push(append(c.have, important("high", 1, 10, "12"))...)
		w.rest()
		if got := w.placedOn("high"); got[c.want] != 1 {
			t.Errorf("%s: %v, want %s", c.name, got, c.want)
		}
	}
}

// TestPreemptionSettles: whatever is pushed, nodes never hold more than they can,
// the going comes to an end, and who still waits does so for pods that are no
// less important.
func TestPreemptionSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, "n1", "n2")
		for range rapid.IntRange(1, 4).Draw(t, "pushes") {
			var objects []runtime.Object
			for _, name := range []string{"a", "b", "c"} {
				cores := fmt.Sprint(rapid.IntRange(1, 12).Draw(t, "cores"))
				d := important(name, int32(rapid.IntRange(0, 4).Draw(t, "replicas")), rapid.SampledFrom([]int32{-5, 0, 5, 10}).Draw(t, "priority"), cores)
				if rapid.Bool().Draw(t, "polite") {
					d.Spec.Template.Spec.PreemptionPolicy = new(corev1.PreemptNever)
				}
				objects = append(objects, d)
			}
			w.push(objects...)
			w.within(t)
			for range rapid.IntRange(0, 3).Draw(t, "turns") {
				w.turn()
				w.within(t)
			}
			if rapid.IntRange(0, 3).Draw(t, "restarts") == 0 {
				w.restart(true)
				w.join("n1")
				w.join("n2")
				w.push(objects...)
			}
		}
		for turns := 0; w.turn(); turns++ {
			w.now = w.now.Add(time.Millisecond)
			w.within(t)
			if turns > 300 {
				t.Fatalf("it does not come to an end: %v", w.s.Progress())
			}
		}
		for waiter := range keys(w.s.pending) {
			p := w.s.waitingPod(waiter)
			for _, node := range []string{"n1", "n2"} {
				if left := 16000 - w.cores(node, priority(p)); preempts(p) && left >= milli(p) {
					t.Errorf("%s waits (%s), but %d thousandths of %s are free or held by less important pods", p.Name, p.refusal, left, node)
				}
			}
		}
		if before := w.s; len(w.next(Change{}).Actions) > 0 {
			t.Errorf("there is more to do: %v, after %v", w.last.Actions, before.Progress())
		}
	})
}

func milli(p *pod) int64 {
	return p.Template.Spec.Containers[0].Resources.Requests.Cpu().MilliValue()
}

// cores are those that pods from a priority on hold on a node, in thousandths.
func (w *world) cores(node string, from int32) (sum int64) {
	n, _ := w.s.nodes.Get(node)
	for uid := range keys(n.pods) {
		if _, p := w.s.pod(uid); priority(p) >= from {
			sum += milli(p)
		}
	}
	return sum
}

// within checks that no node holds more than it can.
func (w *world) within(t *rapid.T) {
	for _, node := range []string{"n1", "n2"} {
		if used := w.cores(node, math.MinInt32); used > 16000 {
			t.Fatalf("%d thousandths of %s are used", used, node)
		}
	}
}

// TestPreemptionSparesBudgets: of pods that are alike those go that a
// PodDisruptionBudget does not hold, and where all are held it is broken.
func TestPreemptionSparesBudgets(t *testing.T) {
	low := func(name string) *appsv1.Deployment { return important(name, 2, 0, "4") }
	high := func(cores string) *appsv1.Deployment { return important("high", 1, 10, cores) }
	for _, c := range []struct {
		name   string
		spec   policyv1.PodDisruptionBudgetSpec
		cores  string
		held   int
		others int
	}{
		{"all are to serve", policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromInt32(2))}, "8", 2, 0},
		{"one may go", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: new(intstr.FromString("50%"))}, "12", 1, 0},
		{"nothing else helps", policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromString("100%"))}, "16", 0, 0},
	} {
		w := newWorld(t, "n1")
		c.spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a-held"}}
		pdb := &policyv1.PodDisruptionBudget{
			TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "held"}, Spec: c.spec,
		}
		w.push(low("a-held"), low("others"), pdb)
		w.settle()
		w.push(low("a-held"), low("others"), pdb, high(c.cores))
		if got, others := w.placedOn("a-held")["n1"], w.placedOn("others")["n1"]; got != c.held || others != c.others {
			t.Errorf("%s: %d of the budget's pods and %d others stay, want %d and %d", c.name, got, others, c.held, c.others)
		}
	}
}
