package report

import (
	"cmp"
	"slices"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// Workload is an object of the revision that pods go back to, with what
// Tallyman made for it.
type Workload struct {
	*nodes.ObjectHealth
	// Sets are the ReplicaSets, the newest template first.
	Sets []*Set
	// Pods are those that it owns without a set between.
	Pods []*nodes.ObjectHealth
}

// Set is a ReplicaSet that Tallyman made, with its pods.
type Set struct {
	*nodes.ObjectHealth
	Pods []*nodes.ObjectHealth
}

// AllPods lists the pods of all sets and its own.
func (w *Workload) AllPods() []*nodes.ObjectHealth {
	pods := slices.Clone(w.Pods)
	for _, s := range w.Sets {
		pods = append(pods, s.Pods...)
	}
	return pods
}

// runs are the kinds that pods come from.
var runs = map[string]bool{
	"Deployment": true, "ReplicaSet": true, "StatefulSet": true, "DaemonSet": true, "Job": true, "CronJob": true, "Pod": true,
}

// Runs reports whether objects of a kind run pods.
func Runs(kind string) bool { return runs[kind] }

// Workloads arranges the objects that run as trees, those that need a human
// first, then by key. Pods are in the same order.
func Workloads(o *nodes.Overview) []*Workload {
	t := tree{workloads: map[desired.Key]*Workload{}, sets: map[desired.Key]*Set{}}
	for i := range o.Objects {
		if object := &o.Objects[i]; runs[object.Key.Kind] && (object.Owner.IsZero() || object.Owner == object.Key) {
			t.workload(object)
		}
	}
	for i := range o.Objects {
		if object := &o.Objects[i]; object.Key.Kind != "Pod" && !object.Owner.IsZero() && runs[object.Key.Kind] {
			t.set(object)
		}
	}
	for i := range o.Objects {
		if object := &o.Objects[i]; object.Key.Kind == "Pod" {
			t.pod(object)
		}
	}
	for _, w := range t.list {
		w.sort()
	}
	slices.SortStableFunc(t.list, func(a, b *Workload) int { return worstFirst(a.ObjectHealth, b.ObjectHealth) })
	return t.list
}

type tree struct {
	list      []*Workload
	workloads map[desired.Key]*Workload
	sets      map[desired.Key]*Set
}

func (t *tree) workload(object *nodes.ObjectHealth) *Workload {
	if w := t.workloads[object.Key]; w != nil {
		return w
	}
	w := &Workload{ObjectHealth: object}
	t.workloads[object.Key] = w
	t.list = append(t.list, w)
	return w
}

// set hangs an object below its owner; one without a living owner stands alone.
func (t *tree) set(object *nodes.ObjectHealth) {
	owner := t.workloads[object.Owner]
	if owner == nil {
		if object.Owner != object.Key {
			t.workload(object)
		}
		return
	}
	s := &Set{ObjectHealth: object}
	t.sets[object.Key] = s
	owner.Sets = append(owner.Sets, s)
}

func (t *tree) pod(object *nodes.ObjectHealth) {
	if s := t.sets[object.Owner]; s != nil {
		s.Pods = append(s.Pods, object)
		return
	}
	if w := t.workloads[object.Owner]; w != nil && object.Owner != object.Key {
		w.Pods = append(w.Pods, object)
		return
	}
	if w := t.workload(object); len(w.Pods) == 0 {
		w.Pods = []*nodes.ObjectHealth{object}
	}
}

func (w *Workload) sort() {
	slices.SortStableFunc(w.Sets, func(a, b *Set) int {
		return cmp.Or(
			-cmp.Compare(min(1, len(a.Pods)), min(1, len(b.Pods))),
			b.Created.Compare(a.Created),
			a.Key.Compare(b.Key),
		)
	})
	slices.SortStableFunc(w.Pods, worstFirst)
	for _, s := range w.Sets {
		slices.SortStableFunc(s.Pods, worstFirst)
	}
}

// rank orders health: what needs a human first.
func rank(h nodes.Health) int {
	switch h {
	case nodes.Degraded:
		return 0
	case nodes.Progressing:
		return 1
	case nodes.Suspended:
		return 2
	}
	return 3
}

func worstFirst(a, b *nodes.ObjectHealth) int {
	return cmp.Or(cmp.Compare(rank(a.Health), rank(b.Health)), a.Key.Compare(b.Key))
}

// Others lists the objects that run nothing and are no service, those that
// need a human first.
func Others(o *nodes.Overview) []*nodes.ObjectHealth {
	var others []*nodes.ObjectHealth
	for i := range o.Objects {
		if object := &o.Objects[i]; !runs[object.Key.Kind] && object.Key.Kind != "Service" {
			others = append(others, object)
		}
	}
	slices.SortStableFunc(others, worstFirst)
	return others
}
