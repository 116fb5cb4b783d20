package planner

import (
	"fmt"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// afterLoss is a planner without a record that hears one report, with the
// revision that was in force.
func (w *world) afterLoss(r nodes.Report) (*State, *Plan) {
	w.t.Helper()
	description := info(r.Node)
	r.Complete, r.Info = true, &description
	return Next(New(testConfig), Change{
		Snapshot: w.snapshot, Source: w.source, Reports: []nodes.Report{r},
		Nodes: []nodes.NodeState{{Node: description, Ready: true, Since: w.now}},
	}, w.now.Add(time.Hour)) // what is decided anew has other names
}

// learns lists what a plan tells a node, by name.
func learns(p *Plan) []string {
	var out []string
	for _, a := range p.Assignments {
		for _, c := range a.Configs {
			out = append(out, c.Key.Name)
		}
	}
	return out
}

func wasRefused(p *Plan, node string) bool {
	return slices.ContainsFunc(p.Events, func(e nodes.Event) bool {
		return e.Reason == "NotAdopted" && e.Object == desired.Key{Kind: kindNode, Name: node}
	})
}

// TestPodsThatANodeMadeUpAreNotAdopted: each lie is about a pod that the node
// really has, when nobody remembers it.
func TestPodsThatANodeMadeUpAreNotAdopted(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	stolen := configMap("stolen", map[string]string{"a": "b"})
	w.push(deployment("web", 1, envFrom("own")), deployment("other", 1), configMap("own", nil), stolen, claimFor("data", "1Gi"))
	w.settle()
	real := w.pods("web")[0]
	other := "n1"
	if real.Node == "n1" {
		other = "n2"
	}
	for _, c := range []struct {
		lie   string
		on    string
		local bool
		tell  func(*nodes.Pod)
		taken bool
	}{
		{"none", real.Node, false, func(*nodes.Pod) {}, true},
		{"the node's status of it", real.Node, false, func(p *nodes.Pod) { p.Stop = &nodes.Stop{Reason: "so"} }, true},
		{"another node has it", other, false, func(p *nodes.Pod) { p.Node = other }, false},
		{"its uid", real.Node, false, func(p *nodes.Pod) { p.UID = "x" }, false},
		{"its namespace", real.Node, false, func(p *nodes.Pod) { p.Namespace = "production" }, false},
		{"its name", real.Node, false, func(p *nodes.Pod) { p.Name = "web-0" }, false},
		{"its owner", real.Node, false, func(p *nodes.Pod) { p.Owner.Name = "other" }, false},
		{"its workload", real.Node, false, func(p *nodes.Pod) { p.Workload.Name = "other" }, false},
		{"its incarnation", real.Node, false, func(p *nodes.Pod) { p.Incarnation = 9 }, false},
		{"its ordinal", real.Node, false, func(p *nodes.Pod) { p.Ordinal = 0 }, false},
		{"its hostname", real.Node, false, func(p *nodes.Pod) { p.Hostname, p.Subdomain = "db", "db" }, false},
		{"its ServiceAccount", real.Node, false, func(p *nodes.Pod) { p.Template.Spec.ServiceAccountName = "admin" }, false},
		{"its labels", real.Node, false, func(p *nodes.Pod) { p.Labels = map[string]string{"app": "other"} }, false},
		{"its template's labels", real.Node, false, func(p *nodes.Pod) { p.Template.Labels = map[string]string{"app": "other"} }, false},
		{"what it reads", real.Node, false, func(p *nodes.Pod) { envFrom("stolen")(withTemplate(p)) }, false},
		{"its claim", real.Node, false, func(p *nodes.Pod) { withClaim("data")(withTemplate(p)) }, false},
		{"no seal", real.Node, false, func(p *nodes.Pod) { p.Seal = nil }, false},
		{"half a seal", real.Node, false, func(p *nodes.Pod) { p.Seal = p.Seal[:8] }, false},
		{"no seal, on the server's machine", real.Node, true, func(p *nodes.Pod) { p.Seal = nil }, true},
	} {
		held := *real.Pod
		template := *held.Template
		template.Spec = *held.Template.Spec.DeepCopy()
		held.Template = &template
		c.tell(&held)
		s, p := w.afterLoss(nodes.Report{Node: c.on, Local: c.local, Held: []*nodes.Pod{&held}, Statuses: []nodes.PodStatus{{UID: held.UID, Phase: corev1.PodRunning}}})
		if _, taken := s.pods.Get(held.UID); taken != c.taken || wasRefused(p, c.on) == c.taken {
			t.Errorf("%s: taken %v, refused %v; want taken %v", c.lie, taken, wasRefused(p, c.on), c.taken)
		}
		if slices.Contains(learns(p), "stolen") {
			t.Errorf("%s: the node learns %v", c.lie, learns(p))
		}
		if _, got := s.pod(held.UID); c.taken && string(got.Seal) != string(real.Seal) {
			t.Errorf("%s: sealed as %x, was %x", c.lie, got.Seal, real.Seal)
		}
	}
}

// withTemplate lets options for a Deployment change a pod.
func withTemplate(p *nodes.Pod) *appsv1.Deployment {
	d := &appsv1.Deployment{}
	d.Spec.Template.Spec = p.Template.Spec
	p.Template.Spec.Containers = d.Spec.Template.Spec.Containers
	p.Template.Spec.Volumes = append(p.Template.Spec.Volumes, corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"},
	}})
	return d
}

