package planner

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/nodes"
)

// large is a repository of n Deployments with a Service each.
func large(n int) []runtime.Object {
	var objects []runtime.Object
	for i := range n {
		name := fmt.Sprintf("app-%d", i)
		objects = append(objects, deployment(name, 1), serviceFor(name))
	}
	return objects
}

func largeWorld(b *testing.B, n int) (*world, []runtime.Object) {
	objects := large(n)
	w := newWorld(b, "n1")
	report := w.machines["n1"].complete()
	report.Info.Allocatable["pods"] = *report.Info.Allocatable.Pods()
	delete(report.Info.Allocatable, "pods")
	w.next(Change{Reports: []nodes.Report{report}})
	w.push(objects...)
	w.settle()
	return w, objects
}

func BenchmarkFirstPlan5000(b *testing.B) {
	objects := large(5000)
	snapshot := snapshotOf(1, "all", objects...)
	w := newWorld(b, "n1")
	r := w.machines["n1"].complete()
	delete(r.Info.Allocatable, "pods")
	w.next(Change{Reports: []nodes.Report{r}})
	for b.Loop() {
		_, p := Next(w.s, Change{Snapshot: snapshot, Source: "embedded"}, w.now)
		if len(p.Assignments[0].Pods) != 5000 {
			b.Fatalf("%d pods", len(p.Assignments[0].Pods))
		}
	}
}

func BenchmarkOneChangeOf5000(b *testing.B) {
	w, objects := largeWorld(b, 5000)
	objects[0] = deployment("app-0", 1, image("app:2"))
	snapshot := snapshotOf(2, "one", objects...)
	for b.Loop() {
		_, p := Next(w.s, Change{Snapshot: snapshot, Source: "embedded"}, w.now)
		if len(p.Actions) == 0 {
			b.Fatal("nothing was planned")
		}
	}
}

func BenchmarkReportOf100Among5000(b *testing.B) {
	w, _ := largeWorld(b, 5000)
	m := w.machines["n1"]
	r := nodes.Report{Node: "n1"}
	for uid := range m.held {
		if len(r.Statuses) < 100 {
			r.Statuses = append(r.Statuses, m.setReady(uid, false, w.now))
		}
	}
	for b.Loop() {
		_, p := Next(w.s, Change{Reports: []nodes.Report{r}}, w.now)
		if p.Routes == nil {
			b.Fatal("no route changed")
		}
	}
}

func BenchmarkRestoreOf5000(b *testing.B) {
	w, _ := largeWorld(b, 5000)
	var decisions []nodes.Decision
	for _, d := range w.record {
		decisions = append(decisions, d)
	}
	complete := w.machines["n1"].complete()
	delete(complete.Info.Allocatable, "pods")
	for b.Loop() {
		s, _ := Next(New(testConfig), Change{Decisions: decisions}, w.now)
		s, p := Next(s, Change{Reports: []nodes.Report{complete}, Snapshot: w.snapshot, Source: "embedded"}, w.now)
		if len(p.Actions) != 0 {
			b.Fatalf("a restart acts: %v", p.Actions[0])
		}
		_ = s
	}
}

func BenchmarkOverview5000(b *testing.B) {
	w, _ := largeWorld(b, 5000)
	for b.Loop() {
		w.s.Overview(w.now)
	}
}
