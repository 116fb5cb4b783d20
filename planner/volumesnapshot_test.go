package planner

import (
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// now is a class without waiting for pods.
var now = class("now", nodes.LocalProvisioner)

func snapshotFor(name, claim, class string) *snapshotv1.VolumeSnapshot {
	s := &snapshotv1.VolumeSnapshot{
		TypeMeta: metav1.TypeMeta{APIVersion: snapshotGroup + "/v1", Kind: kindSnapshot}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}},
	}
	if class != "" {
		s.Spec.VolumeSnapshotClassName = &class
	}
	return s
}

func snapshotClassFor(name, driver string, policy snapshotv1.DeletionPolicy) *snapshotv1.VolumeSnapshotClass {
	return &snapshotv1.VolumeSnapshotClass{
		TypeMeta: metav1.TypeMeta{APIVersion: snapshotGroup + "/v1", Kind: kindSnapshotClass}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Driver: driver, DeletionPolicy: policy,
	}
}

// from has a claim begin with something.
func from(group, kind, name string) func(*pvc) {
	return func(c *pvc) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: kind, Name: name}
		if group != "" {
			c.Spec.DataSource.APIGroup = &group
		}
	}
}

func snapshotKey(name string) desired.Key {
	return desired.Key{Group: snapshotGroup, Kind: kindSnapshot, Namespace: "default", Name: name}
}

// contentOf is the data of a snapshot; nil for none.
func (w *world) contentOf(name string) *volume {
	s, ok := w.s.snapshots.Get(snapshotKey(name))
	if !ok {
		return nil
	}
	v, _ := w.s.volumes.Get(s.Volume)
	return v
}

func TestASnapshotIsTakenWhereTheDataIs(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.push(now, claimFor("data", "1Gi", ofClass("now")), snapshotFor("before", "data", ""), claimFor("restored", "2Gi", ofClass("now"), from(snapshotGroup, kindSnapshot, "before")))
	if v := w.contentOf("before"); v != nil {
		t.Fatalf("a snapshot was begun of a volume that is not made: %+v", v.Volume)
	}
	if h := w.health(keyOf(claimFor("restored", "2Gi"))); h.Storage.Phase != "Pending" || !strings.Contains(h.Reason, "VolumeSnapshot") {
		t.Errorf("the claim does not wait for its data source: %s", h.Reason)
	}
	w.settle()
	source, content, restored := w.volumeOf("data"), w.contentOf("before"), w.volumeOf("restored")
	if content == nil || !content.Snapshot || content.Node != source.Node || *content.From != (nodes.Origin{Name: source.Name, UID: source.UID}) || !content.Made {
		t.Fatalf("the snapshot's data: %+v", content)
	}
	if restored == nil || restored.Node != source.Node || *restored.From != (nodes.Origin{Name: content.Name, UID: content.UID}) {
		t.Fatalf("the restored volume: %+v", restored)
	}
	if h := w.health(snapshotKey("before")); h.Health != nodes.Healthy || h.Storage.Phase != "Ready" || h.Storage.Capacity != "1Gi" {
		t.Errorf("the snapshot is shown as %s, %+v", h.Health, h.Storage)
	}
	if p := w.next(Change{}); !p.Empty() {
		t.Errorf("a converged cluster gives a plan: %+v", p)
	}
	w.restart(true)
	w.join("a")
	w.join("b")
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.settle()
	if got := w.contentOf("before"); got == nil || got.Name != content.Name || len(w.machines[source.Node].disk) != 3 {
		t.Errorf("a restart took another snapshot: %+v", got)
	}
}

func TestAClone(t *testing.T) {
	w := newWorld(t, "a", "b")
	// The clone's class waits for a pod, which then has to go where the data is.
	w.push(now, claimFor("data", "1Gi", ofClass("now")), claimFor("copy", "1Gi", from("", kindClaim, "data")), deployment("db", 1, withClaim("copy")))
	w.settle()
	source, clone := w.volumeOf("data"), w.volumeOf("copy")
	if clone == nil || clone.From == nil || clone.From.Name != source.Name || w.pods("db")[0].Node != source.Node {
		t.Fatalf("the clone: %+v, on %s", clone, w.pods("db")[0].Node)
	}
}

