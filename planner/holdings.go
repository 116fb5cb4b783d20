package planner

import (
	"cmp"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

// holding is what a node may have of a volume that pods take along to other
// nodes, one at a time.
type holding struct {
	Node string `json:"node"`
	// ID is what the volume's driver calls the node; empty when nobody knows.
	ID string `json:"id,omitempty"`
	// Idle is set once it is certain that the volume is neither attached nor
	// mounted there.
	Idle bool `json:"idle,omitempty"`
	// By are the nodes that were ordered to detach it from there, and have not said
	// that they know the order no more: one of them may still do it.
	By []string `json:"by,omitempty"`
	// Removed is set when the node was taken out of the cluster.
	Removed bool `json:"removed,omitempty"`
}

// moves reports whether the volume follows its pods from node to node: one of a
// CSI driver that one node at a time may have.
func (v *volume) moves() bool {
	return v.Spec.CSI != nil && v.Node == "" && !v.Snapshot && !v.shared()
}

// detachments are the orders to detach the volume from nodes that can't.
func (v *volume) detachments() []nodes.Detachment {
	var out []nodes.Detachment
	for _, h := range v.Holdings {
		if !h.Idle && len(h.By) > 0 {
			out = append(out, nodes.Detachment{Node: h.Node, ID: h.ID, By: h.By})
		}
	}
	return out
}

// concerns reports whether a node may have something of the volume, or is to
// detach it from another.
func (v *volume) concerns(node string) bool {
	return slices.ContainsFunc(v.Holdings, func(h holding) bool { return h.Node == node || slices.Contains(h.By, node) })
}

// detaches reports whether a node is to detach the volume from another.
func (v *volume) detaches(node string) bool {
	return slices.ContainsFunc(v.Holdings, func(h holding) bool { return !h.Idle && slices.Contains(h.By, node) })
}

// heldElsewhere is a node besides the one that deletes it that may still have the
// volume, or a record of it: with that it would bring back what is deleted. Empty
// when there is none.
func (v *volume) heldElsewhere() string {
	for _, h := range v.Holdings {
		if h.Node != v.Maker || len(h.By) > 0 {
			return h.Node
		}
	}
	return ""
}

// hold finds the holding of a node, and makes it where there is none. Holdings
// must be the caller's own.
func (v *volume) hold(node string) *holding {
	i := slices.IndexFunc(v.Holdings, func(h holding) bool { return h.Node == node })
	if i < 0 {
		v.Holdings = append(v.Holdings, holding{Node: node})
		i = len(v.Holdings) - 1
	}
	return &v.Holdings[i]
}

// remove notes that a node was taken out of the cluster: others must take from it
// what it has, and it takes from nobody. Holdings must be the caller's own.
func (v *volume) remove(node string) {
	for i := range v.Holdings {
		h := &v.Holdings[i]
		h.Removed = h.Removed || h.Node == node
		h.By = slices.DeleteFunc(h.By, func(by string) bool { return by == node })
	}
}

// editHoldings is the volume with holdings to change.
func (v *volume) editHoldings() *volume {
	changed := *v
	changed.Holdings = slices.Clone(v.Holdings)
	for i := range changed.Holdings {
		changed.Holdings[i].By = slices.Clone(v.Holdings[i].By)
	}
	return &changed
}

// sameHoldings compares what is decided about a volume here.
func sameHoldings(a, b *volume) bool {
	return a.Maker == b.Maker && slices.EqualFunc(a.Holdings, b.Holdings, func(x, y holding) bool {
		return x.Node == y.Node && x.ID == y.ID && x.Idle == y.Idle && x.Removed == y.Removed && slices.Equal(x.By, y.By)
	})
}

// putHoldings keeps changed holdings, and tells the nodes of before and after.
func (st *step) putHoldings(v, changed *volume) *volume {
	if sameHoldings(v, changed) {
		return v
	}
	st.touchVolume(v)
	st.setVolume(changed)
	return changed
}

// lookAfter makes a node the one that makes, grows and deletes the volume. The one
// before has a record of it, until it says that it has not.
func (v *volume) lookAfter(node string) {
	if v.Maker != node && v.Maker != "" {
		before := slices.ContainsFunc(v.Holdings, func(h holding) bool { return h.Node == v.Maker })
		if h := v.hold(v.Maker); !before {
			h.Idle = true
		}
	}
	v.Maker = node
}

// give notes that a pod's volumes may come to be attached to its node.
func (st *step) give(p *pod) {
	for _, k := range p.claims {
		c, _ := st.claims.Get(k)
		if c == nil {
			continue
		}
		v, ok := st.volumes.Get(c.Volume)
		if !ok || !v.moves() {
			continue
		}
		changed := v.editHoldings()
		st.holdOn(changed, p.Node)
		if d, known := st.driverOn(p.Node, v.Spec.CSI.Driver); known && d.Controller && v.provisioned() {
			changed.lookAfter(p.Node)
		}
		st.putHoldings(v, changed)
	}
}

// recall notes that a node says to have a volume that the record did not know to
// be there.
func (st *step) recall(v *volume, node string) {
	changed := v.editHoldings()
	st.holdOn(changed, node)
	st.putHoldings(v, changed)
}

func (st *step) holdOn(v *volume, node string) {
	d, known := st.driverOn(node, v.Spec.CSI.Driver)
	if !known && !slices.ContainsFunc(v.Holdings, func(h holding) bool { return h.Node == node }) {
		return // an agent that says nothing of it: only its pods count
	}
	h := v.hold(node)
	h.Idle, h.Removed, h.ID = false, false, cmp.Or(d.ID, h.ID)
}

func (s *State) driverOn(node, driver string) (nodes.DriverNode, bool) {
	n, ok := s.nodes.Get(node)
	if !ok {
		return nodes.DriverNode{}, false
	}
	return n.Driver(driver)
}

// settleHoldings looks who may have the volumes that follow their pods: which of
// them can be used elsewhere, who has let go, and from whom others must take them.
func (st *step) settleHoldings() {
	look := st.reachDirty
	st.reachDirty = false
	for _, v := range entries(st.volumes) {
		if look {
			v = st.untie(v)
		}
		if v.moves() {
			st.settleHolding(v)
		}
	}
}

// untie frees a volume from the node that made it, once another could use it, as
// its driver has said; and bounds one that several may have by what that said.
func (st *step) untie(v *volume) *volume {
	if v.Reach == nil || v.Spec.CSI == nil || !v.Made || v.Snapshot || v.Ephemeral {
		return v
	}
	changed := v.editHoldings()
	affinity := reachOf(v.Reach)
	switch {
	case v.shared() && v.Spec.NodeAffinity == nil && affinity != nil:
		changed.Spec.NodeAffinity = affinity
	case v.shared() || v.Node == "" || v.Node != v.Maker:
		return v
	default:
		if _, known := st.driverOn(v.Node, v.Spec.CSI.Driver); !known || !st.reachedBeside(v, affinity) {
			return v
		}
		changed.Node, changed.Spec.NodeAffinity = "", affinity
		st.holdOn(changed, v.Maker)
		if v.status != nil {
			changed.Size = v.status.Capacity
		}
		st.hold(v.Claim)
		st.act("untie", v.key(), v.Maker, "driver "+v.Spec.CSI.Driver+" reaches it from other nodes, too")
	}
	st.touchVolume(v)
	st.setVolume(changed)
	return changed
}

// reachOf writes where a volume can be reached as a node affinity, as Kubernetes'
// provisioner does; nil for everywhere.
func reachOf(r *nodes.Reach) *corev1.VolumeNodeAffinity {
	var terms []corev1.NodeSelectorTerm
	for _, labels := range r.Topology {
		var term corev1.NodeSelectorTerm
		for _, k := range slices.Sorted(maps.Keys(labels)) {
			term.MatchExpressions = append(term.MatchExpressions, corev1.NodeSelectorRequirement{Key: k, Operator: corev1.NodeSelectorOpIn, Values: []string{labels[k]}})
		}
		terms = append(terms, term)
	}
	if terms == nil {
		return nil
	}
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: terms}}
}

