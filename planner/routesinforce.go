package planner

import (
	"fmt"
	"strings"
	"time"

	"github.com/benbjohnson/immutable"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	// routesSlow is how long a node may take to put routes into force before
	// anybody is told of it.
	routesSlow = time.Second
	// routesPatience is how long it may take before the revision that needs
	// the routes has failed.
	routesPatience = time.Minute
)

// oweRoutes notes which generation of the route table the revision in force
// needs, and which nodes don't have it yet. It is the one with which all else
// was done: tables after it follow what happens to pods later, and a node that
// is always one behind holds nobody up. While that table is still to be made,
// nothing is owed and nothing has converged.
func (st *step) oweRoutes() {
	done, _ := st.carriedOut()
	switch {
	case !done || st.routes == nil:
		st.owed = 0
	case st.owed == 0 || st.snapshot != st.base.snapshot || st.turned || st.recovered():
		st.owed = st.routes.Generation
		if st.routesChanged {
			st.owed = 0
		}
	}
	if st.owed != st.base.owed {
		st.behind = st.allBehind()
		return
	}
	for name := range st.heard {
		n, _ := st.nodes.Get(name)
		_, was := st.behind.Get(name)
		switch is := n.live() && st.lacksRoutes(n); {
		case is && !was:
			st.behind = st.behind.Set(name, st.now)
		case was && !is:
			st.behind = st.behind.Delete(name)
		}
	}
}

// recovered reports whether a group that was late is so no more. What is late
// holds up no revision that came after it, so its pods may be the last to come
// before that has converged.
func (st *step) recovered() bool {
	for k := range keys(st.base.active) {
		before, _ := st.base.groups.Get(k)
		after, there := st.groups.Get(k)
		if before != nil && there && before.verdict.Late && !after.verdict.Late {
			return true
		}
	}
	return false
}

// allBehind are the live nodes that lack what is owed, as of now.
func (st *step) allBehind() *immutable.SortedMap[string, time.Time] {
	b := immutable.NewSortedMapBuilder[string, time.Time](comparer[string](strings.Compare))
	if st.owed > 0 && !st.drained(st.owed) {
		for name, n := range entries(st.nodes) {
			if n.live() && st.lacksRoutes(n) {
				b.Set(name, st.now)
			}
		}
	}
	return b.Map()
}

// hear counts anew which routes the nodes have that something was heard of.
func (st *step) hear(c *Change) {
	for i := range c.Nodes {
		st.heard[c.Nodes[i].Name] = true
	}
	for i := range c.Reports {
		st.heard[c.Reports[i].Node] = true
	}
	for name := range st.heard {
		before, _ := st.base.nodes.Get(name)
		after, _ := st.nodes.Get(name)
		st.turned = st.turned || before.live() != after.live()
		if before.live() {
			st.countRoutes(before.Routes, -1)
		}
		if after.live() {
			st.countRoutes(after.Routes, 1)
		}
		if after != nil {
			st.newest = max(st.newest, after.Routes)
		}
	}
}

func (st *step) countRoutes(generation uint64, by int) {
	n, _ := st.inForceOn.Get(generation)
	if n += by; n == 0 {
		st.inForceOn = st.inForceOn.Delete(generation)
	} else {
		st.inForceOn = st.inForceOn.Set(generation, n)
	}
}

// drained reports whether every live node has a generation in force.
func (s *State) drained(generation uint64) bool {
	if generation == 0 {
		return false
	}
	for least := range keys(s.inForceOn) {
		return least >= generation
	}
	return true
}

// lacksRoutes reports whether a node does not have the routes in force that
// the revision in force needs.
func (s *State) lacksRoutes(n *node) bool { return s.owed > 0 && n.Routes < s.owed }

// routesInForce reports whether every live node has the routes that the
// revision in force needs. Nothing is routed before a node has reported.
func (s *State) routesInForce() bool {
	if !s.informed {
		return true
	}
	return s.owed > 0 && s.drained(s.owed)
}

// routeWaits yields the nodes that the revision in force waits for, and until
// when: those that have not put its routes into force, or without whose
// reports there can be no table yet. It returns false when yield did.
func (s *State) routeWaits(yield func(nodes.WaitingItem) bool) bool {
	for name, since := range entries(s.behind) {
		if !yield(nodes.WaitingItem{
			Object: nodeKey(name), Reason: "has not put the newest routes into force yet", Deadline: since.Add(routesPatience),
		}) {
			return false
		}
	}
	if s.snapshot == nil || !s.informed || s.routes != nil {
		return true
	}
	for name, n := range entries(s.nodes) {
		if !n.reported && n.pods.Len() > 0 && !yield(nodes.WaitingItem{
			Object: nodeKey(name), Reason: "has not reported since the server started; routes are made when it has, or without it", Deadline: s.started.Add(startPatience),
		}) {
			return false
		}
	}
	return true
}

// wakeForRoutes looks again when a node has been behind for long.
func (st *step) wakeForRoutes() {
	for _, since := range entries(st.behind) {
		for _, patience := range []time.Duration{routesSlow, routesPatience} {
			if due := since.Add(patience); due.After(st.now) {
				st.wakeAt(due)
				break
			}
		}
	}
}

// lateRoutes is the failure of the first node that has not put the routes into
// force in time; empty when there is none.
func (s *State) lateRoutes() string {
	for name, since := range entries(s.behind) {
		if s.passed(since, routesPatience) {
			return clean(fmt.Sprintf("node %s has not put the routes of this revision into force for %s; its agent's log says why", name, routesPatience))
		}
	}
	return ""
}

// slowRoutes tells a push of the nodes that take their time.
func (s *State) slowRoutes() (out []WorkloadProgress) {
	for name, since := range entries(s.behind) {
		if s.passed(since, routesSlow) {
			k := nodeKey(name)
			out = append(out, WorkloadProgress{
				Object: k, Line: clean(k.String() + ": has not put the newest routes into force yet"), Health: nodes.Progressing,
			})
		}
	}
	return out
}

func (s *State) passed(since time.Time, d time.Duration) bool { return !s.at.Before(since.Add(d)) }

// Unrouted says which silent nodes don't have the routes of the revision in
// force, in one clause; empty when there are none. Nobody waits for them.
func (s *State) Unrouted() string {
	var names []string
	for name, n := range entries(s.nodes) {
		if !n.live() && s.lacksRoutes(n) {
			names = append(names, name)
		}
	}
	switch len(names) {
	case 0:
		return ""
	case 1:
		return clean("node " + names[0] + " is silent and may route as before")
	default:
		return clean("nodes " + strings.Join(names, ", ") + " are silent and may route as before")
	}
}
