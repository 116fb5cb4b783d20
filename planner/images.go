package planner

import (
	"slices"

	"github.com/benbjohnson/immutable"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
)

// stock is which images the nodes have. Those with the same image share it:
// thousands of nodes have the same few.
type stock struct {
	images *immutable.Map[string, []place.Held] // by name
	// numbered is the newest number that a node was given, free are those that
	// were given back.
	numbered int32
	free     []int32
}

func newStock() stock {
	return stock{images: immutable.NewMap[string, []place.Held](hasher[string](hashText))}
}

// imagesNamed is place.Images.
func (s *stock) imagesNamed(name string) []place.Held {
	held, _ := s.images.Get(name)
	return held
}

// reportImages takes in which images a node has.
func (st *step) reportImages(name string, images *nodes.Images) {
	n := st.nodeFor(name)
	if images == nil || slices.EqualFunc(images.List, n.images, func(a nodes.Image, b *nodes.Image) bool { return a.Equal(b) }) {
		return
	}
	if n.load.Number() == 0 {
		n.load = n.load.Numbered(st.newNumber())
	}
	var list []*nodes.Image
	for i := range images.List {
		list = append(list, st.sharedImage(&images.List[i]))
	}
	for _, image := range list {
		st.addImage(image, n.load.Number())
	}
	for _, image := range n.images {
		if !slices.Contains(list, image) {
			st.takeImage(image, n.load.Number())
		}
	}
	n.images = list
	st.nodes = st.nodes.Set(n.Name, n)
}

// dropImages forgets that a node has any.
func (st *step) dropImages(n *node) {
	number := n.load.Number()
	for _, image := range n.images {
		st.takeImage(image, number)
	}
	if number > 0 {
		st.free = append(slices.Clip(st.free), number)
	}
}

func (s *stock) newNumber() int32 {
	if last := len(s.free) - 1; last >= 0 {
		defer func() { s.free = s.free[:last:last] }()
		return s.free[last]
	}
	s.numbered++
	return s.numbered
}

// sharedImage gives the value that all nodes share that have an image.
func (s *stock) sharedImage(image *nodes.Image) *nodes.Image {
	known := s.imagesNamed(image.Names[0])
	if i := slices.IndexFunc(known, func(h place.Held) bool { return h.Image.Equal(image) }); i >= 0 {
		return known[i].Image
	}
	fresh := *image // without the rest of the list
	return &fresh
}

// addImage notes under each name of an image that a node has it.
func (s *stock) addImage(image *nodes.Image, number int32) {
	for _, name := range image.Names {
		held := slices.Clone(s.imagesNamed(name))
		i := slices.IndexFunc(held, func(h place.Held) bool { return h.Image == image })
		if i < 0 {
			i, held = len(held), append(held, place.Held{Image: image})
		}
		held[i].On = held[i].On.With(number)
		s.images = s.images.Set(name, held)
	}
}

// takeImage notes that a node has an image no more.
func (s *stock) takeImage(image *nodes.Image, number int32) {
	for _, name := range image.Names {
		held := slices.Clone(s.imagesNamed(name))
		for i := range held {
			if held[i].Image == image {
				held[i].On = held[i].On.Without(number)
			}
		}
		held = slices.DeleteFunc(held, func(h place.Held) bool { return len(h.On) == 0 })
		if len(held) == 0 {
			s.images = s.images.Delete(name)
			continue
		}
		s.images = s.images.Set(name, held)
	}
}
