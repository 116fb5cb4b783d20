//go:build e2e

package cluster_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

const (
	driverProgram = "github.com/tallyman-dev/tallyman/test/csidriver"
	driverImage   = cluster.RegistryAddress + "/csidriver:1"
	driverName    = "directory.csi.example.com"
)

// storageDriver deploys a CSI driver on all nodes whose volumes must be attached
// and are, like those of a storage network, reachable from each of them.
func storageDriver(data string) string {
	return fmt.Sprintf(`apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: %[1]s}
spec: {attachRequired: true}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: directory}
provisioner: %[1]s
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: driver}
spec:
  selector: {matchLabels: {app: driver}}
  template:
    metadata: {labels: {app: driver}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists}]
      containers:
        - name: driver
          image: %[2]s
          env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
          args: [-attach, -shared, -node=id-of-$(NODE), -data=/driver, -socket=/csi/csi.sock, -endpoint=/var/lib/kubelet/plugins/%[1]s/csi.sock, -registration=/registration/%[1]s-reg.sock]
          securityContext: {privileged: true}
          volumeMounts:
            - {name: socket, mountPath: /csi}
            - {name: registration, mountPath: /registration}
            - {name: plugins, mountPath: /var/lib/kubelet/plugins, mountPropagation: Bidirectional}
            - {name: pods, mountPath: /var/lib/kubelet/pods, mountPropagation: Bidirectional}
            - {name: data, mountPath: /driver}
      volumes:
        - {name: socket, hostPath: {path: /var/lib/kubelet/plugins/%[1]s, type: DirectoryOrCreate}}
        - {name: registration, hostPath: {path: /var/lib/kubelet/plugins_registry, type: Directory}}
        - {name: plugins, hostPath: {path: /var/lib/kubelet/plugins, type: Directory}}
        - {name: pods, hostPath: {path: /var/lib/kubelet/pods, type: Directory}}
        - {name: data, hostPath: {path: %[3]s, type: Directory}}
`, driverName, driverImage, data)
}

// storing is a StatefulSet of one with a claim; its program writes a line into
// the volume whenever it starts.
func storing(name string, port int, annotations string) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: StatefulSet
metadata: {name: %s, annotations: {%s}}
spec:
  serviceName: %[1]s
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: main
          image: %[3]s
          args: [serve, -listen, ":%[4]d", -first, /data/log=started]
          readinessProbe: {tcpSocket: {port: %[4]d}, periodSeconds: 1}
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {storageClassName: directory, accessModes: [ReadWriteOnce], resources: {requests: {storage: 8Mi}}}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec: {clusterIP: None, selector: {app: %[1]s}, ports: [{port: %[4]d}]}
`, name, annotations, insideImage, port)
}

func tainted(node, key, value string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Node
metadata: {name: %s}
spec: {taints: [{key: %s, value: %q, effect: NoExecute}]}
`, node, key, value)
}

// stored is what the storage knows of a claim's volume.
type stored struct {
	Attached string   `json:"attached"`
	History  []string `json:"history"`
	lines    int
}

// storedFor reads the record of the driver.
func (w *world) storedFor(data, claim string) stored {
	w.t.Helper()
	o, err := w.server.Overview()
	if err != nil {
		w.t.Fatal(err)
	}
	i := slices.IndexFunc(o.Objects, func(h nodes.ObjectHealth) bool { return h.Key.Kind == "PersistentVolumeClaim" && h.Key.Name == claim })
	if i < 0 {
		w.t.Fatalf("there is no claim %s", claim)
	}
	paths, err := filepath.Glob(filepath.Join(data, "volumes", "*", "record.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			w.t.Fatal(err)
		}
		v := struct {
			Name string `json:"name"`
			stored
		}{}
		if err := json.Unmarshal(text, &v); err != nil {
			w.t.Fatal(err)
		}
		if v.Name != o.Objects[i].Storage.Volume {
			continue
		}
		lines, err := os.ReadFile(filepath.Join(filepath.Dir(path), "data", "log"))
		if err != nil {
			w.t.Fatal(err)
		}
		v.lines = strings.Count(string(lines), "started\n")
		return v.stored
	}
	w.t.Fatalf("the driver has no volume %s", o.Objects[i].Storage.Volume)
	return stored{}
}

