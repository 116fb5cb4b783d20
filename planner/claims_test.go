package planner

import (
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

type pvc = corev1.PersistentVolumeClaim

func claimFor(name, size string, options ...func(*pvc)) *pvc {
	c := &pvc{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: kindClaim}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	for _, o := range options {
		o(c)
	}
	return c
}

func ofClass(name string) func(*pvc) { return func(c *pvc) { c.Spec.StorageClassName = &name } }

func access(modes ...corev1.PersistentVolumeAccessMode) func(*pvc) {
	return func(c *pvc) { c.Spec.AccessModes = modes }
}

// withClaim mounts a claim in a Deployment's pods.
func withClaim(claim string) option {
	return func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Volumes = append(d.Spec.Template.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
	}
}

func class(name, provisioner string, options ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	c := &storagev1.StorageClass{TypeMeta: metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: kindClass}, ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner}
	for _, o := range options {
		o(c)
	}
	return c
}

func retains(c *storagev1.StorageClass) {
	policy := corev1.PersistentVolumeReclaimRetain
	c.ReclaimPolicy = &policy
}

func (w *world) claim(name string) *claim {
	c, _ := w.s.claims.Get(storage.ClaimKey("default", name))
	return c
}

// volumeOf is the volume that a claim has; nil for none.
func (w *world) volumeOf(name string) *volume {
	c := w.claim(name)
	if c == nil {
		return nil
	}
	v, _ := w.s.volumes.Get(c.Volume)
	return v
}

func (w *world) health(k desired.Key) nodes.ObjectHealth {
	w.t.Helper()
	for _, h := range w.s.Overview(w.now).Objects {
		if h.Key == k {
			return h
		}
	}
	w.t.Fatalf("the overview has no %s", k)
	return nodes.ObjectHealth{}
}

func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	w.next(Change{})
}

