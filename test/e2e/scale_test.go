//go:build e2e

package e2e_test

import (
	"fmt"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

const autoscalerManifest = `
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 1
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
  behavior: {scaleDown: {stabilizationWindowSeconds: 0}}
`

// TestAutoscaler burns cpu in a real container: the Deployment grows, and
// shrinks when that ends; what Git says about replicas changes nothing.
func TestAutoscaler(t *testing.T) {
	w := newWorld(t)
	resources := "resources: {requests: {cpu: 100m}, limits: {cpu: 500m}}"
	w.clone.Write("web.yaml", deployment("web", 1, resources)+autoscalerManifest)
	w.clone.Apply("an autoscaler")
	ip := w.ip("web-")
	if _, err := post(ip, "/burn", "is", "true"); err != nil {
		t.Fatal(err)
	}
	w.replicas(3)
	w.clone.Write("web.yaml", deployment("web", 2, resources)+autoscalerManifest)
	_, output := w.clone.Apply("other replicas in Git")
	contains(t, "the push", output, "replicas are the autoscaler's: 1 → 2 in Git is only another start", "has it at 3")
	w.replicas(3)

	for _, pod := range w.ready() {
		if _, err := post(pod.Pod.IP, "/burn", "is", "false"); err != nil {
			t.Fatal(err)
		}
	}
	w.replicas(1)
	w.clone.Write("web.yaml", deployment("web", 2, resources))
	w.clone.Apply("no autoscaler any more")
	w.replicas(2)
}

// ready are the pods of web that serve.
func (w *world) ready() []nodes.ObjectHealth {
	w.t.Helper()
	var found []nodes.ObjectHealth
	for _, p := range machine.Pods(w.overview(), "default", "web-") {
		if p.Pod.Status.Ready && !p.Pod.Stopping {
			found = append(found, p)
		}
	}
	return found
}

// replicas waits until so many pods of web serve, and no others are there.
func (w *world) replicas(want int) {
	w.t.Helper()
	w.Eventually(2*patience, fmt.Sprintf("%d pods serve", want), func() error {
		if n, all := len(w.ready()), len(machine.Pods(w.overview(), "default", "web-")); n != want || all != want {
			return fmt.Errorf("%d pods serve, %d are there: %+v", n, all, w.overview().Plan)
		}
		return nil
	})
}
