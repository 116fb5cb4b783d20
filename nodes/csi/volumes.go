package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/moby/locker"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// VolumesOptions for NewVolumes. All are required.
type VolumesOptions struct {
	Drivers *Drivers
	// DataDir holds the records of what is staged and published, below "csi".
	DataDir string
	// Config returns a Secret or a CSIDriver, nil when it is not there.
	Config func(desired.Key) *nodes.Config
}

// Volumes leads the volumes of CSI drivers through their lives. Safe for
// concurrent use.
type Volumes struct {
	o       VolumesOptions
	drivers *Drivers
	// dir is the directory that drivers share.
	dir     string
	records string
	// boot changes with every boot of the machine.
	boot  string
	locks locker.Locker
}

// NewVolumes makes nothing on the disk.
func NewVolumes(o VolumesOptions) (*Volumes, error) {
	if o.Drivers == nil || o.DataDir == "" || o.Config == nil {
		return nil, errors.New("csi: Drivers, DataDir and Config are required")
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("ask for this boot of the machine: %w", err)
	}
	return &Volumes{
		o: o, drivers: o.Drivers, dir: o.Drivers.o.Dir, records: filepath.Join(o.DataDir, "csi"), boot: strings.TrimSpace(string(boot)),
	}, nil
}

// Running says whether a driver answers: nil when it does.
func (vs *Volumes) Running(driver string) error {
	_, err := vs.drivers.Named(driver)
	return err
}

// Made is a volume that a driver made.
type Made struct {
	Source *corev1.CSIPersistentVolumeSource
	// Size in bytes; 0 when the driver does not say.
	Size  int64
	Reach *nodes.Reach
}

// Create makes a volume of the class's driver, with the content of its origin,
// or finds it again. Without the capability for that, the error is an Incapable.
func (vs *Volumes) Create(ctx context.Context, v *nodes.Volume) (Made, error) {
	d, err := vs.controller(v.Provisioner)
	if err != nil {
		return Made{}, err
	}
	if !d.CanController(csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME) {
		return Made{}, &Incapable{d.Name, "makes no volumes: describe them as PersistentVolumes"}
	}
	content, err := d.contentOf(v)
	if err != nil {
		return Made{}, err
	}
	secrets, err := vs.secrets(nodes.SecretIn(v.Parameters, nodes.ProvisionerSecret))
	if err != nil {
		return Made{}, err
	}
	source := sourceOf(v)
	made, err := d.CreateVolume(ctx, NewVolume{
		Name: v.Name, Size: v.Spec.Capacity.Storage().Value(), Uses: d.Uses(&v.Spec, source.FSType),
		Parameters: ForDriver(v.Parameters), Secrets: secrets, Content: content,
	})
	if err != nil {
		return Made{}, err
	}
	if asked := v.Spec.Capacity.Storage().Value(); made.Size != 0 && made.Size < asked {
		return Made{}, fmt.Errorf("driver %s: volume %s has %d bytes, less than the %d that were asked for", d.Name, v.Name, made.Size, asked)
	}
	source.VolumeHandle, source.VolumeAttributes = made.Handle, made.Context
	return Made{Source: source, Size: made.Size, Reach: &nodes.Reach{Topology: made.Topology}}, nil
}

// sourceOf is what a class says about the volumes that are made for it.
func sourceOf(v *nodes.Volume) *corev1.CSIPersistentVolumeSource {
	s := &corev1.CSIPersistentVolumeSource{
		Driver:                     v.Provisioner,
		ControllerPublishSecretRef: nodes.SecretIn(v.Parameters, nodes.ControllerPublishSecret),
		NodeStageSecretRef:         nodes.SecretIn(v.Parameters, nodes.NodeStageSecret),
		NodePublishSecretRef:       nodes.SecretIn(v.Parameters, nodes.NodePublishSecret),
		ControllerExpandSecretRef:  nodes.SecretIn(v.Parameters, nodes.ControllerExpandSecret),
		NodeExpandSecretRef:        nodes.SecretIn(v.Parameters, nodes.NodeExpandSecret),
	}
	if isBlock(&v.Spec) {
		return s
	}
	for name, value := range v.Parameters {
		if name = strings.ToLower(name); name == reserved+"fstype" || name == "fstype" && s.FSType == "" {
			s.FSType = value
		}
	}
	return s
}

