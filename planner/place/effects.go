package place

import "slices"

// effects are what a pod of another request changes in a search.
type effects struct {
	list []effect
	// attracts is how many required terms are about the pod: all or none.
	attracts bool
}

type effect struct {
	counter int
	delta   int64
}

// attracted is how often a pod on a node counts among those that attract.
func (e *effects) attracted(s *search, node int32) (n int64) {
	if !e.attracts {
		return 0
	}
	for _, c := range s.counters {
		if c.meaning == attracting && !c.promised && c.of[node] >= 0 {
			n++
		}
	}
	return n
}

// count makes the counters and counts the pods that are there.
func (s *search) count() {
	s.own = s.all(s.attracts, s.Request)
	for i := range s.attracts {
		s.counter(attracting, s.attracts[i].topology)
	}
	for i := range s.repels {
		s.counter(repelling, s.repels[i].topology)
		if s.about(&s.repels[i], s.Request) {
			s.counter(forbidding, s.repels[i].topology)
		}
	}
	s.constrain(spreading, s.hard)
	s.constrain(crowding, s.soft)
	s.hasCrowds, s.bare = len(s.soft) > 0, len(s.spec.TopologySpreadConstraints) > 0
	for i := range s.terms.leans {
		s.counter(leaning, s.terms.leans[i].topology)
	}
	for i := range s.attracts {
		if s.about(&s.attracts[i], s.Request) {
			s.counter(leaning, s.attracts[i].topology)
		}
	}
	s.meet()
	for _, c := range s.counters {
		if c.meaning == spreading {
			c.settle()
		}
	}
	s.promise()
}

func (s *search) about(t *term, r *Request) bool { return t.matches(r, s.field.namespaceLabels) }

// all reports whether a pod is one that all terms are about, as Kubernetes asks
// of required affinity.
func (s *search) all(terms []term, r *Request) bool {
	return len(terms) > 0 && !slices.ContainsFunc(terms, func(t term) bool { return !s.about(&t, r) })
}

// counter with a meaning, made when there is none. Spreads have one each.
func (s *search) counter(m meaning, key string) int {
	if i := s.known(m, key); i >= 0 {
		return i
	}
	t := s.field.topology(key)
	s.counters = append(s.counters, &counter{topology: t, meaning: m, counts: make([]int64, t.size)})
	s.hasLeans = s.hasLeans || m == leaning
	return len(s.counters) - 1
}

func (s *search) known(m meaning, key string) int {
	return slices.IndexFunc(s.counters, func(c *counter) bool { return c.meaning == m && c.key == key && c.rule == nil && !c.promised })
}

func (s *search) constrain(m meaning, rules []constraint) {
	for i := range rules {
		t := s.field.topology(rules[i].topology)
		c := &counter{topology: t, meaning: m, rule: &rules[i], counts: make([]int64, t.size)}
		if m == spreading {
			c.self = rules[i].self(s.Request)
		}
		c.counted = s.takesPart(&rules[i], rules)
		s.counters = append(s.counters, c)
	}
}

// takesPart are the nodes whose pods a spread counts; nil for all. To Kubernetes
// a node that takes no pods at all, being silent say, has a taint that says so.
func (s *search) takesPart(rule *constraint, rules []constraint) []bool {
	var others []*topology
	if rule.selector != nil {
		for i := range rules {
			if t := s.field.topology(rules[i].topology); t.gaps {
				others = append(others, t)
			}
		}
	}
	if len(others) == 0 && !rule.honorTaint && (rule.ignoreNode || !s.choosy) {
		return nil
	}
	var out []bool
	for i, n := range s.field.nodes {
		part := !slices.ContainsFunc(others, func(t *topology) bool { return t.of[i] < 0 }) && (rule.ignoreNode || s.chooses(n))
		if part && rule.honorTaint {
			_, hit := untolerated(s.Request, n)
			part = !hit && n.refuses == ""
		}
		if !part && out == nil {
			out = slices.Repeat([]bool{true}, len(s.field.nodes))
		}
		if !part {
			out[i] = false
		}
	}
	return out
}

