package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// EnforceParameter of a StorageClass: "true" has LocalProvisioner put the volume
// into a file of its size with a file system of its own.
const EnforceParameter = "enforce"

func (p *Persistent) ensureLocal(ctx context.Context, v *nodes.Volume, status *nodes.VolumeStatus) error {
	kept, err := readRecord(p.home(v))
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return trouble(ReasonProvisioning, "read what is kept of volume %s: %w", v.Name, err)
	case v.Made:
		return p.missing(v, p.home(v))
	default:
		if kept, err = p.begin(v); err != nil {
			return trouble(ReasonProvisioning, "make volume %s: %w", v.Name, err)
		}
	}
	v = atLeast(v, kept)
	if err := p.data(ctx, v, kept); err != nil {
		return err
	}
	if err := p.resize(ctx, v, status); err != nil {
		return err
	}
	if err := p.keep(v, kept); err != nil {
		return trouble(ReasonProvisioning, "write down volume %s: %w", v.Name, err)
	}
	return nil
}

// atLeast is the volume, no smaller than it was: none ever shrinks.
func atLeast(v, kept *nodes.Volume) *nodes.Volume {
	if v.Spec.Capacity.Storage().Cmp(*kept.Spec.Capacity.Storage()) >= 0 {
		return v
	}
	same := *v
	same.Spec.Capacity = kept.Spec.Capacity
	return &same
}

func (p *Persistent) missing(v *nodes.Volume, path string) error {
	return trouble(ReasonMissing, "the data of volume %s is missing on this node: %s is not there, and an empty one does not take its place; "+
		"put it back, or delete the claim", v.Name, path)
}

// data sees to it that the volume's directory or image is there.
func (p *Persistent) data(ctx context.Context, v, kept *nodes.Volume) error {
	dir, image := filepath.Join(p.home(v), dataDir), filepath.Join(p.home(v), imageFile)
	if exists(dir) || exists(image) {
		return nil
	}
	if v.From != nil && !kept.Made && !v.Made {
		return p.copied(ctx, v)
	}
	inFile, err := asImage(v)
	if err != nil {
		return err
	}
	if kept.Made || v.Made {
		if inFile {
			dir = image
		}
		return p.missing(v, dir)
	}
	if inFile {
		err = p.makeImage(ctx, v, image)
	} else {
		err = makeData(dir)
	}
	if err != nil {
		return trouble(ReasonProvisioning, "make volume %s: %w", v.Name, err)
	}
	return nil
}

// asImage reports whether the volume is to be a file rather than a directory.
func asImage(v *nodes.Volume) (bool, error) {
	if isBlock(v) {
		return true, nil
	}
	text := v.Parameters[EnforceParameter]
	if text == "" {
		return false, nil
	}
	enforce, err := strconv.ParseBool(text)
	if err != nil {
		return false, trouble(ReasonProvisioning, "StorageClass %s: parameter %s is %q, want true or false", v.Class, EnforceParameter, text)
	}
	return enforce, nil
}

// makeData makes an empty directory that every user may write to, as the
// provisioners of Kubernetes do: fsGroup narrows it.
func makeData(dir string) error {
	fresh := dir + unfinished
	if err := os.MkdirAll(fresh, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o777); err != nil {
		return err
	}
	return renameSynced(fresh, dir)
}

// resize makes the volume as large as it is to be.
func (p *Persistent) resize(ctx context.Context, v *nodes.Volume, status *nodes.VolumeStatus) error {
	size := v.Spec.Capacity.Storage().Value()
	image := filepath.Join(p.home(v), imageFile)
	if !exists(image) {
		status.Capacity = size
		status.Unenforced = p.limit(filepath.Join(p.home(v), dataDir), size)
		return nil
	}
	info, err := os.Stat(image)
	if err != nil {
		return trouble(ReasonResize, "measure volume %s: %w", v.Name, err)
	}
	have := info.Size()
	if !isBlock(v) {
		if have, err = filled(image); err != nil {
			return trouble(ReasonResize, "measure volume %s: %w", v.Name, err)
		}
	}
	status.Capacity = max(info.Size(), size)
	if have+slack >= size {
		return nil
	}
	if err := p.growImage(ctx, v, image, max(info.Size(), size)); err != nil {
		// Pods go on with what they have. Growing a mounted file system takes a
		// capability; one that nobody uses grows when it is staged.
		status.Capacity, status.Reason = have, "FileSystemResizePending"
		status.Message = fmt.Sprintf("volume %s grows to %d bytes as soon as no pod uses it: %s", v.Name, size, err)
	}
	return nil
}

func (p *Persistent) stageLocal(ctx context.Context, v *nodes.Volume) (Volume, error) {
	image := filepath.Join(p.home(v), imageFile)
	if exists(image) {
		return p.stageImage(ctx, v, image)
	}
	dir := filepath.Join(p.home(v), dataDir)
	if !exists(dir) {
		return Volume{}, p.missing(v, dir)
	}
	return p.bound(ctx, v, dir, true)
}

// bound is a directory of the node as a volume: itself, or a mount of it where
// mount options are asked for.
func (p *Persistent) bound(ctx context.Context, v *nodes.Volume, dir string, grouped bool) (Volume, error) {
	if len(v.Spec.MountOptions) == 0 {
		return Volume{Path: dir, grouped: grouped}, nil
	}
	point := p.point(v)
	if err := p.run.mountOnce(ctx, point, append([]string{"bind"}, v.Spec.MountOptions...), "none", dir); err != nil {
		return Volume{}, trouble(ReasonMount, "mount volume %s: %w", v.Name, err)
	}
	return Volume{Path: point, grouped: grouped}, nil
}

// diskOf names the kind of file system that a path lies on, for messages.
func diskOf(path string) string {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return "unknown"
	}
	switch s.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	}
	return fmt.Sprintf("type %#x", s.Type)
}
