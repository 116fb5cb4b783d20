package planner

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

// volume is one PersistentVolume: of Git, or provisioned for a claim.
// Immutable.
type volume struct {
	volumeRecord
	// view is what the rules see of it, assigned what nodes get.
	view     *storage.Volume
	assigned *nodes.Volume
	// object is nil for a provisioned volume, and when Git doesn't have it.
	object *desired.Object
	status *nodes.VolumeStatus
	// says is what nodes have of it, as they said last.
	says map[string]nodes.VolumeUse
	// short says why it does not grow to the size that its claim asks for.
	short string
}

// volumeRecord is the decision about a volume. Claim outlives the binding: a
// claim of that key gets its data back. One that is neither bound nor released
// is kept whatever its reclaim rule says, for nobody knows how it lost its claim.
type volumeRecord struct {
	nodes.Volume
	Labels map[string]string `json:"labels,omitempty"`
	// FromGit tells a volume that Git describes from a provisioned one.
	FromGit bool `json:"from_git,omitempty"`
	// Bound is set while Claim has it.
	Bound bool `json:"bound,omitempty"`
	// Maker is the node that makes and deletes it.
	Maker string `json:"maker,omitempty"`
	// Ephemeral volumes end with their claim, without a time of grace.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// Holdings are the nodes that may have something of a volume that moves.
	Holdings []holding `json:"holdings,omitempty"`
}

// provisioned reports whether the volume's data is Tallyman's to delete.
func (v *volume) provisioned() bool { return v.Provisioner != "" }

// driver is the CSI driver that serves the volume; empty for one without.
func (v *volume) driver() string {
	switch {
	case v.Spec.CSI != nil:
		return v.Spec.CSI.Driver
	case v.Provisioner != nodes.LocalProvisioner:
		return v.Provisioner
	}
	return ""
}

// deletes reports whether the reclaim rule ends the data with its claim. What
// Git describes somebody else made: its data is never deleted.
func (v *volume) deletes() bool {
	return v.provisioned() && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
}

// heldBy reports whether a node is to know the volume even while no pod of its
// uses it.
func (v *volume) heldBy(node string) bool {
	return v.provisioned() && (v.Node == node || v.Maker == node)
}

// setVolume keeps a changed volume and tells the nodes that it concerns.
func (st *step) setVolume(v *volume) {
	st.derive(v)
	st.volumes = st.volumes.Set(v.Name, v)
	st.decide(kindOfVolume, v.Name, v.volumeRecord)
	st.touchVolume(v)
}

// derive makes the views of what is recorded.
func (s *State) derive(v *volume) {
	v.view = &storage.Volume{
		Name: v.Name, Labels: v.Labels, Spec: &v.Spec, Class: v.Class, Claim: v.Claim, Node: v.Node,
		Ending: v.Delete || v.FromGit && v.object == nil,
	}
	if v.Reach != nil && v.Node == "" && v.Spec.CSI != nil {
		v.view.Driver, v.view.Attached = v.Spec.CSI.Driver, v.moves()
	}
	v.view.CSI = v.driver()
	assigned := v.Volume
	assigned.Seal = s.sealVolume(&assigned)
	if v.moves() {
		assigned.Maker, assigned.Detach = v.Maker, v.detachments()
	}
	v.assigned = &assigned
}

func (st *step) touchVolume(v *volume) {
	st.lists = nil
	st.stir.claims = true
	for _, name := range []string{v.Node, v.Maker} {
		if name != "" {
			st.dirtyNodes[name] = true
		}
	}
	for _, h := range v.Holdings {
		st.dirtyNodes[h.Node] = true
		for _, by := range h.By {
			st.dirtyNodes[by] = true
		}
	}
	if users, ok := st.users.Get(v.Claim); ok {
		for uid := range keys(users) {
			if _, p := st.pod(uid); p != nil && p.Node != "" {
				st.dirtyNodes[p.Node] = true
			}
		}
	}
}

func (st *step) forgetVolume(v *volume, reason string) {
	st.volumes = st.volumes.Delete(v.Name)
	st.decide(kindOfVolume, v.Name, nil)
	st.touchVolume(v)
	st.act("forget", v.key(), v.Maker, reason)
}

// key names the volume as an object; the data of a snapshot is its content.
func (v *volume) key() desired.Key {
	if v.Snapshot {
		return desired.Key{Group: snapshotGroup, Kind: kindSnapshotContent, Name: v.Name}
	}
	return volumeKey(v.Name)
}

func volumeKey(name string) desired.Key { return desired.Key{Kind: kindVolume, Name: name} }

