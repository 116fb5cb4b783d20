package workload

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Stateful is a StatefulSet: pods with ordinals, of which each has a name that
// its successor takes over. At most one pod bears an ordinal: a new one is made
// only when nothing is left of the one before.
type Stateful struct {
	Now time.Time
	// Revised is when a revision last changed the workload or what its pods
	// read: the deadline starts anew.
	Revised time.Time
	// Name is that of the workload; pods are called name-ordinal.
	Name string
	// Start is the first ordinal.
	Start, Replicas int
	// Parallel starts and stops pods without waiting for one another.
	Parallel bool
	// OnDelete leaves pods of earlier templates alone.
	OnDelete bool
	// Partition is how many of the first pods keep Stable.
	Partition int
	// Unavailable is how many pods an update may take away at once, at least 1.
	Unavailable        int
	MinReady, Deadline time.Duration
	// Update is the set of today's template, Stable the one that all pods had
	// before it, which may be the same; Old are all sets but Update.
	Update, Stable *Set
	Old            []*Set
	// Unheard are ordinals whose pod may run on a node that has not said what it
	// runs: no other may be made. The value names the node.
	Unheard map[int]string
	// Proven is the hash of the template that last had all pods ready.
	Proven string
	// WasComplete is set once the current template has been fully available.
	WasComplete bool
}

// StatefulSet fills in what a StatefulSet's spec says; sets, time and history
// are the caller's to add.
func StatefulSet(name string, spec *appsv1.StatefulSetSpec) Stateful {
	s := Stateful{
		Name:     name,
		Replicas: int(valueOr(spec.Replicas, 1)),
		Parallel: spec.PodManagementPolicy == appsv1.ParallelPodManagement,
		OnDelete: spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType,
		MinReady: time.Duration(spec.MinReadySeconds) * time.Second,
		Deadline: DefaultDeadline,
	}
	if spec.Ordinals != nil {
		s.Start = int(spec.Ordinals.Start)
	}
	one := intstr.FromInt32(1)
	unavailable := &one
	if r := spec.UpdateStrategy.RollingUpdate; r != nil {
		s.Partition = int(valueOr(r.Partition, 0))
		if r.MaxUnavailable != nil {
			unavailable = r.MaxUnavailable
		}
	}
	s.Unavailable = max(1, scaled(unavailable, s.Replicas, false))
	return s
}

// slot is one ordinal with what is there of it.
type slot struct {
	ordinal int
	// pod is the one that stays; nil when there is none.
	pod *Pod
	set *Set
	// leaving is set while a pod of the ordinal is on its way out.
	leaving bool
}

// slots gives the wanted ordinals in order, those beyond them from the highest
// down, and the pods that share an ordinal with a better one.
func (s *Stateful) slots() (wanted, condemned []*slot, doubles []Remove) {
	byOrdinal := map[int]*slot{}
	at := func(ordinal int) *slot {
		if byOrdinal[ordinal] == nil {
			byOrdinal[ordinal] = &slot{ordinal: ordinal}
		}
		return byOrdinal[ordinal]
	}
	for i := range s.Replicas {
		wanted = append(wanted, at(s.Start+i))
	}
	for _, set := range s.sets() {
		for i := range set.Pods {
			p := &set.Pods[i]
			t := at(p.Ordinal)
			switch {
			case p.Leaving:
				t.leaving = true
			case t.pod == nil:
				t.pod, t.set = p, set
			default:
				worse, of := p, set
				if better(p, t.pod) {
					worse, of = t.pod, t.set
					t.pod, t.set = p, set
				}
				doubles = append(doubles, Remove{UID: worse.UID, Hash: of.Hash, Reason: "another pod has the same ordinal"})
			}
		}
	}
	for ordinal, t := range byOrdinal {
		if ordinal < s.Start || ordinal >= s.Start+s.Replicas {
			condemned = append(condemned, t)
		}
	}
	slices.SortFunc(condemned, func(a, b *slot) int { return cmp.Compare(b.ordinal, a.ordinal) })
	slices.SortFunc(doubles, func(a, b Remove) int { return cmp.Compare(a.UID, b.UID) })
	return wanted, condemned, doubles
}

// better prefers, of two pods with one ordinal, the ready one, then the older.
func better(p, than *Pod) bool {
	return cmp.Or(compareBool(p.Ready, than.Ready), cmp.Compare(than.Incarnation, p.Incarnation)) > 0
}

