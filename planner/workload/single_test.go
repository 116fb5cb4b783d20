package workload

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestSingleKeepsOneOfTwins: a node that was away has the pod, too.
func TestSingleKeepsOneOfTwins(t *testing.T) {
	s := Single{Current: &Set{Hash: "a", Pods: []Pod{
		{UID: "starting", Node: "n1", Phase: corev1.PodPending, Incarnation: 1},
		{UID: "ready", Node: "n2", Phase: corev1.PodRunning, Ready: true, Incarnation: 2},
		{UID: "leaving", Node: "n2", Phase: corev1.PodRunning, Leaving: true, Incarnation: 3},
	}}}
	steps := s.Next()
	if len(steps.Creates) != 0 || len(steps.Removes) != 1 || steps.Removes[0].UID != "starting" {
		t.Errorf("steps %+v", steps)
	}
}
