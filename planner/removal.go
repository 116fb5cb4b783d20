package planner

import (
	"fmt"
	"maps"
	"slices"

	"github.com/benbjohnson/immutable"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// removes reports whether Git takes a node out of the cluster for good: its
// machine is shut out, and certain to be off.
func removes(said *corev1.Node) bool {
	return said != nil && isRevoked(said) && declaredDead(said.Spec.Taints)
}

// Removed are the names of nodes that Git has taken out of the cluster and of
// which nothing is left, sorted: whoever joins under such a name later is
// another node.
func (s *State) Removed() []string {
	var names []string
	for name := range keys(s.outcasts) {
		if _, left := s.nodes.Get(name); !left {
			names = append(names, name)
		}
	}
	return names
}

// applyRemoval notes whether Git takes a node out.
func (st *step) applyRemoval(name string) {
	_, was := st.outcasts.Get(name)
	switch is := removes(st.said(name)); {
	case is && !was:
		st.outcasts = st.outcasts.Set(name, struct{}{})
		st.disown(name)
	case was && !is:
		st.outcasts = st.outcasts.Delete(name)
	}
}

// removeNodes drops the nodes that Git takes out, once they are silent. What they
// ran is lost by then, and its workloads know.
func (st *step) removeNodes() {
	for name := range keys(st.outcasts) {
		if n, ok := st.nodes.Get(name); ok && !n.Ready {
			st.removeNode(n)
		}
	}
}

func (st *step) removeNode(n *node) {
	why := "node " + n.Name + " was removed from the cluster"
	for _, uid := range keysOf(n.pods) {
		st.forget(uid, why)
	}
	st.dropVolumes(n.Name)
	st.disown(n.Name)
	n = st.nodeFor(n.Name)
	if p := n.podCIDR(); p.IsValid() {
		st.ranges, st.taken = st.ranges.Delete(p), 0
	}
	st.rangeless = st.rangeless.Delete(n.Name)
	st.dropKey(n.Name, n.kept.WireGuard)
	st.keyless = st.keyless.Delete(n.Name)
	st.tainted = st.tainted.Delete(n.Name)
	st.behind = st.behind.Delete(n.Name)
	n.kept, n.told, n.reported = machineRecord{}, false, false
	st.absent = slices.DeleteFunc(slices.Clone(st.absent), func(name string) bool { return name == n.Name })
	st.putPeer(n)
	st.count(n)
	st.dropImages(n)
	st.nodes = st.nodes.Delete(n.Name)
	delete(st.dirtyNodes, n.Name)
	st.decide(kindOfMachine, n.Name, nil)
	st.lists, st.storageDirty = nil, true
	st.stir.nodes = true
	st.wakeDaemons()
	st.event(nodeKey(n.Name), false, "RemovingNode", "Node "+n.Name+" is revoked and out of service: its pods, its volumes and its range of addresses are forgotten")
	st.act("remove", nodeKey(n.Name), n.Name, "revoked and out of service")
}

// disown has workloads and claims forget what they remember of a node: which
// ordinals and volumes it may use, how often pods failed there, and the pods that
// are for it alone.
func (st *step) disown(name string) {
	st.releaseHeld(name)
	for k, g := range entries(st.groups) {
		holds := slices.Contains(slices.Collect(maps.Values(g.holders)), name)
		_, failed := g.failures[name]
		aims := slices.ContainsFunc(g.pods, func(p *pod) bool { return p.Node == "" && p.aim == name })
		if !holds && !failed && !aims {
			continue
		}
		g = st.edit(k)
		if failed {
			g.failures = maps.Clone(g.failures)
			delete(g.failures, name)
			st.recordWorkload(g)
		}
		for _, p := range slices.Clone(g.pods) {
			if p.Node == "" && p.aim == name {
				st.leave(p.UID, "node "+name+" was removed from the cluster")
			}
		}
		st.dirtyGroups[k], st.touched[k] = true, true
	}
}

// dropVolumes forgets the data that only a node had: who had it begins anew.
// Data that others reach as well is theirs to look after.
func (st *step) dropVolumes(name string) {
	for _, v := range entries(st.volumes) {
		if v.concerns(name) {
			changed := v.editHoldings()
			changed.remove(name)
			v = st.putHoldings(v, changed)
		}
		switch {
		case !v.heldBy(name):
		case v.Node == name:
			st.loseVolume(v)
		default:
			st.reassign(v)
		}
	}
}

// reassign lets another node look after a volume that it reaches as well; false
// while there is none that could.
func (st *step) reassign(v *volume) bool {
	for name, n := range entries(st.nodes) {
		if name != v.Maker && n.live() && slices.Contains(n.Drivers, v.Provisioner) {
			changed := *v
			changed.Maker = name
			st.setVolume(&changed)
			return true
		}
	}
	return false
}

// loseVolume forgets a volume whose data is lost, and unbinds who had it.
func (st *step) loseVolume(v *volume) {
	st.forgetVolume(v, "its data was on node "+v.Node+", which was removed from the cluster")
	if c, ok := st.claims.Get(v.Claim); ok && c.Volume == v.Name {
		if st.snapshot.Get(c.Key) == nil && st.usersOf(c.Key) == 0 {
			st.forgetClaim(c, "its data is lost")
			return
		}
		unbound := *c
		unbound.Volume = ""
		st.setClaim(&unbound)
		st.event(c.Key, true, "VolumeLost", "PersistentVolume "+v.Name+" was on node "+v.Node+", which was removed from the cluster: the claim begins with an empty volume")
	}
	if shot, ok := st.snapshots.Get(v.Claim); v.Snapshot && ok && shot.Volume == v.Name {
		st.keepSnapshotWaiting(shot, "its data was on node "+v.Node+", which was removed from the cluster: take another snapshot under another name", true)
	}
}

// lostWith lists the claims and snapshots whose data goes with the nodes that a
// revision takes out.
func (st *step) lostWith(c *comparison) []desired.Key {
	var out []desired.Key
	for _, k := range c.changed {
		if k.Kind != kindNode || k.Group != "" || !st.alters(c, k) || !removes(nodeIn(c.next, k.Name)) {
			continue
		}
		if c.old != nil && removes(nodeIn(c.old, k.Name)) {
			continue
		}
		for _, v := range entries(st.volumes) {
			if v.provisioned() && v.Node == k.Name && v.Bound && !v.Ephemeral && !slices.Contains(c.gone, v.Claim) {
				out = append(out, v.Claim)
			}
		}
	}
	slices.SortFunc(out, desired.Key.Compare)
	return out
}

// lossWith says what data a revision gives up with nodes; empty for none.
func lossWith(lost []desired.Key) string {
	if len(lost) == 0 {
		return ""
	}
	return fmt.Sprintf("the data of %s would be given up with the node that it is on: %s", countData(lost), listKeys(lost))
}

// removalHealth tells how far the removal of a node is; empty for one that stays.
func (s *State) removalHealth(name string) (nodes.Health, string) {
	if _, is := s.outcasts.Get(name); !is {
		return "", ""
	}
	if _, left := s.nodes.Get(name); left {
		return nodes.Progressing, "is removed from the cluster as soon as it is silent"
	}
	return nodes.Healthy, "is removed from the cluster; a machine may join under this name when its Node is no longer revoked"
}

func newOutcasts() *immutable.SortedMap[string, struct{}] {
	return immutable.NewSortedMap[string, struct{}](nil)
}