func (s *Stateful) sets() []*Set {
	sets := slices.Clone(s.Old)
	if s.Update != nil {
		sets = append(sets, s.Update)
	}
	return sets
}

func (s *Stateful) available(p *Pod) bool {
	if p == nil {
		return false
	}
	at, ok := p.availableAt(s.MinReady)
	return ok && !at.After(s.Now)
}

// protected reports whether the partition keeps an ordinal from being updated.
func (s *Stateful) protected(ordinal int) bool { return ordinal < s.Start+s.Partition }

// Next says which pods to create and which to remove now.
func (s *Stateful) Next() Steps {
	wanted, condemned, doubles := s.slots()
	steps := Steps{Removes: doubles}
	if s.Parallel {
		s.fill(&steps, wanted, condemned)
	} else if !s.advance(&steps, wanted, condemned) {
		return steps
	}
	if !s.OnDelete {
		s.update(&steps, wanted)
	}
	return steps
}

// fill starts and stops everything at once.
func (s *Stateful) fill(steps *Steps, wanted, condemned []*slot) {
	for _, t := range wanted {
		switch {
		case t.pod != nil && t.pod.done():
			s.remove(steps, t, ended(t.pod))
		case t.pod == nil && s.blocked(t) != "":
			steps.Waits = s.blocked(t)
		case t.pod == nil:
			s.create(steps, t)
		}
	}
	for _, t := range condemned {
		if t.pod != nil {
			s.remove(steps, t, s.scaledDown())
		}
	}
}

// advance takes one step in the order of the ordinals: each pod must be
// available before the next is started, and all of them before one is taken
// away. It reports whether all are as they should be, but for their template.
func (s *Stateful) advance(steps *Steps, wanted, condemned []*slot) bool {
	for _, t := range wanted {
		switch {
		case t.pod == nil && s.blocked(t) != "":
			steps.Waits = s.blocked(t)
			return false
		case t.pod == nil:
			s.create(steps, t)
			return false
		case t.pod.done():
			s.remove(steps, t, ended(t.pod))
			return false
		case s.failedUpdate(t):
			s.remove(steps, t, s.outdated())
			return false
		case !s.available(t.pod):
			steps.Waits = s.patience(t)
			return false
		}
	}
	return s.shrink(steps, condemned)
}

// blocked says why no pod may be made for an ordinal that has none; empty when
// one may.
func (s *Stateful) blocked(t *slot) string {
	if t.leaving {
		return s.name(t) + " must stop before its successor starts"
	}
	if node := s.Unheard[t.ordinal]; node != "" {
		return s.name(t) + " may run on node " + node + ", which has not reported what it runs"
	}
	return ""
}

// failedUpdate reports whether a pod is of a template that is no longer wanted,
// is not available and won't be: not all pods were ready under its template, or
// it has not been ready for too long. Kubernetes would wait for it, and leave it
// to a person to delete it.
func (s *Stateful) failedUpdate(t *slot) bool {
	return s.outdatedAndDown(t) && (t.set.Hash != s.Proven || !s.Now.Before(s.givenUp(t.pod)))
}

func (s *Stateful) outdatedAndDown(t *slot) bool {
	return !s.OnDelete && t.set != s.Update && !s.protected(t.ordinal) && !s.available(t.pod) && !t.pod.Silent
}

// givenUp is until when a pod whose template had been good is waited for: half
// of the deadline, so that its successor has the other half.
func (s *Stateful) givenUp(p *Pod) time.Time {
	since := latest(p.Created, p.ReadySince)
	if p.Ready {
		return since.Add(s.MinReady + s.Deadline/2)
	}
	return since.Add(s.Deadline / 2)
}

// patience says for how long a pod is waited for that an update replaces once
// it is available; empty when there is no such bound.
func (s *Stateful) patience(t *slot) string {
	if !s.outdatedAndDown(t) || s.Deadline == 0 {
		return ""
	}
	return join(fmt.Sprintf("%s ran well with the template before: it has until %s to get ready, then it is replaced", s.name(t), s.givenUp(t.pod).UTC().Format(time.TimeOnly)), t.pod.Why)
}

// shrink takes away the pod with the highest ordinal, available or not.
// (Kubernetes waits for one that is not when there are others below it, for
// ever if need be.)
func (s *Stateful) shrink(steps *Steps, condemned []*slot) bool {
	if len(condemned) == 0 {
		return true
	}
	if t := condemned[0]; t.pod == nil {
		steps.Waits = s.name(t) + " must stop before the next one goes"
	} else {
		s.remove(steps, t, s.scaledDown())
	}
	return false
}

