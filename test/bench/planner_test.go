//go:build e2e

package bench

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
)

const (
	fleetSize = 5000
	busyPods  = 150000
)

// benchPlanner measures the planner alone, on a cluster that no machine here
// could run: a whole step from snapshot to plan.
func benchPlanner(t *testing.T, all *figures) {
	plain := func(*appsv1.Deployment) {}
	all.add(t, higher("place-10000-pods-on-5000-nodes", placements(t, plain), "pods/s", 20000))
	all.add(t, higher("place-10000-pods-spread-and-apart", placements(t, spreadAndApart), "pods/s", 5000))
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f := busyFleet(t)
	runtime.GC()
	runtime.ReadMemStats(&after)
	all.add(t, told("planner-memory-per-pod", float64(after.HeapAlloc-before.HeapAlloc)/busyPods, "B"))
	all.add(t, lower("change-10-of-150000-pods", f.changeOne(t), "ms", 20))
	all.add(t, told("report-of-one-node-among-5000", f.reportOne(t), "ms"))
}

// placements is how many pods a second of 100 Deployments find a node.
func placements(t *testing.T, change func(*appsv1.Deployment)) float64 {
	t.Helper()
	f := newFleet(fleetSize)
	snapshot := f.snapshot(1, workloads(100, 100, change))
	var rates []float64
	for range 7 {
		begun := time.Now()
		_, p := planner.Next(f.state, planner.Change{Snapshot: snapshot, Source: "bench"}, f.now)
		took := time.Since(begun)
		bound := 0
		for i := range p.Assignments {
			bound += len(p.Assignments[i].Pods)
		}
		if bound != 100*100 {
			t.Fatalf("%d pods were placed", bound)
		}
		rates = append(rates, float64(bound)/took.Seconds())
	}
	return medianOf(rates)
}

// fleet is a planner and what it was told.
type fleet struct {
	state    *planner.State
	now      time.Time
	list     []*desired.Object
	statuses map[string][]nodes.PodStatus
	// routes is the newest generation of the route table.
	routes uint64
}

func (f *fleet) hear(p *planner.Plan) {
	if p.Routes != nil {
		f.routes = p.Routes.Generation
	}
}

func newFleet(size int) *fleet {
	f := &fleet{now: time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC), statuses: map[string][]nodes.PodStatus{}}
	f.state = planner.New(planner.Config{SecretKey: []byte("0123456789abcdef")})
	var c planner.Change
	for i := range size {
		room := corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("128Gi"), corev1.ResourcePods: resource.MustParse("32"),
		}
		n := nodes.Node{
			Name: fmt.Sprintf("node-%04d", i), Capacity: room, Allocatable: room, OS: "linux", Arch: "amd64",
			Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%3)},
		}
		c.Nodes = append(c.Nodes, nodes.NodeState{Node: n, Ready: true, Since: f.now})
		c.Reports = append(c.Reports, nodes.Report{Node: n.Name, Complete: true, Info: &n, Images: imagesOn(i)})
	}
	c.Snapshot, c.Source = f.snapshot(0, nil), "bench" // fixes the addresses: each node gets its range
	var p *planner.Plan
	f.state, p = planner.Next(f.state, c, f.now)
	f.hear(p)
	return f
}

// imagesUsed is how many images the workloads have together.
const imagesUsed = 200

func imageName(i int) string { return fmt.Sprintf("registry.example.org/team/app-%d:1", i%imagesUsed) }

// imagesOn are as many images as a node tells of; one in four nodes has each.
func imagesOn(node int) *nodes.Images {
	var list []nodes.Image
	for i := range nodes.MaxImages {
		list = append(list, nodes.Image{Names: []string{imageName(node + i*imagesUsed/nodes.MaxImages)}, Size: 400 << 20})
	}
	return nodes.NewImages(list)
}

func (f *fleet) snapshot(serial int, list []*desired.Object) *desired.Snapshot {
	r := desired.Revision{SHA: fmt.Sprintf("%040x", serial), Message: "bench", Time: f.now}
	settings := desired.DefaultSettings()
	settings.Network.Pods = netip.MustParsePrefix("10.128.0.0/9")
	return desired.NewSnapshot(r, settings, list, nil)
}

