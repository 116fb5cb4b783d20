package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// stage attaches and stages a volume unless it is.
func (vs *Volumes) stage(ctx context.Context, d *Driver, spec storagev1.CSIDriverSpec, v *nodes.Volume, group string) (*staging, error) {
	s, err := vs.stagingOf(v.Spec.CSI)
	if err != nil {
		return nil, err
	}
	s.Volume, s.UID, s.Path = v.Name, v.UID, vs.stagePath(v)
	if attaches(d, &spec) && (!s.Attached || s.Node != d.NodeID) {
		if err := vs.attach(ctx, d, v, s); err != nil {
			return nil, err
		}
	}
	if !d.CanNode(csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME) || s.Boot == vs.boot {
		return s, nil
	}
	if err := vs.nodeStage(ctx, d, v, s, group); err != nil {
		return nil, err
	}
	s.Boot = vs.boot
	if err := vs.writeStaging(s); err != nil {
		return nil, err
	}
	return s, vs.growStaged(ctx, v, s)
}

// attaches reports whether volumes of a driver are attached before they are
// staged.
func attaches(d *Driver, spec *storagev1.CSIDriverSpec) bool {
	return (spec.AttachRequired == nil || *spec.AttachRequired) && d.CanController(csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
}

// DetachFrom detaches a volume from another node, which the driver knows by id
// and on which nothing uses it any more. Where volumes need not be attached, or
// it is not, that is success.
func (vs *Volumes) DetachFrom(ctx context.Context, v *nodes.Volume, id string) error {
	d, spec, err := vs.persistent(v.Spec.CSI.Driver)
	if err != nil {
		return err
	}
	if spec.AttachRequired != nil && !*spec.AttachRequired || !d.HasController() {
		return nil
	}
	if len(d.controllers) == 0 { // nobody knows whether it attaches
		_, err := vs.controller(d.Name)
		return err
	}
	if !attaches(d, &spec) {
		return nil
	}
	secrets, err := vs.secrets(v.Spec.CSI.ControllerPublishSecretRef)
	if err != nil {
		return err
	}
	return d.Detach(ctx, v.Spec.CSI.VolumeHandle, id, secrets)
}

func (vs *Volumes) attach(ctx context.Context, d *Driver, v *nodes.Volume, s *staging) error {
	secrets, err := vs.secrets(v.Spec.CSI.ControllerPublishSecretRef)
	if err != nil {
		return err
	}
	s.Attaching, s.Node = true, d.NodeID
	if r := v.Spec.CSI.ControllerPublishSecretRef; r != nil {
		s.Secret = &secretRef{r.Name, r.Namespace}
	}
	if err := vs.writeStaging(s); err != nil {
		return err
	}
	s.Context, err = d.Attach(ctx, s.Handle, d.usual(&v.Spec), v.Spec.CSI.ReadOnly, v.Spec.CSI.VolumeAttributes, secrets)
	if err != nil {
		return err
	}
	s.Attached = true
	return vs.writeStaging(s)
}

func (vs *Volumes) nodeStage(ctx context.Context, d *Driver, v *nodes.Volume, s *staging, group string) error {
	secrets, err := vs.secrets(v.Spec.CSI.NodeStageSecretRef)
	if err != nil {
		return err
	}
	if err := vs.writeStaging(s); err != nil {
		return err
	}
	if err := os.MkdirAll(s.Path, 0o750); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err = d.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: s.Handle, PublishContext: s.Context, StagingTargetPath: s.Path, VolumeCapability: grouped(d.usual(&v.Spec), group),
		Secrets: secrets, VolumeContext: v.Spec.CSI.VolumeAttributes,
	})
	if err != nil {
		return d.failed("NodeStageVolume", err)
	}
	return nil
}

// growStaged has the file system of a volume follow before a pod has it: some
// drivers can't afterwards.
func (vs *Volumes) growStaged(ctx context.Context, v *nodes.Volume, s *staging) error {
	g := growing{}
	pending, err := readRecord(vs.growingPath(v), &g)
	if err != nil || !pending {
		return err
	}
	return vs.finish(ctx, v, &g, s.Path, s.Path)
}