func TestAClaimIsBoundWithItsFirstPod(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.push(claimFor("data", "1Gi"))
	w.settle()
	if c := w.claim("data"); c.Volume != "" || !c.consumer {
		t.Fatalf("the claim did not wait for a pod: %+v", c.claimRecord)
	}
	if h := w.health(storage.ClaimKey("default", "data")); h.Health != nodes.Healthy || h.Storage.Phase != "Pending" {
		t.Errorf("a claim without consumer is %s, %s", h.Health, h.Storage.Phase)
	}
	p := w.push(claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")))
	pod, v := w.pods("db")[0], w.volumeOf("data")
	if v == nil || v.Node != pod.Node || v.Name != "pvc-"+w.claim("data").UID || v.Provisioner != nodes.LocalProvisioner {
		t.Fatalf("pod on %q, volume %+v", pod.Node, v)
	}
	i := slices.IndexFunc(p.Assignments, func(a nodes.Assignment) bool { return a.Node == pod.Node })
	if got := p.Assignments[i].Volumes; len(got) != 1 || got[0].Name != v.Name {
		t.Errorf("pod and volume did not come in one assignment: %v", got)
	}
	w.settle()
	if h := w.health(storage.ClaimKey("default", "data")); h.Storage.Phase != "Bound" || h.Storage.Node != pod.Node || h.Storage.Capacity != "1Gi" || !slices.Equal(h.Storage.Pods, []string{pod.Name}) {
		t.Errorf("the overview says %+v", h.Storage)
	}
	// Pods that come later follow the data.
	w.push(claimFor("data", "1Gi"), deployment("db", 3, withClaim("data")))
	w.settle()
	for _, p := range w.pods("db") {
		if p.Node != pod.Node {
			t.Errorf("pod %s runs on %s, its data is on %s", p.Name, p.Node, pod.Node)
		}
	}
}

func TestDataIsNotDeletedBeforeItsTime(t *testing.T) {
	w := newWorld(t, "a")
	other := configMap("x", nil)
	w.push(other, claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")))
	w.settle()
	v := w.volumeOf("data")

	p := w.push(other)
	if p.Hold == nil || !strings.Contains(p.Hold.Why, "PersistentVolumeClaim default/data") || p.Hold.Confirm != "Tally-Confirm: delete 2" {
		t.Fatalf("a revision that ends data is not held: %+v", p.Hold)
	}
	w.pushWith("away\n\n"+p.Hold.Confirm, other)
	if _, bound := w.s.volumes.Get(v.Name); !bound || w.claim("data") == nil {
		t.Fatal("the claim went before its pod")
	}
	w.settle()
	if w.claim("data") != nil {
		t.Fatal("the claim outlives its last pod")
	}
	h := w.health(volumeKey(v.Name))
	if h.Storage.Phase != "Released" || h.Storage.Until.Sub(w.now) != 24*time.Hour || !strings.Contains(h.Reason, "comes back") {
		t.Errorf("the released volume is shown as %+v: %s", h.Storage, h.Reason)
	}
	w.pass(24*time.Hour - time.Second)
	if w.machines["a"].disk[v.Name].Delete {
		t.Fatal("data was deleted before its time")
	}

	// Back in time, the claim finds its data; and its time starts anew.
	w.push(other, claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")))
	w.settle()
	if got := w.volumeOf("data"); got == nil || got.Name != v.Name {
		t.Fatalf("the claim came back with another volume: %+v", got)
	}
	w.pushWith("away\n\nTally-Confirm: delete 2", other)
	w.settle()
	w.pass(24*time.Hour - time.Second)
	if w.machines["a"].disk[v.Name].Delete {
		t.Fatal("data was deleted before its time")
	}
	w.pass(time.Second)
	w.settle()
	if len(w.machines["a"].disk) != 0 || w.s.volumes.Len() != 0 {
		t.Errorf("data that nobody wants is still there: %v", w.machines["a"].disk)
	}
	for id := range w.record {
		if id.kind == kindOfVolume || id.kind == kindOfClaim {
			t.Errorf("the record still has %v", id)
		}
	}
}

func TestRetainedDataStays(t *testing.T) {
	w := newWorld(t, "a")
	c := class("safe", nodes.LocalProvisioner, retains)
	data := claimFor("data", "1Gi", ofClass("safe"))
	w.push(c, data)
	w.settle()
	v := w.volumeOf("data") // Immediate
	if v == nil {
		t.Fatal("a class without binding mode did not bind at once")
	}
	if p := w.push(c); p.Hold != nil {
		t.Fatalf("a revision that ends no data is held: %s", p.Hold.Why)
	}
	w.pass(1000 * time.Hour)
	w.settle()
	if w.machines["a"].disk[v.Name] == nil || w.claim("data") != nil {
		t.Fatal("retained data is gone, or its claim is not")
	}
	w.push(c, data)
	if got := w.volumeOf("data"); got == nil || got.Name != v.Name {
		t.Errorf("the claim came back with another volume: %+v", got)
	}
}

func TestALostRecordFindsTheData(t *testing.T) {
	for name, ledger := range map[string]bool{"with the node's ledger": true, "without any": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a")
			w.push(claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")))
			w.settle()
			v := w.volumeOf("data")
			if !ledger {
				w.machines["a"].ledger = nil
			}
			w.restart(false)
			w.join("a")
			w.next(Change{Snapshot: w.snapshot, Source: w.source})
			w.settle()
			if got := w.volumeOf("data"); got == nil || got.Name != v.Name || !got.Made {
				t.Fatalf("the claim has another volume: %+v", got)
			}
			if c := w.claim("data"); c.Adopted || c.object == nil {
				t.Errorf("the claim is not Git's again: %+v", c.claimRecord)
			}
		})
	}
}

// Nobody knows whether data of which only a node knows is wanted.
func TestAdoptedDataIsKept(t *testing.T) {
	w := newWorld(t, "a")
	w.push(configMap("x", nil), claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")))
	w.settle()
	name := w.volumeOf("data").Name
	w.machines["a"].ledger, w.machines["a"].held = nil, map[nodes.UID]*nodes.Pod{}
	clear(w.machines["a"].status)
	w.restart(false)
	w.join("a")
	w.push(configMap("x", nil))
	w.settle()
	w.pass(1000 * time.Hour)
	w.settle()
	if w.machines["a"].disk[name] == nil {
		t.Fatal("data was deleted for lack of knowledge")
	}
	if h := w.health(storage.ClaimKey("default", "data")); !strings.Contains(h.Reason, "kept") {
		t.Errorf("nothing says that it is kept: %+v", h)
	}
	// Written and removed again, it goes.
	w.push(configMap("x", nil), claimFor("data", "1Gi"))
	w.pushWith("away\n\nTally-Confirm: delete 1", configMap("x", nil))
	w.pass(24 * time.Hour)
	w.settle()
	if len(w.machines["a"].disk) != 0 {
		t.Error("data that Git gave up is still there")
	}
}

func TestARestartDecidesNothingAnew(t *testing.T) {
	w := newWorld(t, "a")
	w.push(claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")), hostVolume("pv", "1Gi", "/x"))
	w.settle()
	w.restart(true)
	w.join("a")
	p := w.next(Change{Snapshot: w.snapshot, Source: w.source})
	for _, d := range p.Decisions {
		if d.Kind == kindOfClaim || d.Kind == kindOfVolume {
			t.Errorf("decided anew: %s %s", d.Kind, d.Value)
		}
	}
	w.settle()
}

// After a start the record is known before the revision is.
func TestTheOverviewBeforeTheRevision(t *testing.T) {
	w := newWorld(t, "a")
	w.push(configMap("x", nil), claimFor("data", "1Gi"), claimFor("old", "1Gi"), hostVolume("pv", "1Gi", "/x"), deployment("db", 1, withClaim("data"), withClaim("old")))
	w.settle()
	w.pushWith("x\n\nTally-Confirm: delete 1", configMap("x", nil), claimFor("data", "1Gi"), hostVolume("pv", "1Gi", "/x"), deployment("db", 1, withClaim("data")))
	w.settle()
	old := w.volumeOf("data").Name
	w.restart(true)
	w.join("a")
	if h := w.health(volumeKey(old)); h.Storage.Phase != "Bound" {
		t.Errorf("the volume is shown as %+v", h.Storage)
	}
}

// TestDataBeforeItsPodIsMadeWherePodsMayGo: a claim that waits for no pod gets its
// volume on no node that Git has cordoned, and on a tainted one only where all are.
func TestDataBeforeItsPodIsMadeWherePodsMayGo(t *testing.T) {
	now := storagev1.VolumeBindingImmediate
	atOnce := class("now", nodes.LocalProvisioner, func(c *storagev1.StorageClass) { c.VolumeBindingMode = &now })
	cordoned := func(name string) *corev1.Node {
		n := machineOf(name)
		n.Spec.Unschedulable = true
		return n
	}
	tests := map[string]struct {
		said []runtime.Object
		want string
	}{
		"free":             {nil, "a"},
		"cordoned":         {[]runtime.Object{cordoned("a")}, "b"},
		"drained":          {[]runtime.Object{machineOf("a", drainNow)}, "b"},
		"all tainted":      {[]runtime.Object{machineOf("a", drainNow), machineOf("b", drainNow)}, "a"},
		"the other closed": {[]runtime.Object{machineOf("a", drainNow), cordoned("b")}, "a"},
		"all cordoned":     {[]runtime.Object{cordoned("a"), cordoned("b")}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			w.push(append(test.said, atOnce)...)
			w.push(append(test.said, atOnce, claimFor("data", "1Gi", ofClass("now")))...)
			w.work()
			if test.want == "" {
				if c := w.claim("data"); c.Volume != "" || c.stuck || !strings.Contains(c.waits, "unschedulable") {
					t.Fatalf("volume %q, waits %q", c.Volume, c.waits)
				}
				w.push(atOnce, claimFor("data", "1Gi", ofClass("now")))
				test.want = "a"
			}
			if v := w.volumeOf("data"); v == nil || v.Node != test.want {
				t.Fatalf("volume %+v, want it on %s", v, test.want)
			}
		})
	}
}

func TestReadWriteOncePodIsForOne(t *testing.T) {
	w := newWorld(t, "a")
	w.push(claimFor("data", "1Gi", access(corev1.ReadWriteOncePod)), deployment("one", 1, withClaim("data")), deployment("two", 1, withClaim("data")))
	for w.turn() {
	}
	first, second := w.pods("one")[0], w.pods("two")[0]
	if first.Node == "" || second.Node != "" || !strings.Contains(second.refusal, "ReadWriteOncePod and pod "+first.Name) {
		t.Fatalf("first on %q, second on %q: %q", first.Node, second.Node, second.refusal)
	}
	w.push(claimFor("data", "1Gi", access(corev1.ReadWriteOncePod)), deployment("two", 1, withClaim("data")))
	w.settle()
	if w.pods("two")[0].Node == "" {
		t.Error("the second pod still waits")
	}
}

func TestAVolumeGrows(t *testing.T) {
	w := newWorld(t, "a")
	w.push(claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")))
	w.settle()
	pods := w.uids("db")
	w.push(claimFor("data", "2Gi"), deployment("db", 1, withClaim("data")))
	if converged, _ := w.s.Settled(); converged {
		t.Error("converged before the volume has grown")
	}
	w.settle()
	size := w.volumeOf("data").Spec.Capacity[corev1.ResourceStorage]
	if size.String() != "2Gi" || w.health(storage.ClaimKey("default", "data")).Storage.Capacity != "2Gi" {
		t.Errorf("the volume has %s", size.String())
	}
	if !slices.Equal(pods, w.uids("db")) {
		t.Error("growing replaced the pods")
	}
}

func hostVolume(name, size, path string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: kindVolume}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}},
		},
	}
}

