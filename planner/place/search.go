package place

import (
	"encoding/binary"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// search is the choice for pods that ask for the same: nodes by class, kept up
// to date while pods are bound.
type search struct {
	*Request
	field *Field
	// at is how much of the field's log has been followed.
	at int
	// sampled is set when only some nodes are looked at.
	sampled bool

	counters []*counter
	// hasCrowds and hasLeans are set when there are counters of the kind.
	hasCrowds, hasLeans bool
	// bare is set when a node without all labels to spread over has no score for
	// it: when the pod names them itself.
	bare bool
	// kinds are what other pods count, by their request.
	kinds map[*Request]*effects
	// attracted counts the pods that the required affinity is about, expected those
	// that were promised a place besides; own is set when the pod itself is one.
	attracted, expected int64
	own                 bool
	// twinned is set when there are counters of what was promised.
	twinned bool

	// simple is set when the slots have all that the pod asks of nodes' room.
	simple bool
	// fixed are the fixed scores by node; nil when all are the same.
	fixed   []int64
	tuple   *tuple
	classes []*class
	byKey   map[string]int32
	// plain are the classes of nodes that count nothing, by tuple: the first of
	// those that differ in their fixed score.
	plain []int32
	key   []byte
	buffers
}

// buffers are used again by the next search.
type buffers struct {
	// home is each node's class, -1 for one that the pod can't run on; spot is its
	// place in that class's heap, -1 when it has no room.
	home, spot []int32
}

// class are nodes that score alike but for their room.
type class struct {
	fixed int64
	// one of them: their domains in narrow topologies are the same.
	one int32
	// counts are those of wide topologies; missing without the label.
	counts  []int64
	members int
	heap    []candidate
	// sibling is the next plain class of the same tuple; -1 for none.
	sibling int32

	crowd   int64
	lean    int64
	ignored bool
}

const missing = math.MinInt64

// candidate is a node that has room.
type candidate struct {
	room int64
	node int32
}

func (a candidate) before(b candidate) bool {
	return a.room > b.room || a.room == b.room && a.node < b.node
}

func newSearch(f *Field, r *Request, whole bool) *search {
	s := &search{Request: r, field: f, simple: r.asks.simple(), at: len(f.log), kinds: map[*Request]*effects{}, byKey: map[string]int32{}}
	if n := len(f.spare); n > 0 {
		s.buffers, f.spare = f.spare[n-1], f.spare[:n-1]
	} else {
		s.buffers = buffers{make([]int32, len(f.nodes)), make([]int32, len(f.nodes))}
	}
	s.admit(whole)
	s.score()
	s.count()
	s.classify()
	return s
}

// admit finds the nodes that the pod may run on.
func (s *search) admit(whole bool) {
	size := len(s.field.nodes)
	start, found := 0, 0
	free := !s.choosy && !s.named()
	if s.profile == Batch && !whole && size > sampleSize {
		s.sampled, start = true, int(s.start%uint32(size))
	}
	for k := range size {
		i := (start + k) % size
		s.home[i], s.spot[i] = -1, -1
		if s.sampled && (found == sampleSize || !s.roomy(int32(i))) {
			continue
		}
		if free && s.field.slots[i].open || admits(s.Request, s.field.nodes[i]) {
			s.home[i] = 0
			found++
		}
	}
}

// score gives the nodes what no pod changes of their scores.
func (s *search) score() {
	worths := s.field.worths(s.Request)
	if s.preferred == nil && !s.field.wary && worths == nil {
		return
	}
	s.fixed = make([]int64, len(s.home))
	if worths != nil {
		s.scoreImages(worths)
	}
	if s.preferred != nil || s.field.wary {
		s.scoreNodes()
	}
	if s.indifferent() {
		s.fixed = nil
	}
}

// scoreNodes adds what nodes' labels and taints count.
func (s *search) scoreNodes() {
	raws, most := make([]raw, len(s.home)), raw{}
	for i, n := range s.field.nodes {
		if s.home[i] >= 0 {
			raws[i] = s.field.raw(s.Request, n)
			most = raw{max(most.preferred, raws[i].preferred), max(most.avoided, raws[i].avoided)}
		}
	}
	for i := range raws {
		s.fixed[i] += raws[i].fixed(most)
	}
}

// indifferent reports whether all nodes that the pod may run on have the same
// fixed score.
func (s *search) indifferent() bool {
	first := -1
	for i := range s.home {
		switch {
		case s.home[i] < 0:
		case first < 0:
			first = i
		case s.fixed[i] != s.fixed[first]:
			return false
		}
	}
	return true
}

// classify sorts the nodes into classes.
func (s *search) classify() {
	var narrow []*topology
	for _, c := range s.counters {
		if !c.wide && !slices.Contains(narrow, c.topology) {
			narrow = append(narrow, c.topology)
		}
	}
	s.tuple = s.field.tuple(narrow)
	s.plain = make([]int32, s.tuple.size)
	for i := range s.plain {
		s.plain[i] = -1
	}
	for i := range s.home {
		if s.home[i] >= 0 {
			s.settle(int32(i))
		}
	}
	for _, c := range s.classes {
		for k := len(c.heap)/2 - 1; k >= 0; k-- {
			s.sink(c, k)
		}
	}
	s.weigh()
}

// settle puts a node into its class, without an order in its heap yet.
func (s *search) settle(i int32) {
	s.home[i] = s.classOf(i)
	c := s.classes[s.home[i]]
	c.members++
	if s.roomy(i) {
		s.spot[i] = int32(len(c.heap))
		c.heap = append(c.heap, candidate{s.field.strategy.room(s.Request, &s.field.slots[i]), i})
	}
}

func (s *search) roomy(i int32) bool {
	if s.simple {
		return s.field.slots[i].has(s.asks)
	}
	return roomy(s.Request, s.field.nodes[i])
}

// classOf finds a node's class, or makes it.
func (s *search) classOf(i int32) int32 {
	plain := true
	for _, c := range s.counters {
		plain = plain && (!c.wide || c.of[i] >= 0 && c.counts[c.of[i]] == 0)
	}
	t := s.tuple.of[i]
	if plain {
		return s.plainClass(t, i)
	}
	s.key = binary.AppendVarint(s.key[:0], int64(t))
	s.key = binary.AppendVarint(s.key, s.fixedOf(i))
	for _, c := range s.counters {
		if c.wide {
			s.key = binary.AppendVarint(s.key, c.at(i))
		}
	}
	id, known := s.byKey[string(s.key)]
	if !known {
		id = s.newClass(i)
		s.byKey[string(s.key)] = id
	}
	return id
}

// plainClass finds the class of a node that counts nothing, or makes it.
func (s *search) plainClass(t, i int32) int32 {
	fixed := s.fixedOf(i)
	for id := s.plain[t]; id >= 0; id = s.classes[id].sibling {
		if s.classes[id].fixed == fixed {
			return id
		}
	}
	id := s.newClass(i)
	if s.fixed == nil {
		s.classes[id].heap = make([]candidate, 0, len(s.home)/s.tuple.size+1)
	}
	s.classes[id].sibling, s.plain[t] = s.plain[t], id
	return id
}

func (s *search) fixedOf(i int32) int64 {
	if s.fixed == nil {
		return 0
	}
	return s.fixed[i]
}

// at is what a node's domain counts.
func (c *counter) at(i int32) int64 {
	if c.of[i] < 0 {
		return missing
	}
	return c.counts[c.of[i]]
}

func (s *search) newClass(i int32) int32 {
	c := &class{fixed: s.fixedOf(i), one: i, sibling: -1, counts: make([]int64, len(s.counters))}
	for k, x := range s.counters {
		c.counts[k] = x.at(i)
	}
	s.classes = append(s.classes, c)
	return int32(len(s.classes) - 1)
}

// counted is what one of the counters says of a class.
func (s *search) counted(c *class, k int) (count int64, has bool) {
	x := s.counters[k]
	count = c.counts[k]
	if !x.wide {
		count = x.at(c.one)
	}
	if count == missing {
		return 0, false
	}
	return count, true
}

// alone reports whether the pod may be the first of those that attract each other.
func (s *search) alone(x *counter) bool {
	return s.own && s.attracted == 0 && (!x.promised || s.expected == 0)
}

func (s *search) blocked(c *class) bool {
	if s.named() {
		return false
	}
	for k, x := range s.counters {
		if x.meaning < crowding {
			if count, has := s.counted(c, k); x.blocks(count, has, s.alone(x)) {
				return true
			}
		}
	}
	return false
}

// refuses says what of the company keeps the pod from a node.
func (s *search) refuses(i int32) refusal {
	if s.named() {
		return refusal{}
	}
	for _, x := range s.counters {
		count, has := x.at(i), true
		if count == missing {
			count, has = 0, false
		}
		if x.blocks(count, has, s.alone(x)) {
			return x.why(has)
		}
	}
	return refusal{}
}

// weigh gives the constraints that need not hold the weight of their topology.
func (s *search) weigh() {
	for _, x := range s.counters {
		if x.meaning != crowding {
			continue
		}
		if x.key == corev1.LabelHostname || !x.wide {
			x.weight = sizeWeight(s.sizeByClass(x))
		} else {
			x.weight = sizeWeight(s.sizeByNode(x))
		}
	}
}

// sizeByClass counts the domains that the pod may run in, of a topology with few;
// the nodes, if each is one.
func (s *search) sizeByClass(x *counter) int {
	nodes, domains := 0, map[int32]bool{}
	for _, c := range s.classes {
		if x.of[c.one] >= 0 && !s.ignores(c) && c.members > 0 {
			nodes += c.members
			domains[x.of[c.one]] = true
		}
	}
	if x.key == corev1.LabelHostname {
		return nodes
	}
	return len(domains)
}

func (s *search) sizeByNode(x *counter) (size int) {
	seen := make([]bool, x.size)
	for i, d := range x.of {
		if d >= 0 && s.home[i] >= 0 && !seen[d] && !s.ignores(s.classes[s.home[i]]) {
			seen[d] = true
			size++
		}
	}
	return size
}

// ignores reports whether a class has no score of its spread.
func (s *search) ignores(c *class) bool {
	if !s.bare {
		return false
	}
	for k, x := range s.counters {
		if x.meaning == crowding {
			if _, has := s.counted(c, k); !has {
				return true
			}
		}
	}
	return false
}

// measure takes the marks of a class that other pods change.
func (s *search) measure(c *class) {
	crowd, lean := 0.0, int64(0)
	for k, x := range s.counters {
		if x.meaning < crowding {
			continue
		}
		count, has := s.counted(c, k)
		switch {
		case !has:
		case x.meaning == crowding:
			crowd += x.rule.crowd(count, x.weight)
		default:
			lean += count
		}
	}
	c.crowd, c.lean, c.ignored = int64(math.Round(crowd)), lean, s.ignores(c)
}

// total is a class's score but for the room.
func (s *search) total(c *class, crowds, leans bounds) int64 {
	score := c.fixed
	if s.hasCrowds && !c.ignored {
		score += spreadWeight * crowds.spread(c.crowd)
	}
	if s.hasLeans {
		score += companyWeight * leans.company(c.lean)
	}
	return score
}

// choose finds the best node.
func (s *search) choose(storage Storage) (node int32, fits bool) {
	crowds, leans := noBounds(), noBounds()
	if s.hasCrowds || s.hasLeans {
		for _, c := range s.classes {
			if c.members == 0 {
				continue
			}
			s.measure(c)
			leans.take(c.lean)
			if !c.ignored {
				crowds.take(c.crowd)
			}
		}
	}
	var refused []int32
	defer func() {
		for _, i := range refused {
			s.enter(i)
		}
	}()
	for {
		best, bestScore := candidate{node: -1}, int64(0)
		for _, c := range s.classes {
			if len(c.heap) == 0 || s.blocked(c) {
				continue
			}
			top := c.heap[0]
			score := s.total(c, crowds, leans) + top.room
			if best.node < 0 || score > bestScore || score == bestScore && top.node < best.node {
				best, bestScore = top, score
			}
		}
		if best.node < 0 || storage == nil || storage(s.field.nodes[best.node]) == "" {
			return best.node, best.node >= 0
		}
		s.leave(best.node)
		refused = append(refused, best.node)
	}
}

// follow takes in what happened to the field; false when the search has to be
// begun anew.
func (s *search) follow() bool {
	for ; s.at < len(s.field.log); s.at++ {
		change := s.field.log[s.at]
		if !s.observe(change) {
			return false
		}
		if s.home[change.node] >= 0 {
			s.leave(change.node)
			s.enter(change.node)
		}
	}
	return true
}

// observe counts a pod that came to a node, or was promised a place there.
func (s *search) observe(c change) bool {
	e := s.effects(c.request)
	if e == nil || c.promised && !s.twinned && s.minds(e) {
		return false
	}
	s.tally(e, c)
	for _, x := range e.list {
		x := s.counters[x.counter]
		if d := x.domain(c.node); x.wide && d >= 0 {
			for _, i := range x.members(d) {
				s.move(i)
			}
		}
	}
	return true
}

// move puts a node into the class that it belongs to now.
func (s *search) move(i int32) {
	if s.home[i] < 0 {
		return
	}
	to := s.classOf(i)
	if to == s.home[i] {
		return
	}
	s.leave(i)
	s.classes[s.home[i]].members--
	s.home[i] = to
	s.classes[to].members++
	s.enter(i)
}
