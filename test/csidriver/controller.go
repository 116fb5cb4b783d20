package main

import (
	"context"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// unimplemented are the calls that the driver does not have.
type unimplemented struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
}

// Sizes of volumes, in bytes.
const (
	smallest = 1 << 20
	largest  = 1 << 40
)

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	answer := &csi.GetPluginCapabilitiesResponse{}
	types := []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_CONTROLLER_SERVICE}
	if !d.shared {
		types = append(types, csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS)
	}
	for _, t := range types {
		answer.Capabilities = append(answer.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}})
	}
	return answer, nil
}

func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	can := []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME, csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	}
	if d.attaches {
		can = append(can, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
	}
	answer := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range can {
		answer.Capabilities = append(answer.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return answer, nil
}

func wrong(message string) error   { return status.Error(codes.InvalidArgument, message) }
func missing(message string) error { return status.Error(codes.NotFound, message) }

// usable refuses what a directory can't be.
func usable(list ...*csi.VolumeCapability) error {
	for _, c := range list {
		if c == nil || c.GetAccessMode() == nil {
			return wrong("a volume capability is missing")
		}
		if c.GetMount() == nil {
			return wrong("volumes are directories, not block devices")
		}
	}
	return nil
}

func (d *driver) CreateVolume(_ context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if q.GetName() == "" || len(q.GetVolumeCapabilities()) == 0 {
		return nil, wrong("name and capabilities are required")
	}
	if err := usable(q.GetVolumeCapabilities()...); err != nil {
		return nil, err
	}
	size := max(q.GetCapacityRange().GetRequiredBytes(), smallest)
	if limit := q.GetCapacityRange().GetLimitBytes(); size > largest || limit > 0 && size > limit {
		return nil, status.Error(codes.OutOfRange, "no such size")
	}
	id := idOf(volumes, q.GetName())
	from, path, err := d.content(q.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	v, err := d.get(volumes, id)
	switch {
	case err != nil:
		return nil, err
	case v == nil:
		v = &volume{ID: id, Name: q.GetName(), Size: size, NodeSize: size, From: from}
		if err := d.begin(volumes, id, path); err != nil {
			return nil, err
		}
		if err := d.put(volumes, v); err != nil {
			return nil, err
		}
	case v.Size < size || v.From != from || q.GetCapacityRange().GetLimitBytes() > 0 && v.Size > q.GetCapacityRange().GetLimitBytes():
		return nil, status.Error(codes.AlreadyExists, "a volume of this name is another")
	}
	answer := &csi.Volume{VolumeId: id, CapacityBytes: v.Size, VolumeContext: q.GetParameters(), ContentSource: q.GetVolumeContentSource()}
	if !d.shared {
		answer.AccessibleTopology = []*csi.Topology{d.here()}
	}
	return &csi.CreateVolumeResponse{Volume: answer}, nil
}

// content is what a volume begins with: its handle and its directory.
func (d *driver) content(s *csi.VolumeContentSource) (id, path string, err error) {
	kind := snapshots
	switch {
	case s == nil:
		return "", "", nil
	case s.GetSnapshot() != nil:
		id = s.GetSnapshot().GetSnapshotId()
	default:
		kind, id = volumes, s.GetVolume().GetVolumeId()
	}
	if v, err := d.get(kind, id); err != nil || v == nil {
		return "", "", missing("there is no " + id)
	}
	return id, d.data(kind, id), nil
}

func (d *driver) DeleteVolume(_ context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, d.drop(volumes, q.GetVolumeId())
}

func (d *driver) drop(kind, id string) error {
	if id == "" {
		return wrong("a handle is required")
	}
	if v, err := d.get(kind, id); err != nil || v == nil {
		return err
	}
	return os.RemoveAll(d.home(kind, id))
}

// found is the volume of a handle, which must be there.
func (d *driver) found(id string) (*volume, error) {
	if id == "" {
		return nil, wrong("a volume's handle is required")
	}
	v, err := d.get(volumes, id)
	if err == nil && v == nil {
		err = missing("there is no volume " + id)
	}
	return v, err
}

func (d *driver) ValidateVolumeCapabilities(_ context.Context, q *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if q.GetVolumeId() != "" && len(q.GetVolumeCapabilities()) == 0 {
		return nil, wrong("capabilities are required")
	}
	if _, err := d.found(q.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := usable(q.GetVolumeCapabilities()...); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: q.GetVolumeCapabilities()}}, nil
}

// attachment is what a volume's attachment tells the node.
const attachment = "attachment"

func (d *driver) ControllerPublishVolume(_ context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetNodeId() == "" || q.GetVolumeCapability() == nil {
		return nil, wrong("volume, node and capability are required")
	}
	v, err := d.found(q.GetVolumeId())
	switch {
	case err != nil:
		return nil, err
	case q.GetNodeId() != d.node && !d.shared:
		return nil, missing("there is no node " + q.GetNodeId())
	case v.Attached != "" && v.Attached != q.GetNodeId():
		return nil, status.Error(codes.FailedPrecondition, "it is attached to node "+v.Attached)
	case v.Attached != "" && v.ReadOnly != q.GetReadonly():
		return nil, status.Error(codes.AlreadyExists, "it is attached in another way")
	}
	if v.Attached == "" {
		v.History = append(v.History, "attached to "+q.GetNodeId()+" by "+d.node)
	}
	v.Attached, v.ReadOnly = q.GetNodeId(), q.GetReadonly()
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{attachment: v.ID}}, d.put(volumes, v)
}

func (d *driver) ControllerUnpublishVolume(_ context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if q.GetVolumeId() == "" {
		return nil, wrong("a volume is required")
	}
	v, err := d.get(volumes, q.GetVolumeId())
	if err != nil || v == nil {
		return &csi.ControllerUnpublishVolumeResponse{}, err
	}
	if v.Attached == "" || q.GetNodeId() != "" && q.GetNodeId() != v.Attached {
		return &csi.ControllerUnpublishVolumeResponse{}, nil
	}
	v.History = append(v.History, "detached from "+v.Attached+" by "+d.node)
	v.Attached, v.ReadOnly = "", false
	return &csi.ControllerUnpublishVolumeResponse{}, d.put(volumes, v)
}

func (d *driver) ControllerExpandVolume(_ context.Context, q *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	v, err := d.found(q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if q.GetCapacityRange() == nil {
		return nil, wrong("a size is required")
	}
	if v.Size = max(v.Size, q.GetCapacityRange().GetRequiredBytes()); v.Size > largest {
		return nil, status.Error(codes.OutOfRange, "no such size")
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.Size, NodeExpansionRequired: true}, d.put(volumes, v)
}

func (d *driver) CreateSnapshot(_ context.Context, q *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if q.GetName() == "" || q.GetSourceVolumeId() == "" {
		return nil, wrong("name and volume are required")
	}
	of, err := d.found(q.GetSourceVolumeId())
	if err != nil {
		return nil, err
	}
	id := idOf(snapshots, q.GetName())
	s, err := d.get(snapshots, id)
	switch {
	case err != nil:
		return nil, err
	case s == nil:
		s = &volume{ID: id, Name: q.GetName(), Size: of.Size, Source: of.ID, Created: time.Now().Unix()}
		if err := d.begin(snapshots, id, d.data(volumes, of.ID)); err != nil {
			return nil, err
		}
		if err := d.put(snapshots, s); err != nil {
			return nil, err
		}
	case s.Source != of.ID:
		return nil, status.Error(codes.AlreadyExists, "a snapshot of this name is of another volume")
	}
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{
		SnapshotId: id, SourceVolumeId: s.Source, SizeBytes: s.Size, CreationTime: &timestamppb.Timestamp{Seconds: s.Created}, ReadyToUse: true,
	}}, nil
}

func (d *driver) DeleteSnapshot(_ context.Context, q *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	return &csi.DeleteSnapshotResponse{}, d.drop(snapshots, q.GetSnapshotId())
}
