package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// toldOfImages are the names of the images in each report about them.
func (w *world) toldOfImages() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		if r.Images == nil {
			continue
		}
		var names []string
		for _, image := range r.Images.List {
			names = append(names, fmt.Sprint(strings.Join(image.Names, " "), " ", image.Size))
		}
		out = append(out, strings.Join(names, ", "))
	}
	return out
}

// TestImagesAreTold: the server learns what is pulled and what is removed, once,
// and all of it with a complete report.
func TestImagesAreTold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, name := range []string{"quay.io/team/shop:2", "tools"} {
			w.runtime.Publish(name, runtime.Image{ID: "sha256:" + name, Digest: "sha256:" + strings.Repeat("a", 64), Size: int64(len(name))})
		}
		of := func(image string) corev1.Container {
			c := container("main")
			c.Image, c.Command = image, []string{"/serve"}
			return c
		}
		a, kill := w.start()
		defer kill()
		hello := func() {
			r, err := a.Hello(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.reports = append(w.reports, r)
		}
		hello()
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{of("quay.io/team/shop:2")}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{of("tools")}})))
		settle(5 * time.Minute)
		if err := w.runtime.RemoveImage(t.Context(), "sha256:tools"); err != nil {
			t.Fatal(err)
		}
		settle(5 * time.Minute)
		hello()
		settle(5 * time.Minute)
		shop := "quay.io/team/shop:2 quay.io/team/shop@sha256:" + strings.Repeat("a", 64) + " 19"
		tools := "docker.io/library/tools:latest docker.io/library/tools@sha256:" + strings.Repeat("a", 64) + " 5"
		if diff := cmp.Diff([]string{"", shop + ", " + tools, shop, shop}, w.toldOfImages()); diff != "" {
			t.Error(diff)
		}
	})
}

// TestImagesToldLater: a runtime that did not answer when the server was told of
// everything is asked again.
func TestImagesToldLater(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("main")}})))
		settle(time.Minute)
		w.runtime.Crash()
		if r, err := a.Hello(t.Context()); err != nil || r.Images != nil {
			t.Fatalf("told %v, %v", r.Images, err)
		}
		w.mu.Lock()
		w.reports = nil
		w.mu.Unlock()
		w.runtime.Recover()
		settle(5 * time.Minute)
		if got := w.toldOfImages(); len(got) != 1 || !strings.Contains(got[0], nodes.ImageName("app")) {
			t.Errorf("told of %v", got)
		}
	})
}
