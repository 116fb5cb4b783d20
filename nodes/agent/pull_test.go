package agent

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

func TestImageThatVanishedIsPulledAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.runtime.Publish("late", runtime.Image{ID: "sha256:late", Config: runtime.ImageConfig{Cmd: []string{"/late"}}})
		main := container("main")
		main.Image = "late"
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{InitContainers: []corev1.Container{container("first")}, Containers: []corev1.Container{main}})))
		settle(time.Second)
		expectRunning(t, w, "u1_first_0")
		if err := w.runtime.RemoveImage(t.Context(), "sha256:late"); err != nil {
			t.Fatal(err)
		}
		if err := w.runtime.Exit("u1_first_0", 0, false); err != nil {
			t.Fatal(err)
		}
		settle(10 * time.Second)
		expectRunning(t, w, "u1_main_0")
	})
}

func TestImagesOfPodsThatEndedAreNotNeeded(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.runtime.Publish("late", runtime.Image{ID: "sha256:late", Config: runtime.ImageConfig{Cmd: []string{"/late"}}})
		late := container("a")
		late.Image = "late"
		a, kill := w.start()
		defer kill()
		a.Assign(assign(
			pod("u1", corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{late}}),
			pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}}),
		))
		settle(time.Second)
		if got := a.Images(); !slices.Equal(got, []string{"app", "late"}) {
			t.Errorf("needed %v", got)
		}
		if err := w.runtime.Exit("u1_a_0", 0, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := a.Images(); !slices.Equal(got, []string{"app"}) {
			t.Errorf("needed %v", got)
		}
	})
}