// TestVolumesFollowTheirPods moves the pods of StatefulSets with ReadWriteOnce
// volumes of a driver: from a node that is drained, from one that dies with a
// fenced pod, and from one that Git says to be out of service.
func TestVolumesFollowTheirPods(t *testing.T) {
	data := t.TempDir()
	w := newWorld(t)
	w.PushImage(driverProgram, "csidriver:1")
	for i := range 3 {
		w.join(fmt.Sprintf("node%d", i+1))
	}
	w.awaitReady()
	w.clone.Write("driver.yaml", storageDriver(data))
	w.clone.Apply("a driver")
	w.clone.Write("fenced.yaml", storing("fenced", 8111, "tallyman.dev/failover: fenced"))
	w.clone.Write("waits.yaml", storing("waits", 8112, ""))
	w.clone.Apply("two sets")
	w.awaitPods("fenced-0", 1)
	w.awaitPods("waits-0", 1)
	watch := w.watch(8111, 8112)

	first := w.holder("fenced-0")
	w.clone.Write("node.yaml", tainted(first.Name, "maintenance", ""))
	w.clone.Commit("drain")
	w.clone.Push("-o", "tally.wait=false")
	w.awaitPods("fenced-0", 1, first.Name)
	second := w.holder("fenced-0")
	w.attachments(data, "data-fenced-0", "attached to "+id(first)+" by "+id(first), "detached from "+id(first)+" by "+id(first), "attached to "+id(second)+" by "+id(second))
	w.clone.Git("rm", "--quiet", "node.yaml")
	w.clone.Apply("no longer drained")

	second.Die()
	w.awaitPods("fenced-0", 1, second.Name)
	third := w.holder("fenced-0")
	w.attachments(data, "data-fenced-0", "detached from "+id(second)+" by *", "attached to "+id(third)+" by "+id(third))
	second.Boot()
	second.StartTallyAgain()
	w.awaitReady()

	fourth := w.holder("waits-0")
	fourth.Die()
	w.clone.Write("node.yaml", tainted(fourth.Name, "node.kubernetes.io/out-of-service", "nodeshutdown"))
	w.clone.Commit("out of service")
	w.clone.Push("-o", "tally.wait=false")
	w.awaitPods("waits-0", 1, fourth.Name)
	fifth := w.holder("waits-0")
	w.attachments(data, "data-waits-0", "detached from "+id(fourth)+" by *", "attached to "+id(fifth)+" by "+id(fifth))
	fourth.Boot()
	fourth.StartTallyAgain()
	w.awaitReady()
	w.clone.Git("rm", "--quiet", "node.yaml")
	w.clone.Apply("back in service")
	w.awaitPods("fenced-0", 1)
	w.awaitPods("waits-0", 1)
	for claim, pod := range map[string]string{"data-fenced-0": "fenced-0", "data-waits-0": "waits-0"} {
		v, on := w.storedFor(data, claim), w.holder(pod)
		if v.Attached != id(on) {
			t.Errorf("%s is on %s, its volume is attached to %s: %v", pod, on.Name, v.Attached, v.History)
		}
		if starts := len(slices.DeleteFunc(v.History, func(line string) bool { return !strings.HasPrefix(line, "attached") })); v.lines < starts || v.lines < 2 {
			t.Errorf("%s was attached %d times, and has %d lines", claim, starts, v.lines)
		}
	}
	watch()
}

// id is what the driver calls a machine.
func id(m *cluster.Machine) string { return "id-of-" + m.Name }

// attachments holds that the last that happened to a volume is what is said.
func (w *world) attachments(data, claim string, want ...string) {
	w.t.Helper()
	got := w.storedFor(data, claim).History
	same := len(got) >= len(want) && slices.EqualFunc(got[len(got)-len(want):], want, func(line, pattern string) bool {
		before, any := strings.CutSuffix(pattern, "*")
		return any && strings.HasPrefix(line, before) || line == pattern
	})
	if !same {
		w.t.Errorf("%s: %v, want at the end %v", claim, got, want)
	}
}
