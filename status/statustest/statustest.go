// Package statustest is a cluster to look at in tests: a realistic overview,
// and a Cluster that hands out whatever it is told to.
package statustest

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// Now is the instant at which Overview was taken.
var Now = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// Cluster is what status.Cluster asks for. Safe for concurrent use.
type Cluster struct {
	mu sync.Mutex
	// guarded by mu
	overview *nodes.Overview
	events   map[desired.Key][]nodes.Event
	watchers map[chan *nodes.Overview]bool
}

// New makes a cluster that looks like o.
func New(o *nodes.Overview) *Cluster {
	return &Cluster{overview: o, events: map[desired.Key][]nodes.Event{}, watchers: map[chan *nodes.Overview]bool{}}
}

// Overview implements status.Cluster.
func (c *Cluster) Overview() *nodes.Overview {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.overview
}

// Set publishes another overview.
func (c *Cluster) Set(o *nodes.Overview) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.overview = o
	for w := range c.watchers {
		select {
		case <-w:
		default:
		}
		w <- o
	}
}

// Watch implements status.Cluster.
func (c *Cluster) Watch(ctx context.Context) <-chan *nodes.Overview {
	w := make(chan *nodes.Overview, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	w <- c.overview
	c.watchers[w] = true
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, w)
	})
	return w
}

// Watchers counts who is watching.
func (c *Cluster) Watchers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.watchers)
}

// Events implements status.Cluster.
func (c *Cluster) Events(object desired.Key) []nodes.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events[object]
}

// AddEvent makes Events tell e.
func (c *Cluster) AddEvent(e nodes.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events[e.Object] = append(c.events[e.Object], e)
}

// Log is a container's log that ends at once.
func Log(lines ...string) io.ReadCloser {
	return io.NopCloser(strings.NewReader(strings.Join(lines, "\n") + "\n"))
}

func ago(d time.Duration) time.Time { return Now.Add(-d) }

func key(group, kind, namespace, name string) desired.Key {
	return desired.Key{Group: group, Kind: kind, Namespace: namespace, Name: name}
}

// Revision makes a revision of the given age.
func Revision(sha, subject string, age time.Duration) desired.Revision {
	return desired.Revision{
		SHA: sha + strings.Repeat("0", 40-len(sha)), Author: "Ada Lovelace", Email: "ada@example.org",
		Message: subject + "\n\nThe queue grew over night.\n", Time: ago(age), Signed: true, Signer: "ada@example.org",
	}
}

// Healthy is a small cluster in which all is well.
func Healthy() *nodes.Overview {
	revision := Revision("3f2a1bc9d", "Scale web to five replicas", 3*time.Minute)
	o := &nodes.Overview{
		Serial: 41, At: Now, Version: "0.1.0",
		Sync:    nodes.Sync{Repo: "embedded", Branch: "main", Path: ".", State: "synced", Fetched: ago(9 * time.Second)},
		InForce: &revision, Outcome: nodes.OutcomeConverged, Problems: []desired.Problem{},
		Nodes: []nodes.NodeOverview{node("quay-1")},
		Plan:  nodes.PlanOverview{Difference: []string{}, Actions: []string{}, Waiting: []nodes.WaitingItem{}, Converged: true},
	}
	addDeployment(o, "shop", "web", "registry.example.org/shop/web:2.4.1", 5)
	addDeployment(o, "shop", "catalog", "registry.example.org/shop/catalog:1.9.0", 3)
	addDeployment(o, "monitoring", "grafana", "registry.example.org/grafana:11.2", 1)
	for _, k := range []desired.Key{
		key("", "Namespace", "", "shop"), key("", "Namespace", "", "monitoring"), key("tallyman.dev", "Cluster", "", "cluster"),
		key("", "ConfigMap", "shop", "web-config"), key("", "ConfigMap", "shop", "catalog-config"), key("", "Secret", "shop", "catalog-database"),
		key("networking.k8s.io", "Ingress", "shop", "web"),
	} {
		o.Objects = append(o.Objects, nodes.ObjectHealth{
			Key: k, From: desired.Place{File: "shop/" + k.Name + ".yaml", Line: 1}, Health: nodes.Healthy, Created: ago(40 * 24 * time.Hour),
		})
	}
	o.Services = services()
	for _, s := range o.Services {
		o.Objects = append(o.Objects, nodes.ObjectHealth{Key: s.Key, From: desired.Place{File: "shop/services.yaml", Line: 3}, Health: nodes.Healthy, Created: ago(40 * 24 * time.Hour)})
	}
	o.History = []nodes.HistoryEntry{
		{Revision: revision, Outcome: nodes.OutcomeConverged, Seen: ago(3 * time.Minute), Ended: ago(3*time.Minute - 2300*time.Millisecond)},
		{Revision: Revision("91c0de11f", "Raise the memory limit of catalog", 26*time.Hour), Outcome: nodes.OutcomeConverged, Seen: ago(26 * time.Hour), Ended: ago(26*time.Hour - 4*time.Second)},
		{Revision: Revision("7ab3440e2", "Use web 2.5.0", 27*time.Hour), Outcome: nodes.OutcomeSuperseded, Message: "superseded by 91c0de1", Seen: ago(27 * time.Hour), Ended: ago(26 * time.Hour)},
		{Revision: Revision("55e0b1c77", "Try the new queue", 51*time.Hour), Outcome: nodes.OutcomeRejected, Problems: 3, Seen: ago(51 * time.Hour), Ended: ago(51 * time.Hour)},
	}
	return o
}