// A claim that comes back with another data source does not get the old data.
func TestAnotherDataSourceIsOtherData(t *testing.T) {
	w := newWorld(t, "a")
	base := []runtime.Object{now, claimFor("one", "1Gi", ofClass("now")), claimFor("two", "1Gi", ofClass("now"))}
	copyOf := func(source string) runtime.Object {
		return claimFor("copy", "1Gi", ofClass("now"), from("", kindClaim, source))
	}
	w.push(append(base, copyOf("one"))...)
	w.settle()
	first := w.volumeOf("copy")
	away := func() {
		w.pushWith("away\n\nTally-Confirm: delete 1", base...)
		w.settle()
	}
	away()
	w.push(append(base, copyOf("two"))...)
	w.settle()
	if got := w.volumeOf("copy"); got == nil || got.Name == first.Name || got.From.Name != w.volumeOf("two").Name {
		t.Fatalf("the claim has %+v", got)
	}
	away()
	w.push(append(base, copyOf("one"))...)
	w.settle()
	if got := w.volumeOf("copy"); got == nil || got.Name != first.Name {
		t.Errorf("the claim did not come back to its data: %+v", got)
	}
}

func TestDataSourcesThatCannotBe(t *testing.T) {
	driver := claimFor("driver", "1Gi", ofClass("csi"))
	for name, c := range map[string]struct {
		objects []runtime.Object
		want    string
	}{
		"too small":        {[]runtime.Object{claimFor("copy", "1Mi", ofClass("now"), from("", kindClaim, "data"))}, "ask for at least as much"},
		"not there":        {[]runtime.Object{claimFor("copy", "1Gi", ofClass("now"), from("", kindClaim, "none"))}, "is not there"},
		"no such snapshot": {[]runtime.Object{claimFor("copy", "1Gi", ofClass("now"), from(snapshotGroup, kindSnapshot, "none"))}, "is not there"},
		"a populator":      {[]runtime.Object{claimFor("copy", "1Gi", ofClass("now"), from("example.org", "Image", "x"))}, "nothing here fills a claim"},
		"another volumeMode": {[]runtime.Object{claimFor("copy", "1Gi", ofClass("now"), from("", kindClaim, "data"), func(c *pvc) {
			block := corev1.PersistentVolumeBlock
			c.Spec.VolumeMode = &block
		})}, "ask for the same"},
		"another provisioner": {[]runtime.Object{class("csi", "csi.example.org"), claimFor("copy", "1Gi", ofClass("csi"), from("", kindClaim, "data"))}, "name a class of the same provisioner"},
		"described in Git":    {[]runtime.Object{hostVolume("pv", "1Gi", "/data"), driver, claimFor("host", "1Gi", ofClass("")), claimFor("copy", "1Gi", ofClass("now"), from("", kindClaim, "host"))}, "nothing here can clone"},
		"a snapshot without claim": {
			[]runtime.Object{snapshotFor("s", "none", ""), claimFor("copy", "1Gi", ofClass("now"), from(snapshotGroup, kindSnapshot, "s"))}, "cannot be taken: its data source PersistentVolumeClaim default/none is not there",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a")
			w.push(append([]runtime.Object{now, claimFor("data", "1Gi", ofClass("now"))}, c.objects...)...)
			w.settle()
			if h := w.health(keyOf(claimFor("copy", "1Gi"))); h.Health != nodes.Degraded || !strings.Contains(h.Reason, c.want) {
				t.Errorf("%s: %s", h.Health, h.Reason)
			}
			if w.volumeOf("copy") != nil {
				t.Error("the claim got a volume")
			}
		})
	}
}

func TestSnapshotClasses(t *testing.T) {
	other := snapshotClassFor("other", "csi.example.org", snapshotv1.VolumeSnapshotContentDelete)
	w := newWorld(t, "a")
	w.push(now, other, claimFor("data", "1Gi", ofClass("now")), snapshotFor("wrong", "data", "other"), snapshotFor("none", "data", "none"))
	w.settle()
	for name, want := range map[string]string{"wrong": "is for driver csi.example.org", "none": "there is no VolumeSnapshotClass none"} {
		if h := w.health(snapshotKey(name)); h.Health != nodes.Degraded || !strings.Contains(h.Reason, want) || w.contentOf(name) != nil {
			t.Errorf("%s: %s: %s", name, h.Health, h.Reason)
		}
	}
}