// meet counts the pods that are there, by what each term and constraint is about.
func (s *search) meet() {
	company := s.field.company
	if len(s.attracts) > 0 {
		company.Picked(s.attracts[0].pick(), s.each(func(r *Request) bool { return s.all(s.attracts, r) }, func(node int32, _ *Request) {
			for i := range s.attracts {
				c := s.counters[s.known(attracting, s.attracts[i].topology)]
				c.add(node, 1)
			}
			s.attracted += (&effects{attracts: true}).attracted(s, node)
		}))
	}
	for i := range s.repels {
		t := &s.repels[i]
		c := s.counters[s.known(repelling, t.topology)]
		company.Picked(t.pick(), s.each(func(r *Request) bool { return s.about(t, r) }, func(node int32, _ *Request) { c.add(node, 1) }))
	}
	for i := range s.terms.leans {
		t := &s.terms.leans[i]
		c := s.counters[s.known(leaning, t.topology)]
		company.Picked(t.pick(), s.each(func(r *Request) bool { return s.about(&t.term, r) }, func(node int32, _ *Request) { c.add(node, t.weight) }))
	}
	s.meetSpread()
	company.Minding(s.Request, s.each(func(*Request) bool { return true }, s.heed))
	for _, c := range s.field.promises {
		s.heeds(c.request, s.counter)
	}
}

func (s *search) meetSpread() {
	var siblings []*counter
	for _, c := range s.counters {
		switch {
		case c.rule == nil:
		case c.rule.selector == nil:
			siblings = append(siblings, c)
		case !c.rule.selector.Empty():
			stays := s.each(func(r *Request) bool { return c.rule.counts(s.Request, r) }, func(node int32, _ *Request) { c.add(node, 1) })
			s.field.company.Picked(c.rule.pick(s.Request), staying(stays))
		}
	}
	if len(siblings) > 0 {
		s.field.company.Siblings(s.Request, staying(s.each(func(*Request) bool { return true }, func(node int32, _ *Request) {
			for _, c := range siblings {
				c.add(node, 1)
			}
		})))
	}
}

// staying leaves out pods that are on their way.
func staying(see func(Neighbour)) func(Neighbour) {
	return func(n Neighbour) {
		if !n.Leaving {
			see(n)
		}
	}
}

// each asks once for pods in a row that share a request.
func (s *search) each(about func(*Request) bool, do func(int32, *Request)) func(Neighbour) {
	var last *Request
	var is bool
	return func(n Neighbour) {
		if n.Request != last {
			last, is = n.Request, about(n.Request)
		}
		if !is {
			return
		}
		if i, found := s.field.find(n.Node); found {
			do(i, last)
		}
	}
}

// heed counts what the terms of a pod that is there mean to this one.
func (s *search) heed(node int32, r *Request) {
	for _, e := range s.heeds(r, s.counter) {
		s.counters[e.counter].add(node, e.delta)
	}
}

// heeds are the effects of another pod's terms. counter gives the one to count
// with, -1 for none.
func (s *search) heeds(r *Request, counter func(meaning, string) int) (list []effect) {
	for i := range r.repels {
		if s.about(&r.repels[i], s.Request) {
			list = append(list, effect{counter(forbidding, r.repels[i].topology), 1})
		}
	}
	for i := range r.attracts {
		if s.about(&r.attracts[i], s.Request) {
			list = append(list, effect{counter(leaning, r.attracts[i].topology), hardWeight})
		}
	}
	for i := range r.terms.leans {
		if t := &r.terms.leans[i]; s.about(&t.term, s.Request) {
			list = append(list, effect{counter(leaning, t.topology), t.weight})
		}
	}
	return list
}

// effects of a pod that comes or goes; nil when the search has no counter for
// one of them.
func (s *search) effects(r *Request) *effects {
	if e, known := s.kinds[r]; known {
		return e
	}
	e := &effects{list: s.heeds(r, s.known), attracts: s.all(s.attracts, r)}
	if slices.ContainsFunc(e.list, func(e effect) bool { return e.counter < 0 }) {
		s.kinds[r] = nil
		return nil
	}
	for k, c := range s.counters {
		if delta := s.delta(c, r, e.attracts); delta != 0 && !c.promised {
			e.list = append(e.list, effect{k, delta})
		}
	}
	for _, x := range e.list {
		if twin := s.counters[x.counter].twin; twin > 0 {
			e.list = append(e.list, effect{twin, x.delta})
		}
	}
	s.kinds[r] = e
	return e
}

// delta is what a pod counts by the terms and constraints of this one.
func (s *search) delta(c *counter, r *Request, attracts bool) (delta int64) {
	switch c.meaning {
	case attracting:
		for i := range s.attracts {
			if attracts && s.attracts[i].topology == c.key {
				delta++
			}
		}
	case repelling:
		for i := range s.repels {
			if s.repels[i].topology == c.key && s.about(&s.repels[i], r) {
				delta++
			}
		}
	case spreading, crowding:
		if c.rule.counts(s.Request, r) {
			delta = 1
		}
	case leaning:
		for i := range s.terms.leans {
			if t := &s.terms.leans[i]; t.topology == c.key && s.about(&t.term, r) {
				delta += t.weight
			}
		}
	}
	return delta
}