func TestVolumesOfGit(t *testing.T) {
	w := newWorld(t, "a")
	pv := hostVolume("pv", "5Gi", "/srv")
	w.push(pv, claimFor("data", "1Gi", ofClass("")), deployment("db", 1, withClaim("data")))
	w.settle()
	v := w.volumeOf("data")
	if v == nil || v.Name != "pv" {
		t.Fatalf("the claim has %+v", v)
	}
	if got := w.s.volumesFor(mustNode(w, "a")); len(got) != 1 || got[0].Spec.HostPath == nil || got[0].Claim.Name != "data" {
		t.Errorf("the node gets %+v", got)
	}
	// The claim goes: the volume is not another's, and nothing is deleted.
	w.push(pv)
	w.settle()
	w.push(pv, claimFor("other", "1Gi", ofClass("")))
	w.pass(1000 * time.Hour)
	if c := w.claim("other"); c.Volume != "" || !c.stuck {
		t.Errorf("a released volume was given to another: %+v", c.claimRecord)
	}
	w.push(pv, claimFor("data", "1Gi", ofClass("")))
	if v := w.volumeOf("data"); v == nil || v.Name != "pv" {
		t.Error("the claim did not get its volume back")
	}
	// The volume goes first: it stays while it is in use.
	w.pushWith("x\n\nTally-Confirm: delete 1", claimFor("data", "1Gi", ofClass("")))
	if h := w.health(volumeKey("pv")); h.Storage.Phase != "Bound" || !strings.Contains(h.Reason, "no longer in Git") {
		t.Errorf("the volume in use is shown as %+v", h)
	}
	w.pushWith("x\n\nTally-Confirm: delete 1", configMap("x", nil))
	w.settle()
	if w.s.volumes.Len()+w.s.claims.Len() != 0 {
		t.Error("the volume outlives its claim")
	}
}

