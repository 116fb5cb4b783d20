package place

import (
	"iter"
	"slices"
)

// Trial is one node as it would be without some of its pods. Nothing else may be
// asked of the field before End.
type Trial struct {
	field   *Field
	search  *search
	request *Request
	storage Storage
	at      int32
	node    *Node
	undo    []func()
}

// Rooms are the nodes that might take a pod once pods of lower priority were
// gone, by name; in a cluster of more than a number of nodes they begin at a
// place that follows from the pod's template.
func (f *Field) Rooms(r *Request, number int) iter.Seq[*Node] {
	start, size := 0, len(f.nodes)
	if size > number {
		start = int(r.start % uint32(size))
	}
	return func(yield func(*Node) bool) {
		for k := range size {
			if n := f.nodes[(start+k)%size]; n.mightHold(r) && admits(r, n) && !yield(n) {
				return
			}
		}
	}
}

// Alone reports whether no other pod, wherever it runs, may keep a pod from a node.
func (f *Field) Alone(r *Request) bool { return !f.accompanied(r) }

// Try begins a trial on a node of the field.
func (f *Field) Try(r *Request, storage Storage, node *Node) *Trial {
	i, _ := f.find(node.Name())
	t := &Trial{field: f, request: r, storage: storage, at: i, node: f.nodes[i]}
	if f.accompanied(r) {
		t.search = f.search(r, true)
	}
	return t
}

// Without takes a pod away; leaving is set for one that was on its way.
func (t *Trial) Without(o *Request, leaving bool) {
	t.node = t.node.Without(o)
	t.count(o, leaving, -1)
}

// With brings it back.
func (t *Trial) With(o *Request, leaving bool) {
	t.node = t.node.With(o)
	t.count(o, leaving, 1)
}

func (t *Trial) count(o *Request, leaving bool, sign int64) {
	if t.search == nil {
		return
	}
	t.tally(o, leaving, sign)
	t.undo = append(t.undo, func() { t.tally(o, leaving, -sign) })
}

func (t *Trial) tally(o *Request, leaving bool, sign int64) {
	e := t.search.effects(o)
	if e == nil {
		return
	}
	for _, x := range e.list {
		c := t.search.counters[x.counter]
		if !leaving || c.rule == nil {
			c.add(t.at, sign*x.delta)
		}
	}
	t.search.attracted += sign * e.attracted(t.search, t.at)
}

// Fits reports whether the pod fits now.
func (t *Trial) Fits() bool {
	return t.field.refuses(t.search, t.request, t.node, t.at, t.storage).key == ""
}

// End leaves the field as it was.
func (t *Trial) End() {
	for _, undo := range slices.Backward(t.undo) {
		undo()
	}
}
