package planner

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
)

// tell has a node say which images it has, with their sizes in MiB.
func (w *world) tell(node string, images map[string]int64) {
	var list []nodes.Image
	for name, size := range images {
		list = append(list, nodes.Image{Names: []string{nodes.ImageName(name)}, Size: size << 20})
	}
	w.next(Change{Reports: []nodes.Report{{Node: node, Images: nodes.NewImages(list)}}})
}

// named are the images that nodes have, with their numbers.
func (w *world) named() map[string]int {
	out := map[string]int{}
	for itr := w.s.images.Iterator(); !itr.Done(); {
		name, held, _ := itr.Next()
		for _, h := range held {
			out[fmt.Sprintf("%s of %d MiB", name, h.Image.Size>>20)] = h.On.Len()
		}
	}
	return out
}

// TestPodsGoWhereTheirImageIs: what a node last said of its images counts, until
// the node is removed.
func TestPodsGoWhereTheirImageIs(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3")
	w.tell("n2", map[string]int64{"shop:2": 900})
	w.tell("n3", map[string]int64{"shop:2": 900, "tools": 100})
	a := deployment("a", 1, image("shop:2"))
	w.push(a)
	w.settle()
	if got := w.pods("a")[0].Node; got != "n2" {
		t.Errorf("the first pod is on %s", got)
	}
	w.tell("n1", map[string]int64{"docker.io/library/shop:2": 900, "tools": 120})
	w.tell("n2", map[string]int64{"tools": 100})
	w.tell("n3", nil)
	want := map[string]int{"docker.io/library/shop:2 of 900 MiB": 1, "docker.io/library/tools:latest of 120 MiB": 1, "docker.io/library/tools:latest of 100 MiB": 1}
	if diff := cmp.Diff(want, w.named()); diff != "" {
		t.Error(diff)
	}
	w.next(Change{Reports: []nodes.Report{w.machines["n1"].complete()}}) // which says nothing of images
	if diff := cmp.Diff(want, w.named()); diff != "" {
		t.Error(diff)
	}
	w.push(a, removed("n1"))
	w.settle()
	w.fallSilent("n1")
	if diff := cmp.Diff(map[string]int{"docker.io/library/tools:latest of 100 MiB": 1}, w.named()); diff != "" {
		t.Errorf("after the node was removed: %s", diff)
	}
}

// TestNodesShareTheirImages: what thousands of nodes have is kept once.
func TestNodesShareTheirImages(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.tell("n1", map[string]int64{"shop:2": 900})
	w.tell("n2", map[string]int64{"shop:2": 900})
	a, _ := w.s.nodes.Get("n1")
	b, _ := w.s.nodes.Get("n2")
	if a.images[0] != b.images[0] {
		t.Error("two nodes with the same image hold two")
	}
}
