package planner

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/nodes"
)

// readyAll lets every node report its pods ready, and nothing of routes.
func (w *world) readyAll() {
	w.t.Helper()
	for name, m := range w.machines {
		r := nodes.Report{Node: name}
		for uid, p := range m.held {
			if p.Stop == nil {
				r.Statuses = append(r.Statuses, m.setReady(uid, true, w.now))
			}
		}
		w.next(Change{Reports: []nodes.Report{r}})
	}
}

// waitsFor are the objects that the plan waits for.
func (w *world) waitsFor() string {
	var names []string
	for _, item := range w.last.Waiting {
		names = append(names, item.Object.String())
	}
	return strings.Join(names, ", ")
}

func TestConvergesWhenItsRoutesAreInForce(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	converged := func() bool { c, _ := w.s.Settled(); return c }
	w.push(deployment("web", 2))
	w.settle()
	t.Log("a Service alone, to pods that are ready")
	w.push(deployment("web", 2), serviceFor("web"))
	if converged() || w.waitsFor() != "Node n1, Node n2" || w.s.Overview(w.now).Plan.Converged {
		t.Fatalf("converged %v, waits for %s", converged(), w.waitsFor())
	}
	if lines := w.s.Progress(); len(lines) != 0 {
		t.Errorf("told before it takes long: %v", lines)
	}
	w.next(Change{Reports: []nodes.Report{w.route("n1")}})
	if converged() || w.waitsFor() != "Node n2" {
		t.Fatalf("converged %v, waits for %s", converged(), w.waitsFor())
	}
	if p := w.next(Change{Reports: []nodes.Report{w.route("n2")}}); !converged() || len(p.Waiting) > 0 {
		t.Fatalf("waits for %s", w.waitsFor())
	}
	t.Log("pods behind it that get ready")
	w.push(deployment("web", 4), serviceFor("web"))
	w.readyAll()
	if converged() || w.waitsFor() != "Node n1, Node n2" {
		t.Fatalf("converged %v, waits for %s", converged(), w.waitsFor())
	}
	w.settle()
	t.Log("what no route leads to")
	w.push(deployment("web", 4), serviceFor("web"), configMap("other", nil))
	if !converged() {
		t.Errorf("waits for %s", w.waitsFor())
	}
}

// TestRoutesOfLaterHoldNobodyUp: what a schedule started comes and goes, and
// the node is always one table behind.
func TestRoutesOfLaterHoldNobodyUp(t *testing.T) {
	w := newWorld(t, "n1")
	run := runName("backup", "12:10:00")
	service := serviceFor("backup")
	service.Spec.Selector, service.Spec.Ports[0].TargetPort = map[string]string{"job-name": run}, intstr.FromInt32(80)
	w.push(cronJob("backup", "*/10 * * * *"), service)
	w.goners()
	w.at("12:10:00")
	w.push(cronJob("backup", "*/10 * * * *"), service, serviceFor("new"))
	behind := w.route("n1")
	ready := w.machines["n1"].setReady(w.working(run)[0].UID, true, w.now)
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{ready}}}})
	if w.s.routes.Generation == behind.Routes {
		t.Fatal("nothing was routed anew")
	}
	w.next(Change{Reports: []nodes.Report{behind}})
	if converged, failed := w.s.Settled(); !converged {
		t.Errorf("%q, waits for %s", failed, w.waitsFor())
	}
}

func TestSlowRoutesAreToldAndFail(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(serviceFor("web"))
	w.settle()
	w.push(serviceFor("web"), serviceFor("other"))
	w.next(Change{Reports: []nodes.Report{w.route("n1")}})
	if !w.last.Wake.Equal(w.now.Add(routesSlow)) {
		t.Fatalf("wakes at %s", w.last.Wake)
	}
	w.now = w.last.Wake
	w.next(Change{})
	if lines := w.s.Progress(); len(lines) != 1 || lines[0].Line != "Node n2: has not put the newest routes into force yet" {
		t.Errorf("a push is told %v", lines)
	}
	if _, failed := w.s.Settled(); failed != "" {
		t.Errorf("failed at once: %s", failed)
	}
	w.now = w.last.Wake
	w.next(Change{})
	if _, failed := w.s.Settled(); failed != "node n2 has not put the routes of this revision into force for 1m0s; its agent's log says why" {
		t.Errorf("failed: %q", failed)
	}
	if !w.last.Wake.IsZero() {
		t.Errorf("wakes at %s for nothing", w.last.Wake)
	}
	w.next(Change{Reports: []nodes.Report{w.route("n2")}})
	if converged, failed := w.s.Settled(); !converged {
		t.Errorf("does not recover: %q", failed)
	}
}