// TestVolumesThatANodeMadeUpAreNotAdopted: claims would lead pods, and what they
// read, to the node, and Secrets that drivers need.
func TestVolumesThatANodeMadeUpAreNotAdopted(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 1, withClaim("data")), claimFor("data", "1Gi"), claimFor("other", "1Gi"))
	w.settle()
	v := w.volumeOf("data")
	other := "n1"
	if v.Node == "n1" {
		other = "n2"
	}
	for _, c := range []struct {
		lie   string
		on    string
		local bool
		tell  func(*nodes.Volume)
		taken bool
	}{
		{"none", v.Node, false, func(*nodes.Volume) {}, true},
		{"how far it is", v.Node, false, func(v *nodes.Volume) { v.Made = !v.Made }, true},
		{"another node has it", other, false, func(*nodes.Volume) {}, false},
		{"another node says it has it", other, false, func(v *nodes.Volume) { v.Node = other }, false},
		{"any node has it", other, false, func(v *nodes.Volume) { v.Node = "" }, false},
		{"its name", v.Node, false, func(v *nodes.Volume) { v.Name = "pvc-x" }, false},
		{"its uid", v.Node, false, func(v *nodes.Volume) { v.UID = "x" }, false},
		{"its claim", v.Node, false, func(v *nodes.Volume) { v.Claim.Name = "other" }, false},
		{"its provisioner", v.Node, false, func(v *nodes.Volume) { v.Provisioner = "csi.example.com" }, false},
		{"its class", v.Node, false, func(v *nodes.Volume) { v.Class = "fast" }, false},
		{"its parameters", v.Node, false, func(v *nodes.Volume) {
			v.Parameters = map[string]string{"csi.storage.k8s.io/node-stage-secret-name": "s"}
		}, false},
		{"its source", v.Node, false, func(v *nodes.Volume) {
			v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "d", NodeStageSecretRef: &corev1.SecretReference{Name: "s"}}
		}, false},
		{"what it began with", v.Node, false, func(v *nodes.Volume) { v.From = &nodes.Origin{Name: "x"} }, false},
		{"that it is a snapshot", v.Node, false, func(v *nodes.Volume) { v.Snapshot = true }, false},
		{"that it was released", v.Node, false, func(v *nodes.Volume) { v.Released = epoch.Add(time.Hour) }, false},
		{"no seal", v.Node, false, func(v *nodes.Volume) { v.Seal = nil }, false},
		{"no seal, on the server's machine", v.Node, true, func(v *nodes.Volume) { v.Seal = nil }, true},
	} {
		held := *v.assigned
		c.tell(&held)
		s, p := w.afterLoss(nodes.Report{Node: c.on, Local: c.local, Volumes: []nodes.VolumeStatus{{Name: held.Name, UID: held.UID, Phase: nodes.VolumeReady, Held: &held}}})
		got, taken := s.volumes.Get(held.Name)
		if taken != c.taken || wasRefused(p, c.on) == c.taken {
			t.Errorf("%s: taken %v, refused %v; want taken %v", c.lie, taken, wasRefused(p, c.on), c.taken)
		}
		if c.taken && (string(got.assigned.Seal) != string(v.assigned.Seal) || len(got.Seal) > 0) {
			t.Errorf("%s: sealed as %x, was %x", c.lie, got.assigned.Seal, v.assigned.Seal)
		}
	}
}

// TestNodesReportOnThemselvesOnly: what one says of another's pods and volumes
// changes nothing.
func TestNodesReportOnThemselvesOnly(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 2, withClaim("data")), serviceFor("web"), claimFor("data", "1Gi"))
	w.settle()
	p, v := w.pods("web")[0], w.volumeOf("data")
	other := "n1"
	if p.Node == "n1" {
		other = "n2"
	}
	image := func() string {
		_, p := w.s.pod(p.UID)
		v := w.volumeOf("data")
		return fmt.Sprint(p.status, p.Stop, v.status, v.Made, v.Spec, w.s.routes, w.s.usage.Len())
	}
	before := image()
	w.next(Change{Reports: []nodes.Report{{
		Node: other, Statuses: []nodes.PodStatus{{UID: p.UID, Phase: corev1.PodFailed, IP: "203.0.113.9"}}, Gone: []nodes.UID{p.UID},
		Volumes: []nodes.VolumeStatus{
			{Name: v.Name, UID: v.UID, Phase: nodes.VolumeGone, Source: &corev1.CSIPersistentVolumeSource{Driver: "evil"}},
			{Name: v.Name, UID: v.UID, Phase: nodes.VolumeFailed, Source: &corev1.CSIPersistentVolumeSource{Driver: "evil"}},
		},
		Usage: []nodes.Usage{{Pod: p.UID}},
	}}})
	if after := image(); after != before {
		t.Errorf("another node's report changed\n%s\nto\n%s", before, after)
	}
}
