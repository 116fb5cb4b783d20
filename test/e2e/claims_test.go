//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
)

// keeper is a StatefulSet whose pods write into a claim of their own when they
// start.
func keeper(replicas int, version string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: %d
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
        - name: main
          image: %s
          args: [serve, -first, "/data/log=%s $(NAME)"]
          env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
`, replicas, insideImage, version) + governing
}

// claim waits until a claim is bound and gives what the overview shows of it.
func (w *world) claim(name string) *nodes.StorageOverview {
	w.t.Helper()
	var found *nodes.StorageOverview
	w.Eventually(patience, "claim "+name+" is bound", func() error {
		for _, h := range w.overview().Objects {
			if h.Key.Kind != "PersistentVolumeClaim" || h.Key.Name != name {
				continue
			}
			if found = h.Storage; h.Storage != nil && h.Storage.Phase == "Bound" && h.Health == nodes.Healthy {
				return nil
			}
			return fmt.Errorf("it is %s: %s, %+v", h.Health, h.Reason, h.Storage)
		}
		return fmt.Errorf("there is none")
	})
	return found
}

// data is what stands in the log of a volume's data.
func (w *world) data(volume string) string {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.DataDir, "persistent", volume+"*", "data", "log"))
	if err != nil || len(paths) != 1 {
		w.t.Fatalf("the data of %s is in %v (%v)", volume, paths, err)
	}
	text, err := os.ReadFile(paths[0])
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// TestClaims keeps the data of a StatefulSet through rollouts, crashes, the loss
// of the record, and its absence from the repository.
func TestClaims(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("db.yaml", keeper(2, "one"))
	w.clone.Apply("a set with claims")
	first, second := w.claim("data-db-0"), w.claim("data-db-1")
	if first.Volume == second.Volume || first.Node != "node" || first.Class != "local" {
		t.Fatalf("the claims have %+v and %+v", first, second)
	}
	w.clone.Write("db.yaml", keeper(2, "two"))
	w.clone.Apply("roll")
	if got, want := w.data(first.Volume), "one db-0\ntwo db-0\n"; got != want {
		t.Errorf("after the rollout the data is %q, want %q", got, want)
	}

	before := w.living("db-")
	w.Kill()
	if err := os.RemoveAll(filepath.Join(w.DataDir, "server")); err != nil {
		t.Fatal(err)
	}
	w.Up()
	for name, want := range map[string]string{"data-db-0": first.Volume, "data-db-1": second.Volume} {
		if got := w.claim(name).Volume; got != want {
			t.Errorf("without a record, %s has volume %s, want %s", name, got, want)
		}
	}
	for name, p := range w.living("db-") {
		if before[name] == nil || before[name].UID != p.UID {
			t.Errorf("the loss of the record replaced pod %s", name)
		}
	}

	w.clone.Write("db.yaml", governing)
	w.clone.Apply("no set")
	w.clone.Write("db.yaml", keeper(1, "three"))
	w.clone.Apply("the set again")
	if got, want := w.data(w.claim("data-db-0").Volume), "one db-0\ntwo db-0\nthree db-0\n"; got != want {
		t.Errorf("back again, the data is %q, want %q", got, want)
	}
}

// TestDataIsDeletedWhenToldTo holds a revision that ends data, and deletes the
// data once it is confirmed and the time of grace is over.
func TestDataIsDeletedWhenToldTo(t *testing.T) {
	w := newWorld(t)
	const settings = "apiVersion: tallyman.dev/v1alpha1\nkind: Cluster\nmetadata: {name: c}\nspec: {storage: {keep: 1s}}\n"
	const claims = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}\n"
	w.clone.Write("all.yaml", settings)
	w.clone.Write("claim.yaml", claims)
	w.clone.Write("pod.yaml", pod("writer", "volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]\ncontainers: [{name: main, image: "+insideImage+", args: [serve, -first, /data/log=here], readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}, volumeMounts: [{name: data, mountPath: /data}]}]"))
	w.clone.Apply("a claim and its pod")
	volume := w.claim("data").Volume
	if got := w.data(volume); got != "here\n" {
		t.Fatalf("the data is %q", got)
	}

	w.clone.Write("claim.yaml", "")
	w.clone.Write("pod.yaml", "")
	w.clone.Commit("gone")
	r := w.clone.Push()
	if !strings.Contains(r.Err, "held: ") || !strings.Contains(r.Err, "PersistentVolumeClaim default/data") {
		t.Errorf("the push that ends data says: %s", r.Err)
	}
	if got := w.data(volume); got != "here\n" {
		t.Errorf("held, the data is %q", got)
	}
	w.clone.Apply("confirmed\n\nTally-Confirm: delete 2")
	w.Eventually(patience, "the data is deleted", func() error {
		entries, err := filepath.Glob(filepath.Join(w.DataDir, "persistent", volume+"*"))
		if err == nil && len(entries) > 0 {
			err = fmt.Errorf("still there: %v", entries)
		}
		return err
	})
}
