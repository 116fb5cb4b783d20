package agent

import (
	"context"
	"reflect"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// imagesSettle is how long after a pull the node looks which images it has:
// pulls come together.
const imagesSettle = time.Second

// images are those on the node; nil while the runtime doesn't tell.
func (a *Agent) images(ctx context.Context) *nodes.Images {
	found, err := a.o.Runtime.Images(ctx)
	if err != nil {
		a.log.Debug("list images", "err", err)
		return nil
	}
	list := make([]nodes.Image, len(found))
	for i, image := range found {
		list[i].Size = image.Size
		for _, name := range image.Names {
			list[i].Names = append(list[i].Names, nodes.ImageName(name), nodes.DigestName(name, image.Digest))
		}
	}
	return nodes.NewImages(list)
}

// pulled tells that there may be other images than before.
func (a *Agent) pulled() {
	select {
	case a.otherImages <- struct{}{}:
	default:
	}
}

// tellImages reports the images whenever they are others, until ctx ends.
func (a *Agent) tellImages(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.otherImages:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(imagesSettle):
		}
		now := a.images(ctx)
		a.mu.Lock()
		changed := now != nil && !reflect.DeepEqual(now, a.toldImages)
		if changed {
			a.toldImages = now
			a.up.Send(nodes.Report{Node: a.o.Name, Images: now})
		}
		a.mu.Unlock()
	}
}
