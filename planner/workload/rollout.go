package workload

import (
	"cmp"
	"slices"
	"time"
)

// Rollout is a workload of identical pods that moves from earlier templates to
// the current one: a Deployment, or a ReplicaSet of its own.
type Rollout struct {
	Now      time.Time
	Replicas int
	// Surge and Unavailable are resolved numbers, never both 0 (see Limits).
	Surge, Unavailable int
	// Recreate stops every old pod before the first new one starts.
	Recreate bool
	// Paused scales what there is and starts no rollout.
	Paused             bool
	MinReady, Deadline time.Duration
	// Revised is when a revision last changed the workload or what its pods
	// read: the deadline starts anew.
	Revised time.Time
	// Current is the set of today's template; nil before a paused workload's first rollout.
	Current *Set
	// Old are the other sets, the oldest first.
	Old []*Set
	// ScaledMax is replicas + surge when the workload was last planned, 0 if
	// never: when it differs in the middle of a rollout, all sets grow or shrink
	// in proportion.
	ScaledMax int
	// WasComplete is set once the current template has been fully available:
	// from then on lack of pods is no longer a late rollout.
	WasComplete bool
}

// target is a set with the number of pods that it is to have.
type target struct {
	set       *Set
	live      []*Pod // in the order of removal
	ended     []*Pod
	available int
	want      int
}

// stillAvailable counts the available pods left when the set has shrunk to its
// target: unavailable pods go first.
func (t *target) stillAvailable() int { return min(t.available, t.want) }

// targets gives the old sets, then the current one.
func (r *Rollout) targets() (old []*target, current *target) {
	for _, s := range r.Old {
		old = append(old, r.target(s))
	}
	if r.Current != nil {
		current = r.target(r.Current)
	}
	return old, current
}

func (r *Rollout) target(s *Set) *target {
	t := &target{set: s}
	for i := range s.Pods {
		p := &s.Pods[i]
		switch {
		case p.Leaving:
			continue
		case p.done():
			t.ended = append(t.ended, p)
		default:
			t.live = append(t.live, p)
			if r.available(p) {
				t.available++
			}
		}
	}
	removalOrder(t.live)
	// Kubernetes' order knows nothing of minReadySeconds: a pod that does not
	// yet count as available must still go before one that does.
	slices.SortStableFunc(t.live, func(a, b *Pod) int { return compareBool(r.available(a), r.available(b)) })
	t.want = len(t.live) + len(t.ended)
	return t
}

func (r *Rollout) available(p *Pod) bool {
	at, ok := p.availableAt(r.MinReady)
	return ok && !at.After(r.Now)
}

// max is the most pods that may be there without leaving.
func (r *Rollout) max() int {
	if r.Replicas == 0 || r.Recreate {
		return r.Replicas
	}
	return r.Replicas + r.Surge
}

// Max is what ScaledMax should be next time.
func (r *Rollout) Max() int { return r.max() }

// Next says which pods to create and which to remove now.
func (r *Rollout) Next() Steps {
	old, current := r.targets()
	waits := ""
	switch {
	case r.Paused || current == nil:
		r.scale(old, current)
	case r.Recreate:
		waits = r.recreate(old, current)
	case r.resized(old, current):
		r.scale(old, current)
		r.roll(old, current)
	default:
		r.roll(old, current)
	}
	all := old
	if current != nil {
		all = append(all, current)
	}
	if !r.Recreate {
		r.bound(all)
	}
	steps := r.steps(all)
	steps.Waits = waits
	return steps
}

// roll follows Kubernetes' rolling update until nothing more may change now.
func (r *Rollout) roll(old []*target, current *target) {
	for {
		oldBefore, currentBefore := sum(old), current.want
		r.grow(old, current)
		r.shrinkOld(old, current)
		if sum(old) == oldBefore && current.want == currentBefore {
			return
		}
	}
}

func (r *Rollout) grow(old []*target, current *target) {
	if current.want > r.Replicas {
		current.want = r.Replicas
		return
	}
	room := r.max() - sum(old) - current.want
	if up := min(room, r.Replicas-current.want); up > 0 {
		current.want += up
	}
}

// shrinkOld takes away old pods that are not available first, for they serve
// nobody, then as many available ones as new ones stand in for.
func (r *Rollout) shrinkOld(old []*target, current *target) {
	least := r.Replicas - r.Unavailable
	missing := current.want - current.stillAvailable()
	room := sum(old) + current.want - least - missing
	for _, t := range old {
		down := max(0, min(room, t.want-t.stillAvailable()))
		t.want -= down
		room -= down
	}
	spare := current.stillAvailable() - least
	for _, t := range old {
		spare += t.stillAvailable()
	}
	spare = min(spare, room)
	for _, t := range old {
		down := max(0, min(spare, t.want))
		t.want -= down
		spare -= down
	}
}