// Troubled is the same cluster in the middle of a rollout that does not get
// on, with a rejected revision and notes.
func Troubled() *nodes.Overview {
	o := Healthy()
	o.Serial++
	o.Outcome = nodes.OutcomePending
	o.Sync.State, o.Sync.Message = "rejected", "revision 8d4f2e0 has 2 problems; 3f2a1bc stays in force"
	addDeployment(o, "shop", "payments", "registry.example.org/shop/payments:3.0.0", 2)
	breakRollout(o, key("apps", "Deployment", "shop", "payments"))
	slowRollout(o, key("apps", "Deployment", "shop", "catalog"))
	o.Rejected = &nodes.Rejection{
		Revision: Revision("8d4f2e0aa", "Give checkout its own deployment", 40*time.Second),
		Problems: []desired.Problem{
			{Severity: desired.Error, Code: "unknown-field", File: "shop/checkout.yaml", Line: 14, Field: "spec.template.spec.containers[0].imag", Message: "unknown field \"imag\"", Hint: "did you mean image?"},
			{Severity: desired.Error, Code: "missing-configmap", File: "shop/checkout.yaml", Line: 31, Field: "spec.template.spec.containers[0].envFrom[0].configMapRef.name", Message: "ConfigMap shop/checkout-config is not there", Hint: "add it, or set optional: true"},
		},
	}
	o.Problems = []desired.Problem{
		{Severity: desired.Warning, Code: "not-enforced", File: "shop/web.yaml", Line: 44, Message: "Ingress shop/web is accepted and not enforced: there is no ingress backend yet"},
		{Severity: desired.Note, Code: "no-effect", File: "shop/rbac.yaml", Line: 1, Field: "rules", Message: "Role shop/reader has no effect here"},
	}
	o.Plan = nodes.PlanOverview{
		Difference: []string{"change Deployment shop/payments: image payments:2.9.4 → payments:3.0.0", "change Deployment shop/catalog: memory limit 256Mi → 512Mi"},
		Actions:    []string{"start Pod shop/catalog-6f7c9b8d4-x2v9k on quay-1: rollout, 1 of at most 1 extra"},
		Waiting: []nodes.WaitingItem{
			{Object: key("apps", "Deployment", "shop", "catalog"), Reason: "1 new pod is not ready yet; an old one stops when it is", Deadline: Now.Add(9 * time.Minute)},
			{Object: key("", "Pod", "shop", "payments-5d9c8b7f6-a0000"), Reason: "the image is tried again", Deadline: Now.Add(40 * time.Second)},
			{Object: key("", "Node", "", "quay-2"), Reason: "has not put the newest routes into force yet", Deadline: Now.Add(50 * time.Second)},
		},
	}
	o.Nodes = append(o.Nodes, node("quay-2"))
	o.Nodes[1].Ready, o.Nodes[1].Since, o.Nodes[1].Reason = true, ago(2*time.Hour), ""
	o.Nodes[1].Leaving, o.Nodes[1].Unschedulable = 2, true
	o.Nodes[1].Notes = []string{"is cordoned: no new pods", "is drained: 2 of 5 pods left; pod shop/db-0: PodDisruptionBudget shop/db needs 3 of its 3 pods ready, and 3 are"}
	return o
}

