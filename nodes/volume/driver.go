package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
)

// Reasons of volumes that a driver serves.
const (
	// ReasonDriver: its driver does not answer on this node now.
	ReasonDriver = "DriverMissing"
	// ReasonNodeResize: the volume is larger, its file system follows when a pod
	// has it. The word is Kubernetes'.
	ReasonNodeResize = "FileSystemResizePending"
	// ReasonUnready: its driver still works on a snapshot.
	ReasonUnready = "SnapshotNotReady"
)

// ErrUnready is returned, with a pending status, when a driver still works on
// what it was asked for: ask again.
var ErrUnready = errors.New("the driver still works on it")

// byDriver reports whether a CSI driver serves the volume.
func byDriver(v *nodes.Volume) bool {
	return v.Spec.CSI != nil || v.Provisioner != "" && v.Provisioner != nodes.LocalProvisioner
}

// ensureDriver makes a volume of a driver, or finds it, and makes it as large as
// it is to be. A driver that is away is waited for.
func (p *Persistent) ensureDriver(ctx context.Context, v *nodes.Volume, status *nodes.VolumeStatus) error {
	if p.drivers == nil {
		return trouble(ReasonDriver, "volume %s needs a storage driver, and this node uses none: see its flag --kubelet-dir", v.Name)
	}
	if v.Provisioner == "" {
		status.Capacity = v.Spec.Capacity.Storage().Value() // as its maker says
		return p.waiting(v.Spec.CSI.Driver, status)
	}
	if v.Maker != "" && v.Maker != p.node {
		return p.borrow(v, status)
	}
	kept, err := p.ownRecord(v)
	if err != nil {
		return err
	}
	status.Reach = kept.Reach
	if kept.Spec.CSI != nil {
		status.Source, status.Capacity = kept.Spec.CSI, kept.Spec.Capacity.Storage().Value()
	}
	if err := p.waiting(v.Provisioner, status); err != nil || status.Phase != nodes.VolumeReady {
		return err
	}
	if v.Snapshot {
		return p.ensureSnapshot(ctx, v, kept, status)
	}
	if kept.Spec.CSI == nil {
		if kept, err = p.create(ctx, v, kept); err != nil {
			return err
		}
		status.Source, status.Reach = kept.Spec.CSI, kept.Reach
	}
	kept, err = p.expand(ctx, v, kept)
	status.Capacity = kept.Spec.Capacity.Storage().Value()
	if err != nil {
		return err
	}
	return p.follow(ctx, kept, status)
}

// borrow uses a volume that another node makes, grows and deletes. The record
// that this one has of it, from when it did, goes: it would tell of a volume that
// was deleted since.
func (p *Persistent) borrow(v *nodes.Volume, status *nodes.VolumeStatus) error {
	status.Capacity = v.Spec.Capacity.Storage().Value()
	if v.Spec.CSI == nil {
		status.Phase, status.Message = nodes.VolumePending, "node "+v.Maker+" makes it"
		return nil
	}
	if kept, err := readRecord(p.home(v)); err == nil && handleOf(kept) == handleOf(v) {
		if err := p.discard(v); err != nil {
			return trouble(ReasonProvisioning, "leave volume %s to node %s: %w", v.Name, v.Maker, err)
		}
	}
	return p.waiting(v.Spec.CSI.Driver, status)
}

// waiting has a volume wait for its driver.
func (p *Persistent) waiting(driver string, status *nodes.VolumeStatus) error {
	err := p.drivers.Running(driver)
	if errors.Is(err, csi.ErrAway) {
		status.Phase, status.Reason, status.Message = nodes.VolumePending, ReasonDriver, err.Error()
		return nil
	}
	return err
}

