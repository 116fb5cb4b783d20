package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
)

// answerWithin is how long a driver may take for one call, as long as a kubelet
// gives it.
const answerWithin = 2 * time.Minute

// Driver speaks to one CSI driver. Its methods may be called concurrently, and
// repeated: drivers answer the same again. Errors name the driver and the call;
// Code tells their class.
type Driver struct {
	// Name is what the driver calls itself.
	Name string
	// NodeID is what it calls this node, Topology where it says the node is.
	NodeID   string
	Topology map[string]string
	// MaxVolumes bounds the volumes on this node; 0 for no bound.
	MaxVolumes int64

	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient

	plugin      []csi.PluginCapability_Service_Type
	controllers []csi.ControllerServiceCapability_RPC_Type
	nodes       []csi.NodeServiceCapability_RPC_Type
}

// Learn asks the driver behind a connection who it is and what it can.
func Learn(ctx context.Context, conn grpc.ClientConnInterface) (*Driver, error) {
	d := &Driver{Name: "?", identity: csi.NewIdentityClient(conn), controller: csi.NewControllerClient(conn), node: csi.NewNodeClient(conn)}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	info, err := d.identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil {
		return nil, d.failed("GetPluginInfo", err)
	}
	d.Name = info.GetName()
	ready, err := d.identity.Probe(ctx, &csi.ProbeRequest{})
	if err != nil {
		return nil, d.failed("Probe", err)
	}
	if ready.GetReady() != nil && !ready.GetReady().GetValue() {
		return nil, fmt.Errorf("driver %s: it says that it is not ready", d.Name)
	}
	return d, errors.Join(d.learnPlugin(ctx), d.learnController(ctx), d.learnNode(ctx))
}

func (d *Driver) learnPlugin(ctx context.Context) error {
	answer, err := d.identity.GetPluginCapabilities(ctx, &csi.GetPluginCapabilitiesRequest{})
	if err != nil {
		return d.failed("GetPluginCapabilities", err)
	}
	for _, c := range answer.GetCapabilities() {
		if c.GetService() != nil {
			d.plugin = append(d.plugin, c.GetService().GetType())
		}
	}
	return nil
}

func (d *Driver) learnController(ctx context.Context) error {
	if !d.HasController() {
		return nil
	}
	answer, err := d.controller.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
	if Code(err) == codes.Unimplemented {
		return nil // its controller service runs elsewhere
	}
	if err != nil {
		return d.failed("ControllerGetCapabilities", err)
	}
	for _, c := range answer.GetCapabilities() {
		d.controllers = append(d.controllers, c.GetRpc().GetType())
	}
	return nil
}

func (d *Driver) learnNode(ctx context.Context) error {
	answer, err := d.node.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		return d.failed("NodeGetCapabilities", err)
	}
	for _, c := range answer.GetCapabilities() {
		d.nodes = append(d.nodes, c.GetRpc().GetType())
	}
	info, err := d.node.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return d.failed("NodeGetInfo", err)
	}
	d.NodeID, d.Topology = info.GetNodeId(), info.GetAccessibleTopology().GetSegments()
	d.MaxVolumes = max(0, info.GetMaxVolumesPerNode())
	return nil
}

// HasController reports whether the driver says that it has a controller service
// somewhere.
func (d *Driver) HasController() bool {
	return slices.Contains(d.plugin, csi.PluginCapability_Service_CONTROLLER_SERVICE)
}

// CanController reports whether its controller service answers at this socket
// and can do something.
func (d *Driver) CanController(c csi.ControllerServiceCapability_RPC_Type) bool {
	return slices.Contains(d.controllers, c)
}

// CanNode reports whether its node service can do something.
func (d *Driver) CanNode(c csi.NodeServiceCapability_RPC_Type) bool {
	return slices.Contains(d.nodes, c)
}

// CallError is a call that a driver answered with an error.
type CallError struct {
	Driver, Call string
	Err          error
}

func (e *CallError) Error() string {
	s := status.Convert(e.Err)
	return fmt.Sprintf("driver %s: %s: %s (%s)", e.Driver, e.Call, s.Message(), s.Code())
}

func (e *CallError) Unwrap() error { return e.Err }

func (d *Driver) failed(call string, err error) error { return &CallError{d.Name, call, err} }