// Large is a cluster of many healthy workloads of ten pods each.
func Large(workloads int) *nodes.Overview {
	o := Healthy()
	for i := range workloads {
		addDeployment(o, fmt.Sprintf("team-%02d", i%20), fmt.Sprintf("service-%03d", i), "registry.example.org/app:1", 10)
	}
	return o
}

func node(name string) nodes.NodeOverview {
	list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("16Gi")}
	state := nodes.NodeState{
		Node:  nodes.Node{Name: name, OS: "linux", Arch: "amd64", Kernel: "6.1.0-31", Runtime: "containerd 1.6.20", Version: "0.1.0", Capacity: list, Allocatable: list},
		Ready: true, Since: ago(40 * 24 * time.Hour), Routes: 17,
	}
	return nodes.NodeOverview{NodeState: state, Pods: 9, RequestedCPU: 1250, RequestedMemory: 3 << 30}
}

func services() []nodes.ServiceOverview {
	return []nodes.ServiceOverview{
		{Key: key("", "Service", "monitoring", "grafana"), Type: "NodePort", ClusterIPs: []string{"10.96.14.7"}, Ports: []nodes.ServicePort{{Protocol: "TCP", Port: 3000, NodePort: 30300, Endpoints: []string{"10.244.0.20:3000"}}}},
		{Key: key("", "Service", "shop", "catalog"), Type: "ClusterIP", ClusterIPs: []string{"10.96.8.12"}, Ports: []nodes.ServicePort{{Name: "http", Protocol: "TCP", Port: 80, Endpoints: []string{"10.244.0.11:8080", "10.244.0.12:8080"}, NotReady: 1}}},
		{Key: key("", "Service", "shop", "mail"), Type: "ExternalName", External: "smtp.example.org"},
		{Key: key("", "Service", "shop", "web"), Type: "NodePort", ClusterIPs: []string{"10.96.3.44"}, Ports: []nodes.ServicePort{
			{Name: "http", Protocol: "TCP", Port: 80, NodePort: 30080, Endpoints: []string{"10.244.0.3:8080", "10.244.0.4:8080", "10.244.0.5:8080", "10.244.0.6:8080", "10.244.0.7:8080"}},
		}},
	}
}

// addDeployment adds a healthy deployment with its ReplicaSet and pods.
func addDeployment(o *nodes.Overview, namespace, name, image string, replicas int) {
	deployment, set := key("apps", "Deployment", namespace, name), key("apps", "ReplicaSet", namespace, name+"-6f7c9b8d4")
	numbers := nodes.ObjectHealth{
		Key: deployment, From: desired.Place{File: namespace + "/" + name + ".yaml", Line: 1}, Health: nodes.Healthy, Created: ago(40 * 24 * time.Hour),
		Wanted: replicas, Current: replicas, Updated: replicas, Ready: replicas, Available: replicas, Template: "6f7c9b8d4",
	}
	o.Objects = append(o.Objects, numbers)
	numbers.Key, numbers.Owner, numbers.From, numbers.Created = set, deployment, desired.Place{}, ago(26*time.Hour)
	o.Objects = append(o.Objects, numbers)
	for i := range replicas {
		o.Objects = append(o.Objects, pod(set, fmt.Sprintf("%s-a%04d", set.Name, i), image, i))
	}
}

