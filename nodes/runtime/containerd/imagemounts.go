package containerd

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// ownerLabel of a snapshot that MountImage made.
const ownerLabel = "tallyman.dev/image-owner"

// MountImage implements runtime.Runtime with a view of the image's snapshot,
// which keeps the content from being collected.
func (r *Runtime) MountImage(ctx context.Context, owner, ref, dir string) error {
	if owner == "" {
		return fmt.Errorf("mount image %s: it needs an owner", ref)
	}
	img, err := r.images.resolve(ctx, ref)
	if err == nil {
		err = r.images.ensureUnpacked(ctx, img)
	}
	if err != nil {
		return r.wrap("mount image", ref, err)
	}
	if at, err := mount.Lookup(dir); err == nil && at.Mountpoint == dir {
		return nil
	}
	mounts, err := r.view(ctx, owner, viewKey(owner, dir), img.chain)
	if err != nil {
		return r.wrap("mount image", ref, err)
	}
	for i := range mounts {
		mounts[i].Options = append(slices.DeleteFunc(mounts[i].Options, func(o string) bool { return o == "rw" || o == "ro" }), "ro", "noexec")
	}
	if err := mount.All(mounts, dir); err != nil {
		return fmt.Errorf("mount image %s on %s: %w", ref, dir, err)
	}
	return nil
}

// viewKey names the snapshot behind a directory: containerd wants short names.
func viewKey(owner, dir string) string {
	hash := fnv.New64a()
	hash.Write([]byte(dir))
	return "tally-image-" + owner + "-" + strconv.FormatUint(hash.Sum64(), 36)
}

// view makes the snapshot, or finds it. One of another image, left by a pod's
// earlier start, is made anew.
func (r *Runtime) view(ctx context.Context, owner, key, chain string) ([]mount.Mount, error) {
	views := r.client.SnapshotService(r.snapshotter)
	info, err := views.Stat(ctx, key)
	if err == nil && info.Parent == chain {
		return views.Mounts(ctx, key)
	}
	if err == nil {
		err = views.Remove(ctx, key)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	return views.View(ctx, key, chain, snapshots.WithLabels(map[string]string{
		ownerLabel: owner, "containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
	}))
}

// ReleaseImages implements runtime.Runtime.
func (r *Runtime) ReleaseImages(ctx context.Context, owner string) error {
	filter := `labels."` + ownerLabel + `"`
	if owner != "" {
		filter += "==" + strconv.Quote(owner)
	}
	views := r.client.SnapshotService(r.snapshotter)
	var keys []string
	err := views.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	}, filter)
	for _, key := range keys {
		if removed := views.Remove(ctx, key); removed != nil && !errdefs.IsNotFound(removed) {
			err = errors.Join(err, removed)
		}
	}
	if err != nil {
		return r.wrap("release", "image volumes of "+owner, err)
	}
	return nil
}
