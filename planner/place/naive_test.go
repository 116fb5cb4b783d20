package place

import (
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// world is a cluster in which every question is answered by looking at every
// pod on every node. It is what the quick way is held to, and a Company.
type world struct {
	list []*Node
	pods []Neighbour
	// promised are pods for which room is kept; the nodes are with them.
	promised []Neighbour
	strategy Strategy
	labels   func(string) map[string]string
	images   Images
	// particular is Options.Particular.
	particular bool
}

func (w *world) node(name string) *Node {
	return w.list[slices.IndexFunc(w.list, func(n *Node) bool { return n.Name() == name })]
}

func (w *world) Picked(p Pick, see func(Neighbour)) {
	for _, n := range w.pods {
		value, has := n.Request.labels.Lookup(p.Key)
		if (p.Namespaces == nil || slices.Contains(p.Namespaces, n.Request.namespace)) && (p.Key == "" || has && slices.Contains(p.Values, value)) {
			see(n)
		}
	}
}

func (w *world) Minding(_ *Request, see func(Neighbour)) {
	for _, n := range w.pods {
		see(n)
	}
}

func (w *world) Siblings(r *Request, see func(Neighbour)) {
	for _, n := range w.pods {
		if n.Request.asks == r.asks {
			see(n)
		}
	}
}

func (w *world) field() *Field {
	return NewField(slices.Clone(w.list), Options{Strategy: w.strategy, Particular: w.particular, NamespaceLabels: w.labels, Company: w, Images: w.images})
}

// sum adds up a weight over the pods in the same domain as a node.
func (w *world) sum(n *Node, key string, weight func(Neighbour) int64) (total int64, has bool) {
	value, has := n.kube.Labels[key]
	for _, p := range w.pods {
		if v, ok := w.node(p.Node).kube.Labels[key]; ok && has && v == value {
			total += weight(p)
		}
	}
	return total, has
}

func one(is bool) int64 {
	if is {
		return 1
	}
	return 0
}

func (w *world) matchesAll(terms []term, r *Request) bool {
	return len(terms) > 0 && !slices.ContainsFunc(terms, func(t term) bool { return !t.matches(r, w.labels) })
}

// fits applies all filters, with the pods that were promised a place and without.
func (w *world) fits(r *Request, n *Node) bool {
	with := *w
	with.pods = slices.Concat(w.pods, w.promised)
	return bars(r, n).key == "" && crowds(r, n).key == "" && (r.spec.NodeName != "" || w.agrees(r, n) && with.agrees(r, n))
}

// agrees applies the filters that ask for other pods.
func (w *world) agrees(r *Request, n *Node) bool {
	near, somewhere := true, false
	for _, t := range r.attracts {
		count, has := w.sum(n, t.topology, func(p Neighbour) int64 { return one(w.matchesAll(r.attracts, p.Request)) })
		if !has {
			return false
		}
		near = near && count > 0
		somewhere = somewhere || slices.ContainsFunc(w.pods, func(p Neighbour) bool {
			_, has := w.node(p.Node).kube.Labels[t.topology]
			return has && w.matchesAll(r.attracts, p.Request)
		})
	}
	if !near && (somewhere || !w.matchesAll(r.attracts, r)) {
		return false
	}
	for _, t := range r.repels {
		if count, _ := w.sum(n, t.topology, func(p Neighbour) int64 { return one(t.matches(p.Request, w.labels)) }); count > 0 {
			return false
		}
	}
	for _, p := range w.pods {
		for _, t := range p.Request.repels {
			there, a := w.node(p.Node).kube.Labels[t.topology]
			here, b := n.kube.Labels[t.topology]
			if a && b && there == here && t.matches(r, w.labels) {
				return false
			}
		}
	}
	for _, c := range r.hard {
		if !w.spreads(r, n, &c) {
			return false
		}
	}
	return true
}

// counts reports whether pods on a node count in a spread.
func (w *world) counts(r *Request, c *constraint, all []constraint, n *Node) bool {
	for _, o := range all {
		if _, has := n.kube.Labels[o.topology]; !has && c.selector != nil {
			return false
		}
	}
	if c.honorTaint {
		if _, hit := untolerated(r, n); hit {
			return false
		}
	}
	return c.ignoreNode || r.chooses(n)
}

func (w *world) spreads(r *Request, n *Node, c *constraint) bool {
	value, has := n.kube.Labels[c.topology]
	if !has {
		return false
	}
	counts := map[string]int{}
	for _, o := range w.list {
		if v, has := o.kube.Labels[c.topology]; has && w.counts(r, c, r.hard, o) {
			counts[v] += 0
		}
	}
	for _, p := range w.pods {
		o := w.node(p.Node)
		if v, has := o.kube.Labels[c.topology]; has && !p.Leaving && w.counts(r, c, r.hard, o) && c.counts(r, p.Request) {
			counts[v]++
		}
	}
	least := math.MaxInt
	for _, v := range counts {
		least = min(least, v)
	}
	if len(counts) < c.minDomains {
		least = 0
	}
	return counts[value]+c.self(r)-least <= c.skew
}

func (w *world) ignored(r *Request, n *Node) bool {
	return len(r.spec.TopologySpreadConstraints) > 0 && slices.ContainsFunc(r.soft, func(c constraint) bool {
		_, has := n.kube.Labels[c.topology]
		return !has
	})
}

func (w *world) crowd(r *Request, n *Node, eligible []*Node) int64 {
	total := 0.0
	for _, c := range r.soft {
		if _, has := n.kube.Labels[c.topology]; !has {
			continue
		}
		values, nodes := map[string]bool{}, 0
		for _, e := range eligible {
			if v, has := e.kube.Labels[c.topology]; has && !w.ignored(r, e) {
				values[v] = true
				nodes++
			}
		}
		size := len(values)
		if c.topology == corev1.LabelHostname {
			size = nodes
		}
		count, _ := w.sum(n, c.topology, func(p Neighbour) int64 {
			return one(!p.Leaving && w.counts(r, &c, r.soft, w.node(p.Node)) && c.counts(r, p.Request))
		})
		total += c.crowd(count, sizeWeight(size))
	}
	return int64(math.Round(total))
}

func (w *world) lean(r *Request, n *Node) (total int64) {
	for _, p := range w.pods {
		together := func(t term, about *Request, weight int64) {
			there, a := w.node(p.Node).kube.Labels[t.topology]
			here, b := n.kube.Labels[t.topology]
			if a && b && there == here && t.matches(about, w.labels) {
				total += weight
			}
		}
		for _, t := range r.leans {
			together(t.term, p.Request, t.weight)
		}
		for _, t := range p.Request.leans {
			together(t.term, r, t.weight)
		}
		for _, t := range p.Request.attracts {
			together(t, r, hardWeight)
		}
	}
	return total
}

func (w *world) room(r *Request, n *Node) int64 {
	s := n.slot()
	return w.strategy.room(r, &s)
}

// present is the score for the images that a node has.
func (w *world) present(r *Request, n *Node) int64 {
	if w.images == nil {
		return 0
	}
	sum := 0.0
	for _, name := range r.images {
		count, size := 0, int64(0)
		for _, h := range w.images(name) {
			h.On.each(func(number int32) {
				count++
				if number == n.number {
					size = h.Image.Size
				}
			})
		}
		sum += math.Floor(float64(size) * float64(count) / float64(len(w.list)))
	}
	enough := float64(1000*len(r.spec.Containers)+1000*len(r.spec.InitContainers)) * (1 << 20)
	return int64(100 * (min(max(sum, 23<<20), enough) - 23<<20) / (enough - 23<<20))
}

// choose looks at every node.
func (w *world) choose(r *Request, storage Storage) (string, bool) {
	var eligible []*Node
	most, crowds, leans := raw{}, noBounds(), noBounds()
	f := &Field{wary: slices.ContainsFunc(w.list, (*Node).wary)}
	for _, n := range w.list {
		if admits(r, n) {
			eligible = append(eligible, n)
		}
	}
	for _, n := range eligible {
		v := f.raw(r, n)
		most = raw{max(most.preferred, v.preferred), max(most.avoided, v.avoided)}
		leans.take(w.lean(r, n))
		if !w.ignored(r, n) {
			crowds.take(w.crowd(r, n, eligible))
		}
	}
	best, bestScore := "", int64(math.MinInt64)
	for _, n := range eligible {
		if !w.fits(r, n) || storage != nil && storage(n) != "" {
			continue
		}
		score := f.raw(r, n).fixed(most) + w.present(r, n) + w.room(r, n) + companyWeight*leans.company(w.lean(r, n))
		if len(r.soft) > 0 && !w.ignored(r, n) {
			score += spreadWeight * crowds.spread(w.crowd(r, n, eligible))
		}
		if score > bestScore {
			best, bestScore = n.Name(), score
		}
	}
	return best, best != ""
}
