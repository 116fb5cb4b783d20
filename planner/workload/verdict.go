package workload

import (
	"fmt"
	"strconv"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Verdict says how the workload is doing, in Kubernetes' words.
func (r *Rollout) Verdict() Verdict {
	v := Verdict{Wanted: r.Replicas}
	leaving := 0
	progress := r.Revised
	if r.Current != nil {
		progress = latest(progress, r.Current.Since)
	}
	for _, s := range r.sets() {
		for i := range s.Pods {
			p := &s.Pods[i]
			if p.Leaving || p.done() {
				leaving++
				continue
			}
			r.count(&v, s, p)
			if s == r.Current {
				progress = latest(progress, latest(p.Created, p.ReadySince))
			}
		}
	}
	v.Complete = v.Updated == r.Replicas && v.Current == r.Replicas && v.Available == r.Replicas
	r.judge(&v, progress, leaving)
	return v
}

func (r *Rollout) sets() []*Set {
	sets := append([]*Set(nil), r.Old...)
	if r.Current != nil {
		sets = append(sets, r.Current)
	}
	return sets
}

func (r *Rollout) count(v *Verdict, s *Set, p *Pod) {
	v.Current++
	if s == r.Current {
		v.Updated++
	}
	if !p.Ready {
		return
	}
	v.Ready++
	if at, _ := p.availableAt(r.MinReady); at.After(r.Now) {
		v.Wake = earliest(v.Wake, at)
		return
	}
	v.Available++
}

func (r *Rollout) judge(v *Verdict, progress time.Time, leaving int) {
	switch {
	case r.Paused && !(v.Complete && r.Current != nil):
		v.Health, v.Reason = nodes.Suspended, join("paused: "+r.describe(v), firstTrouble(r.sets()...))
		return
	case v.Complete && leaving == 0:
		v.Health = nodes.Healthy
		return
	case v.Complete:
		v.Health, v.Reason = nodes.Healthy, plural(leaving, "old pod")+" still to stop"
		return
	}
	v.Deadline = progress.Add(r.Deadline)
	v.Late = r.Deadline > 0 && !r.Now.Before(v.Deadline)
	trouble := firstTrouble(r.Current)
	if trouble == "" {
		trouble = firstTrouble(r.Old...)
	}
	v.Health, v.Reason = nodes.Progressing, join(r.describe(v), trouble)
	switch {
	case v.Late && !r.WasComplete:
		v.Health, v.Reason = nodes.Degraded, join("ProgressDeadlineExceeded: no progress for "+shortDuration(r.Deadline)+", "+r.describe(v), trouble)
	case v.Late || r.WasComplete && v.Available < r.Replicas-r.Unavailable:
		v.Health, v.Reason = nodes.Degraded, join("MinimumReplicasUnavailable: "+r.describe(v), trouble)
	}
	if !v.Late && r.Deadline > 0 {
		v.Wake = earliest(v.Wake, v.Deadline)
	}
}

// describe says how far a rollout has come.
func (r *Rollout) describe(v *Verdict) string {
	updatedReady := 0
	if r.Current != nil {
		for i := range r.Current.Pods {
			if p := &r.Current.Pods[i]; r.available(p) {
				updatedReady++
			}
		}
	}
	if v.Updated == v.Current {
		return fmt.Sprintf("%d of %s available", v.Available, plural(r.Replicas, "pod"))
	}
	text := fmt.Sprintf("%d of %s available", updatedReady, plural(r.Replicas, "updated pod"))
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
