package place

import "slices"

// promise counts the pods that were promised a place in counters of their own,
// beside those of the pods that are there: a node must pass by both.
func (s *search) promise() {
	if !slices.ContainsFunc(s.field.promises, func(c change) bool { return s.minds(s.effects(c.request)) }) {
		return
	}
	s.twinned = true
	for _, c := range s.counters {
		if c.meaning < crowding {
			twin := *c
			twin.promised, twin.counts, twin.histogram = true, slices.Clone(c.counts), slices.Clone(c.histogram)
			c.twin = len(s.counters)
			s.counters = append(s.counters, &twin)
		}
	}
	clear(s.kinds)
	for _, c := range s.field.promises {
		s.tally(s.effects(c.request), c)
	}
}

// minds reports whether a pod counts in what keeps those of the search from a node.
func (s *search) minds(e *effects) bool {
	return slices.ContainsFunc(e.list, func(x effect) bool { return s.counters[x.counter].meaning < crowding })
}

// tally counts a pod that came to a node, or was promised a place there.
func (s *search) tally(e *effects, c change) {
	for _, x := range e.list {
		if into := s.counters[x.counter]; into.promised || !c.promised {
			into.add(c.node, x.delta)
		}
	}
	if n := e.attracted(s, c.node); c.promised {
		s.expected += n
	} else {
		s.attracted += n
	}
}
