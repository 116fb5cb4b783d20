//go:build e2e

package bench

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// burner is a program that uses the processor when it is told to.
const burner = "github.com/tallyman-dev/tallyman/test/e2e/inside"

// benchScale measures how soon an autoscaler follows load.
func benchScale(t *testing.T, all *figures) {
	m := machine.New(t)
	image := m.PushImage(burner, "burner:1")
	m.Up()
	c, w := m.Clone(), newWatch(t, m)
	c.Write("keep.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: keep}\n") // never is everything removed
	var took []time.Duration
	for round := range 3 {
		name := fmt.Sprintf("burner%d", round)
		autoscaled(c, name, image)
		push(t, c, name)
		pod := onePod(t, m, name)
		time.Sleep(time.Duration(round) * 2 * time.Second) // load comes at any moment between two looks
		grown := w.until(name+" has grown", func(o *nodes.Overview) bool {
			ready := 0
			for _, p := range machine.Pods(o, "default", name+"-") {
				if p.Pod.Status.Ready {
					ready++
				}
			}
			return ready == 2
		})
		begun := time.Now()
		answer, err := http.Post("http://"+pod.IP+":8080/burn?is=true", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if answer.Body.Close(); answer.StatusCode != http.StatusOK {
			t.Fatal(answer.Status)
		}
		took = append(took, grown().Sub(begun))
		c.Git("rm", "--quiet", name+".yaml")
	}
	all.add(t, lower("load-to-new-replica", median(t, "load → new replica ready", took).Seconds(), "s", 15))
}

// autoscaled writes a Deployment of one replica whose cpu asks for another once
// it is used.
func autoscaled(c *machine.Clone, name, image string) {
	c.Write(name+".yaml", fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: app
          image: %[2]s
          resources: {requests: {cpu: 50m}, limits: {cpu: 200m}}
          readinessProbe: {httpGet: {path: /readyz, port: 8080}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: %[1]s}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: %[1]s}
  minReplicas: 1
  maxReplicas: 2
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]
`, name, image))
}
