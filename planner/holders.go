package planner

import (
	"cmp"

	"github.com/tallyman-dev/tallyman/desired"
)

// hold has it noted, before the step is over, which node has the users of claims.
func (st *step) hold(claims ...desired.Key) {
	for _, k := range claims {
		st.heldClaims[k] = true
	}
}

// noteHolders notes which node has the users of those claims that only one node
// at a time may have and that could go to another one.
func (st *step) noteHolders() {
	for k := range st.heldClaims {
		c, ok := st.claims.Get(k)
		if !ok {
			continue
		}
		holder := st.unheardHolder(c)
		if v, ok := st.volumes.Get(c.Volume); ok && v.Node == "" && !v.shared() {
			holder = cmp.Or(st.usedOn(k, nil), holder)
		}
		st.setHolder(c, holder)
	}
}

func (st *step) setHolder(c *claim, node string) {
	if c.Holder == node {
		return
	}
	changed := *c
	changed.Holder = node
	st.claims = st.claims.Set(c.Key, &changed)
	st.decide(kindOfClaim, keyText(c.Key), changed.claimRecord)
}

// unheardHolder is a node which may run pods that use a claim, and has not said
// what it runs since our start; empty when there is none.
func (s *State) unheardHolder(c *claim) string {
	if n, _ := s.nodes.Get(c.Holder); n != nil && n.reported || s.declaredDead(c.Holder) {
		return ""
	}
	return c.Holder
}

// releaseHeld looks again at the claims that a node may have used: it has said
// what it runs, or Git something about it.
func (st *step) releaseHeld(node string) {
	for k, c := range entries(st.claims) {
		if c.Holder == node {
			st.hold(k)
			st.stir.claims = true
		}
	}
}
