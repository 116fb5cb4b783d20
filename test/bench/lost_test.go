//go:build e2e

package bench

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

const (
	// lostPods are on the node that dies, or on all nodes when the server does.
	lostPods = 30
	// kubernetesReplaces is how long Kubernetes takes by its defaults, in seconds,
	// as documented: 40 to 50 until the node counts as not ready
	// (node-monitor-grace-period), 300 that pods tolerate it (tolerationSeconds of
	// the DefaultTolerationSeconds admission plugin), and the start elsewhere.
	kubernetesReplaces = 350
)

// benchLost measures what it costs to lose a machine: a node with its pods, and
// what the server keeps.
func benchLost(t *testing.T, all *figures) {
	c := cluster.New(t)
	b := &lostBench{t: t, c: c, image: c.PushImage(app, "app:1"), server: c.MachineOff("server")}
	b.server.BootBare()
	b.server.StartTally("server")
	for _, name := range []string{"one", "two", "three"} {
		m := c.Machine(name)
		m.Join(b.server)
		b.nodes = append(b.nodes, m)
	}
	b.server.AwaitNodes(b.nodes...)
	b.clone = b.server.Clone()
	all.add(t, lower("dead-node-30-pods-elsewhere", b.nodesDie().Seconds(), "s", 10).beside(kubernetesReplaces))
	all.add(t, lower("server-disk-lost-in-charge-again", b.serverLost(5).Seconds(), "s", 5))
}

type lostBench struct {
	t      *testing.T
	c      *cluster.Cluster
	image  string
	server *cluster.Machine
	nodes  []*cluster.Machine
	clone  *machine.Clone
}

// put has all pods prefer a node, or with none named spreads them.
func (b *lostBench) put(generation, on string) {
	b.t.Helper()
	where := "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: many}}}]"
	if on != "" {
		where = "affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [" + on + "]}]}}]}}"
	}
	b.clone.Write("many.yaml", fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: %d
  selector: {matchLabels: {app: many}}
  strategy: {rollingUpdate: {maxSurge: 100%%, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: many}, annotations: {generation: %q}}
    spec:
      terminationGracePeriodSeconds: 1
      %s
      containers:
        - name: app
          image: %s
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 2}
`, lostPods, generation, where, b.image))
	push(b.t, b.clone, generation)
}

// readyWithout tells whether all pods are ready, none of them on a node.
func readyWithout(node string) func(*nodes.Overview) bool {
	return func(o *nodes.Overview) bool {
		ready := 0
		for _, p := range machine.Pods(o, "default", "many-") {
			if p.Pod.Status.Ready && !p.Pod.Stopping && p.Pod.Node != node {
				ready++
			}
		}
		return ready == lostPods
	}
}

// nodesDie measures, for each node in turn, from the instant at which it dies
// with all pods until all are ready elsewhere.
func (b *lostBench) nodesDie() time.Duration {
	b.t.Helper()
	var took []time.Duration
	for _, victim := range b.nodes {
		b.put("all on "+victim.Name, victim.Name)
		if n := len(victim.Containers()); n != lostPods {
			b.t.Fatalf("%s runs %d containers, want all %d", victim.Name, n, lostPods)
		}
		seen := watchSocket(b.t, b.server.File("/run/tallyman/tally.sock")).until("all are ready elsewhere", readyWithout(victim.Name))
		begun := time.Now()
		victim.Die()
		took = append(took, seen().Sub(begun))
		victim.Boot()
		victim.StartTallyAgain()
		b.server.AwaitNodes(b.nodes...)
	}
	return median(b.t, "node dead → its 30 pods ready elsewhere", took)
}

// serverLost measures from the start of a server that has repository and key
// alone until it shows the revision in force as converged, with every pod. No
// container may have restarted.
func (b *lostBench) serverLost(rounds int) time.Duration {
	b.t.Helper()
	b.put("spread", "")
	before := b.containers()
	var took []time.Duration
	for range rounds {
		b.server.TallyProcess().Kill()
		b.server.LoseDisk("repo.git", "key")
		begun := time.Now()
		b.server.StartTallyAgain()
		b.c.Eventually(patience, "the server is in charge", func() error {
			o, err := b.server.Overview()
			if err != nil {
				return err
			}
			if o.InForce == nil || strings.TrimSpace(o.InForce.Message) != "spread" || !o.Plan.Converged || !readyWithout("")(o) {
				return fmt.Errorf("in force %v, converged %t", o.InForce, o.Plan.Converged)
			}
			return nil
		})
		took = append(took, time.Since(begun))
		if diff := cmp.Diff(before, b.containers()); diff != "" {
			b.t.Errorf("containers before -, after +:\n%s", diff)
		}
	}
	return median(b.t, "server's disk lost → in charge", took)
}

func (b *lostBench) containers() []string {
	var all []string
	for _, m := range b.nodes {
		all = append(all, m.Containers()...)
	}
	slices.Sort(all)
	return all
}