func TestSilentNodesAreNamedAndNotWaitedFor(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(serviceFor("web"))
	w.settle()
	w.next(Change{Nodes: []nodes.NodeState{{Node: info("n2"), Since: w.now, Reason: "silent"}}})
	w.push(serviceFor("web"), serviceFor("other"))
	w.next(Change{Reports: []nodes.Report{w.route("n1")}})
	if converged, _ := w.s.Settled(); !converged || w.s.Unrouted() != "node n2 is silent and may route as before" {
		t.Fatalf("converged %v, %q; waits for %s", converged, w.s.Unrouted(), w.waitsFor())
	}
	w.now = w.now.Add(time.Hour)
	w.join("n2")
	if converged, failed := w.s.Settled(); converged || failed != "" || w.waitsFor() != "Node n2" {
		t.Fatalf("a node that is back: converged %v, %q, waits for %s", converged, failed, w.waitsFor())
	}
	w.next(Change{Reports: []nodes.Report{w.route("n2")}})
	if converged, _ := w.s.Settled(); !converged || w.s.Unrouted() != "" {
		t.Errorf("converged %v, %q", converged, w.s.Unrouted())
	}
}

// TestRoutesThatMustWaitAreWaitedFor: after a start no table is made before the
// nodes of the record have reported.
func TestRoutesThatMustWaitAreWaitedFor(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 4), serviceFor("web"))
	w.settle()
	w.restart(true)
	early, late := "n1", "n2"
	if len(w.machines[early].held) > 0 {
		early, late = late, early
	}
	w.join(early)
	w.push(deployment("web", 4), serviceFor("web"), serviceFor("other"))
	if converged, _ := w.s.Settled(); converged || !strings.Contains(w.waitsFor(), "Node "+late) {
		t.Fatalf("converged %v, waits for %s", converged, w.waitsFor())
	}
	w.join(late)
	w.settle()
}

// TestPlansListFewThatWait: with thousands of nodes a list of all at every step
// would be most of the work.
func TestPlansListFewThatWait(t *testing.T) {
	var names []string
	for i := range maxWaits + 20 {
		names = append(names, fmt.Sprintf("n%03d", i))
	}
	w := newWorld(t, names...)
	w.push(deployment("web", 1))
	w.settle()
	p := w.push(deployment("web", 1), serviceFor("web"))
	if len(p.Waiting) != maxWaits || p.MoreWaiting != 20 || p.Empty() {
		t.Errorf("%d wait, and %d more", len(p.Waiting), p.MoreWaiting)
	}
	if all := w.s.Overview(w.now).Plan.Waiting; len(all) != len(names) {
		t.Errorf("the overview shows %d of %d that wait", len(all), len(names))
	}
}

// TestLatePodThatComesIsRoutedFirst: a workload that was late before a revision
// does not hold it up, and gets well just when the nodes have its routes.
func TestLatePodThatComesIsRoutedFirst(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 1), serviceFor("web"))
	w.settle()
	m, uid := w.machines["n1"], w.pods("web")[0].UID
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{m.setReady(uid, false, w.now)}}}})
	w.next(Change{Reports: []nodes.Report{w.route("n1")}})
	w.now = w.now.Add(time.Hour)
	w.next(Change{})
	if !w.verdict("web").Late {
		t.Fatalf("not late: %+v", w.verdict("web"))
	}
	w.now = w.now.Add(time.Minute)
	w.push(deployment("web", 1), serviceFor("web"), serviceFor("other"))
	well := w.route("n1")
	well.Statuses = []nodes.PodStatus{m.setReady(uid, true, w.now)}
	if p := w.next(Change{Reports: []nodes.Report{well}}); p.Routes == nil {
		t.Fatal("no table with the pod that is ready")
	}
	if converged, _ := w.s.Settled(); converged {
		t.Error("converged before the node routes to the pod")
	}
	w.next(Change{Reports: []nodes.Report{w.route("n1")}})
	if converged, _ := w.s.Settled(); !converged {
		t.Error("not converged when it does")
	}
}
