package planner

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
)

func TestOverview(t *testing.T) {
	w := newWorld(t, "n1")
	balanced := serviceFor("web")
	balanced.Spec.Type = corev1.ServiceTypeLoadBalancer
	w.push(deployment("web", 2), balanced)
	m := w.machines["n1"]
	pods := w.pods("web")
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{
		m.setReady(pods[0].UID, true, w.now), m.setReady(pods[1].UID, false, w.now),
	}}}})
	o := w.s.Overview(w.now)
	var lines []string
	for _, h := range o.Objects {
		lines = append(lines, strings.Join([]string{h.Key.Kind, h.Owner.Kind, string(h.Health), h.Reason}, "|"))
	}
	want := []string{
		"Deployment||progressing|1 of 2 pods available; pod " + pods[1].Name + ": CrashLoopBackOff: back-off",
		"ReplicaSet|Deployment|progressing|1 of 2 pods ready",
		"Pod|ReplicaSet|healthy|",
		"Pod|ReplicaSet|progressing|not ready: CrashLoopBackOff: back-off",
		"Service||healthy|external address pending: nothing here hands them out; its node ports work",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	port := o.Services[0].Ports[0]
	if len(port.Endpoints) != 1 || port.NotReady != 1 || port.NodePort == 0 || o.Services[0].External != "pending" {
		t.Errorf("%+v", o.Services[0])
	}
	if o.Outcome != nodes.OutcomePending || o.Plan.Converged || len(o.Plan.Waiting) == 0 {
		t.Errorf("%+v", o.Plan)
	}
	w.settle()
	if o := w.s.Overview(w.now); o.Outcome != nodes.OutcomeConverged || !o.Plan.Converged || len(o.Plan.Difference) != 2 {
		t.Errorf("%s %+v", o.Outcome, o.Plan)
	}
}

func TestServiceConflictFails(t *testing.T) {
	w := newWorld(t, "n1")
	a, b := serviceFor("a"), serviceFor("b")
	a.Spec.ClusterIP, b.Spec.ClusterIP = "10.96.0.10", "10.96.0.10"
	w.push(a, b)
	if _, failed := w.s.Settled(); failed != "Service default/b: spec.clusterIP 10.96.0.10 is already another service's address" {
		t.Fatalf("failed = %q", failed)
	}
	w.push(b, configMap("c", nil))
	w.settle()
	if got := w.s.Overview(w.now).Services[0].ClusterIPs[0]; got != "10.96.0.10" {
		t.Fatalf("b has %s", got)
	}
}

// TestAddressesStay: a restart without any record keeps what the ledger has.
func TestAddressesStay(t *testing.T) {
	w := newWorld(t, "n1")
	free := serviceFor("web")
	free.Spec.Type = corev1.ServiceTypeNodePort
	w.push(deployment("web", 1), free, deployment("gone", 1), serviceFor("other"))
	w.settle()
	before := w.s.Overview(w.now).Services
	w.restart(false)
	w.join("n1")
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.settle()
	if diff := cmp.Diff(before, w.s.Overview(w.now).Services); diff != "" {
		t.Fatal(diff)
	}
}

// TestRoutesWaitForReports: a server that has just started does not cut off
// pods that it has not heard of yet.
func TestRoutesWaitForReports(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 4), serviceFor("web"))
	w.settle()
	old := w.s.routes.Generation
	w.restart(true)
	p := w.next(Change{Snapshot: w.snapshot, Source: w.source})
	if p.Routes != nil || len(p.Assignments) > 0 || !p.Wake.Equal(w.now.Add(startPatience)) {
		t.Fatalf("routes %v, %d assignments, wake %v", p.Routes, len(p.Assignments), p.Wake)
	}
	w.join("n1")
	w.join("n2")
	if r := w.s.routes; r == nil || r.Generation <= old || len(r.Services[0].Ports[0].Endpoints) != 4 {
		t.Fatalf("the first table is %+v, the one before had generation %d", r, old)
	}
}

// TestOnlyNodeKeepsItsRoutes while it is silent.
func TestOnlyNodeKeepsItsRoutes(t *testing.T) {
	for _, names := range [][]string{{"n1"}, {"n1", "n2"}} {
		w := newWorld(t, names...)
		d := deployment("web", 2)
		d.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n1"}
		w.push(d, serviceFor("web"))
		w.settle()
		p := w.next(Change{Nodes: []nodes.NodeState{{Node: info("n1"), Reason: "no heartbeat"}}})
		if cut := p.Routes != nil; cut != (len(names) > 1) {
			t.Errorf("%d nodes: cut off: %v", len(names), cut)
		}
		if len(w.pods("web")) != 2 {
			t.Errorf("%d nodes: pods were taken away", len(names))
		}
	}
}