// Code is the class of a driver's error; codes.OK of nil, codes.Unknown of what
// is no driver's.
func Code(err error) codes.Code {
	if e, ok := errors.AsType[*CallError](err); ok {
		err = e.Err
	}
	return status.Code(err)
}

// Refused reports whether a driver is Incapable, or answered that it has not done
// what it was asked for, and is not doing it, by the codes after which Kubernetes'
// provisioner gives a volume up.
func Refused(err error) bool {
	if _, cannot := errors.AsType[*Incapable](err); cannot {
		return true
	}
	if _, answered := errors.AsType[*CallError](err); !answered {
		return false
	}
	switch Code(err) {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	}
	return true
}

// Incapable is a driver that cannot do what is asked of it, so that nothing of
// it exists.
type Incapable struct {
	Driver string
	// Why is what it cannot do, and what to do instead.
	Why string
}

func (e *Incapable) Error() string { return "driver " + e.Driver + " " + e.Why }

// Content is what a new volume begins with. At most one is set.
type Content struct {
	// Snapshot is the handle of a snapshot, Volume that of a volume to clone.
	Snapshot, Volume string
}

// NewVolume is what CreateVolume is asked for.
type NewVolume struct {
	// Name makes repeats find the same volume.
	Name string
	// Size in bytes, at least; Limit at most, 0 for none.
	Size, Limit int64
	// Uses are all the ways in which it is to be usable.
	Uses []*csi.VolumeCapability
	// Parameters of the StorageClass, without those that are not for the driver.
	Parameters map[string]string
	Secrets    map[string]string
	Content    Content
}

// Created is a volume that a driver made.
type Created struct {
	Handle string
	// Size in bytes; 0 when the driver does not say.
	Size    int64
	Context map[string]string
	// Topology are the places from which it can be reached; nil for everywhere
	// where the driver runs.
	Topology []map[string]string
}

// CreateVolume makes a volume, or finds the one of this name. It is reachable
// from this node.
func (d *Driver) CreateVolume(ctx context.Context, q NewVolume) (Created, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	request := &csi.CreateVolumeRequest{
		Name: q.Name, CapacityRange: &csi.CapacityRange{RequiredBytes: q.Size, LimitBytes: q.Limit},
		VolumeCapabilities: q.Uses, Parameters: q.Parameters, Secrets: q.Secrets, VolumeContentSource: q.Content.source(),
	}
	if d.constrains() && len(d.Topology) > 0 {
		here := []*csi.Topology{{Segments: d.Topology}}
		request.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: here, Preferred: here}
	}
	answer, err := d.controller.CreateVolume(ctx, request)
	if err != nil {
		return Created{}, d.failed("CreateVolume", err)
	}
	v := answer.GetVolume()
	if v.GetVolumeId() == "" {
		return Created{}, d.failed("CreateVolume", status.Error(codes.Internal, "it answered without a volume's handle"))
	}
	made := Created{Handle: v.GetVolumeId(), Size: v.GetCapacityBytes(), Context: v.GetVolumeContext()}
	for _, t := range v.GetAccessibleTopology() {
		if d.constrains() && len(t.GetSegments()) > 0 { // as Kubernetes' provisioner reads it
			made.Topology = append(made.Topology, t.GetSegments())
		}
	}
	return made, nil
}

// constrains reports whether the driver's volumes may not be reachable from
// everywhere.
func (d *Driver) constrains() bool {
	return slices.Contains(d.plugin, csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS)
}

func (c Content) source() *csi.VolumeContentSource {
	switch {
	case c.Snapshot != "":
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: c.Snapshot}}}
	case c.Volume != "":
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: c.Volume}}}
	}
	return nil
}

// DeleteVolume ends a volume's data. One that is not there is no error.
func (d *Driver) DeleteVolume(ctx context.Context, handle string, secrets map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err := d.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: handle, Secrets: secrets})
	if err != nil && Code(err) != codes.NotFound {
		return d.failed("DeleteVolume", err)
	}
	return nil
}

// ExpandVolume makes a volume larger where it is kept. Finish tells that its node
// must be told too before the room is there.
func (d *Driver) ExpandVolume(ctx context.Context, handle string, size int64, use *csi.VolumeCapability, secrets map[string]string) (now int64, finish bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answer, err := d.controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: handle, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, Secrets: secrets, VolumeCapability: use,
	})
	if err != nil {
		return 0, false, d.failed("ControllerExpandVolume", err)
	}
	return answer.GetCapacityBytes(), answer.GetNodeExpansionRequired(), nil
}