func mustNode(w *world, name string) *node {
	n, _ := w.s.nodes.Get(name)
	return n
}

func ephemeral(d *appsv1.Deployment) {
	t := claimFor("", "1Gi")
	d.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{
		Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: t.Spec}},
	}}}
}

func TestEphemeralVolumesEndWithTheirPod(t *testing.T) {
	w := newWorld(t, "a")
	w.push(configMap("x", nil), deployment("job", 2, ephemeral))
	w.settle()
	if w.s.claims.Len() != 2 || len(w.machines["a"].disk) != 2 {
		t.Fatalf("%d claims, %d volumes", w.s.claims.Len(), len(w.machines["a"].disk))
	}
	pod := w.pods("job")[0]
	if h := w.health(storage.ClaimKey("default", pod.Name+"-scratch")); h.Owner != pod.Key() || h.Storage.Phase != "Bound" {
		t.Errorf("the claim is shown as %+v", h)
	}
	if p := w.push(configMap("x", nil)); p.Hold != nil {
		t.Fatalf("ephemeral data trips the guard: %s", p.Hold.Why)
	}
	w.settle()
	if w.s.claims.Len()+w.s.volumes.Len()+len(w.machines["a"].disk) != 0 {
		t.Errorf("left: %d claims, %d volumes, %v", w.s.claims.Len(), w.s.volumes.Len(), w.machines["a"].disk)
	}
}