func (r *Rollout) recreate(old []*target, current *target) (waits string) {
	running := 0
	for _, t := range old {
		t.want = 0
		for i := range t.set.Pods {
			if !t.set.Pods[i].done() {
				running++
			}
		}
	}
	if running > 0 {
		current.want = min(current.want, r.Replicas)
		return plural(running, "old pod") + " must stop before new ones start (strategy Recreate)"
	}
	current.want = r.Replicas
	return ""
}

// resized reports whether the size was changed in the middle of a rollout.
func (r *Rollout) resized(old []*target, current *target) bool {
	return r.ScaledMax != 0 && r.ScaledMax != r.max() && sum(old) > 0 && current.want > 0
}

// scale brings the sets that exist to the wanted size without going on with a
// rollout: all of it to the only set that has pods, else in proportion.
func (r *Rollout) scale(old []*target, current *target) {
	all := slices.Clone(old)
	if current != nil {
		all = append(all, current)
	}
	active := withPods(all)
	if len(active) > 1 && r.ScaledMax != r.max() && r.ScaledMax != 0 {
		r.proportion(active)
		active = withPods(active)
	}
	switch {
	case len(active) == 0 && current != nil:
		current.want = r.Replicas
	case len(active) == 0 && len(old) > 0:
		old[len(old)-1].want = r.Replicas
	case len(active) == 1:
		active[0].want = r.Replicas
	}
}

func withPods(targets []*target) []*target {
	return slices.DeleteFunc(slices.Clone(targets), func(t *target) bool { return t.want == 0 })
}

// proportion spreads a change of size over the sets by how large they are; what
// rounding leaves goes to the largest.
func (r *Rollout) proportion(active []*target) {
	change := r.max() - sum(active)
	newestFirst := change > 0
	order := make(map[*target]int, len(active))
	for i, t := range active {
		order[t] = i
		if newestFirst {
			order[t] = -i
		}
	}
	slices.SortStableFunc(active, func(a, b *target) int {
		return cmp.Or(cmp.Compare(b.want, a.want), cmp.Compare(order[a], order[b]))
	})
	left := change
	for _, t := range active {
		part := (2*t.want*r.max()+r.ScaledMax)/(2*r.ScaledMax) - t.want
		if change > 0 {
			part = max(0, min(part, left))
		} else {
			part = min(0, max(part, left))
		}
		t.want += part
		left -= part
	}
	active[0].want = max(0, active[0].want+left)
}

// bound holds every way of scaling to invariant 4: it gives back available
// pods that must stay and takes unavailable ones instead.
func (r *Rollout) bound(all []*target) {
	least := r.Replicas - r.Unavailable
	available, kept := 0, 0
	for _, t := range all {
		available += t.available
		kept += t.stillAvailable()
	}
	short := min(least, available) - kept
	for i := len(all) - 1; i >= 0 && short > 0; i-- {
		back := min(short, all[i].available-all[i].stillAvailable())
		all[i].want += back
		short -= back
	}
	over := sum(all) - r.max()
	for _, t := range all {
		down := max(0, min(over, t.want-t.stillAvailable()))
		t.want -= down
		over -= down
	}
	for _, t := range all {
		kept = 0
		for _, o := range all {
			kept += o.stillAvailable()
		}
		down := max(0, min(over, t.want, kept-least))
		t.want -= down
		over -= down
	}
}

// steps turns targets into pods to create and to remove.
func (r *Rollout) steps(all []*target) Steps {
	var s Steps
	for _, t := range all {
		for _, p := range t.ended {
			s.Removes = append(s.Removes, Remove{UID: p.UID, Hash: t.set.Hash, Reason: ended(p)})
		}
		surplus := len(t.live) - t.want
		for _, p := range t.live[:max(0, surplus)] {
			s.Removes = append(s.Removes, Remove{UID: p.UID, Hash: t.set.Hash, Reason: r.removal(t)})
		}
		if surplus < 0 {
			s.Creates = append(s.Creates, Create{Hash: t.set.Hash, Count: -surplus, Ordinal: NoOrdinal})
		}
	}
	return s
}

func (r *Rollout) removal(t *target) string {
	if t.set == r.Current || r.Paused {
		return "scaled down to " + plural(r.Replicas, "replica")
	}
	return "replaced by the template " + hashOf(r.Current)
}

func hashOf(s *Set) string {
	if s == nil {
		return ""
	}
	return s.Hash
}

func sum(targets []*target) int {
	n := 0
	for _, t := range targets {
		n += t.want
	}
	return n
}