// busyFleet runs 150,000 pods of 1,500 Deployments, and one Deployment of 10.
func busyFleet(t *testing.T) *fleet {
	t.Helper()
	f := newFleet(fleetSize)
	f.list = append(workloads(busyPods/100, 100, func(*appsv1.Deployment) {}), workload("small", "app:1", 10))
	s, p := planner.Next(f.state, planner.Change{Snapshot: f.snapshot(1, f.list), Source: "bench"}, f.now)
	var reports []nodes.Report
	serial := 0
	for i := range p.Assignments {
		r := nodes.Report{Node: p.Assignments[i].Node}
		for _, pod := range p.Assignments[i].Pods {
			serial++
			r.Statuses = append(r.Statuses, nodes.PodStatus{
				UID: pod.UID, Phase: corev1.PodRunning, IP: fmt.Sprintf("10.%d.%d.%d", serial>>16, serial>>8&255, serial&255), Started: f.now,
				Initialized: true, ContainersReady: true, Ready: true, ReadySince: f.now,
				Containers: []nodes.ContainerStatus{{
					Name: "main", State: nodes.Running, Image: "app:1", ImageID: "sha256:8c5d8f1b3c5e", ID: string(pod.UID) + "-main", Ready: true, Started: true, StartedAt: f.now,
				}},
			})
		}
		reports = append(reports, r)
		f.statuses[r.Node] = r.Statuses
	}
	if serial != busyPods+10 {
		t.Fatalf("%d pods were placed", serial)
	}
	f.hear(p)
	s, p = planner.Next(s, planner.Change{Reports: reports}, f.now.Add(time.Second))
	f.hear(p)
	reports = nil
	for i := range fleetSize {
		reports = append(reports, nodes.Report{Node: fmt.Sprintf("node-%04d", i), Routes: f.routes})
	}
	f.now = f.now.Add(time.Minute)
	f.state, _ = planner.Next(s, planner.Change{Reports: reports}, f.now)
	if converged, failed := f.state.Settled(); !converged {
		t.Fatalf("the pods don't all run: %s", failed)
	}
	return f
}

// changeOne is how long the plan for one changed Deployment takes.
func (f *fleet) changeOne(t *testing.T) float64 {
	t.Helper()
	list := append(f.list[:len(f.list)-1:len(f.list)-1], workload("small", "app:2", 10))
	snapshot := f.snapshot(2, list)
	return f.median(t, planner.Change{Snapshot: snapshot, Source: "bench"}, true)
}

func (f *fleet) reportOne(t *testing.T) float64 {
	t.Helper()
	return f.median(t, planner.Change{Reports: []nodes.Report{{Node: "node-2500", Statuses: f.statuses["node-2500"]}}}, false)
}

// median of the steps that take in a change, in milliseconds.
func (f *fleet) median(t *testing.T, c planner.Change, acts bool) float64 {
	t.Helper()
	var took []float64
	for range 31 {
		begun := time.Now()
		_, p := planner.Next(f.state, c, f.now)
		took = append(took, time.Since(begun).Seconds()*1000)
		if (len(p.Actions) > 0) != acts {
			t.Fatalf("%d actions", len(p.Actions))
		}
	}
	return medianOf(took)
}

func workloads(n int, replicas int32, change func(*appsv1.Deployment)) (list []*desired.Object) {
	for i := range n {
		o := workload(fmt.Sprintf("app-%d", i), imageName(i), replicas)
		change(o.Value.(*appsv1.Deployment))
		list = append(list, o)
	}
	return list
}

func workload(name, image string, replicas int32) *desired.Object {
	d := &appsv1.Deployment{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
	labels := map[string]string{"app": name}
	d.Spec.Replicas, d.Spec.Selector = &replicas, &metav1.LabelSelector{MatchLabels: labels}
	d.Spec.Template = corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "main", Image: image,
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")}},
	}}}}
	return &desired.Object{
		Key: desired.Key{Group: "apps", Kind: "Deployment", Namespace: "default", Name: name}, From: desired.Place{File: name + ".yaml", Line: 1},
		Value: d, Fingerprint: name + image,
	}
}

// spreadAndApart spreads over zones, and keeps replicas on different nodes.
func spreadAndApart(d *appsv1.Deployment) {
	spec := &d.Spec.Template.Spec
	spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: d.Spec.Selector,
	}}
	spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
		LabelSelector: d.Spec.Selector, TopologyKey: corev1.LabelHostname,
	}}}}
}
