// Package fake is a CSI driver that mounts nothing: it remembers what it was
// told, refuses what a driver refuses, and can be cut off at any call.
package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	api "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Name of the driver.
const Name = "fake.csi.example.com"

// Driver is all services of a driver. The zero value is ready for Serve.
type Driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	api.UnimplementedRegistrationServer

	endpoint string

	mu sync.Mutex
	// guarded by mu
	calls   int
	cut     int
	effect  bool
	volumes map[string]*volume
	// snapshots are the volumes that they are of.
	snapshots map[string]string
	// busy is how often a snapshot is not ready yet.
	busy int
	// lacks are capabilities that the driver does not have.
	lacks []csi.ControllerServiceCapability_RPC_Type
	told  map[string]string
	// Secrets that the last call had, by call.
	secrets map[string]map[string]string
}

type volume struct {
	name, from       string
	size, nodeSize   int64
	attached, staged string
	published        map[string]bool
}

// Serve registers the driver in a kubelet's directory and answers until ctx ends.
func (d *Driver) Serve(ctx context.Context, dir string) error {
	d.endpoint = filepath.Join(dir, "plugins", "fake.sock")
	if d.volumes == nil {
		d.snapshots = map[string]string{}
		d.volumes, d.secrets = map[string]*volume{}, map[string]map[string]string{}
	}
	ended := make(chan error, 2)
	for _, at := range []struct{ path, kind string }{{d.endpoint, "driver"}, {filepath.Join(dir, "plugins_registry", "fake-reg.sock"), "registration"}} {
		if err := os.MkdirAll(filepath.Dir(at.path), 0o750); err != nil {
			return err
		}
		listener, err := net.Listen("unix", at.path)
		if err != nil {
			return err
		}
		server := grpc.NewServer(grpc.UnaryInterceptor(d.intercept))
		if at.kind == "driver" {
			csi.RegisterIdentityServer(server, d)
			csi.RegisterControllerServer(server, d)
			csi.RegisterNodeServer(server, d)
		} else {
			api.RegisterRegistrationServer(server, d)
		}
		stop := context.AfterFunc(ctx, server.Stop)
		defer stop()
		go func() { ended <- server.Serve(listener) }()
	}
	return errors.Join(<-ended, <-ended)
}

// CutAt has the n-th call from now answer with an error, with or without having
// done what it was asked for.
func (d *Driver) CutAt(n int, effect bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls, d.cut, d.effect = 0, n, effect
}

// Busy has snapshots be unready the next n times that they are asked for.
func (d *Driver) Busy(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy = n
}

// Lack takes capabilities from the driver. It must come before Serve.
func (d *Driver) Lack(list ...csi.ControllerServiceCapability_RPC_Type) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lacks = list
}

// Calls since CutAt.
func (d *Driver) Calls() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

// Secrets that the last call of a name had.
func (d *Driver) Secrets(call string) map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.secrets[call]
}

// Told is the context of the last NodePublishVolume.
func (d *Driver) Told() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told
}

// String lists the volumes and snapshots.
func (d *Driver) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(d.volumes)) {
		v := d.volumes[id]
		fmt.Fprintf(&b, "%s: size %d, on the node %d, attached %q, staged %t, published %d", id, v.size, v.nodeSize, v.attached, v.staged != "", len(v.published))
		if v.from != "" {
			fmt.Fprintf(&b, ", from %s", v.from)
		}
		b.WriteString("\n")
	}
	for _, id := range slices.Sorted(maps.Keys(d.snapshots)) {
		fmt.Fprintf(&b, "%s: of %s\n", id, d.snapshots[id])
	}
	return b.String()
}

func (d *Driver) intercept(ctx context.Context, q any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	call := filepath.Base(info.FullMethod)
	if with, ok := q.(interface{ GetSecrets() map[string]string }); ok {
		d.secrets[call] = with.GetSecrets()
	}
	if strings.Contains(call, "Get") || call == "Probe" || call == "NotifyRegistrationStatus" {
		return handle(ctx, q)
	}
	d.calls++
	if d.calls != d.cut {
		return handle(ctx, q)
	}
	if d.effect {
		if _, err := handle(ctx, q); err != nil {
			return nil, err
		}
	}
	return nil, status.Error(codes.Aborted, "cut off")
}

func (d *Driver) GetInfo(context.Context, *api.InfoRequest) (*api.PluginInfo, error) {
	return &api.PluginInfo{Type: api.CSIPlugin, Name: Name, Endpoint: d.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (d *Driver) NotifyRegistrationStatus(context.Context, *api.RegistrationStatus) (*api.RegistrationStatusResponse, error) {
	return &api.RegistrationStatusResponse{}, nil
}

func (d *Driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: Name, VendorVersion: "1"}, nil
}

func (d *Driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *Driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{{Type: &csi.PluginCapability_Service_{
		Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
	}}}}, nil
}

func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	answer := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME, csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		if slices.Contains(d.lacks, t) {
			continue
		}
		answer.Capabilities = append(answer.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return answer, nil
}

func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	answer := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, csi.NodeServiceCapability_RPC_EXPAND_VOLUME} {
		answer.Capabilities = append(answer.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}}})
	}
	return answer, nil
}

func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: "here", MaxVolumesPerNode: 3, AccessibleTopology: &csi.Topology{Segments: map[string]string{Name + "/node": "here"}}}, nil
}

