package workload

import (
	"cmp"
	"slices"
	"time"
)

// manage brings the number of pods at work to what the Job wants now.
func (s *jobStep) manage() {
	if s.suspended() {
		for _, p := range s.active {
			s.remove(p, "the Job is suspended")
		}
		s.active = nil
		return
	}
	want := s.wantActive()
	s.removeExcess(want)
	if s.Earlier > 0 {
		s.steps.Waits = plural(s.Earlier, "pod") + " of the run before must stop first"
		return
	}
	missing := want - len(s.active)
	if s.replacesOnlyFailed() {
		missing -= s.terminating
	}
	if missing <= 0 {
		return
	}
	if s.indexed() {
		s.addIndexes(missing)
	} else if s.mayAdd(s.run.Failures, s.run.LastFailure) {
		s.add(NoOrdinal, missing)
	}
}

// wantActive is how many pods are to be at work: no more than successes are
// missing. Where any success will do, none is added after the first.
func (s *jobStep) wantActive() int {
	parallelism := int(valueOr(s.Spec.Parallelism, 1))
	if wanted := s.completions(); wanted >= 0 {
		return max(0, min(parallelism, wanted-s.run.Succeeded))
	}
	if s.run.Succeeded > 0 {
		return len(s.active)
	}
	return parallelism
}

// removeExcess takes away pods whose index is not theirs alone or none of the
// Job's, then those beyond the wanted number, the youngest in their life first.
func (s *jobStep) removeExcess(want int) {
	sorted := make([]*Pod, len(s.active))
	of := map[*Pod]*JobPod{}
	for i, p := range s.active {
		sorted[i], of[&p.Pod] = &p.Pod, p
	}
	sorted = removalOrder(sorted)
	var keep []*JobPod
	taken := map[int]bool{}
	for _, p := range slices.Backward(sorted) {
		if s.indexed() && (taken[p.Ordinal] || p.Ordinal < 0 || p.Ordinal >= s.completions()) {
			s.remove(of[p], "its completion index is another pod's, or none of the Job's")
			continue
		}
		taken[p.Ordinal] = true
		if len(keep) >= want {
			s.remove(of[p], "fewer pods are wanted at a time")
			continue
		}
		keep = append(keep, of[p])
	}
	s.active = keep
}

// mayAdd reports whether the delay after a number of failures is over.
func (s *jobStep) mayAdd(failures int, last time.Time) bool {
	at := last.Add(jobDelay(failures))
	if failures > 0 && at.After(s.Now) {
		s.wakeAt(at)
		return false
	}
	return true
}

func (s *jobStep) addIndexes(missing int) {
	if !s.perIndex() && !s.mayAdd(s.run.Failures, s.run.LastFailure) {
		return
	}
	busy := s.completed.Union(s.failed)
	for i := range s.Pods {
		if p := &s.Pods[i]; p.Leaving && !p.done() && s.replacesOnlyFailed() && p.Ordinal >= 0 {
			busy = busy.With(p.Ordinal)
		}
	}
	for _, p := range s.active {
		busy = busy.With(p.Ordinal)
	}
	for _, index := range busy.Missing(missing, s.completions()) {
		f := s.run.ByIndex[index]
		if s.mayAdd(f.Counted+f.Ignored, f.Last) {
			s.add(index, 1)
		}
	}
}

func (s *jobStep) add(index, count int) {
	s.steps.Creates = append(s.steps.Creates, Create{Hash: s.run.Template, Count: count, Ordinal: index})
	for range count {
		s.active = append(s.active, &JobPod{Pod: Pod{Ordinal: index}})
	}
	slices.SortStableFunc(s.steps.Creates, func(a, b Create) int { return cmp.Compare(a.Ordinal, b.Ordinal) })
}
