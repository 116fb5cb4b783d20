//go:build e2e

package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
)

func claimOf(name, source string) string {
	return "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: " + name + "}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}" + source + "}\n"
}

// writer is a pod that writes a line into a claim when it starts.
func writer(name, claim, line string) string {
	return pod(name, "volumes: [{name: data, persistentVolumeClaim: {claimName: "+claim+"}}]\ncontainers: [{name: main, image: "+insideImage+
		", args: [serve, -first, /data/log="+line+"], readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}, volumeMounts: [{name: data, mountPath: /data}]}]")
}

// snapshot waits until the overview shows a VolumeSnapshot as check wants.
func (w *world) snapshot(name, what string, check func(h *nodes.ObjectHealth) bool) *nodes.StorageOverview {
	w.t.Helper()
	var found *nodes.StorageOverview
	w.Eventually(patience, "snapshot "+name+" "+what, func() error {
		for _, h := range w.overview().Objects {
			if h.Key.Kind != "VolumeSnapshot" || h.Key.Name != name {
				continue
			}
			if found = h.Storage; h.Storage != nil && check(&h) {
				return nil
			}
			return fmt.Errorf("it is %s: %s, %+v", h.Health, h.Reason, h.Storage)
		}
		return fmt.Errorf("there is none")
	})
	return found
}

// TestSnapshots takes a snapshot of a claim once its pod lets it, goes on
// writing, and begins other claims with the snapshot and with the claim.
func TestSnapshots(t *testing.T) {
	w := newWorld(t)
	const taken = "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: before}\nspec: {source: {persistentVolumeClaimName: data}}\n"
	w.clone.Write("claim.yaml", claimOf("data", ""))
	w.clone.Write("pod.yaml", writer("one", "data", "first"))
	w.clone.Apply("a claim and its pod")
	w.claim("data")

	// While the pod may write, no copy would be of one instant.
	w.clone.Write("snapshot.yaml", taken)
	w.clone.Apply("a snapshot")
	w.snapshot("before", "waits for the pod", func(h *nodes.ObjectHealth) bool { return strings.Contains(h.Reason, "stop its pods") })
	w.clone.Write("pod.yaml", "")
	w.clone.Apply("no pod")
	content := w.snapshot("before", "is taken", func(h *nodes.ObjectHealth) bool { return h.Storage.Phase == "Ready" }).Volume

	w.clone.Write("pod.yaml", writer("two", "data", "second"))
	w.clone.Apply("another pod")
	w.clone.Write("pod.yaml", "")
	w.clone.Write("copies.yaml", claimOf("restored", ", dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}")+
		"---\n"+claimOf("clone", ", dataSourceRef: {kind: PersistentVolumeClaim, name: data}"))
	w.clone.Write("restored.yaml", writer("three", "restored", "third")+"---\n"+writer("four", "clone", "fourth"))
	w.clone.Apply("copies")
	for name, want := range map[string]string{"restored": "first\nthird\n", "clone": "first\nsecond\nfourth\n", "data": "first\nsecond\n"} {
		if got := w.data(w.claim(name).Volume); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if got := w.data(content); got != "first\n" {
		t.Errorf("the snapshot holds %q", got)
	}

	w.clone.Write("snapshot.yaml", "")
	w.clone.Commit("no snapshot")
	if r := w.clone.Push(); !strings.Contains(r.Err, "held: ") || !strings.Contains(r.Err, "default/before") {
		t.Errorf("the push that ends a snapshot says: %s", r.Err)
	}
}
