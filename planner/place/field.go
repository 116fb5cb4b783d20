// Package place decides on which node a pod runs: filters that explain
// themselves, then scores.
//
// Guarantees: a pod is only placed where its requests fit into what the node
// can still give, and every refusal is one sentence that an operator can act
// on. The same pod and nodes give the same choice; ties go to the node whose
// name sorts first. It binds nothing and keeps nothing: values in, a name out.
package place

import (
	"fmt"
	"slices"
	"strings"
)

// Neighbour is a pod that is bound.
type Neighbour struct {
	Node    string
	Request *Request
	// Leaving pods are on their way out: they keep others away until they are
	// gone, but take no part in a spread.
	Leaving bool
}

// Company finds bound pods that have not ended, each once a call.
type Company interface {
	// Picked shows at least those that a pick describes.
	Picked(Pick, func(Neighbour))
	// Minding shows at least those of whose Minds one describes a pod of the request.
	Minding(*Request, func(Neighbour))
	// Siblings shows those of the request's template.
	Siblings(*Request, func(Neighbour))
}

// Storage says why a node can't serve a pod's claims, going on from "the node
// …"; empty when it can. Nil for a pod without claims.
type Storage func(*Node) string

// Field is a cluster while pods are placed in it, one after the other. Not safe
// for concurrent use.
type Field struct {
	strategy        Strategy
	particular      bool
	namespaceLabels func(string) map[string]string
	company         Company
	images          Images

	nodes []*Node
	// slots are what is asked of the nodes most often, side by side.
	slots []slot
	// wary is set when a node has a taint that pods better avoid.
	wary bool
	// byNumber are the places of nodes by their numbers, once somebody asked.
	byNumber []int32
	// log has what happened to the nodes since the start; promises are the changes
	// of it that keep room for a pod.
	log        []change
	promises   []change
	topologies map[string]*topology
	tuples     map[string]*tuple
	// searches are the last ones, the newest last.
	searches []*search
	spare    []buffers
}

// change is a pod that came to a node; promised when room is kept for it there.
type change struct {
	node     int32
	request  *Request
	promised bool
}

// maxSearches bounds what is kept: pods come template by template.
const maxSearches = 8

// Options of a field.
type Options struct {
	Strategy Strategy
	// Particular is set when a term of any pod mentions a label that pods of one
	// template differ in.
	Particular bool
	// NamespaceLabels gives the labels of a namespace.
	NamespaceLabels func(name string) map[string]string
	Company         Company
	// Images may be nil: nodes don't say which they have.
	Images Images
}

// NewField is a cluster of nodes, sorted by name.
func NewField(list []*Node, o Options) *Field {
	f := &Field{
		strategy: o.Strategy, particular: o.Particular, namespaceLabels: o.NamespaceLabels, company: o.Company, images: o.Images,
		nodes: list, slots: make([]slot, len(list)), topologies: map[string]*topology{}, tuples: map[string]*tuple{},
	}
	for i, n := range list {
		f.slots[i] = n.slot()
	}
	f.wary = slices.ContainsFunc(list, (*Node).wary)
	return f
}

// Node with a name; nil when there is none.
func (f *Field) Node(name string) *Node {
	if i, found := f.find(name); found {
		return f.nodes[i]
	}
	return nil
}

// Nodes sorted by name. Shared: nobody may change them.
func (f *Field) Nodes() []*Node { return f.nodes }

func (f *Field) find(name string) (int32, bool) {
	i, found := slices.BinarySearchFunc(f.nodes, name, func(n *Node, name string) int { return strings.Compare(n.Name(), name) })
	return int32(i), found
}

// Put tells of a pod that was bound to a node; n is the node with it.
func (f *Field) Put(n *Node, r *Request) { f.change(n, r, false) }

// Promise tells of a pod for which room is kept on a node; n is the node with it.
// As in Kubernetes a pod is placed only where it may be with those that were
// promised a place and without them, for they are not there yet.
func (f *Field) Promise(n *Node, r *Request) { f.change(n, r, true) }

