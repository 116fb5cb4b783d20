// Package collect frees disk space on a node by removing images that no
// container needs, when the disk that holds them runs full.
//
// Plan is the policy, a function of values; Collector applies it. It removes
// nothing while there is room, nothing that a container uses, and nothing that
// was needed a moment ago. Dead containers are the agent's, which knows their
// pods and is told when there is need; it does not touch them, nor volumes or logs.
package collect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Policy says when images go. The zero value stands for Kubernetes' defaults.
type Policy struct {
	// High is the percentage of the disk in use from which images are removed
	// until it is at Low; 85 and 80 by default.
	High, Low int
	// HighFiles is the percentage of its files in use from which every unused
	// image goes: what they free is not known. 95 by default.
	HighFiles int
	// MinAge is how long an image stays after its last use; 2 minutes by default.
	MinAge time.Duration
}

// Disk is a file system's size.
type Disk struct {
	// Total and Used are bytes.
	Total, Used int64
	// Files that it can hold, and holds; zero where there is no bound.
	Files, UsedFiles int64
}

// Image is an image with when it was last needed.
type Image struct {
	runtime.Image
	LastUsed time.Time
	// InUse tells that a container runs on it.
	InUse bool
}

func (p Policy) withDefaults() Policy {
	p.High = cmp.Or(p.High, 85)
	p.Low = cmp.Or(p.Low, 80)
	p.HighFiles = cmp.Or(p.HighFiles, 95)
	p.MinAge = cmp.Or(p.MinAge, 2*time.Minute)
	return p
}

// pressed reports whether the disk is too full.
func (p Policy) pressed(disk Disk) bool {
	return disk.Total > 0 && disk.Used*100 >= disk.Total*int64(p.withDefaults().High) || p.crowded(disk)
}

// crowded reports whether the disk has room for hardly any more files.
func (p Policy) crowded(disk Disk) bool {
	return disk.Files > 0 && disk.UsedFiles*100 >= disk.Files*int64(p.withDefaults().HighFiles)
}

// Plan returns the IDs of the images to remove, in this order: those unused
// for longest, until as much is freed as the policy wants. What images share
// is not known, so less may be freed than expected; the next round goes on.
func Plan(p Policy, images []Image, disk Disk, now time.Time) []string {
	p = p.withDefaults()
	if !p.pressed(disk) {
		return nil
	}
	toFree := disk.Used - disk.Total*int64(p.Low)/100
	candidates := slices.DeleteFunc(slices.Clone(images), func(i Image) bool {
		return i.InUse || now.Sub(i.LastUsed) < p.MinAge
	})
	slices.SortFunc(candidates, func(a, b Image) int {
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), strings.Compare(a.ID, b.ID))
	})
	var remove []string
	for _, image := range candidates {
		if toFree <= 0 && !p.crowded(disk) {
			break
		}
		remove = append(remove, image.ID)
		toFree -= image.Size
	}
	return remove
}

// Images is what the collector needs of a runtime.
type Images interface {
	Images(ctx context.Context) ([]runtime.Image, error)
	List(ctx context.Context) ([]runtime.Status, error)
	RemoveImage(ctx context.Context, id string) error
}

// Options for New.
type Options struct {
	// Runtime is required.
	Runtime Images
	// Disk measures the file system that holds the images. Required; see StatFS.
	Disk func() (Disk, error)
	// Pressed, when set, is told each round in which the disk is too full, before
	// images go: dead containers are not the collector's.
	Pressed func()
	// Needed, when set, names images that pods are about to use, by reference or ID.
	Needed func() []string
	Policy Policy
	// Interval between two rounds; 1 minute by default.
	Interval time.Duration
	// Now is the clock; time.Now by default.
	Now func() time.Time
	// Log is required.
	Log *slog.Logger
}

// Collector applies a Policy again and again.
type Collector struct {
	options Options
	// lastUsed is when an image was last seen in use, or first seen at all. Run's alone.
	lastUsed map[string]time.Time
}

// New returns a collector that Run starts.
func New(o Options) (*Collector, error) {
	if o.Runtime == nil || o.Disk == nil || o.Log == nil {
		return nil, errors.New("collect: no runtime, disk or logger")
	}
	o.Interval = cmp.Or(o.Interval, time.Minute)
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Collector{options: o, lastUsed: map[string]time.Time{}}, nil
}

// StatFS measures the file system of a path.
func StatFS(path string) func() (Disk, error) {
	return func() (Disk, error) {
		var s unix.Statfs_t
		if err := unix.Statfs(path, &s); err != nil {
			return Disk{}, fmt.Errorf("measure the disk of %s: %w", path, err)
		}
		// Blocks kept for root count as used: nobody else gets them.
		total := int64(s.Blocks) * s.Bsize
		return Disk{
			Total: total, Used: total - int64(s.Bavail)*s.Bsize,
			Files: int64(s.Files), UsedFiles: int64(s.Files - s.Ffree),
		}, nil
	}
}

// Run works until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	ticker := time.NewTicker(c.options.Interval)
	defer ticker.Stop()
	for {
		if err := c.Round(ctx); err != nil && ctx.Err() == nil {
			c.options.Log.Warn("images not collected", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// Round looks once and removes what is to go. It is not for concurrent use.
func (c *Collector) Round(ctx context.Context) error {
	images, err := c.look(ctx)
	if err != nil {
		return err
	}
	disk, err := c.options.Disk()
	if err != nil {
		return err
	}
	if c.options.Pressed != nil && c.options.Policy.pressed(disk) {
		c.options.Pressed()
	}
	remove := Plan(c.options.Policy, images, disk, c.options.Now())
	var failed []error // one image that stays must not keep the others
	for _, id := range remove {
		if err := c.options.Runtime.RemoveImage(ctx, id); err != nil {
			failed = append(failed, err)
			continue
		}
		c.options.Log.Info("image removed", "image", id, "reason", "disk pressure", "disk_used", disk.Used, "disk_total", disk.Total)
		delete(c.lastUsed, id)
	}
	return errors.Join(failed...)
}

// look brings lastUsed up to date and returns all images.
func (c *Collector) look(ctx context.Context) ([]Image, error) {
	// Images first: one that is taken into use in between counts as used.
	found, err := c.options.Runtime.Images(ctx)
	if err != nil {
		return nil, err
	}
	containers, err := c.options.Runtime.List(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, container := range containers {
		used[container.ImageID] = true
	}
	if c.options.Needed != nil {
		for _, ref := range c.options.Needed() {
			used[ref] = true
		}
	}
	now := c.options.Now()
	lastUsed := make(map[string]time.Time, len(found))
	images := make([]Image, 0, len(found))
	for _, img := range found {
		inUse := used[img.ID] || slices.ContainsFunc(img.Names, func(name string) bool { return used[name] })
		last, seen := c.lastUsed[img.ID]
		if inUse || !seen {
			last = now
		}
		lastUsed[img.ID] = last
		images = append(images, Image{Image: img, LastUsed: last, InUse: inUse})
	}
	c.lastUsed = lastUsed
	return images, nil
}
