package planner

import (
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

// volumeSnapshot is one VolumeSnapshot. Its data is a volume that nobody mounts,
// so that it is kept, released and deleted by the same rules. Immutable.
type volumeSnapshot struct {
	snapshotRecord
	// object is nil when Git doesn't have it.
	object *desired.Object
	// waits says why there is no data yet; stuck that nothing changes by itself.
	waits string
	stuck bool
}

// snapshotRecord is the decision about a snapshot.
type snapshotRecord struct {
	Key     desired.Key `json:"key"`
	UID     string      `json:"uid"`
	Created time.Time   `json:"created"`
	// Volume that holds its data; empty before it is decided.
	Volume string `json:"volume,omitempty"`
	// Adopted is set while only a node knows of it: it is kept.
	Adopted bool `json:"adopted,omitempty"`
}

func (st *step) setSnapshot(s *volumeSnapshot) {
	st.snapshots = st.snapshots.Set(s.Key, s)
	st.decide(kindOfSnapshot, keyText(s.Key), s.snapshotRecord)
	st.stir.claims = true
}

// applyVolumeSnapshots takes in the VolumeSnapshots of Git, has those taken that
// can be, and ends those that left Git.
func (st *step) applyVolumeSnapshots() {
	for _, o := range st.snapshot.Kind(kindSnapshot) {
		if v, ok := o.Value.(*snapshotv1.VolumeSnapshot); ok {
			st.takeSnapshot(st.snapshotOf(o), v)
		}
	}
	for k, s := range entries(st.snapshots) {
		if s.Adopted || st.snapshot.Get(k) != nil {
			continue
		}
		if v, ok := st.volumes.Get(s.Volume); ok && v.Bound && v.Claim == k {
			st.freeVolume(v, false)
		}
		st.snapshots = st.snapshots.Delete(k)
		st.decide(kindOfSnapshot, keyText(k), nil)
		st.act("forget", k, "", "no longer in Git")
	}
}

// snapshotOf is the snapshot of an object of Git, begun if it is new.
func (st *step) snapshotOf(o *desired.Object) *volumeSnapshot {
	old, known := st.snapshots.Get(o.Key)
	if known && old.object == o {
		return old
	}
	s := &volumeSnapshot{snapshotRecord: snapshotRecord{Key: o.Key, UID: newUID(st.config.SecretKey, keyText(o.Key), st.force.Revision.SHA, st.now), Created: st.now}}
	if known {
		changed := *old
		s = &changed
	}
	s.object = o
	if known && !old.Adopted {
		st.snapshots = st.snapshots.Set(o.Key, s)
		return s
	}
	s.Adopted = false
	st.setSnapshot(s)
	return s
}

// takeSnapshot decides on the data of a snapshot that has none: what the
// snapshot of its name had, or new.
func (st *step) takeSnapshot(s *volumeSnapshot, object *snapshotv1.VolumeSnapshot) {
	if s.Volume != "" {
		return
	}
	name := object.Spec.Source.PersistentVolumeClaimName
	if name == nil {
		st.keepSnapshotWaiting(s, "spec.source names no PersistentVolumeClaim", true)
		return
	}
	source := &origin{}
	st.cloneOf(source, storage.ClaimKey(s.Key.Namespace, *name))
	for _, v := range entries(st.volumes) {
		// One of another claim's data is not what was asked for.
		if v.Snapshot && !v.Bound && !v.Delete && v.Claim == s.Key && (source.volume == nil || v.From != nil && v.From.Name == source.volume.Name) {
			st.bindSnapshot(s, v)
			return
		}
	}
	if source.Waits != "" {
		st.keepSnapshotWaiting(s, source.Waits, source.Stuck)
		return
	}
	class, why := st.snapshotClass(object.Spec.VolumeSnapshotClassName, source.volume)
	if why != "" {
		st.keepSnapshotWaiting(s, why, true)
		return
	}
	st.bindSnapshot(s, st.newContent(s, source.volume, class))
	st.event(s.Key, false, "CreatingSnapshot", "Snapshot of PersistentVolumeClaim "+*name+" is to be taken on "+source.volume.Maker)
}

// newContent is the data of a snapshot; the node that has the volume makes it.
func (st *step) newContent(s *volumeSnapshot, source *volume, class *snapshotv1.VolumeSnapshotClass) *volume {
	v := &volume{volumeRecord: volumeRecord{Maker: source.Maker}}
	v.Name, v.Snapshot = "snapcontent-"+s.UID, true
	v.UID = uuid(digest(st.config.SecretKey, "snapshot", s.UID))
	v.Provisioner, v.Node, v.Class, v.Parameters = source.Provisioner, source.Node, class.Name, storage.ResolveSnapshot(class.Parameters, s.Key, v.Name)
	v.From = source.asOrigin()
	v.Spec = corev1.PersistentVolumeSpec{
		Capacity: source.Spec.Capacity, AccessModes: source.Spec.AccessModes, VolumeMode: source.Spec.VolumeMode,
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
	}
	if class.DeletionPolicy == snapshotv1.VolumeSnapshotContentRetain {
		v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}
	return v
}

// defaultSnapshotClass marks the class for snapshots that name none.
const defaultSnapshotClass = "snapshot.storage.kubernetes.io/is-default-class"

// snapshotClass finds the class of a snapshot. The built-in provisioner needs
// none: its snapshots are deleted with their object then.
func (st *step) snapshotClass(name *string, source *volume) (*snapshotv1.VolumeSnapshotClass, string) {
	var marked []*snapshotv1.VolumeSnapshotClass
	for _, o := range st.snapshot.Kind(kindSnapshotClass) {
		class, ok := o.Value.(*snapshotv1.VolumeSnapshotClass)
		if !ok {
			continue
		}
		serves := class.Driver == source.Provisioner || source.Provisioner == nodes.LocalProvisioner && nodes.ServedLocally(class.Driver)
		switch {
		case name != nil && class.Name == *name && !serves:
			return nil, fmt.Sprintf("VolumeSnapshotClass %s is for driver %s, and the volume is of %s: name a class of that driver", class.Name, class.Driver, source.Provisioner)
		case name != nil && class.Name == *name:
			return class, ""
		case serves && class.Annotations[defaultSnapshotClass] == "true":
			marked = append(marked, class)
		}
	}
	switch {
	case name != nil:
		return nil, "there is no VolumeSnapshotClass " + *name + ": add one"
	case len(marked) > 1:
		return nil, fmt.Sprintf("%d VolumeSnapshotClasses of driver %s are marked as default: mark one, or name one in the snapshot", len(marked), source.Provisioner)
	case len(marked) == 1:
		return marked[0], ""
	case source.Provisioner == nodes.LocalProvisioner:
		return &snapshotv1.VolumeSnapshotClass{DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete}, ""
	default:
		return nil, "no VolumeSnapshotClass of driver " + source.Provisioner + " is marked as default: mark one, or name one in the snapshot"
	}
}

func (st *step) bindSnapshot(s *volumeSnapshot, v *volume) {
	held := *v
	held.Claim, held.Bound, held.Released = s.Key, true, time.Time{}
	st.setVolume(&held)
	bound := *s
	bound.Volume, bound.waits, bound.stuck = v.Name, "", false
	st.setSnapshot(&bound)
	st.act("bind", s.Key, v.Node, "to VolumeSnapshotContent "+v.Name)
}

func (st *step) keepSnapshotWaiting(s *volumeSnapshot, why string, stuck bool) {
	if s.waits == why && s.stuck == stuck {
		return
	}
	changed := *s
	changed.waits, changed.stuck = why, stuck
	st.snapshots = st.snapshots.Set(s.Key, &changed)
	if stuck {
		st.event(s.Key, true, "SnapshotContentCreationFailed", why)
	}
}

// giveBackSnapshot binds data that only a node knew of to its snapshot. Until
// Git asks for that, it is kept.
func (st *step) giveBackSnapshot(v *volume) {
	s, known := st.snapshots.Get(v.Claim)
	if !known {
		s = &volumeSnapshot{snapshotRecord: snapshotRecord{Key: v.Claim, UID: newUID(st.config.SecretKey, keyText(v.Claim), v.UID, st.now), Created: st.now, Adopted: true}}
	}
	if s.Volume == "" || s.Volume == v.Name {
		st.bindSnapshot(s, v)
	}
}

// mendSnapshot makes a snapshot and its data agree, after a ledger.
func (st *step) mendSnapshot(v *volume) {
	s, known := st.snapshots.Get(v.Claim)
	switch {
	case !v.Bound && known && s.Volume == v.Name && !v.Delete:
		st.bindSnapshot(s, v)
	case !v.Bound:
	case !known || s.Volume == "":
		st.giveBackSnapshot(v)
	case s.Volume != v.Name:
		changed := *v
		changed.Bound = false
		st.setVolume(&changed)
	}
}

func (st *step) restoreSnapshot(r *snapshotRecord) {
	if _, known := st.snapshots.Get(r.Key); known {
		return
	}
	st.snapshots = st.snapshots.Set(r.Key, &volumeSnapshot{snapshotRecord: *r})
	st.storageDirty = true
}

// waitsForPods reports whether a node makes the volume once pods let it: nobody
// can say when, and no rollout waits for that.
func (v *volume) waitsForPods() bool {
	return v.From != nil && !v.Made && v.status != nil && v.status.Reason == nodes.VolumeInUse
}

// snapshotHealth tells how a VolumeSnapshot is doing.
func (s *State) snapshotHealth(h *nodes.ObjectHealth, shot *volumeSnapshot) {
	h.Health, h.Created = nodes.Healthy, shot.Created
	h.Storage = &nodes.StorageOverview{Phase: "Pending", Volume: shot.Volume}
	v, ok := s.volumes.Get(shot.Volume)
	if !ok {
		h.Health, h.Reason = nodes.Progressing, shot.waits
		if shot.stuck {
			h.Health = nodes.Degraded
		}
		return
	}
	h.Storage.Class, h.Storage.Node, h.Storage.Capacity = v.Class, v.Node, v.capacity()
	switch why := v.unsettled(); {
	case v.status != nil && v.status.Phase == nodes.VolumeGone:
		h.Health, h.Reason = nodes.Degraded, "its data is gone"
	case why != "":
		h.Health, h.Reason = v.pace(), why
	case !v.Made:
		h.Health, h.Reason = nodes.Progressing, "not taken yet"
	default:
		h.Storage.Phase = "Ready"
		if shot.Adopted {
			h.Reason = "kept: node " + v.Maker + " holds its data and nothing in Git asks for it; to delete it, write the snapshot in Git and remove it again"
		}
	}
}
