package fake

import (
	"context"
	"fmt"
	"maps"
)

// MountImage implements runtime.Runtime: it remembers what is mounted where.
func (r *Runtime) MountImage(ctx context.Context, owner, ref, dir string) error {
	if owner == "" || dir == "" {
		panic(fmt.Sprintf("fake: image %s mounted on %q for owner %q", ref, dir, owner))
	}
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.mu.Unlock()
	img, err := r.image(ref)
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	r.mounted[imageMount{owner, dir}] = img.ID
	return r.leave()
}

// ReleaseImages implements runtime.Runtime.
func (r *Runtime) ReleaseImages(ctx context.Context, owner string) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.mu.Unlock()
	maps.DeleteFunc(r.mounted, func(m imageMount, _ string) bool { return owner == "" || m.owner == owner })
	return r.leave()
}

// imageMount is an image that is mounted on a directory.
type imageMount struct{ owner, dir string }