func TestSnapshotsAreNotDeletedBeforeTheirTime(t *testing.T) {
	w := newWorld(t, "a")
	base := []runtime.Object{now, claimFor("data", "1Gi", ofClass("now"))}
	w.push(append(base, snapshotFor("before", "data", ""))...)
	w.settle()
	v := w.contentOf("before")
	p := w.push(base...)
	if p.Hold == nil || !strings.Contains(p.Hold.Why, "VolumeSnapshot.snapshot.storage.k8s.io default/before") && !strings.Contains(p.Hold.Why, "default/before") {
		t.Fatalf("a revision that ends a snapshot is not held: %+v", p.Hold)
	}
	w.pushWith("away\n\n"+p.Hold.Confirm, base...)
	w.settle()
	w.pass(24*time.Hour - time.Second)
	if d := w.machines["a"].disk[v.Name]; d == nil || d.Delete {
		t.Fatal("a snapshot was deleted before its time")
	}
	// Back in time, it is the one that was taken then.
	w.push(append(base, snapshotFor("before", "data", ""))...)
	w.settle()
	if got := w.contentOf("before"); got == nil || got.Name != v.Name {
		t.Fatalf("the snapshot came back as another: %+v", got)
	}
	w.pushWith("away\n\nTally-Confirm: delete 1", base...)
	w.settle()
	w.pass(24 * time.Hour)
	w.settle()
	if w.machines["a"].disk[v.Name] != nil || w.s.snapshots.Len() != 0 {
		t.Error("a snapshot that nobody wants is still there")
	}
	for id := range w.record {
		if id.kind == kindOfSnapshot {
			t.Errorf("the record still has %v", id)
		}
	}
}

func TestRetainedSnapshotsStay(t *testing.T) {
	w := newWorld(t, "a")
	base := []runtime.Object{now, snapshotClassFor("safe", nodes.LocalProvisioner, snapshotv1.VolumeSnapshotContentRetain), claimFor("data", "1Gi", ofClass("now"))}
	w.push(append(base, snapshotFor("before", "data", "safe"))...)
	w.settle()
	v := w.contentOf("before")
	if p := w.push(base...); p.Hold != nil {
		t.Fatalf("a revision that ends no data is held: %s", p.Hold.Why)
	}
	w.pass(1000 * time.Hour)
	w.settle()
	if w.machines["a"].disk[v.Name] == nil {
		t.Error("a retained snapshot is gone")
	}
}

// A snapshot whose record is lost is kept until Git gives it up.
func TestALostRecordFindsTheSnapshot(t *testing.T) {
	for name, ledger := range map[string]bool{"with the node's ledger": true, "without any": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a")
			objects := []runtime.Object{configMap("x", nil), now, claimFor("data", "1Gi", ofClass("now")), snapshotFor("before", "data", "")}
			w.push(objects...)
			w.settle()
			v := w.contentOf("before")
			if !ledger {
				w.machines["a"].ledger = nil
			}
			w.restart(false)
			w.join("a")
			if !ledger { // which would hold a revision without the snapshot
				w.push(objects[:3]...)
				w.settle()
				w.pass(1000 * time.Hour)
				w.settle()
			}
			if d := w.machines["a"].disk[v.Name]; d == nil || d.Delete {
				t.Fatal("data was deleted for lack of knowledge")
			}
			w.push(objects...)
			w.settle()
			if got := w.contentOf("before"); got == nil || got.Name != v.Name {
				t.Fatalf("the snapshot came back as another: %+v", got)
			}
		})
	}
}

// The data that a copy needs stays until the copy is made.
func TestTheSourceOfACopyStays(t *testing.T) {
	w := newWorld(t, "a")
	settings := []runtime.Object{now, claimFor("data", "1Gi", ofClass("now")), configMap("x", nil)}
	w.push(settings...)
	w.settle()
	source := w.volumeOf("data")
	w.push(append(settings, snapshotFor("before", "data", ""))...)
	w.pushWith("away\n\nTally-Confirm: delete 1", now, configMap("x", nil), snapshotFor("before", "data", ""))
	w.pass(48 * time.Hour)
	if w.machines["a"].disk[source.Name].Delete {
		t.Fatal("the source was deleted before its snapshot was taken")
	}
	w.settle()
	w.pass(time.Minute)
	w.settle()
	if v := w.contentOf("before"); v == nil || !v.Made || w.machines["a"].disk[source.Name] != nil {
		t.Errorf("the snapshot is %+v", v)
	}
}

