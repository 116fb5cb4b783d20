package workload

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Single is a pod that stands in Git by itself.
type Single struct {
	Now time.Time
	// Revised is when a revision last changed the pod or what it reads: the
	// deadline starts anew.
	Revised time.Time
	// Current holds the pod of today's manifest, if it exists; Old those of
	// earlier ones.
	Current *Set
	Old     []*Set
}

// Next replaces a changed pod: the old one must be gone before the new one
// takes its name. A pod that ended stays as it is, for that is its result.
func (s *Single) Next() Steps {
	var steps Steps
	there := 0
	for _, set := range s.Old {
		for i := range set.Pods {
			p := &set.Pods[i]
			there++
			if !p.Leaving {
				steps.Removes = append(steps.Removes, Remove{UID: p.UID, Hash: set.Hash, Reason: "the pod's manifest has changed"})
			}
		}
	}
	var live []*Pod
	for i := range s.Current.Pods {
		if p := &s.Current.Pods[i]; p.Leaving {
			there++
		} else {
			live = append(live, p)
		}
	}
	switch {
	case len(live) > 0:
		// More than one is there when a node comes back that nobody knew of.
		for _, p := range removalOrder(live)[:len(live)-1] {
			steps.Removes = append(steps.Removes, Remove{UID: p.UID, Hash: s.Current.Hash, Reason: "the pod runs on another node, too"})
		}
	case there > 0:
		steps.Waits = "the pod before it must stop first"
	default:
		steps.Creates = []Create{{Hash: s.Current.Hash, Count: 1, Ordinal: NoOrdinal}}
	}
	return steps
}

// Verdict says how the pod is doing.
func (s *Single) Verdict() Verdict {
	v := Verdict{Wanted: 1, Health: nodes.Progressing, Reason: "not started yet"}
	for i := range s.Current.Pods {
		if p := &s.Current.Pods[i]; !p.Leaving {
			s.judge(&v, p)
		}
	}
	return v
}

func (s *Single) judge(v *Verdict, p *Pod) {
	v.Current, v.Updated = 1, 1
	switch {
	case p.Phase == corev1.PodSucceeded:
		v.Health, v.Reason, v.Complete = nodes.Healthy, "Completed", true
	case p.Phase == corev1.PodFailed:
		v.Health, v.Reason, v.Late = nodes.Degraded, join("the pod failed", p.Why), true
	case p.Ready:
		v.Health, v.Reason, v.Ready, v.Available, v.Complete = nodes.Healthy, "", 1, 1, true
	default:
		v.Deadline = latest(s.Revised, latest(p.Created, p.ReadySince)).Add(DefaultDeadline)
		v.Late = !s.Now.Before(v.Deadline)
		v.Reason = join("not ready", p.Why)
		if v.Late {
			v.Health, v.Reason = nodes.Degraded, join("not ready for "+shortDuration(DefaultDeadline), p.Why)
		} else {
			v.Wake = v.Deadline
		}
	}
}