func TestClaimsThatNothingServes(t *testing.T) {
	tests := map[string]struct {
		objects []runtime.Object
		want    string
	}{
		"no such class": {
			want:    "there is no StorageClass gp2",
			objects: []runtime.Object{claimFor("data", "1Gi", ofClass("gp2"))},
		},
		"a cloud's provisioner": {
			want:    "which does not run here",
			objects: []runtime.Object{class("gp2", "kubernetes.io/aws-ebs"), claimFor("data", "1Gi", ofClass("gp2"))},
		},
		"a driver that is not there": {
			want:    "no node runs this driver",
			objects: []runtime.Object{class("gp3", "ebs.csi.aws.com"), claimFor("data", "1Gi", ofClass("gp3"))},
		},
		"static only": {
			want:    "the class makes none",
			objects: []runtime.Object{class("manual", "kubernetes.io/no-provisioner"), claimFor("data", "1Gi", ofClass("manual"))},
		},
		"no class wanted": {
			want:    `storageClassName ""`,
			objects: []runtime.Object{claimFor("data", "1Gi", ofClass(""))},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a")
			w.push(append(test.objects, deployment("db", 1, withClaim("data")))...)
			for w.turn() {
			}
			h := w.health(storage.ClaimKey("default", "data"))
			if h.Health != nodes.Degraded || h.Storage.Phase != "Pending" || !strings.Contains(h.Reason, test.want) {
				t.Errorf("the claim is %s, %s: %s", h.Health, h.Storage.Phase, h.Reason)
			}
			if p := w.pods("db")[0]; p.Node != "" || !strings.Contains(p.refusal, test.want) {
				t.Errorf("the pod is on %q: %s", p.Node, p.refusal)
			}
		})
	}
}

func TestAPodStaysWithItsSilentNode(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.push(claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")))
	w.settle()
	on := w.pods("db")[0].Node
	w.push(claimFor("data", "1Gi"))
	w.settle()
	w.next(Change{Nodes: []nodes.NodeState{{Node: nodes.Node{Name: on}, Ready: false, Since: w.now}}})
	w.push(claimFor("data", "1Gi"), deployment("db", 1, withClaim("data")))
	p := w.pods("db")[0]
	if p.Node != "" || !strings.Contains(p.refusal, "0/2 nodes fit") || !strings.Contains(p.refusal, "does not hold volume pvc-") {
		t.Errorf("the pod is on %q: %s", p.Node, p.refusal)
	}
}

func statefulSetWith(replicas int32, policy *appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy) *appsv1.StatefulSet {
	d := deployment("db", replicas)
	return &appsv1.StatefulSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"}, ObjectMeta: d.ObjectMeta,
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, Selector: d.Spec.Selector, Template: d.Spec.Template, ServiceName: "db",
			PodManagementPolicy: appsv1.ParallelPodManagement, PersistentVolumeClaimRetentionPolicy: policy,
			VolumeClaimTemplates: []pvc{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: claimFor("", "1Gi").Spec}},
		},
	}
}

