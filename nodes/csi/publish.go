package csi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Wish is what a pod asks of a volume.
type Wish struct {
	Pod      *nodes.Pod
	ReadOnly bool
	// Token returns a valid token of the pod's ServiceAccount.
	Token func(*corev1.ServiceAccountTokenProjection) (Token, error)
}

// Token is a service-account token, as drivers get it.
type Token struct {
	Value   string
	Expires time.Time
}

// Published is a volume as a pod has it.
type Published struct {
	// Path on the host: a directory, or the device of a block volume.
	Path string
	// Block tells which.
	Block bool
	// ReadOnly is set where the volume's own description says so.
	ReadOnly bool
	// Grouped volumes are to belong to the pod's fsGroup, and do not yet.
	Grouped bool
}

// call is one publishing, with all that it takes.
type call struct {
	driver   *Driver
	spec     storagev1.CSIDriverSpec
	wish     Wish
	record   publishing
	use      *csi.VolumeCapability
	context  map[string]string
	secret   *corev1.SecretReference
	stage    string
	publish  map[string]string
	readOnly bool
	fsType   string
	// modes of the PersistentVolume; nil for an inline volume.
	modes  []corev1.PersistentVolumeAccessMode
	inline bool
}

// Publish gives a pod a volume that exists: it is attached, staged, made to
// follow its size, and published, each unless it is.
func (vs *Volumes) Publish(ctx context.Context, v *nodes.Volume, w Wish) (Published, error) {
	s := v.Spec.CSI
	lock := lockOf(s)
	vs.locks.Lock(lock)
	defer vs.locks.Unlock(lock)
	d, spec, err := vs.persistent(s.Driver)
	if err != nil {
		return Published{}, err
	}
	c := &call{
		driver: d, spec: spec, wish: w, use: d.usual(&v.Spec), context: s.VolumeAttributes, secret: s.NodePublishSecretRef,
		readOnly: w.ReadOnly, fsType: s.FSType, modes: v.Spec.AccessModes,
		record: publishing{Driver: s.Driver, Handle: s.VolumeHandle, Name: v.Name, UID: v.UID, Pod: string(w.Pod.UID), Path: vs.target(v, w.Pod.UID)},
	}
	staged, err := vs.stage(ctx, d, spec, v, c.group())
	if err != nil {
		return Published{}, err
	}
	c.publish = staged.Context
	if d.CanNode(csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME) {
		c.stage = staged.Path
	}
	made := Published{Path: c.record.Path, Block: isBlock(&v.Spec), ReadOnly: s.ReadOnly, Grouped: c.chown()}
	return made, vs.publish(ctx, c)
}

// persistent is a driver that serves PersistentVolumes.
func (vs *Volumes) persistent(driver string) (*Driver, storagev1.CSIDriverSpec, error) {
	d, err := vs.drivers.Named(driver)
	if err != nil {
		return nil, storagev1.CSIDriverSpec{}, err
	}
	spec, err := vs.spec(driver)
	if err == nil && !serves(&spec, storagev1.VolumeLifecyclePersistent) {
		err = fmt.Errorf("driver %s serves no PersistentVolumes: its CSIDriver object lacks volumeLifecycleModes: [Persistent]", driver)
	}
	return d, spec, err
}

// serves reports whether a driver has volumes of a mode; of those that persist
// if nothing is said.
func serves(s *storagev1.CSIDriverSpec, m storagev1.VolumeLifecycleMode) bool {
	if len(s.VolumeLifecycleModes) == 0 {
		return m == storagev1.VolumeLifecyclePersistent
	}
	return slices.Contains(s.VolumeLifecycleModes, m)
}

// Inline gives a pod a volume of its own, which the driver makes with it.
func (vs *Volumes) Inline(ctx context.Context, v *corev1.Volume, w Wish) (Published, error) {
	s := v.CSI
	d, err := vs.drivers.Named(s.Driver)
	if err != nil {
		return Published{}, err
	}
	spec, err := vs.spec(s.Driver)
	if err != nil {
		return Published{}, err
	}
	if !serves(&spec, storagev1.VolumeLifecycleEphemeral) {
		return Published{}, fmt.Errorf("driver %s has no inline volumes: its CSIDriver object lacks volumeLifecycleModes: [Ephemeral]", s.Driver)
	}
	handle := "csi-" + digestOf(string(w.Pod.UID), v.Name)
	lock := digestOf(s.Driver, handle)
	vs.locks.Lock(lock)
	defer vs.locks.Unlock(lock)
	c := &call{
		driver: d, spec: spec, wish: w, context: s.VolumeAttributes, readOnly: s.ReadOnly != nil && *s.ReadOnly, inline: true,
		record: publishing{Driver: s.Driver, Handle: handle, Name: v.Name, Pod: string(w.Pod.UID), Path: filepath.Join(vs.podDir(w.Pod.UID), v.Name, "mount")},
	}
	if s.FSType != nil {
		c.fsType = *s.FSType
	}
	if s.NodePublishSecretRef != nil {
		c.secret = &corev1.SecretReference{Name: s.NodePublishSecretRef.Name, Namespace: w.Pod.Namespace}
	}
	c.use = d.use(&corev1.PersistentVolumeSpec{}, corev1.ReadWriteOnce, c.fsType)
	return Published{Path: c.record.Path, ReadOnly: c.readOnly, Grouped: c.chown()}, vs.publish(ctx, c)
}

