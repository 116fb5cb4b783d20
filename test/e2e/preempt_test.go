//go:build e2e

package e2e_test

import (
	"fmt"
	"strings"
	"testing"
)

const classesManifest = `
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: urgent}
value: 1000
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: patient}
spec:
  replicas: 2
  selector: {matchLabels: {app: patient}}
  template:
    metadata: {labels: {app: patient}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: IMAGE, resources: {requests: {cpu: "1"}}}]
`

// TestPreemption: a pod of a higher class takes the place of one of the others,
// which comes back when it is gone.
func TestPreemption(t *testing.T) {
	w := newWorld(t, "--capacity", "cpu=2")
	w.clone.Write("classes.yaml", strings.ReplaceAll(classesManifest, "IMAGE", insideImage))
	w.clone.Commit("patient pods")
	if r := w.clone.Push(); r.Code != 0 {
		t.Fatalf("push: %s", r.Err)
	}
	w.clone.Write("urgent.yaml", pod("urgent", "priorityClassName: urgent\ncontainers: [{name: main, image: "+insideImage+", resources: {requests: {cpu: '1'}}}]"))
	w.clone.Commit("an urgent pod")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		t.Fatalf("push: %s", r.Err)
	}
	w.pod("urgent", ready)
	w.patient(1, 1)
	w.clone.Git("rm", "-q", "urgent.yaml")
	w.clone.Commit("it is done")
	if r := w.clone.Push(); r.Code != 0 {
		t.Fatalf("push: %s", r.Err)
	}
	w.patient(2, 0)
}

// patient waits until so many of the patient pods are ready, and so many wait
// for room.
func (w *world) patient(running, waiting int) {
	w.t.Helper()
	w.Eventually(patience, "patient pods", func() error {
		o, err := w.Overview()
		if err != nil {
			return err
		}
		var run, wait int
		for _, object := range o.Objects {
			switch p := object.Pod; {
			case p == nil || !strings.HasPrefix(object.Key.Name, "patient-"):
			case p.Status.Ready:
				run++
			case strings.Contains(object.Reason, "lacks cpu"):
				wait++
			}
		}
		if run != running || wait != waiting {
			return fmt.Errorf("%d run and %d wait, want %d and %d", run, wait, running, waiting)
		}
		return nil
	})
}