// controller is a driver whose controller service answers here.
func (vs *Volumes) controller(name string) (*Driver, error) {
	d, err := vs.drivers.Named(name)
	if err != nil {
		return nil, err
	}
	if len(d.controllers) == 0 {
		return nil, fmt.Errorf("driver %s has no controller service at its socket on this node: deploy its node plugin with the controller service switched on", name)
	}
	return d, nil
}

// Delete ends the data of a volume that its class's driver made.
func (vs *Volumes) Delete(ctx context.Context, v *nodes.Volume) error {
	d, err := vs.controller(v.Provisioner)
	if err != nil {
		return err
	}
	secrets, err := vs.secrets(nodes.SecretIn(v.Parameters, nodes.ProvisionerSecret))
	if err != nil {
		return err
	}
	if err := d.DeleteVolume(ctx, v.Spec.CSI.VolumeHandle, secrets); err != nil {
		return err
	}
	return removeRecord(vs.growingPath(v))
}

// contentOf is what a volume begins with.
func (d *Driver) contentOf(v *nodes.Volume) (Content, error) {
	switch {
	case v.From == nil:
		return Content{}, nil
	case v.From.Snapshot != "" && !d.CanSnapshot():
		return Content{}, &Incapable{d.Name, "has no snapshots that a volume could begin with"}
	case v.From.Volume != "" && !d.CanClone():
		return Content{}, &Incapable{d.Name, "cannot clone volumes: begin with a VolumeSnapshot of the claim, if it takes snapshots"}
	case v.From.Snapshot == "" && v.From.Volume == "":
		return Content{}, fmt.Errorf("volume %s begins with the content of %s, and nobody knows what driver %s calls that", v.Name, v.From.Name, d.Name)
	}
	return Content{Snapshot: v.From.Snapshot, Volume: v.From.Volume}, nil
}

// TakeSnapshot has the driver take the snapshot that v is, or finds it again.
// ready is false while the driver still works on it: ask again. A driver that
// takes none is an Incapable.
func (vs *Volumes) TakeSnapshot(ctx context.Context, v *nodes.Volume) (source *corev1.CSIPersistentVolumeSource, ready bool, err error) {
	d, err := vs.controller(v.Provisioner)
	if err != nil {
		return nil, false, err
	}
	if !d.CanSnapshot() {
		return nil, false, &Incapable{d.Name, "takes no snapshots"}
	}
	if v.From == nil || v.From.Volume == "" {
		return nil, false, fmt.Errorf("nobody knows of which volume of driver %s %s is a snapshot", d.Name, v.Name)
	}
	secrets, err := vs.secrets(nodes.SecretIn(v.Parameters, nodes.SnapshotterSecret))
	if err != nil {
		return nil, false, err
	}
	made, err := d.CreateSnapshot(ctx, v.Name, v.From.Volume, v.Parameters, secrets)
	if err != nil {
		return nil, false, err
	}
	return &corev1.CSIPersistentVolumeSource{Driver: d.Name, VolumeHandle: made.Handle}, made.Ready, nil
}

// DropSnapshot ends the data of a snapshot that the driver took.
func (vs *Volumes) DropSnapshot(ctx context.Context, v *nodes.Volume) error {
	d, err := vs.controller(v.Provisioner)
	if err != nil {
		return err
	}
	secrets, err := vs.secrets(nodes.SecretIn(v.Parameters, nodes.SnapshotterSecret))
	if err != nil {
		return err
	}
	return d.DeleteSnapshot(ctx, v.Spec.CSI.VolumeHandle, secrets)
}

// Expand makes a volume as large as its spec says; from is the size in bytes
// that it has. Nil says that the driver has done its part; Finish does the rest.
func (vs *Volumes) Expand(ctx context.Context, v *nodes.Volume, from int64) error {
	d, err := vs.drivers.Named(v.Spec.CSI.Driver)
	if err != nil {
		return err
	}
	size, finish := v.Spec.Capacity.Storage().Value(), true
	switch {
	case d.CanController(csi.ControllerServiceCapability_RPC_EXPAND_VOLUME):
		secrets, err := vs.secrets(v.Spec.CSI.ControllerExpandSecretRef)
		if err != nil {
			return err
		}
		if _, finish, err = d.ExpandVolume(ctx, v.Spec.CSI.VolumeHandle, size, d.usual(&v.Spec), secrets); err != nil {
			return err
		}
	case !d.CanNode(csi.NodeServiceCapability_RPC_EXPAND_VOLUME):
		return fmt.Errorf("driver %s cannot make volumes larger", d.Name)
	}
	if finish && d.CanNode(csi.NodeServiceCapability_RPC_EXPAND_VOLUME) {
		return writeRecord(vs.growingPath(v), growing{Size: size, From: from})
	}
	return nil
}

