//go:build e2e

package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine"
)

const (
	driverProgram = "github.com/tallyman-dev/tallyman/test/csidriver"
	driverImage   = machine.RegistryAddress + "/csidriver:1"
	driverName    = "directory.csi.example.com"
)

// driverData is where the driver of a world keeps everything.
func (w *world) driverData() string { return filepath.Join(w.Dir, "driver") }

// storageDriver deploys the driver as people deploy drivers: privileged, with the
// kubelet's directories mounted so that mounts appear on both sides.
func (w *world) storageDriver(version string) string {
	return fmt.Sprintf(`
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: %[1]s}
spec:
  attachRequired: true
  podInfoOnMount: true
  fsGroupPolicy: File
  volumeLifecycleModes: [Persistent, Ephemeral]
  tokenRequests: [{audience: vault}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: driver}
spec:
  selector: {matchLabels: {app: driver}}
  template:
    metadata: {labels: {app: driver, version: %[2]q}}
    spec:
      containers:
        - name: driver
          image: %[3]s
          args: [-attach, -node=this, -data=/driver, -socket=/csi/csi.sock, -endpoint=%[4]s/plugins/%[1]s/csi.sock, -registration=/registration/%[1]s-reg.sock]
          securityContext: {privileged: true}
          volumeMounts:
            - {name: socket, mountPath: /csi}
            - {name: registration, mountPath: /registration}
            - {name: plugins, mountPath: %[4]s/plugins, mountPropagation: Bidirectional}
            - {name: pods, mountPath: %[4]s/pods, mountPropagation: Bidirectional}
            - {name: data, mountPath: /driver}
      volumes:
        - {name: socket, hostPath: {path: %[4]s/plugins/%[1]s, type: DirectoryOrCreate}}
        - {name: registration, hostPath: {path: %[4]s/plugins_registry, type: Directory}}
        - {name: plugins, hostPath: {path: %[4]s/plugins, type: Directory}}
        - {name: pods, hostPath: {path: %[4]s/pods, type: Directory}}
        - {name: data, hostPath: {path: %[5]s, type: DirectoryOrCreate}}
`, driverName, version, driverImage, w.KubeletDir(), w.driverData())
}

// driven is a StatefulSet whose pod has a claim of the driver, and an inline
// volume.
func driven(version, size string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 1
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenDeleted: Delete}
  template:
    metadata: {labels: {app: db}}
    spec:
      securityContext: {fsGroup: 4321}
      containers:
        - name: main
          image: %[1]s
          args: [serve, -first, "/data/log=%[2]s"]
          readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
          volumeMounts: [{name: data, mountPath: /data}, {name: scratch, mountPath: /scratch}]
      volumes:
        - name: scratch
          csi: {driver: %[3]s, volumeAttributes: {greeting: hello}, nodePublishSecretRef: {name: inline}}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {storageClassName: directory, accessModes: [ReadWriteOnce], resources: {requests: {storage: %[4]s}}}
`, insideImage, version, driverName, size) + governing
}

const drivenClass = `
apiVersion: tallyman.dev/v1alpha1
kind: Cluster
metadata: {name: c}
spec: {storage: {keep: 1s}}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: directory}
provisioner: ` + driverName + `
allowVolumeExpansion: true
volumeBindingMode: WaitForFirstConsumer
parameters:
  color: blue
  csi.storage.k8s.io/node-publish-secret-name: publish
  csi.storage.k8s.io/node-publish-secret-namespace: ${pvc.namespace}
allowedTopologies:
  - matchLabelExpressions: [{key: ` + driverName + `/node, values: [this]}]
