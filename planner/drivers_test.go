package planner

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

func secretOf(name string) *corev1.Secret {
	return &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Data: map[string][]byte{"key": []byte(name)},
	}
}

func csiDriver(name string) *storagev1.CSIDriver {
	return &storagev1.CSIDriver{TypeMeta: metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "CSIDriver"}, ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// TestNodesGetWhatTheirDriversNeed sends Secrets and CSIDrivers to the nodes
// that use the driver's volumes, and to no others.
func TestNodesGetWhatTheirDriversNeed(t *testing.T) {
	const driver = "x.csi.example.com"
	w := newWorld(t, "a", "b")
	for name, drivers := range map[string][]string{"a": {driver}, "b": nil} {
		node := info(name)
		node.Drivers, node.Labels = drivers, map[string]string{corev1.LabelHostname: name}
		w.next(Change{Nodes: []nodes.NodeState{{Node: node, Ready: true, Since: w.now}}})
	}
	fast := class("fast", driver)
	fast.Parameters = map[string]string{}
	name, namespace := nodes.SecretParameters(nodes.NodeStageSecret)
	fast.Parameters[name], fast.Parameters[namespace] = "stage-${pvc.name}", "${pvc.namespace}"
	inline := deployment("web", 1, func(d *appsDeployment) {
		d.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
			Driver: "y.csi.example.com", NodePublishSecretRef: &corev1.LocalObjectReference{Name: "inline"},
		}}}}
		d.Spec.Template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "b"}
	})
	w.push(fast, csiDriver(driver), csiDriver("y.csi.example.com"), secretOf("stage-data"), secretOf("inline"), secretOf("other"),
		claimFor("data", "1Gi", ofClass("fast")), deployment("db", 1, withClaim("data")), inline)
	for w.turn() {
	}
	for on, want := range map[string][]desired.Key{
		"a": {{Kind: "Secret", Namespace: "default", Name: "stage-data"}, nodes.DriverKey(driver)},
		"b": {{Kind: "Secret", Namespace: "default", Name: "inline"}, nodes.DriverKey("y.csi.example.com")},
	} {
		n, _ := w.s.nodes.Get(on)
		var got []desired.Key
		for _, c := range w.s.assignment(n).Configs {
			got = append(got, c.Key)
			if c.Key.Kind == "CSIDriver" && len(c.Data[nodes.DriverSpec]) == 0 {
				t.Errorf("node %s gets nothing of %s", on, c.Key)
			}
		}
		slices.SortFunc(want, desired.Key.Compare)
		if !slices.Equal(got, want) {
			t.Errorf("node %s gets %v, want %v", on, got, want)
		}
	}
	n, _ := w.s.nodes.Get("a")
	if !w.s.needsAny(n, []desired.Key{{Kind: "Secret", Namespace: "default", Name: "stage-data"}}) || w.s.needsAny(n, []desired.Key{{Kind: "Secret", Namespace: "default", Name: "other"}}) {
		t.Error("a changed Secret does not reach the nodes that need it, or others")
	}
}