// publish calls the driver unless the pod has the volume.
func (vs *Volumes) publish(ctx context.Context, c *call) error {
	path, before := vs.publishingPath(&c.record), publishing{}
	if _, err := readRecord(path, &before); err != nil {
		return err
	}
	if before.Boot == vs.boot && !republishes(&c.spec) {
		if mounted, err := mountedOn(c.record.Path); err != nil || mounted {
			return err
		}
	}
	if before != c.record && before.Boot == "" {
		if err := writeRecord(path, c.record); err != nil {
			return fmt.Errorf("write down volume %s of pod %s: %w", c.record.Name, c.record.Pod, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(c.record.Path), 0o750); err != nil {
		return err
	}
	if err := vs.nodePublish(ctx, c); err != nil {
		return err
	}
	if c.record.Boot = vs.boot; before == c.record {
		return nil
	}
	return writeRecord(path, c.record)
}

func republishes(s *storagev1.CSIDriverSpec) bool {
	return s.RequiresRepublish != nil && *s.RequiresRepublish
}

func (vs *Volumes) nodePublish(ctx context.Context, c *call) error {
	secrets, err := vs.secrets(c.secret)
	if err != nil {
		return err
	}
	with := maps.Clone(c.context)
	if with == nil {
		with = map[string]string{}
	}
	if c.spec.PodInfoOnMount != nil && *c.spec.PodInfoOnMount {
		maps.Copy(with, podInfo(c.wish.Pod, c.inline))
	}
	if secrets, err = c.tokens(with, secrets); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err = c.driver.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: c.record.Handle, PublishContext: c.publish, StagingTargetPath: c.stage, TargetPath: c.record.Path,
		VolumeCapability: grouped(c.use, c.group()), Readonly: c.readOnly, Secrets: secrets, VolumeContext: with,
	})
	if err != nil {
		return c.driver.failed("NodePublishVolume", err)
	}
	return nil
}

// podInfo is what podInfoOnMount asks for.
func podInfo(p *nodes.Pod, inline bool) map[string]string {
	account := p.Template.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	return map[string]string{
		reserved + "pod.name": p.Name, reserved + "pod.namespace": p.Namespace, reserved + "pod.uid": string(p.UID),
		reserved + "serviceAccount.name": account, reserved + "ephemeral": strconv.FormatBool(inline),
	}
}

// tokensKey is where drivers find the tokens that they asked for.
const tokensKey = reserved + "serviceAccount.tokens"

// tokens adds the tokens that the CSIDriver object asks for, where it asks for
// them.
func (c *call) tokens(with, secrets map[string]string) (map[string]string, error) {
	if len(c.spec.TokenRequests) == 0 {
		return secrets, nil
	}
	type token struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expirationTimestamp"`
	}
	all := map[string]token{}
	for _, r := range c.spec.TokenRequests {
		t, err := c.wish.Token(&corev1.ServiceAccountTokenProjection{Audience: r.Audience, ExpirationSeconds: r.ExpirationSeconds})
		if err != nil {
			return nil, err
		}
		all[r.Audience] = token{t.Value, t.Expires.UTC().Truncate(time.Second)}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	if in := c.spec.ServiceAccountTokenInSecrets; in == nil || !*in {
		with[tokensKey] = string(text)
		return secrets, nil
	}
	secrets = maps.Clone(secrets)
	if secrets == nil {
		secrets = map[string]string{}
	}
	secrets[tokensKey] = string(text)
	return secrets, nil
}

// group is the pod's fsGroup where the driver sees to it itself, "" elsewhere.
func (c *call) group() string {
	g := fsGroup(c.wish.Pod)
	if g == nil || c.use.GetMount() == nil || !c.driver.CanNode(csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP) {
		return ""
	}
	return strconv.FormatInt(*g, 10)
}

