package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	coreimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// image is what we know of one image content under one name. Immutable.
type image struct {
	runtime.Image
	record coreimages.Image
	// chain names the snapshot that a container's root file system grows from.
	chain string
}

// images remembers what image contents say, so that making a container asks
// containerd for nothing that cannot have changed.
type images struct {
	client      *client.Client
	snapshotter string

	mu sync.Mutex // guards the maps
	// byTarget goes by the digest that a name points at, byID by that of the configuration.
	byTarget map[digest.Digest]*image
	byID     map[string]*image
	// accounts go by chain.
	accounts map[string]*accounts

	// reading joins the reads of one chain's accounts.
	reading singleflight.Group
}

func newImages(c *client.Client, snapshotter string) *images {
	return &images{client: c, snapshotter: snapshotter, byTarget: map[digest.Digest]*image{}, byID: map[string]*image{}, accounts: map[string]*accounts{}}
}

// errForeign is returned for an image that this machine cannot run.
var errForeign = errors.New("no match for platform")

var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)

// Image implements runtime.Runtime.
func (r *Runtime) Image(ctx context.Context, ref string) (runtime.Image, error) {
	img, err := r.images.resolve(ctx, ref)
	if err != nil {
		return runtime.Image{}, r.wrap("find image", ref, err)
	}
	return img.Image, nil
}

// Images implements runtime.Runtime. Images that are not complete, or not for
// this machine's platform, are left out.
func (r *Runtime) Images(ctx context.Context) ([]runtime.Image, error) {
	records, err := r.client.ImageService().List(ctx)
	if err != nil {
		return nil, r.wrap("list", "images", err)
	}
	byID := map[string]*runtime.Image{}
	for _, record := range records {
		img, err := r.images.load(ctx, record)
		if err != nil {
			r.log.Debug("image left out", "image", record.Name, "reason", err)
			continue
		}
		listed := byID[img.ID]
		if listed == nil {
			copied := img.Image
			copied.Names = nil
			listed = &copied
			byID[img.ID] = listed
		}
		listed.Names = append(listed.Names, record.Name)
	}
	list := make([]runtime.Image, 0, len(byID))
	for _, img := range byID {
		slices.Sort(img.Names)
		list = append(list, *img)
	}
	slices.SortFunc(list, func(a, b runtime.Image) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// RemoveImage implements runtime.Runtime. The content goes with containerd's
// own garbage collection, which the removal of the last name sets off.
func (r *Runtime) RemoveImage(ctx context.Context, id string) error {
	records, err := r.client.ImageService().List(ctx)
	if err != nil {
		return r.wrap("list", "images", err)
	}
	for _, record := range records {
		img, err := r.images.load(ctx, record)
		if err != nil || img.ID != id {
			continue
		}
		err = r.client.ImageService().Delete(ctx, record.Name, coreimages.SynchronousDelete())
		if err != nil && !notFound(err) {
			return r.wrap("remove image", record.Name, err)
		}
	}
	r.images.forget(id)
	return nil
}

// normalize gives a reference the form under which images are stored
// ("nginx" is "docker.io/library/nginx:latest").
func normalize(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("%q is not an image reference: %w", ref, err)
	}
	return named, nil
}

// resolve finds a local image by name or ID.
func (s *images) resolve(ctx context.Context, ref string) (*image, error) {
	if imageID.MatchString(ref) {
		return s.resolveID(ctx, "sha256:"+strings.TrimPrefix(ref, "sha256:"))
	}
	named, err := normalize(ref)
	if err != nil {
		return nil, err
	}
	record, err := s.client.ImageService().Get(ctx, named.String())
	if err != nil {
		return nil, err
	}
	return s.load(ctx, record)
}

func (s *images) resolveID(ctx context.Context, id string) (*image, error) {
	s.mu.Lock()
	img := s.byID[id]
	s.mu.Unlock()
	if img != nil {
		return img, nil
	}
	records, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, record := range records {
		if img, err := s.load(ctx, record); err == nil && img.ID == id {
			return img, nil
		}
	}
	return nil, errdefs.ErrNotFound
}

// load reads what a name points at, unpacking it when nobody has so far.
func (s *images) load(ctx context.Context, record coreimages.Image) (*image, error) {
	s.mu.Lock()
	img := s.byTarget[record.Target.Digest]
	s.mu.Unlock()
	if img != nil {
		return img.named(record.Name), nil
	}
	img, err := s.read(ctx, record)
	if err != nil {
		return nil, err
	}
	if err := s.ensureUnpacked(ctx, img); err != nil {
		return nil, err
	}
	handle := client.NewImage(s.client, record)
	if size, err := handle.Usage(ctx, client.WithSnapshotUsage()); err == nil {
		img.Size = size
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byTarget[record.Target.Digest] = img
	s.byID[img.ID] = img
	return img, nil
}

// named returns the image under the name it was asked by.
func (i *image) named(name string) *image {
	if len(i.Names) == 1 && i.Names[0] == name {
		return i
	}
	other := &image{Image: i.Image, record: i.record, chain: i.chain}
	other.Names = []string{name}
	other.record.Name = name
	return other
}

func (s *images) read(ctx context.Context, record coreimages.Image) (*image, error) {
	handle := client.NewImage(s.client, record)
	descriptor, err := handle.Config(ctx)
	if err != nil {
		return nil, err
	}
	blob, err := content.ReadBlob(ctx, s.client.ContentStore(), descriptor)
	if err != nil {
		return nil, err
	}
	var parsed ocispec.Image
	if err := json.Unmarshal(blob, &parsed); err != nil {
		return nil, fmt.Errorf("read the configuration of image %s: %w", record.Name, err)
	}
	if !platforms.Default().Match(platforms.Normalize(parsed.Platform)) {
		return nil, errForeign
	}
	img := &image{record: record, chain: identity.ChainID(parsed.RootFS.DiffIDs).String()}
	img.ID = descriptor.Digest.String()
	img.Digest = record.Target.Digest.String()
	img.Names = []string{record.Name}
	img.Config = imageConfig(parsed.Config)
	return img, nil
}

func imageConfig(c ocispec.ImageConfig) runtime.ImageConfig {
	config := runtime.ImageConfig{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env,
		WorkingDir: c.WorkingDir, User: c.User, StopSignal: c.StopSignal,
	}
	for path := range c.Volumes {
		config.Volumes = append(config.Volumes, path)
	}
	slices.Sort(config.Volumes)
	return config
}

// ensureUnpacked makes the snapshot that containers grow from. An image whose
// content is gone is forgotten: somebody removed it behind our back.
func (s *images) ensureUnpacked(ctx context.Context, img *image) error {
	_, err := s.client.SnapshotService(s.snapshotter).Stat(ctx, img.chain)
	if err == nil || !errdefs.IsNotFound(err) {
		return err
	}
	if err := client.NewImage(s.client, img.record).Unpack(quiet(ctx), s.snapshotter); err != nil {
		if notFound(err) {
			s.forget(img.ID)
		}
		return fmt.Errorf("unpack image %s: %w", img.record.Name, err)
	}
	return nil
}

func (s *images) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, id)
	clear(s.accounts)
	for target, img := range s.byTarget {
		if img.ID == id {
			delete(s.byTarget, target)
		}
	}
}
