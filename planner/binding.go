package planner

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

// settleStorage looks at all claims and volumes when something happened to one:
// which there are, which belong together, and whose data has to go. Claims that
// wait for a pod are bound by schedule.
func (st *step) settleStorage() {
	due := !st.storageWake.IsZero() && !st.storageWake.After(st.now)
	if !st.storageDirty && !due {
		return
	}
	st.applyVolumes()
	st.applyClaims()
	st.settleHoldings()
	for k := range keys(st.claims) {
		c, _ := st.claims.Get(k)
		if c.Volume == "" {
			st.seekVolume(c)
		} else {
			st.grow(c)
		}
	}
	st.applyVolumeSnapshots()
	st.reclaim()
	st.storageWaits = nil
	for _, v := range entries(st.volumes) {
		if why := v.unsettled(); why != "" && !v.waitsForPods() {
			st.storageWaits = append(st.storageWaits, nodes.WaitingItem{Object: v.key(), Reason: why})
		}
	}
}

// storageRules is what the rules of package storage look at.
type storageRules struct {
	classes *storage.Classes
	volumes []*storage.Volume
	// live are the nodes that could make a volume now.
	live []storage.Node
}

func (st *step) rules() *storageRules {
	if st.lists != nil {
		return st.lists
	}
	r := &storageRules{}
	var classes []*storagev1.StorageClass
	for _, o := range st.snapshot.Kind(kindClass) {
		if c, ok := o.Value.(*storagev1.StorageClass); ok {
			classes = append(classes, c)
		}
	}
	r.classes = storage.NewClasses(classes)
	for _, v := range entries(st.volumes) {
		if !v.Snapshot {
			r.volumes = append(r.volumes, v.view)
		}
	}
	for _, n := range entries(st.nodes) {
		if n.live() {
			is := st.storageNode(n.load)
			is.Cordoned, is.Tainted = n.state.Unschedulable, slices.ContainsFunc(n.state.Taints, keepsAway)
			r.live = append(r.live, is)
		}
	}
	st.lists = r
	return r
}

// keepsAway reports whether a taint keeps new pods from a node.
func keepsAway(t corev1.Taint) bool {
	return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
}

func (s *State) storageNode(n *place.Node) storage.Node {
	return storage.Node{
		Name: n.Name(), Labels: n.Labels(), Drivers: n.Drivers(), DriverNodes: n.DriverNodes(),
		Having: func(driver string) map[string]bool { return s.volumesOn(n.Name(), driver) },
	}
}

// seekVolume gives an unbound claim the volume that the claim of its name had,
// or what the rules say.
func (st *step) seekVolume(c *claim) {
	at := st.usedOn(c.Key, nil)
	for _, v := range entries(st.volumes) {
		if !v.Bound && !v.Ephemeral && c.Pod == "" && (at == "" || v.Node == "" || v.Node == at) && v.view.MayReturn(c.wants) && st.originOf(c).mayBe(v) {
			st.bindClaim(c, v)
			c, _ = st.claims.Get(c.Key)
			st.grow(c)
			return
		}
	}
	r := st.rules()
	verdict := storage.Decide(st.asks(c), r.classes, r.volumes, r.live)
	switch {
	case verdict.Volume != nil:
		v, _ := st.volumes.Get(verdict.Volume.Name)
		st.bindClaim(c, v)
	case verdict.Class != nil:
		st.provision(c, verdict.Class, st.emptiest(verdict.Nodes))
	case verdict.Consumer && st.serveRunning(c):
	default:
		st.keepWaiting(c, &verdict)
	}
}

// serveRunning binds a claim whose pod is on a node already: the record of the
// binding was lost with everything else.
func (st *step) serveRunning(c *claim) bool {
	p := st.otherUser(c.Key, nil)
	if p == nil {
		return false
	}
	n, ok := st.nodes.Get(p.Node)
	if !ok || !n.live() {
		return false
	}
	r := st.rules()
	choices, refusal := storage.NewDemand(nil, []*storage.Claim{st.asks(c)}, r.classes, r.volumes, nil).Fit(st.storageNode(n.load))
	if refusal != "" {
		return false
	}
	st.carryChoices(choices, p.Node)
	return true
}

func (st *step) keepWaiting(c *claim, verdict *storage.Verdict) {
	if c.waits == verdict.Waits && c.stuck == verdict.Stuck {
		return
	}
	changed := *c
	changed.waits, changed.consumer, changed.stuck = verdict.Waits, verdict.Consumer, verdict.Stuck
	st.claims = st.claims.Set(c.Key, &changed)
	if verdict.Stuck {
		st.event(c.Key, true, "FailedBinding", verdict.Waits)
	}
}

// emptiest is the node that holds the fewest volumes, the first by name of several.
func (st *step) emptiest(on []storage.Node) string {
	held := map[string]int{}
	for _, v := range entries(st.volumes) {
		held[v.Maker]++
	}
	return slices.MinFunc(on, func(a, b storage.Node) int {
		return held[a.Name] - held[b.Name]
	}).Name
}

