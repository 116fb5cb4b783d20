package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/wire"
)

// TestEndedPodsMakeRoom: their containers go when the disk runs full, their
// status and logs stay, for the next agent too.
func TestEndedPodsMakeRoom(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		job := pod("job", corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{container("a")}})
		crashing := pod("web", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(job, crashing))
		settle(time.Second)
		log := logPath(filepath.Join(w.dir, "logs"), "job", "a", 0)
		if err := os.WriteFile(log, []byte("2026-01-02T15:04:05.1Z stdout F all done\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"web_a_0", "web_a_1", "job_a_0"} {
			if err := w.runtime.Exit(id, 0, false); err != nil {
				t.Fatal(err)
			}
			settle(time.Millisecond)
		}
		a.Pressed() // the end of the job is not on the disk so far
		settle(time.Millisecond)
		if !strings.Contains(w.runtime.String(), "job_a_0") {
			t.Fatal("the container went before what it told was written")
		}
		settle(time.Second)
		a.Pressed()
		settle(time.Second)
		if world := w.runtime.String(); strings.Contains(world, "job_a_0") || !strings.Contains(world, "web_a_1") {
			t.Fatalf("want only the ended pod's container gone:\n%s", world)
		}
		ended := func() {
			t.Helper()
			if s := a.worker("job").m.Status(); s.Phase != corev1.PodSucceeded || s.Containers[0].Reason != "Completed" {
				t.Errorf("status %+v", s)
			}
			var out bytes.Buffer
			if err := a.Logs(t.Context(), wire.LogQuery{Pod: "job", Tail: -1}, &out); err != nil || !strings.Contains(out.String(), "all done") {
				t.Errorf("log %q, %v", out.String(), err)
			}
		}
		ended()
		kill()
		a, kill = w.start()
		defer kill()
		settle(time.Minute)
		ended()
		expectRunning(t, w, "web_a_2")
	})
}
