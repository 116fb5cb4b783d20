package planner

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

// origin is the data source of a claim: a volume to clone, or a snapshot. Nil
// for a claim without one.
type origin struct {
	storage.Origin
	// volume is set once its content can be had.
	volume *volume
}

func (o *origin) from() *nodes.Origin {
	if o == nil || o.volume == nil {
		return nil
	}
	return o.volume.asOrigin()
}

// asOrigin is the volume as others begin with it. Drivers know it by its handle.
func (v *volume) asOrigin() *nodes.Origin {
	o := &nodes.Origin{Name: v.Name, UID: v.UID}
	switch {
	case v.Spec.CSI == nil:
	case v.Snapshot:
		o.Snapshot = v.Spec.CSI.VolumeHandle
	default:
		o.Volume = v.Spec.CSI.VolumeHandle
	}
	return o
}

// copyable reports whether others can begin with the volume now.
func (v *volume) copyable() bool {
	return v.Made && (v.Provisioner == nodes.LocalProvisioner || v.Spec.CSI != nil)
}

// mayBe reports whether a volume that the claim had before holds what it asks
// for now: one that began with other data does not.
func (o *origin) mayBe(v *volume) bool {
	return o.from() == nil || v.From != nil && v.From.Name == o.volume.Name && v.From.UID == o.volume.UID
}

// asks is what the rules see of a claim, with its data source as it is now.
func (st *step) asks(c *claim) *storage.Claim {
	if o := st.originOf(c); o != nil {
		return c.wants.With(&o.Origin)
	}
	return c.wants
}

// dataSource names what a claim's content begins with. Of the two fields, the
// newer one counts, as both say the same where both are written.
func (c *claim) dataSource() (source desired.Key, written bool) {
	if r := c.Spec.DataSourceRef; r != nil {
		source, written = desired.Key{Kind: r.Kind, Namespace: c.Key.Namespace, Name: r.Name}, true
		if r.APIGroup != nil {
			source.Group = *r.APIGroup
		}
	} else if r := c.Spec.DataSource; r != nil {
		source, written = desired.Key{Kind: r.Kind, Namespace: c.Key.Namespace, Name: r.Name}, true
		if r.APIGroup != nil {
			source.Group = *r.APIGroup
		}
	}
	return source, written
}

func (st *step) originOf(c *claim) *origin {
	source, written := c.dataSource()
	if !written {
		return nil
	}
	o := &origin{Origin: storage.Origin{Name: source.String()}}
	switch {
	case source.Group == "" && source.Kind == kindClaim:
		st.cloneOf(o, source)
	case source.Group == snapshotGroup && source.Kind == kindSnapshot:
		st.restoreOf(o, source)
	default:
		o.Waits, o.Stuck = "nothing here fills a claim from "+source.String()+": a data source is a PersistentVolumeClaim or a VolumeSnapshot", true
	}
	if o.Waits != "" {
		return o
	}
	o.Provisioner, o.Node = o.volume.Provisioner, o.volume.Node
	size, least := c.wants.Size(), o.volume.view.Capacity()
	switch mine, its := modeOf(c.Spec.VolumeMode), modeOf(o.volume.Spec.VolumeMode); {
	case mine != its:
		o.Waits, o.Stuck = fmt.Sprintf("it asks for volumeMode %s, and %s has %s: ask for the same", mine, o.Name, its), true
	case size.Cmp(least) < 0:
		o.Waits, o.Stuck = fmt.Sprintf("it asks for %s, and %s has %s: ask for at least as much", size.String(), o.Name, least.String()), true
	}
	return o
}

func modeOf(m *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
	if m == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *m
}

// cloneOf finds the volume that a claim is to begin with.
func (st *step) cloneOf(o *origin, source desired.Key) {
	c, known := st.claims.Get(source)
	if !known {
		o.Waits, o.Stuck = "its data source "+source.String()+" is not there", true
		return
	}
	v, ok := st.volumes.Get(c.Volume)
	switch {
	case !ok:
		o.Waits = "waiting for its data source " + source.String() + " to be bound"
	case !v.provisioned():
		o.Waits, o.Stuck = "its data source "+source.String()+" has PersistentVolume "+v.Name+", which nothing here made and nothing here can clone", true
	case !v.copyable():
		o.Waits = "waiting for the volume of its data source " + source.String()
	default:
		o.volume = v
	}
}

// restoreOf finds the data of the snapshot that a claim is to begin with.
func (st *step) restoreOf(o *origin, source desired.Key) {
	s, known := st.snapshots.Get(source)
	if !known {
		o.Waits, o.Stuck = "its data source "+source.String()+" is not there", true
		return
	}
	v, ok := st.volumes.Get(s.Volume)
	switch {
	case !ok && s.stuck:
		o.Waits, o.Stuck = "its data source "+source.String()+" cannot be taken: "+s.waits, true
	case !ok, !v.copyable():
		o.Waits = "waiting for its data source " + source.String() + " to be ready"
	default:
		o.volume = v
	}
}

// isCopied reports whether a volume is still needed to make another, or to find
// out whether that was made.
func (st *step) isCopied(v *volume) bool {
	for _, other := range entries(st.volumes) {
		if other.From != nil && !other.Made && other.From.Name == v.Name && other.From.UID == v.UID {
			return true
		}
	}
	return false
}