// update replaces pods of earlier templates from the highest ordinal down:
// those that are not available first, for that takes nothing away, then as
// many available ones as may be missing. A silent one is missing, and may yet be
// back.
func (s *Stateful) update(steps *Steps, wanted []*slot) {
	room := s.Unavailable
	for _, t := range wanted {
		if !s.available(t.pod) {
			room--
		}
	}
	for _, t := range slices.Backward(wanted) {
		if t.pod == nil || t.pod.done() || t.pod.Silent || t.set == s.Update || s.protected(t.ordinal) {
			continue
		}
		if s.available(t.pod) {
			if room <= 0 {
				continue
			}
			room--
		}
		s.remove(steps, t, s.outdated())
	}
}

func (s *Stateful) create(steps *Steps, t *slot) {
	set := s.Update
	if !s.OnDelete && s.protected(t.ordinal) && s.Stable != nil {
		set = s.Stable
	}
	if set == nil {
		return
	}
	steps.Creates = append(steps.Creates, Create{Hash: set.Hash, Count: 1, Ordinal: t.ordinal, Name: s.podName(t.ordinal)})
}

func (s *Stateful) remove(steps *Steps, t *slot, reason string) {
	steps.Removes = append(steps.Removes, Remove{UID: t.pod.UID, Hash: t.set.Hash, Reason: reason})
}

func (s *Stateful) podName(ordinal int) string { return fmt.Sprintf("%s-%d", s.Name, ordinal) }
func (s *Stateful) name(t *slot) string        { return "pod " + s.podName(t.ordinal) }
func (s *Stateful) outdated() string           { return "replaced by the template " + hashOf(s.Update) }

func (s *Stateful) scaledDown() string {
	if s.Start > 0 {
		return fmt.Sprintf("scaled to %s from ordinal %d", plural(s.Replicas, "replica"), s.Start)
	}
	return "scaled down to " + plural(s.Replicas, "replica")
}

func ended(p *Pod) string {
	return "the pod has ended (" + string(p.Phase) + ") and is replaced"
}

// Settled reports whether every pod is ready and of today's template: Stable is
// then what Update was.
func (s *Stateful) Settled() bool {
	wanted, condemned, _ := s.slots()
	for _, t := range wanted {
		if t.pod == nil || t.leaving || t.set != s.Update || !t.pod.Ready {
			return false
		}
	}
	return len(condemned) == 0
}

// Verdict says how the workload is doing.
func (s *Stateful) Verdict() Verdict {
	wanted, condemned, _ := s.slots()
	v := Verdict{Wanted: s.Replicas}
	t := tally{minReady: s.MinReady, now: s.Now, update: s.Update}
	t.count(&v, s.sets())
	kept, outdated := 0, 0
	for _, slot := range wanted {
		switch {
		case slot.pod == nil || slot.set == s.Update:
		case s.OnDelete || s.protected(slot.ordinal):
			kept++
		default:
			outdated++
		}
	}
	v.Complete = v.Available == s.Replicas && v.Current == s.Replicas && outdated == 0 && !living(condemned)
	describe := fmt.Sprintf("%d of %s available", v.Available, plural(s.Replicas, "pod"))
	if outdated > 0 {
		due := s.Replicas - kept
		describe = fmt.Sprintf("%d of %s available, %s still there", t.updatedAvailable, plural(due, "updated pod"), plural(outdated, "old pod"))
	}
	v.judge(lateness{
		now: s.Now, progress: latest(s.Revised, t.progress), deadline: s.Deadline, wasComplete: s.WasComplete,
		least: s.Replicas - s.Unavailable, leaving: t.leaving, describe: describe, trouble: t.trouble(s.Old),
	})
	for _, slot := range wanted {
		if !s.Parallel && slot.pod != nil && s.outdatedAndDown(slot) && s.Now.Before(s.givenUp(slot.pod)) {
			v.Wake = earliest(v.Wake, s.givenUp(slot.pod))
		}
	}
	if v.Health == nodes.Healthy && kept > 0 {
		why := fmt.Sprintf("partition %d", s.Partition)
		if s.OnDelete {
			why = "update strategy OnDelete"
		}
		v.Reason = join(fmt.Sprintf("%s: %s of an earlier template", why, plural(kept, "pod")), v.Reason)
	}
	return v
}

func living(slots []*slot) bool {
	return slices.ContainsFunc(slots, func(t *slot) bool { return t.pod != nil })
}
