package place

import (
	"math/bits"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// The sizes between which it counts more and more that images are there already,
// in bytes: those of Kubernetes' ImageLocality. The upper one is for each container.
const (
	smallImages = 23 << 20
	largeImages = 1000 << 20
)

// Held is an image and the nodes that have it.
type Held struct {
	Image *nodes.Image
	On    Numbers
}

// Images finds what nodes have under a name (see nodes.ImageName): usually one
// image, more where nodes have different ones. Nil when no node has any.
type Images func(name string) []Held

// Numbers are a set of nodes' numbers (see Node.Number). Immutable: With and
// Without give another.
type Numbers []numbers

// numbers are those from 64 times first on, a bit each.
type numbers struct {
	first int32
	bits  uint64
}

func (s Numbers) find(number int32) (int, bool) {
	return slices.BinarySearchFunc(s, number/64, func(n numbers, first int32) int { return int(n.first - first) })
}

// With has one more.
func (s Numbers) With(number int32) Numbers {
	i, found := s.find(number)
	out := slices.Clone(s)
	if !found {
		out = slices.Insert(out, i, numbers{first: number / 64})
	}
	out[i].bits |= 1 << (number % 64)
	return out
}

// Without has one less.
func (s Numbers) Without(number int32) Numbers {
	i, found := s.find(number)
	if !found {
		return s
	}
	out := slices.Clone(s)
	if out[i].bits &^= 1 << (number % 64); out[i].bits == 0 {
		out = slices.Delete(out, i, i+1)
	}
	return out
}

// Len is how many they are.
func (s Numbers) Len() (count int) {
	for _, n := range s {
		count += bits.OnesCount64(n.bits)
	}
	return count
}

func (s Numbers) each(do func(int32)) {
	for _, n := range s {
		for left := n.bits; left != 0; left &= left - 1 {
			do(n.first*64 + int32(bits.TrailingZeros64(left)))
		}
	}
}

// imagesOf are the images of a pod, once for each that needs it, by name.
func imagesOf(spec *corev1.PodSpec) []string {
	var names []string
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			names = append(names, nodes.ImageName(containers[i].Image))
		}
	}
	for i := range spec.Volumes {
		if image := spec.Volumes[i].Image; image != nil {
			names = append(names, nodes.ImageName(image.Reference))
		}
	}
	return names
}

// worth is what having an image counts, in bytes.
type worth struct {
	on    Numbers
	bytes int64
}

// worths are what the images of a pod count on the nodes that have them: their
// size, times the share of nodes that have them, so that the first node with an
// image does not get all the pods. None when they are too small to count anywhere.
func (f *Field) worths(r *Request) (list []worth) {
	if f.images == nil {
		return nil
	}
	most := int64(0)
	for _, name := range r.images {
		held := f.images(name)
		count := 0
		for _, h := range held {
			count += h.On.Len()
		}
		share := min(float64(count)/float64(len(f.nodes)), 1)
		for _, h := range held {
			bytes := int64(min(float64(h.Image.Size)*share, float64(r.enough()))) // a node may tell any size
			list = append(list, worth{h.On, bytes})
			most += bytes
		}
	}
	if most <= smallImages {
		return nil
	}
	return list
}

// present is the score for having images worth a number of bytes.
func (a *asks) present(bytes int64) int64 {
	return full * (min(max(bytes, smallImages), a.enough()) - smallImages) / (a.enough() - smallImages)
}

// enough is how many bytes of images get the whole score.
func (a *asks) enough() int64 {
	return largeImages * int64(len(a.spec.InitContainers)+len(a.spec.Containers))
}

// numbered finds nodes by their number; -1 where none has it.
func (f *Field) numbered() []int32 {
	if f.byNumber != nil {
		return f.byNumber
	}
	last := int32(0)
	for i := range f.slots {
		last = max(last, f.slots[i].number)
	}
	f.byNumber = slices.Repeat([]int32{-1}, int(last)+1)
	for i := range f.slots {
		f.byNumber[f.slots[i].number] = int32(i)
	}
	return f.byNumber
}

// scoreImages adds what images that are there count to the fixed scores.
func (s *search) scoreImages(worths []worth) {
	at := s.field.numbered()
	sums := make([]int64, len(s.fixed))
	for _, w := range worths {
		w.on.each(func(number int32) {
			if int(number) < len(at) && at[number] >= 0 {
				sums[at[number]] += w.bytes
			}
		})
	}
	for i, sum := range sums {
		if sum > smallImages {
			s.fixed[i] += imagesWeight * s.present(sum)
		}
	}
}
