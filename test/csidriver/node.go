package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// here is where the node is; nil for a driver whose volumes are everywhere.
func (d *driver) here() *csi.Topology {
	if d.shared {
		return nil
	}
	return &csi.Topology{Segments: map[string]string{d.name + "/node": d.node}}
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node, AccessibleTopology: d.here()}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	answer := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, csi.NodeServiceCapability_RPC_EXPAND_VOLUME, csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	} {
		answer.Capabilities = append(answer.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}}})
	}
	return answer, nil
}

func (d *driver) NodeStageVolume(_ context.Context, q *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetStagingTargetPath() == "" || q.GetVolumeCapability() == nil {
		return nil, wrong("volume, path and capability are required")
	}
	v, err := d.found(q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if d.attaches && (v.Attached != d.node || q.GetPublishContext()[attachment] != v.ID) {
		return nil, status.Error(codes.FailedPrecondition, "the volume is not attached")
	}
	return &csi.NodeStageVolumeResponse{}, bind(d.data(volumes, v.ID), q.GetStagingTargetPath(), false)
}

func (d *driver) NodeUnstageVolume(_ context.Context, q *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetStagingTargetPath() == "" {
		return nil, wrong("volume and path are required")
	}
	if _, err := d.found(q.GetVolumeId()); err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, unbind(q.GetStagingTargetPath())
}

const (
	forOthers = "csi.storage.k8s.io/"
	inline    = forOthers + "ephemeral"
)

func (d *driver) NodePublishVolume(_ context.Context, q *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetTargetPath() == "" || q.GetVolumeCapability() == nil {
		return nil, wrong("volume, path and capability are required")
	}
	from := q.GetStagingTargetPath()
	if q.GetVolumeContext()[inline] == "true" {
		v := &volume{ID: q.GetVolumeId(), Inline: true}
		if err := d.begin(volumes, v.ID, ""); err != nil {
			return nil, err
		}
		if err := d.put(volumes, v); err != nil {
			return nil, err
		}
		from = d.data(volumes, v.ID)
	} else if _, err := d.found(q.GetVolumeId()); err != nil {
		return nil, err
	}
	if from == "" {
		return nil, wrong("a staging path is required")
	}
	if err := tell(filepath.Join(d.data(volumes, q.GetVolumeId()), "told"), q); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, bind(from, q.GetTargetPath(), q.GetReadonly())
}

// tell writes into the volume what the driver was told of its pod, for tests
// to look at: of secrets, the names.
func tell(path string, q *csi.NodePublishVolumeRequest) error {
	if len(q.GetVolumeContext()) == 0 {
		return nil
	}
	with := maps.Clone(q.GetVolumeContext())
	with["secrets"] = strings.Join(slices.Sorted(maps.Keys(q.GetSecrets())), ",")
	text, err := json.Marshal(with)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func (d *driver) NodeUnpublishVolume(_ context.Context, q *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if q.GetVolumeId() == "" || q.GetTargetPath() == "" {
		return nil, wrong("volume and path are required")
	}
	if err := unbind(q.GetTargetPath()); err != nil {
		return nil, err
	}
	if err := os.Remove(q.GetTargetPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if v, err := d.get(volumes, q.GetVolumeId()); err == nil && v != nil && v.Inline {
		return &csi.NodeUnpublishVolumeResponse{}, os.RemoveAll(d.home(volumes, v.ID))
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeExpandVolume(_ context.Context, q *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	if q.GetVolumeId() != "" && q.GetVolumePath() == "" {
		return nil, wrong("a path is required")
	}
	v, err := d.found(q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if mounted, err := mounts(q.GetVolumePath()); err != nil || mounted == 0 {
		return nil, missing("nothing is mounted at " + q.GetVolumePath())
	}
	v.NodeSize = v.Size
	return &csi.NodeExpandVolumeResponse{CapacityBytes: v.Size}, d.put(volumes, v)
}

func (d *driver) NodeGetVolumeStats(_ context.Context, q *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if q.GetVolumeId() == "" || q.GetVolumePath() == "" {
		return nil, wrong("volume and path are required")
	}
	v, err := d.found(q.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(q.GetVolumePath()); err != nil {
		return nil, missing("there is no " + q.GetVolumePath())
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: v.Size, Available: v.Size}}}, nil
}

// bind mounts a directory on another, once.
func bind(from, to string, readOnly bool) error {
	if err := os.MkdirAll(to, 0o750); err != nil {
		return err
	}
	if n, err := mounts(to); err != nil || n > 0 {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil || !readOnly {
		return err
	}
	return unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func unbind(at string) error {
	for {
		n, err := mounts(at)
		if err != nil || n == 0 {
			return err
		}
		if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); err != nil {
			return err
		}
	}
}

// mounts counts what is mounted on a path.
func mounts(path string) (int, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	n := 0
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 4 && words[4] == path {
			n++
		}
	}
	return n, err
}