// Attach makes a volume reachable from this node. The answer is for Stage and
// Publish.
func (d *Driver) Attach(ctx context.Context, handle string, use *csi.VolumeCapability, readOnly bool, volume, secrets map[string]string) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answer, err := d.controller.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
		VolumeId: handle, NodeId: d.NodeID, VolumeCapability: use, Readonly: readOnly, VolumeContext: volume, Secrets: secrets,
	})
	if err != nil {
		return nil, d.failed("ControllerPublishVolume", err)
	}
	return answer.GetPublishContext(), nil
}

// Detach undoes Attach. A volume that is not there is no error.
func (d *Driver) Detach(ctx context.Context, handle, node string, secrets map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err := d.controller.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: handle, NodeId: node, Secrets: secrets})
	if err != nil && Code(err) != codes.NotFound {
		return d.failed("ControllerUnpublishVolume", err)
	}
	return nil
}

// Snapshot is one that a driver made.
type Snapshot struct {
	Handle string
	// Source is the handle of the volume that it was made of.
	Source string
	// Size in bytes that a volume made from it needs; 0 when the driver does not say.
	Size    int64
	Created time.Time
	// Ready is false while the driver still works on it: ask again.
	Ready bool
}

// CanSnapshot reports whether the driver makes snapshots at this socket.
func (d *Driver) CanSnapshot() bool {
	return d.CanController(csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT)
}

// CanClone reports whether the driver makes volumes from volumes at this socket.
func (d *Driver) CanClone() bool {
	return d.CanController(csi.ControllerServiceCapability_RPC_CLONE_VOLUME)
}

// CreateSnapshot makes a snapshot of a volume, or finds the one of this name.
// Parameters are those of the VolumeSnapshotClass.
func (d *Driver) CreateSnapshot(ctx context.Context, name, volume string, parameters, secrets map[string]string) (Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answer, err := d.controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{
		Name: name, SourceVolumeId: volume, Parameters: ForDriver(parameters), Secrets: secrets,
	})
	if err != nil {
		return Snapshot{}, d.failed("CreateSnapshot", err)
	}
	s := answer.GetSnapshot()
	if s.GetSnapshotId() == "" {
		return Snapshot{}, d.failed("CreateSnapshot", status.Error(codes.Internal, "it answered without a snapshot's handle"))
	}
	return Snapshot{
		Handle: s.GetSnapshotId(), Source: s.GetSourceVolumeId(), Size: s.GetSizeBytes(), Created: s.GetCreationTime().AsTime(), Ready: s.GetReadyToUse(),
	}, nil
}

// DeleteSnapshot ends a snapshot. One that is not there is no error.
func (d *Driver) DeleteSnapshot(ctx context.Context, handle string, secrets map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err := d.controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: handle, Secrets: secrets})
	if err != nil && Code(err) != codes.NotFound {
		return d.failed("DeleteSnapshot", err)
	}
	return nil
}

// Uses are the ways in which a volume is to be usable, one for each access mode
// of the claim.
func (d *Driver) Uses(s *corev1.PersistentVolumeSpec, fsType string) []*csi.VolumeCapability {
	var list []*csi.VolumeCapability
	for _, m := range s.AccessModes {
		list = append(list, d.use(s, m, fsType))
	}
	return list
}

// use is how a volume is used with one access mode.
func (d *Driver) use(s *corev1.PersistentVolumeSpec, m corev1.PersistentVolumeAccessMode, fsType string) *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: d.mode(m)}}
	if s.VolumeMode != nil && *s.VolumeMode == corev1.PersistentVolumeBlock {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		return c
	}
	c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: s.MountOptions}}
	return c
}

// mode is CSI's word for an access mode, as Kubernetes translates it.
func (d *Driver) mode(m corev1.PersistentVolumeAccessMode) csi.VolumeCapability_AccessMode_Mode {
	exact := d.CanNode(csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER)
	switch {
	case m == corev1.ReadOnlyMany:
		return csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	case m == corev1.ReadWriteMany:
		return csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	case m == corev1.ReadWriteOncePod && exact:
		return csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	case m == corev1.ReadWriteOnce && exact:
		return csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	}
	return csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
}
