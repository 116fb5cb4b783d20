package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/fake"
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

// onExit is the rule that a container which ends with a code takes all others
// with it.
func onExit(operator corev1.ContainerRestartRuleOnExitCodesOperator, code int32) []corev1.ContainerRestartRule {
	return []corev1.ContainerRestartRule{{
		Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: operator, Values: []int32{code}},
	}}
}

// restartsTogether is a pod of all kinds of containers, whose main container
// takes the others with it.
func restartsTogether() *nodes.Pod {
	first, side, a, b := container("first"), container("side"), container("a"), container("b")
	side.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	side.RestartPolicyRules = onExit(corev1.ContainerRestartRuleOnExitCodesOpIn, 0) // as a signal ends it
	a.RestartPolicy = new(corev1.ContainerRestartPolicyNever)
	a.RestartPolicyRules = onExit(corev1.ContainerRestartRuleOnExitCodesOpIn, 42)
	b.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"stop"}}}}
	return pod("u1", corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever, ShareProcessNamespace: new(true),
		InitContainers: []corev1.Container{first, side}, Containers: []corev1.Container{a, b},
	})
}

// TestAllContainersRestart: a container that ends as its rule says takes the
// others with it, and the pod begins with its init containers, in its place.
func TestAllContainersRestart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.behave = func(c runtime.Container) fake.Behaviour {
			return fake.Behaviour{IgnoresTerm: c.Labels[labelContainer] == "b"}
		}
		w.exec = func(_ runtime.Container, command []string) int {
			t.Errorf("it runs the hook %v", command)
			return 0
		}
		a, kill := w.start()
		defer func() { kill() }()
		exit := func(id string, code int32) {
			t.Helper()
			if err := w.runtime.Exit(id, code, false); err != nil {
				t.Fatal(err)
			}
			settle(time.Second)
		}
		a.Assign(assign(restartsTogether()))
		settle(time.Second)
		exit("u1_first_0", 0)
		settle(time.Second)
		expectRunning(t, w, "u1_a_0", "u1_b_0", "u1_pause_0", "u1_side_0")
		ip := w.last("u1").IP

		exit("u1_a_0", 42)
		expectRunning(t, w, "u1_b_0", "u1_pause_0") // it ignores the signal
		kill()
		_, kill = w.start()
		settle(2 * time.Second)
		expectRunning(t, w, "u1_first_1", "u1_pause_0")
		exit("u1_first_1", 0)
		settle(time.Second)
		expectRunning(t, w, "u1_a_1", "u1_b_1", "u1_pause_0", "u1_side_1")
		s := w.last("u1")
		if s.IP != ip || !s.Ready || s.Restarts() != 4 {
			t.Errorf("status %+v", s)
		}
		if last := s.Containers[1].Last; last == nil || last.Reason != reasonReset || last.ExitCode != 137 {
			t.Errorf("the end of b: %+v", last)
		}

		// Whoever does it again at once waits, the others go on.
		exit("u1_a_1", 42)
		settle(3 * time.Second)
		exit("u1_first_2", 0)
		expectRunning(t, w, "u1_b_2", "u1_pause_0", "u1_side_2")
		if c := w.last("u1").Containers[0]; c.Reason != "CrashLoopBackOff" || c.Last.ExitCode != 42 || c.Restarts != 1 {
			t.Errorf("status of a: %+v", c)
		}
		settle(10 * time.Second)
		expectRunning(t, w, "u1_a_2", "u1_b_2", "u1_pause_0", "u1_side_2")

		// A sidecar that is ended with its pod begins nothing.
		exit("u1_a_2", 0)
		exit("u1_b_2", 0)
		settle(time.Second)
		expectRunning(t, w)
		if s := w.last("u1"); s.Phase != corev1.PodSucceeded {
			t.Errorf("status %+v", s)
		}
	})
}

// TestInitContainerRestartsAll: one that fails as its rule says does not fail the
// pod.
func TestInitContainerRestartsAll(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		first, second := container("first"), container("second")
		second.RestartPolicy = new(corev1.ContainerRestartPolicyNever)
		second.RestartPolicyRules = onExit(corev1.ContainerRestartRuleOnExitCodesOpIn, 42)
		p := pod("u1", corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, InitContainers: []corev1.Container{first, second}, Containers: []corev1.Container{container("main")}})
		a.Assign(assign(p))
		settle(time.Second)
		if err := w.runtime.Exit("u1_first_0", 0, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if err := w.runtime.Exit("u1_second_0", 42, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		expectRunning(t, w, "u1_first_1")
		a.Assign(assign(stopped(p, 0)))
		settle(time.Second)
		if !w.gone("u1") {
			t.Error("it stays")
		}
	})
}