// applyVolumes takes in the PersistentVolumes of Git. One that left Git stays
// while a claim has it, as in Kubernetes.
func (st *step) applyVolumes() {
	for _, o := range st.snapshot.Kind(kindVolume) {
		if pv, ok := o.Value.(*corev1.PersistentVolume); ok {
			st.applyVolume(o, pv)
		}
	}
	for _, v := range entries(st.volumes) {
		if !v.FromGit || st.snapshot.Get(volumeKey(v.Name)) != nil {
			continue
		}
		switch {
		case !v.Bound:
			st.forgetVolume(v, "no longer in Git")
		case v.object != nil || !v.view.Ending:
			changed := *v
			changed.object = nil
			st.setVolume(&changed)
		}
	}
}

func (st *step) applyVolume(o *desired.Object, pv *corev1.PersistentVolume) {
	old, known := st.volumes.Get(pv.Name)
	if known && (!old.FromGit || old.object != nil && old.object.Fingerprint == o.Fingerprint) {
		if old.FromGit && old.object != o {
			changed := *old
			changed.object = o
			st.volumes = st.volumes.Set(pv.Name, &changed)
		}
		return
	}
	v := &volume{}
	if known {
		changed := *old
		v = &changed
	} else {
		v.Name, v.FromGit = pv.Name, true
		v.UID = uuid(digest(st.config.SecretKey, "volume", pv.Name, st.force.Revision.SHA, st.now.UTC().Format(time.RFC3339Nano)))
	}
	v.object = o
	if known && equality.Semantic.DeepEqual(&v.Spec, &pv.Spec) && maps.Equal(v.Labels, pv.Labels) && v.Class == storage.ClassOf(pv) {
		st.derive(v)
		st.volumes = st.volumes.Set(v.Name, v)
		st.lists = nil
		return
	}
	v.Labels, v.Class, v.Spec = pv.Labels, storage.ClassOf(pv), pv.Spec
	st.setVolume(v)
}

// bindClaim gives a volume to a claim.
func (st *step) bindClaim(c *claim, v *volume) {
	changed := *v
	changed.Claim, changed.Bound, changed.Released = c.Key, true, time.Time{}
	st.setVolume(&changed)
	bound := *c
	bound.Volume, bound.waits, bound.consumer, bound.stuck = v.Name, "", false, false
	st.setClaim(&bound)
	st.hold(c.Key)
	st.act("bind", c.Key, v.Node, "to PersistentVolume "+v.Name)
}

// provision decides on a new volume for a claim; the node makes it.
func (st *step) provision(c *claim, class *storage.Class, node string) {
	v := &volume{volumeRecord: volumeRecord{Maker: node, Ephemeral: c.Pod != ""}}
	v.Name = "pvc-" + c.UID
	v.UID = uuid(digest(st.config.SecretKey, "volume", c.UID))
	v.Provisioner, v.Class = class.Provisioner, class.Name
	v.Parameters = storage.Resolve(class.Parameters, c.wants, c.Annotations, v.Name)
	v.Spec = corev1.PersistentVolumeSpec{
		Capacity:                      corev1.ResourceList{corev1.ResourceStorage: c.wants.Size()},
		AccessModes:                   c.Spec.AccessModes,
		PersistentVolumeReclaimPolicy: class.Reclaim,
		StorageClassName:              class.Name,
		MountOptions:                  class.MountOptions,
		VolumeMode:                    c.Spec.VolumeMode,
	}
	v.From = st.originOf(c).from()
	if class.Provisioner == nodes.LocalProvisioner || !v.shared() {
		v.Node = node
		v.Spec.NodeAffinity = onNode(node)
	}
	st.event(c.Key, false, "ProvisioningSucceeded", "Volume "+v.Name+" is to be made on "+node)
	st.bindClaim(c, v)
}

// shared reports whether several nodes may use the volume.
func (v *volume) shared() bool { return (&storage.Volume{Spec: &v.Spec}).Shared() }

func onNode(name string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{name}}},
	}}}}
}

// freeVolume takes a volume from its claim. Its data stays, for the time of grace
// at least.
func (st *step) freeVolume(v *volume, ephemeral bool) {
	if v.FromGit && v.object == nil {
		st.forgetVolume(v, "no longer in Git")
		return
	}
	changed := *v
	changed.Bound, changed.Released = false, st.now
	changed.Ephemeral = changed.Ephemeral || ephemeral
	st.setVolume(&changed)
}

// reclaim orders the end of the data whose time is over, and tells when the
// next one's is.
func (st *step) reclaim() {
	keep := st.snapshot.Settings().KeepData
	st.storageWake = time.Time{}
	for _, v := range entries(st.volumes) {
		if v.Bound || v.Delete || !v.deletes() || v.Released.IsZero() || st.isCopied(v) || v.heldElsewhere() != "" {
			continue
		}
		n, there := st.nodes.Get(v.Maker)
		if !there && st.reassign(v) || n == nil || !n.reported {
			continue // what it says about the volume may be newer
		}
		end := v.Released.Add(keep)
		if v.Ephemeral {
			end = v.Released
		}
		if end.After(st.now) {
			if st.storageWake.IsZero() || end.Before(st.storageWake) {
				st.storageWake = end
			}
			continue
		}
		changed := *v
		changed.Delete = true
		st.setVolume(&changed)
		st.act("delete", v.key(), v.Maker, "nothing has had it since "+v.Released.UTC().Format(time.RFC3339))
	}
}

