package planner

import "encoding/base64"

// wireGuardKey is the public key that the node tells, in its one spelling; empty
// for none. Base64 can be read in several.
func (n *node) wireGuardKey() string {
	key, err := base64.StdEncoding.DecodeString(n.WireGuard)
	if err != nil || len(key) != 32 {
		return ""
	}
	return base64.StdEncoding.EncodeToString(key)
}

// lacksKey reports whether others can't be told the key that the node tells.
func (n *node) lacksKey() bool {
	key := n.wireGuardKey()
	return key != "" && key != n.kept.WireGuard
}

// noteKey has giveKeys look at a node that tells a key.
func (st *step) noteKey(n *node) {
	if n.lacksKey() {
		st.keyless = st.keyless.Set(n.Name, struct{}{})
	} else {
		st.keyless = st.keyless.Delete(n.Name)
	}
}

// restoreKey notes whose key it is. What was recorded counts more than what a node
// says, which may have come first.
func (st *step) restoreKey(n *node, before string) {
	st.dropKey(n.Name, before)
	key := n.kept.WireGuard
	if key == "" {
		return
	}
	other, taken := st.keyOwners.Get(key)
	st.keyOwners = st.keyOwners.Set(key, n.Name)
	if taken && other != n.Name {
		loser := st.nodeFor(other)
		loser.kept.WireGuard = ""
		st.recordMachine(loser)
		st.putNode(loser)
	}
}

func (st *step) dropKey(node, key string) {
	if owner, ok := st.keyOwners.Get(key); ok && owner == node {
		st.keyOwners = st.keyOwners.Delete(key)
	}
}

// giveKeys lets the nodes have the WireGuard keys that they tell. Packets go by
// the key, so two can't have the same: the one that had it first keeps it.
func (st *step) giveKeys() {
	for _, name := range keysOf(st.keyless) {
		n, ok := st.nodes.Get(name)
		if !ok || !n.reported {
			continue
		}
		key := n.wireGuardKey()
		if owner, taken := st.keyOwners.Get(key); taken && owner != name {
			st.refuseKey(n, owner)
			continue
		}
		clone := *n
		st.dropKey(name, n.kept.WireGuard)
		st.keyOwners = st.keyOwners.Set(key, name)
		clone.kept.Name, clone.kept.WireGuard, clone.keyTrouble = name, key, ""
		st.recordMachine(&clone)
		st.putNode(&clone)
	}
}

// refuseKey tells once why a node is not reached over WireGuard.
func (st *step) refuseKey(n *node, owner string) {
	why := "its WireGuard key is that of node " + owner + ", so other nodes do not reach its pods: remove the key file in its data dir, and it makes another, or remove node " + owner + " if it is this machine"
	if n.keyTrouble == why {
		return
	}
	clone := *n
	clone.keyTrouble = why
	st.nodes = st.nodes.Set(n.Name, &clone)
	st.event(nodeKey(n.Name), true, "WireGuardKeyTaken", "Node "+n.Name+": "+why)
}
