package planner

import (
	"slices"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/place"
)

// company finds the bound pods that a choice depends on by the labels of their
// groups.
type company struct {
	*step
	// of is the group of the pod that is being placed.
	of *group
}

// Picked looks through the groups that have a label, or all of a namespace.
func (c *company) Picked(p place.Pick, see func(place.Neighbour)) {
	if p.Key == "" || p.Namespaces == nil {
		for k, g := range entries(c.groups) {
			if p.Namespaces == nil || slices.Contains(p.Namespaces, k.Namespace) {
				c.showAll(g, nil, see)
			}
		}
		return
	}
	var found []desired.Key
	for _, namespace := range p.Namespaces {
		for _, value := range p.Values {
			found = slices.AppendSeq(found, c.groupLabels.all(pair{namespace, p.Key, value}))
		}
	}
	c.show(found, nil, see)
}

// Minding looks through the groups with terms about a label of the pod.
func (c *company) Minding(r *place.Request, see func(place.Neighbour)) {
	var found []desired.Key
	look := func(key, value string) {
		for _, namespace := range []string{r.Namespace(), ""} {
			found = slices.AppendSeq(found, c.minders.all(pair{namespace, key, value}))
		}
	}
	look("", "")
	r.Pairs(look)
	c.show(found, (*place.Request).Minding, see)
}

func (c *company) Siblings(r *place.Request, see func(place.Neighbour)) {
	c.showAll(c.of, r.Sibling, see)
}

func (c *company) show(found []desired.Key, only func(*place.Request) bool, see func(place.Neighbour)) {
	slices.SortFunc(found, desired.Key.Compare)
	for _, k := range slices.Compact(found) {
		if g, ok := c.groups.Get(k); ok {
			c.showAll(g, only, see)
		}
	}
}

// showAll goes through the pods of a group that are bound and have not ended.
func (c *company) showAll(g *group, only func(*place.Request) bool, see func(place.Neighbour)) {
	for _, p := range g.pods {
		if p.Node != "" && !p.released && !c.ended(p) && (only == nil || only(p.request)) {
			see(place.Neighbour{Node: p.Node, Request: p.request, Leaving: p.goes()})
		}
	}
}

// ended reports whether it is certain that nothing of a pod runs. It counts again
// where its node answers, which may be back with it, until it is gone.
func (st *step) ended(p *pod) bool {
	if p.lost != certain {
		return false
	}
	n, _ := st.nodes.Get(p.Node)
	return !n.live()
}

// ownKeys are the labels in which pods of one template differ.
var ownKeys = []string{"apps.kubernetes.io/pod-index", "batch.kubernetes.io/job-completion-index", "statefulset.kubernetes.io/pod-name"}

// particular reports whether a request tells pods of one template apart.
func particular(r *place.Request) bool {
	return slices.ContainsFunc(r.Keyed(), func(key string) bool { return slices.Contains(ownKeys, key) })
}

// mind indexes a group by what its pods' terms are about.
func (st *step) mind(g *group, r *place.Request) {
	for _, pick := range r.Minds() {
		for _, p := range pairsOf(pick) {
			if !slices.Contains(g.minds, p) {
				g.minds = append(slices.Clip(g.minds), p)
				st.minders.add(p, g.key)
			}
		}
	}
}

// pairsOf are the labels under which a pick is found; an empty namespace stands for all.
func pairsOf(p place.Pick) (out []pair) {
	namespaces, values := p.Namespaces, p.Values
	if namespaces == nil {
		namespaces = []string{""}
	}
	if p.Key == "" {
		values = []string{""}
	}
	for _, namespace := range namespaces {
		for _, value := range values {
			out = append(out, pair{namespace, p.Key, value})
		}
	}
	return out
}

// remind indexes a group anew, after templates of its were forgotten.
func (st *step) remind(g *group) {
	for _, p := range g.minds {
		st.minders.remove(p, g.key)
	}
	g.minds = nil
	for _, s := range g.sets {
		st.mind(g, s.request)
	}
	for _, p := range g.pods {
		if p.request != p.set.request {
			st.mind(g, p.request)
		}
	}
}
