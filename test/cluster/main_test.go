//go:build e2e

package cluster_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

func TestMain(m *testing.M) { cluster.Main(m) }

// patience is how long anything may take before it counts as broken.
const patience = time.Minute

// inside is the program of the pods: it answers over HTTP with its host's name.
const (
	inside      = "github.com/tallyman-dev/tallyman/test/e2e/inside"
	insideImage = cluster.RegistryAddress + "/inside:1"
)

// world is a server on a machine of its own, and nodes.
type world struct {
	*cluster.Cluster
	t      testing.TB
	server *cluster.Machine
	nodes  []*cluster.Machine
	clone  *machine.Clone
}

// newWorld starts a server; nodes are added by join.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{Cluster: cluster.New(t), t: t}
	w.PushImage(inside, "inside:1")
	w.server = w.MachineOff("server")
	w.server.BootBare()
	w.server.StartTally("server")
	w.clone = w.server.Clone()
	return w
}

// in gives the world to a subtest.
func (w *world) in(t testing.TB) *world {
	w.In(t)
	return &world{Cluster: w.Cluster, t: t, server: w.server, nodes: w.nodes, clone: w.clone.For(t)}
}

// join makes a machine a node.
func (w *world) join(name string, flags ...string) *cluster.Machine {
	w.t.Helper()
	m := w.Machine(name)
	m.Join(w.server, flags...)
	w.nodes = append(w.nodes, m)
	return m
}

// joinSmall makes a machine a node whose data is on a small disk.
func (w *world) joinSmall(name string, bytes int64, flags ...string) {
	w.t.Helper()
	m := w.MachineOff(name)
	m.SmallDisk(bytes)
	m.Boot()
	m.Join(w.server, flags...)
	w.nodes = append(w.nodes, m)
}

// awaitReady waits until all nodes are.
func (w *world) awaitReady() {
	w.t.Helper()
	w.server.AwaitNodes(w.nodes...)
}

func node(o *nodes.Overview, name string) *nodes.NodeOverview {
	for i := range o.Nodes {
		if o.Nodes[i].Name == name {
			return &o.Nodes[i]
		}
	}
	return nil
}

// pods that are not stopping of a workload.
func (w *world) pods(prefix string) []nodes.ObjectHealth {
	w.t.Helper()
	o, err := w.server.Overview()
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(machine.Pods(o, "default", prefix), func(h nodes.ObjectHealth) bool { return h.Pod.Stopping })
}

// awaitPods waits until a workload has so many ready pods, none of them on the
// nodes that are named, and no others.
func (w *world) awaitPods(prefix string, count int, without ...string) {
	w.t.Helper()
	w.Eventually(patience, fmt.Sprintf("%d pods of %s are ready", count, prefix), func() error {
		var wrong []string
		pods := w.pods(prefix)
		for _, p := range pods {
			if !p.Pod.Status.Ready || slices.Contains(without, p.Pod.Node) {
				wrong = append(wrong, fmt.Sprintf("%s on %s: %s %s", p.Key.Name, p.Pod.Node, p.Pod.Status.Reason, p.Pod.Status.Message))
			}
		}
		if len(pods) != count || len(wrong) > 0 {
			return fmt.Errorf("%d pods, %s", len(pods), strings.Join(wrong, "; "))
		}
		return nil
	})
}

// processes are those in containers of all nodes.
func (w *world) processes(words ...string) []string {
	var found []string
	for _, m := range w.nodes {
		found = append(found, m.Containers(words...)...)
	}
	slices.Sort(found)
	return found
}

// same fails the test unless exactly the processes from before are there.
func (w *world) same(before []string) {
	w.t.Helper()
	if diff := cmp.Diff(before, w.processes()); diff != "" {
		w.t.Errorf("containers before -, after +:\n%s", diff)
	}
}

// web is a Deployment over all nodes with a Service.
func web(replicas int, change string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {change: %q}}
    spec:
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
      containers:
        - name: main
          image: %s
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: asker}
spec:
  selector: {matchLabels: {app: asker}}
  template:
    metadata: {labels: {app: asker}}
    spec: {containers: [{name: main, image: %[3]s}]}
`, replicas, change, insideImage)
}
