package planner

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apiruntime "k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// fleet is a planner that knows n nodes in three zones.
func fleet(n int) *State {
	var states []nodes.NodeState
	var reports []nodes.Report
	for i := range n {
		list := corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("32"), corev1.ResourceMemory: resource.MustParse("128Gi"), corev1.ResourcePods: resource.MustParse("32"),
		}
		node := nodes.Node{
			Name: fmt.Sprintf("node-%04d", i), Capacity: list, Allocatable: list, OS: "linux", Arch: "amd64",
			Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%3)},
		}
		states = append(states, nodes.NodeState{Node: node, Ready: true, Since: epoch})
		reports = append(reports, nodes.Report{Node: node.Name, Complete: true, Info: &node})
	}
	s, _ := Next(New(testConfig), Change{Nodes: states, Reports: reports, Snapshot: roomy(0, "nothing yet")}, epoch)
	return s
}

// roomy is a revision whose pod range has room for thousands of nodes.
func roomy(serial int, message string, objects ...apiruntime.Object) *desired.Snapshot {
	settings := desired.DefaultSettings()
	settings.Network.Pods = netip.MustParsePrefix("100.64.0.0/10")
	return snapshotWith(settings, serial, message, objects...)
}

func requesting(cpu, memory string) option {
	return func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory),
		}
	}
}

func runningStatus(uid nodes.UID, serial int, now time.Time) nodes.PodStatus {
	return nodes.PodStatus{
		UID: uid, Phase: corev1.PodRunning, IP: fmt.Sprintf("10.%d.%d.%d", serial>>16, serial>>8&255, serial&255), Started: now,
		Initialized: true, ContainersReady: true, Ready: true, ReadySince: now,
		Containers: []nodes.ContainerStatus{{
			Name: "main", State: nodes.Running, Image: "app:1", ImageID: "sha256:8c5d8f1b3c5e", ID: fmt.Sprintf("%s-main", uid), Ready: true, Started: true, StartedAt: now,
		}},
	}
}

// BenchmarkReportOfADaemonAmong5000 has one pod of a DaemonSet change.
func BenchmarkReportOfADaemonAmong5000(b *testing.B) {
	s := fleet(5000)
	s, p := Next(s, Change{Snapshot: snapshotOf(1, "all", daemonSet("agent")), Source: "embedded"}, epoch)
	var reports []nodes.Report
	for i := range p.Assignments {
		a := &p.Assignments[i]
		reports = append(reports, nodes.Report{Node: a.Node, Statuses: []nodes.PodStatus{runningStatus(a.Pods[0].UID, i, epoch)}})
	}
	if len(reports) != 5000 {
		b.Fatalf("%d pods", len(reports))
	}
	s, _ = Next(s, Change{Reports: reports}, epoch.Add(time.Second))
	one := reports[2500]
	one.Statuses[0].Ready = false
	b.ReportAllocs()
	for b.Loop() {
		Next(s, Change{Reports: []nodes.Report{one}}, epoch.Add(time.Minute))
	}
}

func ranked(priority int32) option {
	return func(d *appsv1.Deployment) { d.Spec.Template.Spec.Priority = &priority }
}

// fullFleet has 5,000 nodes without room: 16 pods of 2 cpus on each.
func fullFleet(b *testing.B, more ...apiruntime.Object) (*State, []apiruntime.Object) {
	var objects []apiruntime.Object
	for i := range 80 {
		objects = append(objects, deployment(fmt.Sprintf("app-%d", i), 1000, requesting("2", "1Gi"), ranked(-1)))
	}
	objects = append(objects, more...)
	s, p := Next(fleet(5000), Change{Snapshot: snapshotOf(1, "all", objects...), Source: "embedded"}, epoch)
	bound := 0
	for i := range p.Assignments {
		bound += len(p.Assignments[i].Pods)
	}
	if bound != 80000 {
		b.Fatalf("%d pods were placed", bound)
	}
	return s, objects
}

// BenchmarkPreempt100On5000 makes room for 100 pods on full nodes.
func BenchmarkPreempt100On5000(b *testing.B) {
	s, objects := fullFleet(b)
	snapshot := snapshotOf(2, "urgent", append(objects, deployment("urgent", 100, requesting("3", "1Gi")))...)
	b.ReportAllocs()
	for b.Loop() {
		_, p := Next(s, Change{Snapshot: snapshot, Source: "embedded"}, epoch.Add(time.Second))
		if len(p.Actions) == 0 {
			b.Fatal("nobody goes")
		}
	}
}

// BenchmarkRoomFor10000Waiting has one pod end while 10,000 wait for room of
// another size.
func BenchmarkRoomFor10000Waiting(b *testing.B) {
	var waiting []apiruntime.Object
	for i := range 10 {
		waiting = append(waiting, deployment(fmt.Sprintf("large-%d", i), 1000, requesting("5", "1Gi"), ranked(-1)))
	}
	s, _ := fullFleet(b, waiting...)
	n, _ := s.nodes.Get("node-2500")
	var gone nodes.UID
	for uid := range keys(n.pods) {
		gone = uid
	}
	failed := runningStatus(gone, 1, epoch)
	failed.Phase, failed.Ready = corev1.PodFailed, false
	b.ReportAllocs()
	for b.Loop() {
		Next(s, Change{Reports: []nodes.Report{{Node: n.Name, Statuses: []nodes.PodStatus{failed}}}}, epoch.Add(time.Second))
	}
}