// reachedBeside reports whether a node other than the volume's could use it.
func (st *step) reachedBeside(v *volume, affinity *corev1.VolumeNodeAffinity) bool {
	view := &storage.Volume{Spec: &corev1.PersistentVolumeSpec{NodeAffinity: affinity}}
	for name, n := range entries(st.nodes) {
		if _, known := n.Driver(v.Spec.CSI.Driver); known && name != v.Node && view.Admits(st.storageNode(n.load)) {
			return true
		}
	}
	return false
}

func (st *step) settleHolding(v *volume) {
	changed, users := v.editHoldings(), st.usersOn(v.Claim)
	for _, node := range users {
		st.holdOn(changed, node)
	}
	for i := range changed.Holdings {
		st.settleOne(changed, &changed.Holdings[i])
	}
	changed.Holdings = slices.DeleteFunc(changed.Holdings, func(h holding) bool {
		return h.Idle && len(h.By) == 0 && h.Node != changed.Maker && (h.Removed || st.saysOf(v, h.Node) == nodes.VolumeUnknown)
	})
	if n, _ := st.nodes.Get(changed.Maker); v.provisioned() && len(users) == 0 && !n.live() && st.letGo(changed.Maker) {
		if by := st.controllerOf(changed, changed.Maker); by != "" {
			changed.lookAfter(by)
		}
	}
	st.putHoldings(v, changed)
}

