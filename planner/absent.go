package planner

import "slices"

// A node's ledger that takes the place of a lost record may be old. Until every
// node that it knows of has reported, or Git declares it gone, what Git does not
// have stays: it may be newer than the ledger, and so may the revision in force.

// missAbsent notes the nodes that the ledger knows of and that have not
// reported, in the new record too: the server may start again before they do.
func (st *step) missAbsent() {
	st.absent = nil
	for _, name := range keysOf(st.nodes) {
		n, _ := st.nodes.Get(name)
		if !n.reported {
			st.absent = append(st.absent, name)
		}
		st.keepAbsent(n, !n.reported)
	}
}

func (st *step) keepAbsent(n *node, absent bool) {
	if n.kept.Absent == absent {
		return
	}
	clone := *n
	clone.kept.Name, clone.kept.Absent = n.Name, absent
	st.recordMachine(&clone)
	st.putNode(&clone)
}

// welcome takes note of a node's first report.
func (st *step) welcome(name string) {
	i := slices.Index(st.absent, name)
	if i < 0 {
		return
	}
	st.absent = slices.Delete(slices.Clone(st.absent), i, i+1)
	n, _ := st.nodes.Get(name)
	st.keepAbsent(n, false)
	st.lookAtRetired()
}

// judgeAbsent notes that Git says something else of a node.
func (st *step) judgeAbsent(name string) {
	if slices.Contains(st.absent, name) {
		st.lookAtRetired()
	}
}

// lookAtRetired has the groups looked at again that Git does not have.
func (st *step) lookAtRetired() {
	for k, g := range entries(st.groups) {
		if g.object == nil {
			st.dirtyGroups[k] = true
		}
	}
	for name := range keys(st.doubted) {
		st.dirtyNodes[name] = true
	}
}

// keeps says why a group that Git does not have is kept; empty when it is not.
func (s *State) keeps(g *group) string {
	if g.object != nil || len(g.pods) == 0 {
		return ""
	}
	if name := s.awaited(); name != "" {
		return "no longer in Git, but the record was lost, and node " + name + ", which may know more, has not reported since: it goes when that node has, " +
			"or its Node in Git has the taint node.kubernetes.io/out-of-service"
	}
	return ""
}

// awaited is the first absent node that Git has not declared dead; empty when
// there is none.
func (s *State) awaited() string {
	for _, name := range s.absent {
		if !s.declaredDead(name) {
			return name
		}
	}
	return ""
}
