package nodes

import (
	"cmp"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

const (
	// MaxImages bounds the images that a node tells of, and MaxImageNames the names
	// of each, as a kubelet does (nodeStatusMaxImages, MaxNamesPerImageInNodeStatus).
	MaxImages     = 50
	MaxImageNames = 5
	// maxImageName bounds a name, in bytes. A reference has at most 255 before its
	// tag or digest.
	maxImageName = 512
)

// Image is an image that is on a node.
type Image struct {
	// Names as ImageName gives them, sorted, at least one. One with a digest is
	// among them where the digest is known.
	Names []string
	// Size of its packed and unpacked content, in bytes.
	Size int64
}

// Equal reports whether two images are the same, names and all.
func (i *Image) Equal(o *Image) bool { return i.Size == o.Size && slices.Equal(i.Names, o.Names) }

// Images are all images that a node tells of.
type Images struct{ List []Image }

// NewImages keeps of a list what may be told: the largest images, each with its
// first names. The list is changed.
func NewImages(list []Image) *Images {
	for i := range list {
		names := slices.DeleteFunc(list[i].Names, func(name string) bool { return name == "" || len(name) > maxImageName })
		slices.Sort(names)
		names = slices.Compact(names)
		list[i] = Image{Names: names[:min(len(names), MaxImageNames)], Size: max(list[i].Size, 0)}
	}
	list = slices.DeleteFunc(list, func(i Image) bool { return len(i.Names) == 0 })
	slices.SortFunc(list, func(a, b Image) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), strings.Compare(a.Names[0], b.Names[0]))
	})
	list = slices.CompactFunc(list, func(a, b Image) bool { return a.Equal(&b) })
	return &Images{List: list[:min(len(list), MaxImages)]}
}

// ImageName gives a reference the form under which nodes know its image ("nginx"
// is "docker.io/library/nginx:latest"; where there is a digest the tag says
// nothing). What is no reference stays as it is.
func ImageName(ref string) string {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ref
	}
	return named.String()
}

// DigestName is the name of an image by its digest, under the repository of
// another of its names; empty for a name without repository.
func DigestName(name, digest string) string {
	named, err := reference.ParseDockerRef(name)
	if err != nil || digest == "" {
		return ""
	}
	return reference.TrimNamed(named).String() + "@" + digest
}