// chown reports whether the files are to be given to the pod's fsGroup: the
// kubelet's rules for fsGroupPolicy.
func (c *call) chown() bool {
	policy := storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy
	if c.spec.FSGroupPolicy != nil {
		policy = *c.spec.FSGroupPolicy
	}
	switch {
	case fsGroup(c.wish.Pod) == nil, c.readOnly, c.use.GetMount() == nil,
		policy == storagev1.NoneFSGroupPolicy, c.driver.CanNode(csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP):
		return false
	case policy == storagev1.FileFSGroupPolicy:
		return true
	}
	return c.fsType != "" && (c.inline || slices.Contains(c.modes, corev1.ReadWriteOnce))
}

func fsGroup(p *nodes.Pod) *int64 {
	if s := p.Template.Spec.SecurityContext; s != nil {
		return s.FSGroup
	}
	return nil
}

// grouped is a use with the group that the driver is to give the files to.
func grouped(use *csi.VolumeCapability, group string) *csi.VolumeCapability {
	m := use.GetMount()
	if group == "" || m == nil {
		return use
	}
	return &csi.VolumeCapability{AccessMode: use.GetAccessMode(), AccessType: &csi.VolumeCapability_Mount{
		Mount: &csi.VolumeCapability_MountVolume{FsType: m.GetFsType(), MountFlags: m.GetMountFlags(), VolumeMountGroup: group},
	}}
}

// Unpublish takes all volumes from a pod.
func (vs *Volumes) Unpublish(ctx context.Context, uid nodes.UID) error {
	list, err := vs.published(func(p *publishing) bool { return p.Pod == string(uid) })
	for _, p := range list {
		err = errors.Join(err, vs.unpublishLocked(ctx, p))
	}
	if err != nil {
		return fmt.Errorf("take the volumes of storage drivers from pod %s: %w", uid, err)
	}
	return nil
}

func (vs *Volumes) unpublishLocked(ctx context.Context, p *publishing) error {
	lock := digestOf(p.Driver, p.Handle)
	vs.locks.Lock(lock)
	defer vs.locks.Unlock(lock)
	return vs.unpublish(ctx, p)
}

func (vs *Volumes) unpublish(ctx context.Context, p *publishing) error {
	d, err := vs.drivers.Named(p.Driver)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err = d.node.NodeUnpublishVolume(limited, &csi.NodeUnpublishVolumeRequest{VolumeId: p.Handle, TargetPath: p.Path})
	if err != nil {
		return d.failed("NodeUnpublishVolume", err)
	}
	return vs.forgetPublishing(p)
}

// forgetPublishing removes what is left of a publishing that the driver has
// undone.
func (vs *Volumes) forgetPublishing(p *publishing) error {
	if err := remove(p.Path); err != nil {
		return fmt.Errorf("remove what the driver left at %s: %w", p.Path, err)
	}
	for dir, n := filepath.Dir(p.Path), 0; n < 4 && dir != filepath.Join(vs.dir, "pods"); dir, n = filepath.Dir(dir), n+1 {
		if os.Remove(dir) != nil {
			break // another volume's
		}
	}
	return removeRecord(vs.publishingPath(p))
}

// Pods are those that have volumes of drivers, or may have.
func (vs *Volumes) Pods() ([]nodes.UID, error) {
	all, err := vs.published(func(*publishing) bool { return true })
	var list []nodes.UID
	for _, p := range all {
		list = append(list, nodes.UID(p.Pod))
	}
	return list, err
}

// published lists the records that match.
func (vs *Volumes) published(match func(*publishing) bool) ([]*publishing, error) {
	paths, err := recordsIn(filepath.Join(vs.records, "published"))
	var list []*publishing
	for _, path := range paths {
		p := &publishing{}
		found, failed := readRecord(path, p)
		err = errors.Join(err, failed)
		if found && match(p) {
			list = append(list, p)
		}
	}
	return list, err
}

func (vs *Volumes) publishingPath(p *publishing) string {
	return filepath.Join(vs.records, "published", digestOf(p.Pod, p.Name, p.UID)[:32]+recordSuffix)
}

// podDir is where a kubelet has the volumes of a pod.
func (vs *Volumes) podDir(uid nodes.UID) string {
	return filepath.Join(vs.dir, "pods", string(uid), "volumes", "kubernetes.io~csi")
}

// target is where a pod has a volume.
func (vs *Volumes) target(v *nodes.Volume, uid nodes.UID) string {
	if isBlock(&v.Spec) {
		return filepath.Join(vs.devices(), "publish", v.Name, string(uid))
	}
	return filepath.Join(vs.podDir(uid), v.Name, "mount")
}

func (vs *Volumes) devices() string {
	return filepath.Join(vs.dir, "plugins", "kubernetes.io", "csi", "volumeDevices")
}