func TestClaimsOfAStatefulSet(t *testing.T) {
	keep := configMap("x", nil)
	w := newWorld(t, "a")
	w.push(keep, statefulSetWith(3, nil))
	w.settle()
	first := w.volumeOf("data-db-0")
	if w.s.claims.Len() != 3 || first == nil {
		t.Fatalf("%d claims, the first has %+v", w.s.claims.Len(), first)
	}
	if h := w.health(storage.ClaimKey("default", "data-db-2")); h.Owner.Kind != "StatefulSet" || h.Storage.Phase != "Bound" {
		t.Errorf("a claim of the set is shown as %+v", h)
	}
	// Scaled down and removed: the default keeps all of it, and says how to end it.
	w.push(keep, statefulSetWith(1, nil))
	w.settle()
	if p := w.push(keep); p.Hold != nil {
		t.Fatalf("nothing would be deleted, and yet it is held: %s", p.Hold.Why)
	}
	w.settle()
	w.pass(1000 * time.Hour)
	w.settle()
	if len(w.machines["a"].disk) != 3 || w.s.claims.Len() != 3 {
		t.Fatalf("%d claims and %d volumes are left of 3", w.s.claims.Len(), len(w.machines["a"].disk))
	}
	if h := w.health(storage.ClaimKey("default", "data-db-0")); !strings.Contains(h.Reason, "write the claim in Git and remove it again") {
		t.Errorf("nothing says how to delete it: %+v", h)
	}
	w.push(keep, statefulSetWith(1, nil))
	w.settle()
	if v := w.volumeOf("data-db-0"); v.Name != first.Name {
		t.Error("the pod came back with other data")
	}
}

func TestRetentionPolicies(t *testing.T) {
	const keep, ends = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	other := configMap("x", nil)
	t.Run("whenScaled", func(t *testing.T) {
		policy := &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenScaled: ends, WhenDeleted: keep}
		w := newWorld(t, "a")
		w.push(other, statefulSetWith(2, policy))
		w.settle()
		second := w.volumeOf("data-db-1").Name
		if d := w.push(other, statefulSetWith(1, policy)).Difference[0]; d.Reason != "2 → 1 replica, and the claims of 1 pod end (whenScaled: Delete)" {
			t.Errorf("the plan says %q", d.Reason)
		}
		w.settle()
		w.pass(23 * time.Hour)
		w.push(other, statefulSetWith(2, policy))
		w.settle()
		if w.volumeOf("data-db-1").Name != second {
			t.Error("scaled up again in time, the pod has other data")
		}
		w.push(other, statefulSetWith(1, policy))
		w.settle()
		w.pass(24 * time.Hour)
		w.settle()
		if w.s.claims.Len() != 1 || len(w.machines["a"].disk) != 1 {
			t.Errorf("%d claims, %d volumes", w.s.claims.Len(), len(w.machines["a"].disk))
		}
	})
	t.Run("whenDeleted", func(t *testing.T) {
		policy := &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenScaled: keep, WhenDeleted: ends}
		w := newWorld(t, "a")
		w.push(other, statefulSetWith(2, policy))
		w.settle()
		p := w.push(other)
		if p.Hold == nil || !strings.Contains(p.Hold.Why, "data of 2 claims") {
			t.Fatalf("not held: %+v", p.Hold)
		}
		w.pushWith("x\n\n"+p.Hold.Confirm, other)
		w.settle()
		w.pass(24 * time.Hour)
		w.settle()
		if w.s.claims.Len()+len(w.machines["a"].disk) != 0 {
			t.Errorf("%d claims, %d volumes", w.s.claims.Len(), len(w.machines["a"].disk))
		}
	})
	t.Run("namespace", func(t *testing.T) {
		w := newWorld(t, "a")
		outside := configMap("x", nil)
		outside.Namespace = "elsewhere"
		w.push(outside, namespace("default"), statefulSetWith(2, nil))
		w.settle()
		p := w.push(outside)
		if p.Hold == nil {
			t.Fatal("a namespace with data goes without a word")
		}
		w.pushWith("x\n\n"+p.Hold.Confirm, outside)
		w.settle()
		w.pass(24 * time.Hour)
		w.settle()
		if w.s.claims.Len()+len(w.machines["a"].disk) != 0 {
			t.Errorf("%d claims, %d volumes", w.s.claims.Len(), len(w.machines["a"].disk))
		}
	})
}