// Finish has the file systems of volumes that became larger follow, where a pod
// has them. It returns the size in bytes that is still the volume's, 0 when
// nothing is left to be done.
func (vs *Volumes) Finish(ctx context.Context, v *nodes.Volume) (int64, error) {
	if v.Spec.CSI == nil {
		return 0, nil
	}
	lock := lockOf(v.Spec.CSI)
	vs.locks.Lock(lock)
	defer vs.locks.Unlock(lock)
	g := growing{}
	if pending, err := readRecord(vs.growingPath(v), &g); err != nil || !pending {
		return 0, err
	}
	s, err := vs.stagingOf(v.Spec.CSI)
	if err != nil {
		return g.From, err
	}
	at, err := vs.published(func(p *publishing) bool { return p.UID == v.UID && p.Name == v.Name && p.Boot == vs.boot })
	if err != nil {
		return g.From, err
	}
	path := ""
	switch {
	case len(at) > 0:
		path = at[0].Path
	case s.Boot == vs.boot:
		path = s.Path
	default:
		return g.From, nil // when a pod has it
	}
	return g.From, vs.finish(ctx, v, &g, path, s.Path)
}

func (vs *Volumes) finish(ctx context.Context, v *nodes.Volume, g *growing, path, stage string) error {
	d, err := vs.drivers.Named(v.Spec.CSI.Driver)
	if err != nil {
		return err
	}
	secrets, err := vs.secrets(v.Spec.CSI.NodeExpandSecretRef)
	if err != nil {
		return err
	}
	if !d.CanNode(csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME) {
		stage = ""
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err = d.node.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: v.Spec.CSI.VolumeHandle, VolumePath: path, StagingTargetPath: stage, CapacityRange: &csi.CapacityRange{RequiredBytes: g.Size},
		VolumeCapability: d.usual(&v.Spec), Secrets: secrets,
	})
	if err != nil {
		return d.failed("NodeExpandVolume", err)
	}
	return removeRecord(vs.growingPath(v))
}

// usual is how pods use a volume: by the first of its access modes, as in
// Kubernetes.
func (d *Driver) usual(s *corev1.PersistentVolumeSpec) *csi.VolumeCapability {
	m := corev1.ReadWriteOnce
	if len(s.AccessModes) > 0 {
		m = s.AccessModes[0]
	}
	fsType := ""
	if s.CSI != nil {
		fsType = s.CSI.FSType
	}
	return d.use(s, m, fsType)
}

// secrets are those that a reference names; nil for no reference.
func (vs *Volumes) secrets(r *corev1.SecretReference) (map[string]string, error) {
	if r == nil || r.Name == "" {
		return nil, nil
	}
	c := vs.o.Config(desired.Key{Kind: "Secret", Namespace: r.Namespace, Name: r.Name})
	if c == nil {
		return nil, fmt.Errorf("secret %s/%s, which the volume's driver needs, is not there", r.Namespace, r.Name)
	}
	values := make(map[string]string, len(c.Data))
	for name, value := range c.Data {
		values[name] = string(value)
	}
	return values, nil
}

// spec is what the CSIDriver object says, with Kubernetes' defaults where there
// is none.
func (vs *Volumes) spec(driver string) (storagev1.CSIDriverSpec, error) {
	s, err := specIn(vs.o.Config(nodes.DriverKey(driver)))
	if err != nil {
		return s, fmt.Errorf("read CSIDriver %s: %w", driver, err)
	}
	return s, nil
}

func specIn(c *nodes.Config) (s storagev1.CSIDriverSpec, err error) {
	if c != nil {
		err = json.Unmarshal(c.Data[nodes.DriverSpec], &s)
	}
	return s, err
}

func isBlock(s *corev1.PersistentVolumeSpec) bool {
	return s.VolumeMode != nil && *s.VolumeMode == corev1.PersistentVolumeBlock
}

// digestOf makes a name that fits everywhere.
func digestOf(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

func (vs *Volumes) growingPath(v *nodes.Volume) string {
	return filepath.Join(vs.records, "growing", v.Name+"-"+v.UID+recordSuffix)
}

// lockOf is one for all calls that a driver gets about a volume.
func lockOf(s *corev1.CSIPersistentVolumeSource) string { return digestOf(s.Driver, s.VolumeHandle) }

// remove removes an empty directory or file; what is not there is no error.
func remove(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