func pod(owner desired.Key, name, image string, i int) nodes.ObjectHealth {
	started := ago(26 * time.Hour)
	uid := nodes.UID("uid-" + name)
	return nodes.ObjectHealth{
		Key: key("", "Pod", owner.Namespace, name), Owner: owner, Health: nodes.Healthy, Created: started, Template: "6f7c9b8d4",
		Pod: &nodes.PodOverview{
			UID: uid, Node: "quay-1", IP: fmt.Sprintf("10.244.0.%d", 3+i), Revision: "91c0de11f" + strings.Repeat("0", 31), Images: []string{image},
			Status: nodes.PodStatus{
				UID: uid, Phase: corev1.PodRunning, IP: fmt.Sprintf("10.244.0.%d", 3+i), Started: started, Initialized: true, ContainersReady: true, Ready: true, ReadySince: started,
				Containers: []nodes.ContainerStatus{{Name: "app", State: nodes.Running, ID: "c-" + name, Image: image, ImageID: "sha256:" + strings.Repeat("ab", 32), Ready: true, Started: true, StartedAt: started}},
			},
		},
	}
}

// breakRollout lets the pods of a deployment fail to pull their image.
func breakRollout(o *nodes.Overview, deployment desired.Key) {
	const reason = "registry.example.org/shop/payments:3.0.0 can't be pulled: not found"
	edit(o, deployment, func(object *nodes.ObjectHealth) {
		object.Health, object.Reason = nodes.Degraded, "rollout of 5d9c8b7f6 stopped: "+reason
		object.Updated, object.Ready, object.Available, object.Template = 1, 2, 2, "5d9c8b7f6"
	})
	set := nodes.ObjectHealth{
		Key: key("apps", "ReplicaSet", "shop", "payments-5d9c8b7f6"), Owner: deployment, Health: nodes.Degraded, Reason: reason,
		Wanted: 1, Current: 1, Updated: 1, Created: ago(3 * time.Minute), Template: "5d9c8b7f6",
	}
	p := pod(set.Key, "payments-5d9c8b7f6-a0000", "registry.example.org/shop/payments:3.0.0", 30)
	p.Health, p.Reason, p.Created = nodes.Degraded, reason, ago(3*time.Minute)
	p.Pod.Status.Phase, p.Pod.Status.Ready = corev1.PodPending, false
	p.Pod.Status.Containers[0] = nodes.ContainerStatus{Name: "app", State: nodes.Waiting, Image: p.Pod.Images[0], Reason: "ImagePullBackOff", Message: "back-off 40s: manifest unknown"}
	o.Objects = append(o.Objects, set, p)
}

// slowRollout lets one pod of a deployment start, and another have restarted.
func slowRollout(o *nodes.Overview, deployment desired.Key) {
	edit(o, deployment, func(object *nodes.ObjectHealth) {
		object.Health, object.Reason = nodes.Progressing, "1 of 3 pods updated, 2 available"
		object.Updated, object.Ready, object.Available = 1, 2, 2
	})
	edit(o, key("", "Pod", "shop", "catalog-6f7c9b8d4-a0002"), func(object *nodes.ObjectHealth) {
		p := *object.Pod
		object.Health, object.Reason, object.Created = nodes.Progressing, "container app is starting", ago(4*time.Second)
		p.Status.Ready, p.Status.Containers = false, []nodes.ContainerStatus{{
			Name: "app", State: nodes.Running, Image: p.Images[0], Restarts: 2, StartedAt: ago(4 * time.Second),
			Last: &nodes.Termination{Reason: "OOMKilled", ExitCode: 137, StartedAt: ago(time.Hour), FinishedAt: ago(5 * time.Second)},
		}}
		object.Pod = &p
	})
}

func edit(o *nodes.Overview, k desired.Key, change func(*nodes.ObjectHealth)) {
	for i := range o.Objects {
		if o.Objects[i].Key == k {
			change(&o.Objects[i])
		}
	}
}