// settleOne follows one holding.
func (st *step) settleOne(v *volume, h *holding) {
	h.By = slices.DeleteFunc(h.By, func(by string) bool {
		n, there := st.nodes.Get(by)
		return !there || n.outOfService()
	})
	n, _ := st.nodes.Get(h.Node)
	says := st.saysOf(v, h.Node)
	switch {
	case slices.Contains(st.usersOn(v.Claim), h.Node):
	case says != "" && len(h.By) == 0:
		h.Idle = says != nodes.VolumeUsed
	case h.Idle || h.ID == "" || n.live() && len(h.By) == 0:
	case h.Removed || len(h.By) > 0 || st.letGo(h.Node):
		st.order(v, h)
	}
}

// order has a node detach the volume from one that can't. While it answers, no
// other is asked.
func (st *step) order(v *volume, h *holding) {
	if slices.ContainsFunc(h.By, func(by string) bool { n, _ := st.nodes.Get(by); return n.live() }) {
		return
	}
	by := st.controllerOf(v, h.Node)
	if by == "" || slices.Contains(h.By, by) {
		return
	}
	h.By = append(h.By, by)
	st.act("detach", v.key(), by, "from node "+h.Node+", where nothing uses it any more")
	st.event(v.Claim, false, "DetachOrdered", "Volume "+v.Name+" is to be detached from node "+h.Node+" by node "+by)
}

// controllerOf is a node that answers and can call the driver's controller: the
// one that looks after the volume, or the first by name, but not the one that is
// to do without. A driver that is nowhere a controller needs none.
func (st *step) controllerOf(v *volume, but string) string {
	best, rank := "", 0
	for name, n := range entries(st.nodes) {
		d, known := n.Driver(v.Spec.CSI.Driver)
		if !known || !n.live() || name == but {
			continue
		}
		r := 1 + 2*boolInt(d.Controller) + boolInt(d.Controller && name == v.Maker)
		if r > rank {
			best, rank = name, r
		}
	}
	return best
}

// letGo reports whether it is certain that a silent node runs nothing that it is
// not meant to: Git says that it is out of service, or its leases are over.
func (st *step) letGo(node string) bool {
	n, there := st.nodes.Get(node)
	switch {
	case !there:
		return st.declaredDead(node)
	case n.live():
		return false
	}
	return n.outOfService() || n.silent() && n.Lapsed && st.storm(n) == ""
}

// saysOf is what a node says of a volume in this session; empty while it says
// nothing.
func (st *step) saysOf(v *volume, node string) nodes.VolumeUse {
	if n, _ := st.nodes.Get(node); !n.live() || n.heard != n.Session {
		return ""
	}
	return v.says[node]
}

// usersOn are the nodes with pods that use a claim, sorted.
func (s *State) usersOn(k desired.Key) []string {
	users, ok := s.users.Get(k)
	if !ok {
		return nil
	}
	var out []string
	for uid := range keys(users) {
		if _, p := s.pod(uid); p != nil && p.Node != "" && !p.done() && !slices.Contains(out, p.Node) {
			out = append(out, p.Node)
		}
	}
	slices.Sort(out)
	return out
}