// demandOf puts together what a pod's claims ask of a node; nil for a pod
// without claims. why is set when no node could run it.
func (st *step) demandOf(p *pod) (d *storage.Demand, why string) {
	if len(p.claims) == 0 {
		return nil, ""
	}
	var bound []*storage.Volume
	var open []*storage.Claim
	bars := map[string][]storage.Bar{}
	for _, k := range p.claims {
		c, ok := st.claims.Get(k)
		if !ok {
			return nil, fmt.Sprintf("there is no PersistentVolumeClaim %s", k.Name)
		}
		if why := st.unusable(c, p); why != "" {
			return nil, why
		}
		v, ok := st.volumes.Get(c.Volume)
		switch {
		case c.Volume == "":
			open = append(open, st.asks(c))
		case !ok:
			return nil, fmt.Sprintf("PersistentVolumeClaim %s has lost its volume %s", k.Name, c.Volume)
		default:
			bound = append(bound, v.view)
			bars[v.Name] = st.barsOf(c, v, p)
		}
	}
	r := st.rules()
	return storage.NewDemand(bound, open, r.classes, r.volumes, bars), ""
}

// unusable says why a pod must wait for a claim, wherever it would run.
func (st *step) unusable(c *claim, p *pod) string {
	if c.Pod != "" && c.Pod != p.UID || c.Pod == "" && p.ephemeral(c.Key) {
		return fmt.Sprintf("PersistentVolumeClaim %s is not the one of this pod's ephemeral volume: rename the other", c.Key.Name)
	}
	if c.wants.OncePod() {
		if other := st.otherUser(c.Key, p); other != nil {
			return fmt.Sprintf("PersistentVolumeClaim %s is ReadWriteOncePod and pod %s uses it", c.Key.Name, other.Name)
		}
	}
	if c.Volume == "" && !c.consumer {
		return fmt.Sprintf("PersistentVolumeClaim %s has no volume: %s", c.Key.Name, c.waits)
	}
	return ""
}

// ephemeral reports whether a claim is to be the pod's own, for as long as it is.
func (p *pod) ephemeral(k desired.Key) bool {
	v := p.volumeOf(k)
	return v != nil && v.Ephemeral != nil
}

// otherUser is a pod besides p, nil for any, that is on a node and uses the
// claim.
func (st *step) otherUser(k desired.Key, p *pod) *pod {
	users, ok := st.users.Get(k)
	if !ok {
		return nil
	}
	for uid := range keys(users) {
		if _, other := st.pod(uid); other != nil && (p == nil || uid != p.UID) && other.Node != "" && !other.done() {
			return other
		}
	}
	return nil
}

func (st *step) usedOn(k desired.Key, p *pod) string {
	if other := st.otherUser(k, p); other != nil {
		return other.Node
	}
	return ""
}

func (st *step) carryChoices(choices []storage.Choice, node string) {
	for _, choice := range choices {
		c, _ := st.claims.Get(choice.Claim.Key)
		if choice.Volume == nil {
			st.provision(c, choice.Class, node)
			continue
		}
		v, _ := st.volumes.Get(choice.Volume.Name)
		st.bindClaim(c, v)
	}
}

// endNamespaces gives up the claims that Tallyman made in namespaces which a
// revision removes.
func (st *step) endNamespaces(c *comparison) {
	for _, k := range c.gone {
		if k.Kind != kindNamespace || k.Group != "" || impliesNamespace(c.next, k.Name) {
			continue
		}
		for _, held := range st.claimsIn(k.Name) {
			changed := *held
			changed.Unwanted, changed.Adopted = true, false
			st.setClaim(&changed)
		}
		for key, shot := range entries(st.snapshots) {
			if key.Namespace == k.Name && shot.Adopted {
				changed := *shot
				changed.Adopted = false
				st.setSnapshot(&changed)
			}
		}
	}
}

func (s *State) claimsIn(namespace string) []*claim {
	var out []*claim
	for k, c := range entries(s.claims) {
		if k.Namespace == namespace {
			out = append(out, c)
		}
	}
	return out
}

// dataLost lists the claims and snapshots whose data a revision would have deleted after the
// time of grace.
func (st *step) dataLost(c *comparison) []desired.Key {
	var lost []desired.Key
	for k, held := range entries(st.claims) {
		v, ok := st.volumes.Get(held.Volume)
		if ok && v.Bound && v.deletes() && held.Pod == "" && goesWith(held, c) {
			lost = append(lost, k)
		}
	}
	for k, shot := range entries(st.snapshots) {
		if v, ok := st.volumes.Get(shot.Volume); ok && v.Bound && v.deletes() && slices.Contains(c.gone, k) {
			lost = append(lost, k)
		}
	}
	return lost
}

// goesWith reports whether a claim ends when the revision is in force.
func goesWith(held *claim, c *comparison) bool {
	if c.next.Get(held.Key) != nil {
		return false
	}
	return slices.Contains(c.gone, held.Key) ||
		held.EndsWithOwner && slices.Contains(c.gone, held.Owner) ||
		slices.Contains(c.gone, desired.Key{Kind: kindNamespace, Name: held.Key.Namespace}) && !impliesNamespace(c.next, held.Key.Namespace)
}