// reportVolumes takes in what a node says about volumes.
func (st *step) reportVolumes(r *nodes.Report) {
	var made []string
	for i := range r.Volumes {
		s := &r.Volumes[i]
		if s.Held != nil && !st.adoptVolume(s.Held, r) {
			made = append(made, "volume "+s.Name)
		}
		v, ok := st.volumes.Get(s.Name)
		switch {
		case !ok || v.UID != s.UID:
		case st.mayTell(v, r.Node):
			st.observeVolume(v, s, r.Node)
		case s.Use == nodes.VolumeUsed && s.Held != nil && v.moves() && st.believesVolume(s.Held, r):
			st.recall(v, r.Node)
		}
	}
	st.disbelieve(r.Node, made)
	if r.Complete {
		st.missVolumes(r)
	}
	if len(r.Volumes) > 0 || r.Complete {
		st.storageDirty = true
	}
}

// mayTell reports whether a volume is a node's to speak of: it holds the data, or
// one of its pods uses it.
func (st *step) mayTell(v *volume, node string) bool {
	if v.heldBy(node) || v.concerns(node) {
		return true
	}
	users, _ := st.users.Get(v.Claim)
	if users == nil {
		return false
	}
	for uid := range keys(users) {
		if _, p := st.pod(uid); p != nil && p.Node == node {
			return true
		}
	}
	return false
}

func (st *step) observeVolume(v *volume, s *nodes.VolumeStatus, from string) {
	if s.Phase == nodes.VolumeGone {
		if v.Delete && v.heldBy(from) {
			st.forgetVolume(v, "its data is deleted")
			return
		}
	}
	v = st.hearUse(v, s, from)
	if v.moves() && from != v.Maker && !v.detaches(from) && !slices.Contains(st.usersOn(v.Claim), from) {
		return // it only has to let go
	}
	if v.moves() && (s.Phase == nodes.VolumeFailed || v.status != nil && v.status.Phase == nodes.VolumeFailed) {
		st.stir.claims = true // who waits for the volume says why
	}
	changed := *v
	changed.status = s
	if !v.heldBy(from) {
		st.volumes = st.volumes.Set(v.Name, &changed) // its maker tells the rest
		return
	}
	made := v.Made || s.Phase == nodes.VolumeReady && v.provisioned()
	learned := s.Reach != nil && v.Reach == nil
	resized := v.moves() && s.Capacity > 0 && s.Capacity != v.Size
	if made == v.Made && (s.Source == nil || v.Spec.CSI != nil) && !learned && !resized {
		st.volumes = st.volumes.Set(v.Name, &changed)
		return
	}
	changed.Made = made
	if s.Source != nil && v.Spec.CSI == nil {
		changed.Spec.CSI = s.Source
	}
	if learned {
		changed.Reach = s.Reach
	}
	if resized {
		changed.Size = s.Capacity
	}
	st.reachDirty = true
	st.setVolume(&changed)
}

// missVolumes draws the consequences of what a complete report does not name.
func (st *step) missVolumes(r *nodes.Report) {
	named := make(map[string]bool, len(r.Volumes))
	for i := range r.Volumes {
		named[r.Volumes[i].Name] = true
	}
	for _, v := range entries(st.volumes) {
		if !named[v.Name] {
			v = st.unsay(v, r.Node)
		}
		if named[v.Name] || !v.heldBy(r.Node) {
			continue
		}
		if v.Delete {
			st.forgetVolume(v, "its data is gone from the node")
		} else if v.status != nil {
			changed := *v
			changed.status = nil
			st.volumes = st.volumes.Set(v.Name, &changed)
		}
	}
}

// adoptVolume takes over a volume that a node holds and the record did not
// know. Its claim finds its data again. It reports false for one that is not
// believed.
func (st *step) adoptVolume(held *nodes.Volume, r *nodes.Report) bool {
	v, known := st.volumes.Get(held.Name)
	if !st.believesVolume(held, r) {
		return known // the record knows better than an old word of ours
	}
	if known {
		st.correct(v, held)
		return true
	}
	v = &volume{volumeRecord: volumeRecord{Volume: *held, Maker: r.Node}}
	v.Seal, v.Volume.Maker, v.Detach = nil, "", nil // made anew
	if !v.provisioned() {
		v.FromGit, v.Maker = true, ""
	}
	st.setVolume(v)
	st.act("adopt", v.key(), r.Node, "the node holds its data and the record did not know")
	if !held.Delete && !held.Claim.IsZero() && held.Released.IsZero() {
		st.giveBack(v)
	}
	return true
}