// joinWithDriver has a node join on which a storage driver runs.
func (w *world) joinWithDriver(name, driver string) {
	node := info(name)
	node.Drivers, node.Labels = []string{driver}, map[string]string{corev1.LabelHostname: name}
	w.next(Change{Nodes: []nodes.NodeState{{Node: node, Ready: true, Since: w.now}}})
}

func TestSnapshotsAndClonesOfDrivers(t *testing.T) {
	const driver = "x.csi.example.com"
	w := newWorld(t, "a", "b")
	w.joinWithDriver("a", driver)
	safe := snapshotClassFor("safe", driver, snapshotv1.VolumeSnapshotContentDelete)
	name, namespace := nodes.SecretParameters(nodes.SnapshotterSecret)
	safe.Parameters = map[string]string{"color": "blue", name: "key-${volumesnapshot.name}", namespace: "${volumesnapshot.namespace}"}
	w.push(class("fast", driver), now, safe, secretOf("key-before"),
		claimFor("data", "1Gi", ofClass("fast")), snapshotFor("before", "data", "safe"), snapshotFor("unmarked", "data", ""),
		claimFor("restored", "1Gi", ofClass("fast"), from(snapshotGroup, kindSnapshot, "before")),
		claimFor("clone", "2Gi", ofClass("fast"), from("", kindClaim, "data")),
		claimFor("elsewhere", "1Gi", ofClass("now"), from("", kindClaim, "data")),
		deployment("db", 1, withClaim("data")), deployment("more", 1, withClaim("restored")), deployment("most", 1, withClaim("clone")))
	w.settle()
	for w.turn() {
	}
	source, content := w.volumeOf("data"), w.contentOf("before")
	if content == nil || !content.Snapshot || content.Maker != source.Maker || content.Spec.CSI == nil ||
		*content.From != (nodes.Origin{Name: source.Name, UID: source.UID, Volume: "handle-of-" + source.Name}) {
		t.Fatalf("the snapshot's data: %+v", content)
	}
	if got := content.Parameters[name]; got != "key-before" || content.Parameters[namespace] != "default" || content.Parameters["color"] != "blue" {
		t.Errorf("the snapshot's parameters are %v", content.Parameters)
	}
	n, _ := w.s.nodes.Get("a")
	if !w.s.needsAny(n, []desired.Key{{Kind: "Secret", Namespace: "default", Name: "key-before"}}) {
		t.Error("the node does not get the snapshot's Secret")
	}
	for claim, want := range map[string]nodes.Origin{
		"restored": {Name: content.Name, UID: content.UID, Snapshot: "handle-of-" + content.Name},
		"clone":    {Name: source.Name, UID: source.UID, Volume: "handle-of-" + source.Name},
	} {
		if v := w.volumeOf(claim); v == nil || v.From == nil || *v.From != want || v.Maker != "a" {
			t.Errorf("%s has %+v", claim, v)
		}
	}
	for key, want := range map[desired.Key]string{
		snapshotKey("unmarked"):             "no VolumeSnapshotClass of driver " + driver + " is marked as default",
		keyOf(claimFor("elsewhere", "1Gi")): "name a class of the same provisioner",
	} {
		if h := w.health(key); h.Health != nodes.Degraded || !strings.Contains(h.Reason, want) {
			t.Errorf("%s: %s: %s", key, h.Health, h.Reason)
		}
	}
	if p := w.next(Change{}); !p.Empty() {
		t.Errorf("a converged cluster gives a plan: %+v", p)
	}
}

// A driver is asked for a copy again before the copy is deleted, so its source
// stays until that is done.
func TestTheSourceOfACopyStaysUntilTheCopyIsDeleted(t *testing.T) {
	w := newWorld(t, "a")
	w.push(now, claimFor("data", "1Gi", ofClass("now")))
	w.settle()
	st := begin(w.s, w.now)
	source := w.volumeOf("data")
	v := &volume{}
	v.Name, v.UID, v.Delete, v.From = "copy", "u", true, source.asOrigin()
	st.volumes = st.volumes.Set(v.Name, v)
	if !st.isCopied(source) {
		t.Error("the source could go before its copy")
	}
}