// TestANamespaceThatComesBackKeepsItsClaims: what was said when it left Git
// does not hold for claims that pods want again.
func TestANamespaceThatComesBackKeepsItsClaims(t *testing.T) {
	w := newWorld(t, "a")
	outside := configMap("x", nil)
	outside.Namespace = "elsewhere"
	w.push(outside, namespace("default"), statefulSetWith(2, nil))
	w.settle()
	p := w.push(outside)
	w.pushWith("x\n\n"+p.Hold.Confirm, outside)
	w.push(outside, namespace("default"), statefulSetWith(2, nil))
	w.settle()
	w.push(outside, namespace("default"), statefulSetWith(1, nil))
	w.settle()
	w.pass(1000 * time.Hour)
	w.settle()
	if w.s.claims.Len() != 2 || len(w.machines["a"].disk) != 2 {
		t.Errorf("%d claims and %d volumes are left of 2, though the policy is Retain", w.s.claims.Len(), len(w.machines["a"].disk))
	}
}

// TestClaimsOfOrdinalsThatAnAutoscalerWants stay, however few pods Git begins with.
func TestClaimsOfOrdinalsThatAnAutoscalerWants(t *testing.T) {
	policy := &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
		WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType,
	}
	w := newWorld(t, "a")
	set := statefulSetWith(1, policy)
	w.push(set, autoscaler("db", kindStatefulSet, 2, 3))
	w.settle()
	w.expectPods("db", 2)
	if why := begin(w.s, w.now).ends(w.claim("data-db-1")); why != "" {
		t.Errorf("the claim of a pod that the autoscaler wants is to end: %s", why)
	}
}

// TestClaimsGrowWithTheirTemplate makes volumes of a StatefulSet larger, whose
// claims nobody can edit by hand.
func TestClaimsGrowWithTheirTemplate(t *testing.T) {
	sized := func(size string) *appsv1.StatefulSet {
		s := statefulSetWith(2, nil)
		s.Spec.VolumeClaimTemplates[0].Spec = claimFor("", size).Spec
		return s
	}
	w := newWorld(t, "a")
	w.push(sized("1Gi"))
	w.settle()
	pods := w.uids("db")
	plan := w.push(sized("2Gi"))
	if d := plan.Difference[0]; d.Op != Update || !strings.Contains(d.Reason, "claims that are there grow with their template") {
		t.Errorf("difference: %s", d)
	}
	w.settle()
	for _, name := range []string{"data-db-0", "data-db-1"} {
		v := w.volumeOf(name)
		if size := v.view.Capacity(); size.String() != "2Gi" || v.status.Capacity != 2<<30 {
			t.Errorf("%s has a volume of %s, its node says %d", name, size.String(), v.status.Capacity)
		}
	}
	w.push(sized("1Gi"))
	w.settle()
	if size := w.claim("data-db-0").wants.Size(); size.String() != "2Gi" {
		t.Errorf("the claim shrank to %s", size.String())
	}
	if !slices.Equal(pods, w.uids("db")) {
		t.Error("pods were replaced")
	}
}
