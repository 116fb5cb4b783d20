package place

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

const mib = 1 << 20

// TestPresentImages follows Kubernetes' ImageLocality: what counts of an image is its
// size times the share of nodes that have it, from 23 MiB to 1000 MiB a container.
func TestPresentImages(t *testing.T) {
	containers := func(images ...string) (out []corev1.Container) {
		for _, image := range images {
			out = append(out, corev1.Container{Image: image})
		}
		return out
	}
	for _, c := range []struct {
		name string
		// images of each node, with their sizes in MiB.
		images []map[string]int64
		spec   corev1.PodSpec
		want   []int64
	}{
		{
			"the larger image counts more",
			[]map[string]int64{{"docker.io/library/app:1": 400}, {"docker.io/library/db:latest": 900}},
			corev1.PodSpec{Containers: containers("app:1", "db")},
			[]int64{8, 21}, // (200-23)/1977, (450-23)/1977
		},
		{
			"one that all nodes have counts with its whole size",
			[]map[string]int64{{"quay.io/a/b:v1": 500}, {"quay.io/a/b:v1": 500}},
			corev1.PodSpec{Containers: containers("quay.io/a/b:v1")},
			nil, // the same everywhere: (500-23)/977
		},
		{
			"one that few nodes have counts little",
			[]map[string]int64{{"quay.io/a/b:v1": 90}, {}, {}, {}},
			corev1.PodSpec{Containers: containers("quay.io/a/b:v1")},
			nil, // 90/4 is below 23
		},
		{
			"not more than the most",
			[]map[string]int64{{"quay.io/a/b:v1": 9000}, {}},
			corev1.PodSpec{Containers: containers("quay.io/a/b:v1")},
			[]int64{100, 0},
		},
		{
			"an image counts for each container, init containers as well",
			[]map[string]int64{{"quay.io/a/b:v1": 1000}, {}},
			corev1.PodSpec{InitContainers: containers("quay.io/a/b:v1"), Containers: containers("quay.io/a/b:v1")},
			[]int64{49, 0}, // (2*500-23)/1977
		},
		{
			"volumes count, but allow for no more",
			[]map[string]int64{{"quay.io/a/data:v1": 1000}, {}},
			corev1.PodSpec{Containers: containers("quay.io/a/b:v1"), Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "quay.io/a/data:v1"}}}}},
			[]int64{48, 0}, // (500-23)/977
		},
		{
			"by digest",
			[]map[string]int64{{"docker.io/library/app@sha256:" + digest: 1000}, {"docker.io/library/app:1": 1000}},
			corev1.PodSpec{Containers: containers("app:1@sha256:" + digest)},
			[]int64{48, 0},
		},
		{
			"different images of one name count with their own size, and as one",
			[]map[string]int64{{"docker.io/library/app:1": 400}, {"docker.io/library/app:1": 600}},
			corev1.PodSpec{Containers: containers("app:1")},
			[]int64{38, 59}, // (400-23)/977, (600-23)/977
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := stocked(c.images)
			r := Compile(Services, "default", &nodes.Template{Spec: c.spec})
			got := newSearch(w.field(), r, true).fixed
			if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// stocked is a cluster of nodes with images, by size in MiB.
func stocked(images []map[string]int64) *world {
	held := map[string][]Held{}
	w := &world{images: func(name string) []Held { return held[name] }}
	for i, of := range images {
		s := &nodes.NodeState{Ready: true}
		s.Name, s.Allocatable = string(rune('a'+i)), list("cpu", "4", "memory", "4Gi", "pods", "10")
		n := NewNode(s, "").Numbered(int32(1 + i))
		for name, size := range of {
			image := &nodes.Image{Names: []string{name}, Size: size * mib}
			if known := held[name]; len(known) > 0 && known[0].Image.Equal(image) {
				known[0].On = known[0].On.With(n.Number())
			} else {
				held[name] = append(known, Held{image, Numbers(nil).With(n.Number())})
			}
		}
		w.list = append(w.list, n)
	}
	return w
}

// TestSizesBeyondReason: a node may say what it likes of an image.
func TestSizesBeyondReason(t *testing.T) {
	w := stocked([]map[string]int64{{"docker.io/library/app:1": 1}, {"docker.io/library/app:1": 600}})
	w.images("docker.io/library/app:1")[0].Image.Size = math.MaxInt64
	r := Compile(Services, "default", &nodes.Template{Spec: corev1.PodSpec{Containers: []corev1.Container{{Image: "app:1"}}}})
	if diff := cmp.Diff([]int64{100, 59}, newSearch(w.field(), r, true).fixed); diff != "" {
		t.Error(diff)
	}
}

// TestImagesDecide: of two nodes with the same room the one that has the image
// is chosen; but a node that is better packed is worth more than a small image.
func TestImagesDecide(t *testing.T) {
	w := stocked([]map[string]int64{{}, {"docker.io/library/app:1": 300}})
	spec := corev1.PodSpec{Containers: []corev1.Container{{Image: "app:1"}}}
	r := Compile(Services, "default", &nodes.Template{Spec: spec})
	if node, _ := w.field().Choose(r, nil); node != "b" {
		t.Errorf("the pod goes to node %q, which does not have its image", node)
	}
	spec.Containers[0].Resources.Requests = list("cpu", "2")
	w.list[0] = w.list[0].With(Compile(Services, "default", &nodes.Template{Spec: spec}))
	if node, _ := w.field().Choose(r, nil); node != "a" {
		t.Errorf("the pod goes to node %q, for an image that is quickly pulled", node)
	}
}