func (f *Field) change(n *Node, r *Request, promised bool) {
	i, found := f.find(n.Name())
	if !found {
		return
	}
	f.nodes[i], f.slots[i] = n, n.slot()
	c := change{node: i, request: r, promised: promised}
	f.log = append(f.log, c)
	if promised {
		f.promises = append(f.promises, c)
	}
}

// Choose names the node for one pod; fits is false when there is none.
func (f *Field) Choose(r *Request, storage Storage) (node string, fits bool) {
	s := f.search(r, false)
	i, fits := s.choose(storage)
	if !fits && s.sampled {
		i, fits = f.search(r, true).choose(storage)
	}
	if !fits {
		return "", false
	}
	return f.nodes[i].Name(), true
}

// Refusal says why no node fits.
func (f *Field) Refusal(r *Request, storage Storage) string {
	if len(f.nodes) == 0 {
		return "no node has joined the cluster yet"
	}
	s, list := f.search(r, true), newRefusals(len(f.nodes))
	for i, n := range f.nodes {
		if why := f.refuses(s, r, n, int32(i), storage); why.key != "" {
			list.add(why)
		}
	}
	return list.String()
}

// refuses asks the pod's claims last: their answer is the dearest.
func (f *Field) refuses(s *search, r *Request, n *Node, i int32, storage Storage) refusal {
	if why := bars(r, n); why.key != "" {
		return why
	}
	if why := crowds(r, n); why.key != "" {
		return why
	}
	if s != nil {
		if why := s.refuses(i); why.key != "" {
			return why
		}
	}
	if storage != nil {
		if text := storage(n); text != "" {
			return refusal{key: "storage " + text, text: text}
		}
	}
	return refusal{}
}

// Fits says why the named node can't take a pod that is for no other; empty
// when it can.
func (f *Field) Fits(r *Request, storage Storage, node string) string {
	i, found := f.find(node)
	if !found {
		return "node " + node + " has not joined the cluster"
	}
	var s *search
	if f.accompanied(r) {
		s = f.search(r, true)
	}
	why := f.refuses(s, r, f.nodes[i], i, storage)
	if why.key == "" {
		return ""
	}
	return fmt.Sprintf("node %s %s%s", node, why.text, why.detail)
}

// accompanied reports whether other pods may keep a pod from a node.
func (f *Field) accompanied(r *Request) bool {
	if r.named() {
		return false
	}
	minded := len(r.attracts)+len(r.repels)+len(r.hard) > 0
	if !minded {
		f.company.Minding(r, func(Neighbour) { minded = true })
	}
	return minded || len(f.log) > 0 && slices.ContainsFunc(f.log, func(c change) bool { return len(c.request.repels) > 0 })
}

// search for pods like one, up to date.
func (f *Field) search(r *Request, whole bool) *search {
	k := r
	if !f.particular {
		k = r.kin()
	}
	for i, s := range f.searches {
		if s.Request != k {
			continue
		}
		f.searches = append(slices.Delete(f.searches, i, i+1), s)
		if whole && s.sampled {
			f.forget(len(f.searches) - 1)
			break
		}
		if s.follow() {
			return s
		}
		whole = whole || !s.sampled
		f.forget(len(f.searches) - 1)
		break
	}
	if len(f.searches) >= maxSearches {
		f.forget(0)
	}
	s := newSearch(f, k, whole)
	f.searches = append(f.searches, s)
	return s
}

func (f *Field) forget(i int) {
	f.spare = append(f.spare, f.searches[i].buffers)
	f.searches = slices.Delete(f.searches, i, i+1)
}

// Renew has all that is known of pods looked up again: something happened to
// them that the field was not told.
func (f *Field) Renew() {
	for len(f.searches) > 0 {
		f.forget(0)
	}
}