func (d *Driver) CreateVolume(_ context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	id, size := "handle-of-"+q.GetName(), q.GetCapacityRange().GetRequiredBytes()
	if q.GetParameters()["color"] == "none" {
		return nil, status.Error(codes.InvalidArgument, "volumes have a color")
	}
	from := q.GetVolumeContentSource().GetSnapshot().GetSnapshotId() + q.GetVolumeContentSource().GetVolume().GetVolumeId()
	if from != "" && d.snapshots[from] == "" && d.volumes[from] == nil {
		return nil, status.Error(codes.NotFound, "there is no "+from)
	}
	if v := d.volumes[id]; v == nil {
		d.volumes[id] = &volume{name: q.GetName(), from: from, size: size, nodeSize: size, published: map[string]bool{}}
	} else if v.size != size || v.from != from {
		return nil, status.Error(codes.AlreadyExists, "it has another size or content")
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: id, CapacityBytes: size, VolumeContext: q.GetParameters()}}, nil
}

func (d *Driver) DeleteVolume(_ context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if v := d.volumes[q.GetVolumeId()]; v != nil && v.attached != "" {
		return nil, status.Error(codes.FailedPrecondition, "it is attached")
	}
	delete(d.volumes, q.GetVolumeId())
	return &csi.DeleteVolumeResponse{}, nil
}

// at is a volume that is in the state that a call needs.
func (d *Driver) at(id string, fits func(*volume) bool) (*volume, error) {
	v := d.volumes[id]
	if v == nil {
		return nil, status.Error(codes.NotFound, "there is no volume "+id)
	}
	if !fits(v) {
		return nil, status.Errorf(codes.FailedPrecondition, "out of order: %+v", *v)
	}
	return v, nil
}

func (d *Driver) ControllerPublishVolume(_ context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	v, err := d.at(q.GetVolumeId(), func(*volume) bool { return true })
	if err != nil {
		return nil, err
	}
	v.attached = q.GetNodeId()
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{"device": v.name}}, nil
}

func (d *Driver) ControllerUnpublishVolume(_ context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	v, err := d.at(q.GetVolumeId(), func(v *volume) bool { return v.staged == "" })
	if err != nil {
		return nil, err
	}
	v.attached = ""
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (d *Driver) ControllerExpandVolume(_ context.Context, q *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	v, err := d.at(q.GetVolumeId(), func(*volume) bool { return true })
	if err != nil {
		return nil, err
	}
	v.size = max(v.size, q.GetCapacityRange().GetRequiredBytes())
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.size, NodeExpansionRequired: true}, nil
}

func (d *Driver) CreateSnapshot(_ context.Context, q *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	v, err := d.at(q.GetSourceVolumeId(), func(*volume) bool { return true })
	if err != nil {
		return nil, err
	}
	id := "snapshot-" + q.GetName()
	d.snapshots[id] = q.GetSourceVolumeId()
	ready := d.busy == 0
	if !ready {
		d.busy--
	}
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{
		SnapshotId: id, SourceVolumeId: q.GetSourceVolumeId(), SizeBytes: v.size, CreationTime: &timestamppb.Timestamp{Seconds: 1}, ReadyToUse: ready,
	}}, nil
}

func (d *Driver) DeleteSnapshot(_ context.Context, q *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	delete(d.snapshots, q.GetSnapshotId())
	return &csi.DeleteSnapshotResponse{}, nil
}

func (d *Driver) NodeStageVolume(_ context.Context, q *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	v, err := d.at(q.GetVolumeId(), func(v *volume) bool { return v.attached == "here" && q.GetPublishContext()["device"] == v.name })
	if err != nil {
		return nil, err
	}
	v.staged = q.GetStagingTargetPath()
	return &csi.NodeStageVolumeResponse{}, nil
}

func (d *Driver) NodeUnstageVolume(_ context.Context, q *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	v, err := d.at(q.GetVolumeId(), func(v *volume) bool { return len(v.published) == 0 })
	if err != nil {
		return nil, err
	}
	v.staged = ""
	return &csi.NodeUnstageVolumeResponse{}, nil
}

func (d *Driver) NodePublishVolume(_ context.Context, q *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	id := q.GetVolumeId()
	if q.GetVolumeContext()["csi.storage.k8s.io/ephemeral"] == "true" && d.volumes[id] == nil {
		d.volumes[id] = &volume{published: map[string]bool{}}
	}
	v, err := d.at(id, func(v *volume) bool { return v.staged == q.GetStagingTargetPath() })
	if err != nil {
		return nil, err
	}
	v.published[q.GetTargetPath()] = true
	d.told = q.GetVolumeContext()
	return &csi.NodePublishVolumeResponse{}, os.MkdirAll(q.GetTargetPath(), 0o750)
}

func (d *Driver) NodeUnpublishVolume(_ context.Context, q *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if v := d.volumes[q.GetVolumeId()]; v != nil {
		delete(v.published, q.GetTargetPath())
		if v.name == "" {
			delete(d.volumes, q.GetVolumeId())
		}
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *Driver) NodeExpandVolume(_ context.Context, q *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	v, err := d.at(q.GetVolumeId(), func(v *volume) bool {
		return v.staged != "" && (v.staged == q.GetVolumePath() || v.published[q.GetVolumePath()])
	})
	if err != nil {
		return nil, err
	}
	v.nodeSize = v.size
	return &csi.NodeExpandVolumeResponse{CapacityBytes: v.size}, nil
}
