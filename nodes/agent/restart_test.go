package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestContainersHaveRestartPoliciesOfTheirOwn: one that ends for good, one that
// its rule brings back, in a pod that restarts nothing by itself.
func TestContainersHaveRestartPoliciesOfTheirOwn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		once, again, always := container("once"), container("again"), container("always")
		never := new(corev1.ContainerRestartPolicyNever)
		once.RestartPolicy, again.RestartPolicy, always.RestartPolicy = never, never, new(corev1.ContainerRestartPolicyAlways)
		again.RestartPolicyRules = []corev1.ContainerRestartRule{{
			Action:    corev1.ContainerRestartRuleActionRestart,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
		}}
		a.Assign(assign(pod("u1", corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{once, again, always}})))
		settle(time.Second)
		exit := func(id string, code int32) {
			t.Helper()
			if err := w.runtime.Exit(id, code, false); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
		}
		exit("u1_once_0", 42)
		exit("u1_again_0", 42)
		exit("u1_always_0", 0)
		expectRunning(t, w, "u1_again_1", "u1_always_1")
		exit("u1_again_1", 1)
		expectRunning(t, w, "u1_always_1")
		if s := w.last("u1"); s.Phase != corev1.PodRunning {
			t.Errorf("phase %s while a container is to be restarted for ever", s.Phase)
		}
		// Stopping the pod does not wait for a container that is no sidecar.
		a.Assign(assign(stopped(a.worker("u1").pod, 10*time.Second)))
		settle(time.Second)
		expectRunning(t, w)
	})
}
