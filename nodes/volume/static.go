package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// checkStatic looks at a volume that somebody else made.
func checkStatic(v *nodes.Volume) error {
	s := &v.Spec
	switch {
	case s.HostPath != nil, s.NFS != nil: // looked at when a pod wants it, as in Kubernetes
		return nil
	case s.Local != nil:
		_, err := localTarget(v)
		return err
	}
	return unsupportedSource(v)
}

func unsupportedSource(v *nodes.Volume) error {
	return trouble(ReasonMount, "volume %s is of a kind that this node cannot mount; it can mount local, hostPath, nfs and csi", v.Name)
}

// localTarget looks at the path of a local volume, which must be there.
func localTarget(v *nodes.Volume) (fs.FileInfo, error) {
	info, err := os.Stat(v.Spec.Local.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, trouble(ReasonMissing, "local volume %s: path %s does not exist on this node; make it, or correct nodeAffinity", v.Name, v.Spec.Local.Path)
	}
	if err != nil {
		return nil, trouble(ReasonMount, "local volume %s: %w", v.Name, err)
	}
	device := info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
	if !info.IsDir() && !device {
		return nil, trouble(ReasonMount, "local volume %s: path %s is neither a directory nor a block device", v.Name, v.Spec.Local.Path)
	}
	if isBlock(v) && !device {
		return nil, trouble(ReasonMount, "local volume %s: volumeMode is Block, and path %s is not a block device", v.Name, v.Spec.Local.Path)
	}
	return info, nil
}

func (p *Persistent) stageStaticLocal(ctx context.Context, v *nodes.Volume) (Volume, error) {
	info, err := localTarget(v)
	if err != nil {
		return Volume{}, err
	}
	path := v.Spec.Local.Path
	switch {
	case isBlock(v):
		return Volume{Device: path}, nil
	case info.IsDir():
		return p.bound(ctx, v, path, true)
	}
	kind := "ext4"
	if v.Spec.Local.FSType != nil && *v.Spec.Local.FSType != "" {
		kind = *v.Spec.Local.FSType
	}
	if err := p.mountDevice(ctx, v, kind, path); err != nil {
		return Volume{}, trouble(ReasonMount, "local volume %s: %w", v.Name, err)
	}
	return Volume{Path: p.point(v), grouped: true}, nil
}

// mountDevice mounts a block device. One on which nothing is recognised gets a
// file system first, as in Kubernetes.
func (p *Persistent) mountDevice(ctx context.Context, v *nodes.Volume, kind, device string) error {
	mounted, err := mountedOn(p.point(v))
	if err != nil || mounted {
		return err
	}
	_, err = p.run(ctx, "blkid", "-p", device)
	const nothing = 2 // blkid's exit code for a device without any signature
	if exitCode(err) == nothing {
		p.log.Info("local volume has no file system, making one", "volume", v.Name, "device", device, "type", kind)
		_, err = p.run(ctx, "mkfs."+kind, device)
	}
	if err != nil {
		return err
	}
	return p.run.mountOnce(ctx, p.point(v), v.Spec.MountOptions, kind, device)
}

func (p *Persistent) stageHostPath(ctx context.Context, v *nodes.Volume) (Volume, error) {
	if err := hostPath(v.Spec.HostPath); err != nil {
		return Volume{}, trouble(ReasonMount, "volume %s: %w", v.Name, err)
	}
	return p.bound(ctx, v, v.Spec.HostPath.Path, false)
}

func (p *Persistent) stageNFS(ctx context.Context, v *nodes.Volume) (Volume, error) {
	n := v.Spec.NFS
	if err := p.run.mountNFS(ctx, p.point(v), n, v.Spec.MountOptions); err != nil {
		return Volume{}, trouble(ReasonMount, "volume %s: %w", v.Name, err)
	}
	return Volume{Path: p.point(v), ReadOnly: n.ReadOnly}, nil
}

// mountNFS mounts an export unless it is mounted.
func (run programs) mountNFS(ctx context.Context, point string, n *corev1.NFSVolumeSource, options []string) error {
	server := n.Server
	if strings.Contains(server, ":") && !strings.HasPrefix(server, "[") {
		server = "[" + server + "]"
	}
	options = slices.Clone(options)
	if n.ReadOnly {
		options = append(options, "ro")
	}
	err := run.mountOnce(ctx, point, options, "nfs", server+":"+n.Path)
	if err != nil {
		if _, missing := findProgram("mount.nfs"); missing != nil {
			return missing
		}
	}
	return err
}