// unsay forgets what a node said of a volume.
func (st *step) unsay(v *volume, node string) *volume {
	if v.says[node] == "" {
		return v
	}
	changed := *v
	changed.says = maps.Clone(v.says)
	delete(changed.says, node)
	st.volumes = st.volumes.Set(v.Name, &changed)
	return &changed
}

// hearUse takes in what a node says that it has of a volume, and how far it is
// with detaching it from others.
func (st *step) hearUse(v *volume, s *nodes.VolumeStatus, from string) *volume {
	if s.Use == "" {
		return st.unsay(v, from)
	}
	changed := v.editHoldings()
	if changed.says = maps.Clone(v.says); changed.says == nil {
		changed.says = map[string]nodes.VolumeUse{}
	}
	changed.says[from] = s.Use
	for i := range changed.Holdings {
		h := &changed.Holdings[i]
		if !slices.Contains(h.By, from) {
			continue
		}
		at := slices.IndexFunc(s.Detach, func(d nodes.DetachStatus) bool { return d.Node == h.Node })
		switch {
		case at >= 0 && s.Detach[at].Done && !h.Idle:
			h.Idle = true
			st.event(v.Claim, false, "Detached", "Volume "+v.Name+" is detached from node "+h.Node)
		case at < 0 && h.Idle:
			h.By = slices.DeleteFunc(h.By, func(by string) bool { return by == from })
		}
	}
	if sameHoldings(v, changed) {
		st.volumes = st.volumes.Set(v.Name, changed)
		return changed
	}
	return st.putHoldings(v, changed)
}

// barsOf are the nodes that keep a claim's volume from others for a pod.
func (st *step) barsOf(c *claim, v *volume, p *pod) []storage.Bar {
	if v.view.Shared() {
		return nil
	}
	used := st.usedOn(c.Key, p)
	var bars []storage.Bar
	if at := cmp.Or(used, st.unheardHolder(c)); at != "" {
		bars = append(bars, storage.Bar{Node: at})
	}
	for _, h := range v.Holdings {
		switch {
		case h.Idle && len(h.By) > 0:
			bars = append(bars, storage.Bar{Node: h.Node, Itself: true, Why: "node " + h.By[0] + " may still detach it from there"})
		case !h.Idle && h.Node != used:
			bars = append(bars, storage.Bar{Node: h.Node, Why: st.whyHeld(v, &h)})
			if len(h.By) > 0 {
				bars = append(bars, storage.Bar{Node: h.Node, Itself: true, Why: "node " + h.By[0] + " is to detach it from there"})
			}
		}
	}
	return bars
}

// whyHeld says what is waited for until a node has let go of a volume.
func (st *step) whyHeld(v *volume, h *holding) string {
	n, _ := st.nodes.Get(h.Node)
	trouble := ""
	if v.status != nil && v.status.Phase == nodes.VolumeFailed {
		trouble = " (" + v.status.Message + ")"
	}
	switch {
	case len(h.By) > 0:
		return "node " + h.By[len(h.By)-1] + " is to detach it" + trouble
	case n.live():
		return "its agent is to unmount it" + trouble
	case h.ID == "":
		return "nobody knows what driver " + v.Spec.CSI.Driver + " calls that node: detach it by the driver's own means, and remove the node by its manifest"
	case h.Removed || st.letGo(h.Node):
		return "no node that answers runs driver " + v.Spec.CSI.Driver + ", which is to detach it"
	}
	return "the node does not answer; others may detach it when its lease is over, or when Git says that it is out of service"
}

// volumesOn are the volumes of a driver that the pods of a node use.
func (s *State) volumesOn(node, driver string) map[string]bool {
	out := map[string]bool{}
	n, ok := s.nodes.Get(node)
	if !ok {
		return out
	}
	for uid := range keys(n.pods) {
		_, p := s.pod(uid)
		if p == nil || p.done() {
			continue
		}
		for _, k := range p.claims {
			if c, ok := s.claims.Get(k); ok {
				if v, ok := s.volumes.Get(c.Volume); ok && v.driver() == driver {
					out[v.Name] = true
				}
			}
		}
	}
	return out
}