// ownRecord reads what is kept of a volume that a driver makes, or begins it.
// The volume is as it was first asked for: a repeat asks for the same. What the
// server knows of one that was made elsewhere, or whose record was lost, counts.
func (p *Persistent) ownRecord(v *nodes.Volume) (*nodes.Volume, error) {
	kept, err := readRecord(p.home(v))
	switch {
	case err == nil && (kept.Spec.CSI != nil || v.Spec.CSI == nil):
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, trouble(ReasonProvisioning, "read what is kept of volume %s: %w", v.Name, err)
	default:
		first := *v
		if v.Spec.CSI != nil && v.Size > 0 { // it may yet have to grow
			first.Spec.Capacity = sized(v.Size)
		}
		if kept, err = p.begin(&first); err != nil {
			return nil, trouble(ReasonProvisioning, "make volume %s: %w", v.Name, err)
		}
	}
	if kept.Made && kept.Spec.CSI == nil {
		return nil, trouble(ReasonMissing, "volume %s was made, and nobody knows its handle any more: put its record back, or delete the claim", v.Name)
	}
	return kept, nil
}

// create asks the driver for the volume as the record has it.
func (p *Persistent) create(ctx context.Context, v, kept *nodes.Volume) (*nodes.Volume, error) {
	if v.Made {
		return kept, trouble(ReasonMissing, "volume %s was made, and nobody knows its handle any more: put its record back, or delete the claim", v.Name)
	}
	answer, err := p.drivers.Create(ctx, kept)
	if err != nil {
		return kept, trouble(ReasonProvisioning, "make volume %s: %w", v.Name, err)
	}
	made := *kept
	made.Spec.CSI, made.Reach, made.Made = answer.Source, answer.Reach, true
	if answer.Size > 0 {
		made.Spec.Capacity = sized(answer.Size)
	}
	if err := writeRecord(p.home(v), &made); err != nil {
		return kept, trouble(ReasonProvisioning, "write down volume %s: %w", v.Name, err)
	}
	return &made, nil
}

// ensureSnapshot has the driver take a snapshot, and asks again while it is not
// ready. One that was ready is not asked for any more: the volume that it is of
// may be gone.
func (p *Persistent) ensureSnapshot(ctx context.Context, v, kept *nodes.Volume, status *nodes.VolumeStatus) error {
	if v.Made && kept.Spec.CSI == nil {
		return trouble(ReasonMissing, "snapshot %s was taken, and nobody knows its handle any more: put its record back, or delete the snapshot", v.Name)
	}
	source, ready := kept.Spec.CSI, v.Made || kept.Made
	if !ready {
		var err error
		if source, ready, err = p.drivers.TakeSnapshot(ctx, kept); err != nil {
			return trouble(ReasonProvisioning, "take snapshot %s: %w", v.Name, err)
		}
	}
	now := *kept
	if ready {
		now = *v
		now.Made, now.Delete = true, false
	}
	now.Spec.CSI = source
	if err := p.rewrite(&now, kept); err != nil {
		return trouble(ReasonProvisioning, "write down snapshot %s: %w", v.Name, err)
	}
	status.Source, status.Capacity = source, now.Spec.Capacity.Storage().Value()
	if ready {
		return nil
	}
	status.Phase, status.Reason, status.Message = nodes.VolumePending, ReasonUnready, "driver "+v.Provisioner+" still works on the snapshot"
	return ErrUnready
}

// expand makes the volume larger where it is kept, and the record agree with
// what is wanted of it now.
func (p *Persistent) expand(ctx context.Context, v, kept *nodes.Volume) (*nodes.Volume, error) {
	now := *v
	now.Made, now.Delete, now.Detach = true, false, nil
	now.Spec.CSI = kept.Spec.CSI
	if now.Reach == nil {
		now.Reach = kept.Reach
	}
	have := kept.Spec.Capacity.Storage()
	if v.Spec.Capacity.Storage().Cmp(*have) > 0 {
		if err := p.drivers.Expand(ctx, &now, have.Value()); err != nil {
			return kept, trouble(ReasonResize, "grow volume %s: %w", v.Name, err)
		}
	} else {
		now.Spec.Capacity = kept.Spec.Capacity
	}
	if err := p.keep(&now, kept); err != nil {
		return kept, trouble(ReasonProvisioning, "write down volume %s: %w", v.Name, err)
	}
	return &now, nil
}