// correct believes the node that holds a volume, when it first reports, rather
// than an old ledger that the volume was released.
func (st *step) correct(v *volume, held *nodes.Volume) {
	if !st.lent || v.status != nil || v.Bound || v.Released.IsZero() || v.Delete || held.Delete || !held.Released.IsZero() {
		return
	}
	changed := *v
	changed.Released = time.Time{}
	st.setVolume(&changed)
	st.giveBack(&changed)
}

// giveBack binds a volume to the claim that it says it has. Until somebody asks
// for a claim that nobody knows, it is kept.
func (st *step) giveBack(v *volume) {
	if v.Snapshot {
		st.giveBackSnapshot(v)
		return
	}
	c, known := st.claims.Get(v.Claim)
	if !known {
		c = st.newClaim(v.Claim)
		c.Adopted = true
		class := v.Class
		c.Spec = corev1.PersistentVolumeClaimSpec{
			AccessModes: v.Spec.AccessModes, VolumeMode: v.Spec.VolumeMode, StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: v.Spec.Capacity},
		}
	}
	if c.Volume == "" || c.Volume == v.Name {
		st.bindClaim(c, v)
	}
}

// mend makes a claim and its volume agree: a ledger may be older in one part
// than in another.
func (st *step) mend(name string) {
	v, ok := st.volumes.Get(name)
	if !ok {
		return
	}
	if v.Snapshot {
		st.mendSnapshot(v)
		return
	}
	c, known := st.claims.Get(v.Claim)
	switch {
	case !v.Bound && known && c.Volume == name && !v.Delete:
		st.bindClaim(c, v)
	case !v.Bound:
	case !known || c.Volume == "":
		st.giveBack(v)
	case c.Volume != name:
		changed := *v
		changed.Bound = false
		st.setVolume(&changed)
	}
}

// restoreVolume takes over a decision of the record.
func (st *step) restoreVolume(r *volumeRecord) {
	if _, known := st.volumes.Get(r.Name); known {
		return
	}
	v := &volume{volumeRecord: *r}
	st.derive(v)
	st.volumes = st.volumes.Set(v.Name, v)
	st.storageDirty, st.reachDirty = true, true
}

// volumesFor lists what a node is to know: the volumes that its pods use, and
// those whose data it holds.
func (s *State) volumesFor(n *node) []*nodes.Volume {
	if s.volumes.Len() == 0 {
		return nil
	}
	used := map[string]bool{}
	for uid := range keys(n.pods) {
		if _, p := s.pod(uid); p != nil {
			for _, k := range p.claims {
				if c, ok := s.claims.Get(k); ok {
					used[c.Volume] = true
				}
			}
		}
	}
	var out []*nodes.Volume
	for name, v := range entries(s.volumes) {
		if used[name] || v.heldBy(n.Name) || v.concerns(n.Name) {
			out = append(out, v.assigned)
		}
	}
	return out
}

// grow makes bound volumes as large as their claims ask for.
func (st *step) grow(c *claim) {
	v, ok := st.volumes.Get(c.Volume)
	if !ok || !v.Bound {
		return
	}
	size, capacity := c.wants.Size(), v.view.Capacity()
	short := ""
	if capacity.Cmp(size) < 0 {
		class := st.rules().classes.Named(v.Class)
		switch {
		case v.FromGit:
			short = "PersistentVolume " + v.Name + " is described in Git: write the larger capacity there"
		case class == nil || !class.Expand:
			short = "StorageClass " + v.Class + " does not allow volumes to grow: set allowVolumeExpansion"
		default:
			changed := *v
			changed.short = ""
			changed.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: size}
			st.setVolume(&changed)
			st.act("grow", c.Key, v.Node, "from "+capacity.String()+" to "+size.String())
			return
		}
	}
	if short != v.short {
		changed := *v
		changed.short = short
		st.volumes = st.volumes.Set(v.Name, &changed)
	}
}

// unsettled says what a node has still to do about a volume; empty when nothing.
func (v *volume) unsettled() string {
	switch wanted := v.view.Capacity(); {
	case v.Delete:
		return "its data is being deleted on node " + v.Maker
	case !v.Bound || v.status == nil:
		return ""
	case v.status.Phase != nodes.VolumeReady:
		return clause("not ready", clause(v.status.Reason, v.status.Message))
	case len(v.detachments()) > 0:
		d := v.detachments()[0]
		return "node " + d.By[len(d.By)-1] + " is detaching it from node " + d.Node
	case v.status.Capacity > 0 && v.status.Capacity < wanted.Value():
		return "growing to " + wanted.String()
	}
	return ""
}