// Unstage undoes Publish for all pods, and all that went before it: pods that
// have ended still have their volumes.
func (vs *Volumes) Unstage(ctx context.Context, v *nodes.Volume) error {
	if v.Spec.CSI == nil {
		return nil
	}
	lock := lockOf(v.Spec.CSI)
	vs.locks.Lock(lock)
	defer vs.locks.Unlock(lock)
	s, err := vs.stagingOf(v.Spec.CSI)
	if err != nil {
		return err
	}
	s.Volume, s.UID, s.Path = v.Name, v.UID, vs.stagePath(v)
	return vs.unstage(ctx, s)
}

func (vs *Volumes) unstage(ctx context.Context, s *staging) error {
	list, err := vs.published(func(p *publishing) bool { return p.Driver == s.Driver && p.Handle == s.Handle })
	if err != nil {
		return err
	}
	others := false
	for _, p := range list {
		if p.Name != s.Volume || p.UID != s.UID {
			others = true // two PersistentVolumes of one handle
			continue
		}
		if err := vs.unpublish(ctx, p); err != nil {
			return err
		}
	}
	if found, err := readRecord(vs.stagingPath(s.Driver, s.Handle), s); err != nil || !found || others {
		return err
	}
	d, err := vs.drivers.Named(s.Driver)
	if err != nil {
		return err
	}
	if err := nodeUnstage(ctx, d, s); err != nil {
		return err
	}
	if s.Attaching {
		if err := vs.detach(ctx, d, s); err != nil {
			return err
		}
	}
	return removeRecord(vs.stagingPath(s.Driver, s.Handle))
}

func nodeUnstage(ctx context.Context, d *Driver, s *staging) error {
	if !d.CanNode(csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err := d.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: s.Handle, StagingTargetPath: s.Path})
	if err != nil {
		return d.failed("NodeUnstageVolume", err)
	}
	if err := remove(s.Path); err != nil {
		return fmt.Errorf("remove what the driver left at %s: %w", s.Path, err)
	}
	_ = os.Remove(filepath.Dir(s.Path))
	return nil
}

func (vs *Volumes) detach(ctx context.Context, d *Driver, s *staging) error {
	var r *corev1.SecretReference
	if s.Secret != nil {
		r = &corev1.SecretReference{Name: s.Secret.Name, Namespace: s.Secret.Namespace}
	}
	secrets, err := vs.secrets(r)
	if err != nil {
		return err
	}
	return d.Detach(ctx, s.Handle, s.Node, secrets)
}

// Sweep takes away volumes that are not assigned and that whoever used them
// could not take away.
func (vs *Volumes) Sweep(ctx context.Context, assigned func(name, uid string) bool) error {
	paths, err := recordsIn(filepath.Join(vs.records, "staged"))
	for _, path := range paths {
		s := &staging{}
		found, failed := readRecord(path, s)
		err = errors.Join(err, failed)
		if !found || assigned(s.Volume, s.UID) {
			continue
		}
		lock := digestOf(s.Driver, s.Handle)
		vs.locks.Lock(lock)
		err = errors.Join(err, vs.unstage(ctx, s))
		vs.locks.Unlock(lock)
	}
	return err
}

// stagingOf is the record of a volume, or a new one.
func (vs *Volumes) stagingOf(c *corev1.CSIPersistentVolumeSource) (*staging, error) {
	s := &staging{Driver: c.Driver, Handle: c.VolumeHandle}
	_, err := readRecord(vs.stagingPath(c.Driver, c.VolumeHandle), s)
	return s, err
}

func (vs *Volumes) writeStaging(s *staging) error {
	if err := writeRecord(vs.stagingPath(s.Driver, s.Handle), s); err != nil {
		return fmt.Errorf("write down volume %s: %w", s.Volume, err)
	}
	return nil
}

func (vs *Volumes) stagingPath(driver, handle string) string {
	return filepath.Join(vs.records, "staged", digestOf(driver, handle)[:32]+recordSuffix)
}

// stagePath is where a kubelet has drivers stage a volume.
func (vs *Volumes) stagePath(v *nodes.Volume) string {
	if isBlock(&v.Spec) {
		return filepath.Join(vs.devices(), "staging", v.Name)
	}
	sum := digestOf(v.Spec.CSI.VolumeHandle)
	return filepath.Join(vs.dir, "plugins", "kubernetes.io", "csi", v.Spec.CSI.Driver, sum, "globalmount")
}