---
apiVersion: v1
kind: Secret
metadata: {name: publish}
stringData: {user: me, password: secret}
---
apiVersion: v1
kind: Secret
metadata: {name: inline}
stringData: {key: secret}
`

// driverVolume is what the driver has written down of a volume, with its
// directory.
type driverVolume struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Size     int64  `json:"size"`
	NodeSize int64  `json:"node_size"`
	Attached string `json:"attached"`
	Inline   bool   `json:"inline"`
	dir      string
}

func (w *world) driverVolumes() []driverVolume {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.driverData(), "volumes", "*", "record.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	var list []driverVolume
	for _, path := range paths {
		v := driverVolume{dir: filepath.Join(filepath.Dir(path), "data")}
		text, err := os.ReadFile(path)
		if err != nil {
			continue // removed meanwhile
		}
		if err := json.Unmarshal(text, &v); err != nil {
			w.t.Fatal(err)
		}
		list = append(list, v)
	}
	return list
}

// driverVolume is the one that fits.
func (w *world) driverVolume(fits func(driverVolume) bool) driverVolume {
	w.t.Helper()
	for _, v := range w.driverVolumes() {
		if fits(v) {
			return v
		}
	}
	w.t.Fatalf("the driver has %+v", w.driverVolumes())
	return driverVolume{}
}

func (w *world) text(path string) string {
	w.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

// TestStorageDriver deploys a CSI driver and leads volumes through their lives:
// made, mounted, replaced pods, crashes of the agent and of the driver, a snapshot
// and copies, growth, and the end of the data.
func TestStorageDriver(t *testing.T) {
	w := newWorld(t)
	w.PushImage(driverProgram, "csidriver:1")
	w.clone.Write("class.yaml", drivenClass)
	w.clone.Write("db.yaml", driven("one", "64Mi"))
	w.clone.Commit("a set whose driver is not there yet")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		t.Fatal(r.Err)
	}
	w.Eventually(patience, "the claim waits for the driver", func() error {
		for _, h := range w.overview().Objects {
			if h.Key.Kind == "PersistentVolumeClaim" && strings.Contains(h.Reason, driverName) {
				return nil
			}
		}
		return fmt.Errorf("no claim says so: %+v", w.overview().Objects)
	})
	w.clone.Write("driver.yaml", w.storageDriver("1"))
	w.clone.Apply("the driver")
	claim := w.claim("data-db-0")
	v := w.driverVolume(func(v driverVolume) bool { return v.Name == claim.Volume })
	if got := w.text(filepath.Join(v.dir, "log")); got != "one\n" || v.Size != 64<<20 || v.Attached != "this" {
		t.Fatalf("the volume is %+v and has %q", v, got)
	}
	w.told(v.dir, "db-0", "", "password,user")
	w.told(w.driverVolume(func(v driverVolume) bool { return v.Inline }).dir, "db-0", "hello", "key")

	before := w.living("db-")
	w.clone.Write("snapshot.yaml", drivenSnapshot)
	w.clone.Commit("a snapshot")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		t.Fatal(r.Err)
	}
	w.Kill()
	w.Up()
	w.snapshotDriven(v.ID)
	w.pod("db-0", ready)
	if now := w.living("db-"); now["db-0"] == nil || now["db-0"].UID != before["db-0"].UID {
		t.Error("the crash of the agent replaced the pod")
	}
	t.Run("another run of the driver", func(t *testing.T) {
		w := w.in(t)
		w.clone.Write("driver.yaml", w.storageDriver("2"))
		w.clone.Apply("roll the driver")
		w.clone.Write("db.yaml", driven("two", "64Mi"))
		w.clone.Apply("roll the set")
		if got := w.text(filepath.Join(v.dir, "log")); got != "one\ntwo\n" {
			t.Errorf("after the rollout the data is %q", got)
		}
	})
	t.Run("growth", func(t *testing.T) {
		w := w.in(t)
		w.clone.Write("db.yaml", driven("two", "128Mi"))
		w.clone.Apply("grow")
		w.Eventually(patience, "the volume is larger", func() error {
			if v := w.driverVolume(func(v driverVolume) bool { return v.Name == claim.Volume }); v.Size != 128<<20 || v.NodeSize != 128<<20 {
				return fmt.Errorf("it is %+v", v)
			}
			return nil
		})
	})
	t.Run("copies", w.copiesDriven)
	t.Run("a volume of the repository", w.staticDriven)
	t.Run("end of the data", func(t *testing.T) {
		w := w.in(t)
		w.clone.Write("db.yaml", "")
		w.clone.Apply("gone\n\nTally-Confirm: delete 2")
		w.Eventually(patience, "the data is deleted", func() error {
			if list := w.driverVolumes(); len(list) != 1 || list[0].ID != "v-given" || list[0].Attached != "" {
				return fmt.Errorf("the driver has %+v", list)
			}
			return nil
		})
	})
	w.clone.Write("driver.yaml", "")
	w.clone.Write("class.yaml", "")
	w.clone.Apply("no driver\n\nTally-Confirm: delete 6")
	w.Eventually(patience, "the node has no driver any more", func() error {
		for _, n := range w.overview().Nodes {
			if len(n.Drivers) > 0 {
				return fmt.Errorf("it has %v", n.Drivers)
			}
		}
		return nil
	})
}

// told looks at what a driver was told when a pod got a volume.
func (w *world) told(dir, pod, greeting, secrets string) {
	w.t.Helper()
	told := map[string]string{}
	if err := json.Unmarshal([]byte(w.text(filepath.Join(dir, "told"))), &told); err != nil {
		w.t.Fatal(err)
	}
	if told["csi.storage.k8s.io/pod.name"] != pod || told["greeting"] != greeting || told["secrets"] != secrets ||
		!strings.Contains(told["csi.storage.k8s.io/serviceAccount.tokens"], `"vault":{"token":"ey`) {
		w.t.Errorf("the driver was told %v", told)
	}
}