// follow has the file system become as large as the volume, if a pod has it.
func (p *Persistent) follow(ctx context.Context, v *nodes.Volume, status *nodes.VolumeStatus) error {
	from, err := p.drivers.Finish(ctx, v)
	if from > 0 {
		status.Capacity, status.Reason = from, ReasonNodeResize
		status.Message = "the volume is larger, its file system follows when a pod has it mounted"
	}
	if err != nil {
		return trouble(ReasonResize, "grow volume %s: %w", v.Name, err)
	}
	return nil
}

func sized(n int64) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(n, resource.BinarySI)}
}

// handled is the volume with what its driver made, as far as it is known.
func (p *Persistent) handled(v *nodes.Volume) (*nodes.Volume, error) {
	if v.Spec.CSI != nil {
		return v, nil
	}
	kept, err := readRecord(p.home(v))
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return nil, err
	}
	known := *v
	known.Spec.CSI = kept.Spec.CSI
	return &known, nil
}

// publish gives a volume of a driver to one pod.
func (p *Persistent) publish(ctx context.Context, v *nodes.Volume, w csi.Wish) (Volume, error) {
	v, err := p.handled(v)
	switch {
	case err != nil:
		return Volume{}, err
	case p.drivers == nil || v.Spec.CSI == nil:
		return Volume{}, trouble(ReasonMount, "volume %s is not made yet", v.Name)
	}
	made, err := p.drivers.Publish(ctx, v, w)
	if err != nil {
		return Volume{}, trouble(ReasonMount, "mount volume %s: %w", v.Name, err)
	}
	return published(made), nil
}

func published(made csi.Published) Volume {
	if made.Block {
		return Volume{Device: made.Path, ReadOnly: made.ReadOnly}
	}
	return Volume{Path: made.Path, ReadOnly: made.ReadOnly, grouped: made.Grouped}
}

// withdraw undoes publish for all pods.
func (p *Persistent) withdraw(ctx context.Context, v *nodes.Volume) error {
	if v.Snapshot {
		return nil // nobody mounts it
	}
	v, err := p.handled(v)
	if err != nil || p.drivers == nil {
		return err
	}
	if err := p.drivers.Unstage(ctx, v); err != nil {
		return trouble(ReasonMount, "unmount volume %s: %w", v.Name, err)
	}
	return nil
}

// deleteDriver ends the data of a volume that a driver made. One of which nobody
// knows whether it was made is made first, which tells its handle.
func (p *Persistent) deleteDriver(ctx context.Context, v *nodes.Volume) error {
	kept, err := readRecord(p.home(v))
	if errors.Is(err, fs.ErrNotExist) && v.Spec.CSI == nil {
		if v.Made {
			return fmt.Errorf("volume %s was made, and nobody knows its handle any more: remove it by the driver's own means", v.Name)
		}
		return nil
	}
	if p.drivers == nil {
		return trouble(ReasonDriver, "volume %s needs a storage driver, and this node uses none: see its flag --kubelet-dir", v.Name)
	}
	source := v.Spec.CSI
	if err == nil {
		source = kept.Spec.CSI
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if source == nil {
		if source, err = p.again(ctx, kept); source == nil {
			return err
		}
	}
	known := *v
	known.Spec.CSI = source
	if v.Snapshot {
		return p.drivers.DropSnapshot(ctx, &known)
	}
	if err := p.drivers.Unstage(ctx, &known); err != nil {
		return err
	}
	return p.drivers.Delete(ctx, &known)
}

// again makes what may have been made, to learn its handle; nil without an error
// where the driver never made it.
func (p *Persistent) again(ctx context.Context, kept *nodes.Volume) (source *corev1.CSIPersistentVolumeSource, err error) {
	if kept.Snapshot {
		source, _, err = p.drivers.TakeSnapshot(ctx, kept)
	} else {
		var made csi.Made
		made, err = p.drivers.Create(ctx, kept)
		source = made.Source
	}
	if csi.Refused(err) {
		return nil, nil // it never was
	}
	if err != nil {
		return nil, fmt.Errorf("find out whether it was made: %w", err)
	}
	return source, nil
}
