package workload

import (
	"fmt"
	"strconv"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// tally counts the pods of a workload's sets.
type tally struct {
	now      time.Time
	minReady time.Duration
	// update is the set of today's template; nil when there is none.
	update *Set
	// unknown are silent nodes, whose pods are not counted.
	unknown map[string]bool

	// leaving counts the pods that are on their way out or have ended.
	leaving, updatedAvailable int
	// progress is the last instant at which something happened to a pod of
	// today's template.
	progress time.Time
}

// count fills in the numbers of a verdict, and when one of them will change by
// itself.
func (t *tally) count(v *Verdict, sets []*Set) {
	if t.update != nil {
		t.progress = t.update.Since
	}
	for _, s := range sets {
		for i := range s.Pods {
			p := &s.Pods[i]
			if t.unknown[p.Node] {
				continue
			}
			if p.Leaving || p.done() {
				t.leaving++
				continue
			}
			if s == t.update {
				v.Updated++
				t.progress = latest(t.progress, latest(p.Created, p.ReadySince))
			}
			v.Current++
			t.countReady(v, s, p)
		}
	}
}

func (t *tally) countReady(v *Verdict, s *Set, p *Pod) {
	if !p.Ready {
		return
	}
	v.Ready++
	if at, _ := p.availableAt(t.minReady); at.After(t.now) {
		v.Wake = earliest(v.Wake, at)
		return
	}
	v.Available++
	if s == t.update {
		t.updatedAvailable++
	}
}

// trouble is what keeps a pod from being ready, of today's template first.
func (t *tally) trouble(old []*Set) string {
	if text := firstTrouble(t.update); text != "" {
		return text
	}
	return firstTrouble(old...)
}

// lateness is what a verdict follows from, besides its numbers.
type lateness struct {
	now time.Time
	// progress was made last; deadline is how long there may be none, 0 for ever.
	progress time.Time
	deadline time.Duration
	// wasComplete tells lack of pods from a late rollout.
	wasComplete bool
	// least is how many pods must be available for a workload that was complete.
	least, leaving int
	// describe says how far it has come, trouble what keeps it.
	describe, trouble string
}

// judge fills in health and deadline, in Kubernetes' words.
func (v *Verdict) judge(l lateness) {
	switch {
	case v.Complete && l.leaving == 0:
		v.Health = nodes.Healthy
		return
	case v.Complete:
		v.Health, v.Reason = nodes.Healthy, plural(l.leaving, "old pod")+" still to stop"
		return
	}
	v.Deadline = l.progress.Add(l.deadline)
	v.Late = l.deadline > 0 && !l.now.Before(v.Deadline)
	v.Health, v.Reason = nodes.Progressing, join(l.describe, l.trouble)
	switch {
	case v.Late && !l.wasComplete:
		v.Health, v.Reason = nodes.Degraded, join("ProgressDeadlineExceeded: no progress for "+shortDuration(l.deadline)+", "+l.describe, l.trouble)
	case v.Late || l.wasComplete && v.Available < l.least:
		v.Health, v.Reason = nodes.Degraded, join("MinimumReplicasUnavailable: "+l.describe, l.trouble)
	}
	if !v.Late && l.deadline > 0 {
		v.Wake = earliest(v.Wake, v.Deadline)
	}
}

// Verdict says how the workload is doing, in Kubernetes' words.
func (r *Rollout) Verdict() Verdict {
	v := Verdict{Wanted: r.Replicas}
	t := tally{now: r.Now, minReady: r.MinReady, update: r.Current}
	t.count(&v, r.sets())
	v.Complete = v.Updated == r.Replicas && v.Current == r.Replicas && v.Available == r.Replicas
	if r.Paused && !(v.Complete && r.Current != nil) {
		v.Health, v.Reason = nodes.Suspended, join("paused: "+r.describe(&v, t.updatedAvailable), firstTrouble(r.sets()...))
		return v
	}
	v.judge(lateness{
		now: r.Now, progress: latest(r.Revised, t.progress), deadline: r.Deadline, wasComplete: r.WasComplete,
		least: r.Replicas - r.Unavailable, leaving: t.leaving, describe: r.describe(&v, t.updatedAvailable), trouble: t.trouble(r.Old),
	})
	return v
}

func (r *Rollout) sets() []*Set {
	sets := append([]*Set(nil), r.Old...)
	if r.Current != nil {
		sets = append(sets, r.Current)
	}
	return sets
}

// describe says how far a rollout has come.
func (r *Rollout) describe(v *Verdict, updatedAvailable int) string {
	if v.Updated == v.Current {
		return fmt.Sprintf("%d of %s available", v.Available, plural(r.Replicas, "pod"))
	}
	text := fmt.Sprintf("%d of %s available", updatedAvailable, plural(r.Replicas, "updated pod"))
	if old := v.Current - v.Updated; old > 0 {
		text += ", " + plural(old, "old pod") + " still there"
	}
	return text
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// shortDuration writes 10m0s as 10m.
func shortDuration(d time.Duration) string {
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d >= time.Minute && d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	default:
		return d.String()
	}
}
