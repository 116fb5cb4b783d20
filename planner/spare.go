package planner

import "time"

// spare keeps what silent nodes run in the routes when another node comes back
// from the same storm: what kept the server from hearing it is over, and the
// others are likely to follow one by one. Those that have not by the end of
// afterStorm leave the routes as they would have without.
func (st *step) spare() {
	if len(st.back) == 0 {
		return
	}
	widespread := st.base.widespread()
	for _, name := range keysOf(st.tainted) {
		n, _ := st.nodes.Get(name)
		before, _ := st.base.nodes.Get(name)
		if !n.silent() || !before.silent() || n.wasSpared {
			continue
		}
		if widespread || st.back[before.seat.zone] && st.base.storm(before) != "" {
			st.setSpared(name, st.now.Add(afterStorm))
		}
	}
}

// widespread reports whether a storm is over the whole cluster.
func (s *State) widespread() bool { return s.all.silent >= s.all.nodes || s.all.stormy() }

// endSparing takes the pods of a node out of the routes that did not come back.
func (st *step) endSparing(n *node) {
	if !n.spared.IsZero() && !n.spared.After(st.now) {
		st.setSpared(n.Name, time.Time{})
	}
}

func (st *step) setSpared(name string, until time.Time) {
	n := st.nodeFor(name)
	n.spared, n.wasSpared = until, true
	st.nodes = st.nodes.Set(name, n)
	st.nodeTurned(n)
}