// driverSnapshots are the volumes that the driver has snapshots of.
func (w *world) driverSnapshots() (of []string) {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.driverData(), "snapshots", "*", "record.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, path := range paths {
		s := struct {
			Source string `json:"source"`
		}{}
		if err := json.Unmarshal([]byte(w.text(path)), &s); err != nil {
			w.t.Fatal(err)
		}
		of = append(of, s.Source)
	}
	return of
}

const drivenSnapshot = `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: directory}
driver: ` + driverName + `
deletionPolicy: Delete
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: before}
spec: {volumeSnapshotClassName: directory, source: {persistentVolumeClaimName: data-db-0}}
`

// snapshotDriven waits until the driver has taken the one snapshot.
func (w *world) snapshotDriven(source string) {
	w.t.Helper()
	w.snapshot("before", "is taken", func(h *nodes.ObjectHealth) bool { return h.Storage.Phase == "Ready" })
	if of := w.driverSnapshots(); len(of) != 1 || of[0] != source {
		w.t.Fatalf("the driver has snapshots of %q, want one of %s", of, source)
	}
}

// copiesDriven has the driver restore a snapshot, clone the volume that it is of,
// and deletes all three.
func (w *world) copiesDriven(t *testing.T) {
	w = w.in(t)
	before := len(w.driverVolumes())
	copyOf := func(name, from string) string {
		return strings.ReplaceAll(claimOf(name, ", storageClassName: directory, dataSource: "+from), "64Mi", "128Mi")
	}
	w.clone.Write("copies.yaml", copyOf("restored", "{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}")+
		"---\n"+copyOf("clone", "{kind: PersistentVolumeClaim, name: data-db-0}"))
	w.clone.Write("copied.yaml", writer("three", "restored", "third")+"---\n"+writer("four", "clone", "fourth"))
	w.clone.Apply("copies")
	for name, want := range map[string]string{"restored": "one\nthird\n", "clone": "one\ntwo\nfourth\n"} {
		volume := w.claim(name).Volume
		if got := w.text(filepath.Join(w.driverVolume(func(v driverVolume) bool { return v.Name == volume }).dir, "log")); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"snapshot.yaml", "copies.yaml", "copied.yaml"} {
		w.clone.Write(name, "")
	}
	w.clone.Apply("gone\n\nTally-Confirm: delete 6")
	w.Eventually(patience, "snapshot and copies are deleted", func() error {
		if of, list := w.driverSnapshots(), w.driverVolumes(); len(of) != 0 || len(list) != before {
			return fmt.Errorf("the driver has snapshots of %q, and %+v", of, list)
		}
		return nil
	})
}

// staticDriven uses a volume of the driver that the repository describes, and
// leaves its data alone afterwards.
func (w *world) staticDriven(t *testing.T) {
	w = w.in(t)
	home := filepath.Join(w.driverData(), "volumes", "v-given")
	if err := os.MkdirAll(filepath.Join(home, "data"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "record.json"), []byte(`{"id": "v-given", "name": "given", "size": 67108864}`), 0o600); err != nil {
		t.Fatal(err)
	}
	w.clone.Write("given.yaml", fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: given}
spec:
  capacity: {storage: 64Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  csi: {driver: %s, volumeHandle: v-given, volumeAttributes: {by: hand}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: given}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: given, resources: {requests: {storage: 64Mi}}}
`, driverName)+pod("reader", "volumes: [{name: data, persistentVolumeClaim: {claimName: given}}]\ncontainers: [{name: main, image: "+insideImage+
		", args: [serve, -first, /data/log=here], readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}, volumeMounts: [{name: data, mountPath: /data}]}]"))
	w.clone.Apply("a volume that is there")
	if got := w.text(filepath.Join(home, "data", "log")); got != "here\n" {
		t.Errorf("its data is %q", got)
	}
	w.clone.Write("given.yaml", "")
	w.clone.Apply("gone\n\nTally-Confirm: delete 3")
	w.Eventually(patience, "the volume is detached", func() error {
		if v := w.driverVolume(func(v driverVolume) bool { return v.ID == "v-given" }); v.Attached != "" {
			return fmt.Errorf("it is %+v", v)
		}
		return nil
	})
	if got := w.text(filepath.Join(home, "data", "log")); got != "here\n" {
		t.Errorf("without its claim its data is %q", got)
	}
}
