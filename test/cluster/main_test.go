//go:build e2e

package cluster_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

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
	w.awaitGood(prefix, count, func(p *nodes.PodOverview) bool { return !slices.Contains(without, p.Node) })
}

// awaitOthers waits until a workload has so many ready pods, none of which is
// one of those from before.
func (w *world) awaitOthers(prefix string, count int, before []nodes.ObjectHealth) {
	w.t.Helper()
	w.awaitGood(prefix, count, func(p *nodes.PodOverview) bool {
		return !slices.ContainsFunc(before, func(b nodes.ObjectHealth) bool { return b.Pod.UID == p.UID })
	})
}

// awaitGood waits until a workload has so many ready and good pods, and no others.
func (w *world) awaitGood(prefix string, count int, good func(*nodes.PodOverview) bool) {
	w.t.Helper()
	w.Eventually(patience, fmt.Sprintf("%d pods of %s are ready", count, prefix), func() error {
		var wrong []string
		pods := w.pods(prefix)
		for _, p := range pods {
			if !p.Pod.Status.Ready || !good(p.Pod) {
				wrong = append(wrong, fmt.Sprintf("%s on %s: %s %s", p.Key.Name, p.Pod.Node, p.Pod.Status.Reason, p.Pod.Status.Message))
			}
		}
		if len(pods) != count || len(wrong) > 0 {
			return fmt.Errorf("%d pods, %s", len(pods), strings.Join(wrong, "; "))
		}
		return nil
	})
}

const (
	// longSilence is longer than any agent needs to come back on a slow machine.
	longSilence    = 2 * time.Minute
	defaultSilence = 4 * time.Second
)

// silentAfter says how long a node may say nothing.
func (w *world) silentAfter(d time.Duration) {
	w.t.Helper()
	w.clone.Write("cluster.yaml", fmt.Sprintf("apiVersion: tallyman.dev/v1alpha1\nkind: Cluster\nmetadata: {name: cluster}\nspec: {nodes: {silentAfter: %s}}\n", d))
	w.clone.Apply("a node is silent after " + d.String())
}

// obeyed has Git ask for one more container on a node, which ends by itself, and
// waits until it has run: from then on what is seen of the node is no memory of
// it, but what its agent has made of what it found.
func (w *world) obeyed(m *cluster.Machine, after string) {
	w.t.Helper()
	name := "after-" + strings.ReplaceAll(after, " ", "-") + "-" + m.Name
	w.clone.Write(name+".yaml", fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec: {nodeName: %s, tolerations: [{operator: Exists}], restartPolicy: Never, containers: [{name: main, image: %s, args: [print, done]}]}
`, name, m.Name, insideImage))
	w.clone.Commit("a pod that ends, after: " + after)
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		w.t.Fatalf("push: %+v", r)
	}
	w.Eventually(patience, name+" has run", func() error {
		pods := w.pods(name)
		if len(pods) != 1 || pods[0].Pod.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("%+v", pods)
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