// fail ends a bare pod without success.
func (w *world) fail(name string) {
	w.t.Helper()
	m := w.machines["n1"]
	s := m.setReady(w.pods(name)[0].UID, false, w.now)
	s.Phase = corev1.PodFailed
	m.status[s.UID] = &s
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{s}}}})
}

func (w *world) wantUndecided(when string) {
	w.t.Helper()
	if converged, failed := w.s.Settled(); converged || failed != "" {
		w.t.Fatalf("%s: converged %v, failed %q, want neither", when, converged, failed)
	}
}

func (w *world) wantFailed(about string) {
	w.t.Helper()
	if _, failed := w.s.Settled(); !strings.Contains(failed, about) {
		w.t.Fatalf("failed = %q, want something about %s", failed, about)
	}
}

// TestOldFailureIsNotTheNewRevisions: what failed before a revision, and is
// not touched by it, does not decide its outcome, but is still shown.
func TestOldFailureIsNotTheNewRevisions(t *testing.T) {
	for _, restart := range []bool{false, true} {
		w := newWorld(t, "n1")
		a, b := serviceFor("a"), serviceFor("b")
		a.Spec.ClusterIP, b.Spec.ClusterIP = "10.96.0.10", "10.96.0.10"
		w.push(deployment("web", 1), barePod("job", "app:1"), a, b)
		w.fail("job")
		for w.turn() {
		}
		w.wantFailed("Service default/b")
		w.now = w.now.Add(time.Hour)
		w.push(deployment("web", 1, image("app:2")), barePod("job", "app:1"), a)
		w.wantUndecided("after the push")
		if restart {
			w.restart(true)
			w.next(Change{Snapshot: w.snapshot, Source: w.source})
			w.join("n1")
			w.wantUndecided("after the restart")
		}
		w.settle()
		o := w.s.Overview(w.now)
		if o.Outcome != nodes.OutcomeConverged || o.Plan.Converged {
			t.Errorf("outcome %s, plan converged %v: the revision has converged, the cluster has not", o.Outcome, o.Plan.Converged)
		}
		for _, h := range o.Objects {
			if h.Key.Kind == kindPod && h.Key.Name == "job" && h.Health != nodes.Degraded {
				t.Errorf("the failed pod is %s", h.Health)
			}
		}
	}
}

// TestOldConflictIsNotTheNewRevisions: the same for a service's addresses.
func TestOldConflictIsNotTheNewRevisions(t *testing.T) {
	w := newWorld(t, "n1")
	a, b := serviceFor("a"), serviceFor("b")
	a.Spec.ClusterIP, b.Spec.ClusterIP = "10.96.0.10", "10.96.0.10"
	w.push(a, b)
	w.wantFailed("Service default/b")
	w.now = w.now.Add(time.Hour)
	w.push(a, b, deployment("web", 1))
	w.wantUndecided("after the push")
	w.settle()
	changed := serviceFor("b")
	changed.Spec.ClusterIP, changed.Labels = "10.96.0.10", map[string]string{"a": "b"}
	w.now = w.now.Add(time.Hour)
	w.push(a, changed, deployment("web", 1))
	w.wantFailed("Service default/b")
}

// TestCorrectionGetsItsTime: a workload that was late before gets a new
// deadline from the revision that changes it, or what it reads.
func TestCorrectionGetsItsTime(t *testing.T) {
	secret := func(value string) *corev1.Secret {
		return &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pull"}, Data: map[string][]byte{"password": []byte(value)}}
	}
	pulls := func(d *appsDeployment) {
		d.Spec.Template.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
	}
	for name, healed := range map[string]bool{"healed": true, "not healed": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1")
			w.push(deployment("web", 1, pulls), secret("wrong"))
			w.now = w.now.Add(time.Hour)
			w.next(Change{})
			w.wantFailed("ProgressDeadlineExceeded")
			p := w.push(deployment("web", 1, pulls), secret("right"))
			w.wantUndecided("after the correction")
			if healed {
				w.settle()
				return
			}
			w.now = p.Wake
			w.next(Change{})
			w.wantFailed("ProgressDeadlineExceeded")
		})
	}
}

// TestFailureWaitsForTheRest: a revision fails once nothing that it changed is
// in progress any more.
func TestFailureWaitsForTheRest(t *testing.T) {
	w := newWorld(t, "n1")
	soon, later := int32(60), int32(600)
	a, b := deployment("a", 1), deployment("b", 1)
	a.Spec.ProgressDeadlineSeconds, b.Spec.ProgressDeadlineSeconds = &soon, &later
	p := w.push(a, b, deployment("c", 1, paused))
	w.now = p.Wake
	p = w.next(Change{})
	w.wantUndecided("while b is in progress")
	w.now = p.Wake
	w.next(Change{})
	w.wantFailed("Deployment default/a")
}
