package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// TestAnOlderLookUndoesNoStart: a look that began while the container was made
// and not yet started arrives after its start.
func TestAnOlderLookUndoesNoStart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		c := container("a")
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 5, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"ready"}}}}
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{c}})))
		settle(time.Second)
		made, err := w.runtime.Status(t.Context(), "u1_a_0")
		if err != nil {
			t.Fatal(err)
		}
		made.State = runtime.Created
		w.mu.Lock()
		before := len(w.reports)
		w.mu.Unlock()
		a.worker("u1").m.Observe(made.Created, []runtime.Status{made})
		settle(time.Second)
		if s := w.last("u1"); !s.Ready {
			t.Fatalf("the container counts as not started: %+v", s)
		}
		settle(time.Minute)
		expectRunning(t, w, "u1_a_0")
		for _, r := range w.reports[before:] {
			if len(r.Statuses) > 0 && !r.Statuses[0].Ready {
				t.Errorf("the pod flapped: %+v", r.Statuses[0])
			}
		}
	})
}

// TestALateAnswerRevivesNothing: the runtime is asked what became of a container
// while it ends, and the answer arrives after news of the end.
func TestALateAnswerRevivesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{container("a")}})))
		settle(time.Second)
		alive, err := w.runtime.Status(t.Context(), "u1_a_0")
		if err != nil {
			t.Fatal(err)
		}
		ended := alive
		ended.State, ended.ExitCode = runtime.Exited, 3
		a.worker("u1").m.Exited(ended)
		a.worker("u1").m.Exited(alive)
		settle(time.Second)
		if s := w.last("u1"); s.Phase != corev1.PodFailed || s.Containers[0].ExitCode != 3 {
			t.Errorf("status %+v", s)
		}
	})
}
