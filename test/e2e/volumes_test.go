//go:build e2e

package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const volumeClaims = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: plain}
provisioner: tallyman.dev/local
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: enforced}
provisioner: tallyman.dev/local
volumeBindingMode: WaitForFirstConsumer
parameters: {enforce: "true"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: plain}
spec: {accessModes: [ReadWriteOnce], storageClassName: plain, resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: enforced}
spec: {accessModes: [ReadWriteOnce], storageClassName: enforced, resources: {requests: {storage: 32Mi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: raw}
spec: {accessModes: [ReadWriteOnce], volumeMode: Block, storageClassName: plain, resources: {requests: {storage: 4Mi}}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: archive}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  local: {path: HOST}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: Exists}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: archive}
spec: {accessModes: [ReadWriteOnce], storageClassName: "", volumeName: archive, resources: {requests: {storage: 1Gi}}}
`

const volumePod = `
apiVersion: v1
kind: Pod
metadata: {name: holder, annotations: {version: "VERSION"}}
spec:
  terminationGracePeriodSeconds: 2
  securityContext: {fsGroup: 1234}
  volumes:
    - {name: plain, persistentVolumeClaim: {claimName: plain}}
    - {name: enforced, persistentVolumeClaim: {claimName: enforced}}
    - {name: raw, persistentVolumeClaim: {claimName: raw}}
    - {name: archive, persistentVolumeClaim: {claimName: archive, readOnly: true}}
    - name: scratch
      ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], storageClassName: plain, resources: {requests: {storage: 8Mi}}}}}
    - {name: image, image: {reference: IMAGE}}
  containers:
    - name: main
      image: IMAGE
      readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
      volumeDevices: [{name: raw, devicePath: /dev/raw}]
      volumeMounts:
        - {name: plain, mountPath: /plain, subPath: deep/er}
        - {name: enforced, mountPath: /enforced}
        - {name: archive, mountPath: /archive}
        - {name: scratch, mountPath: /scratch}
        - {name: image, mountPath: /image}
`

// TestVolumes mounts every kind of volume that needs a claim, and images.
func TestVolumes(t *testing.T) {
	w := newWorld(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "old"), []byte("paper\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(version string) {
		t.Helper()
		w.clone.Write("claims.yaml", strings.ReplaceAll(volumeClaims, "HOST", host))
		w.clone.Write("pod.yaml", strings.NewReplacer("IMAGE", insideImage, "VERSION", version).Replace(volumePod))
		w.clone.Apply("volumes " + version)
	}
	write("1")
	ip := w.ip("holder")
	for _, dir := range []string{"/plain", "/enforced", "/scratch"} {
		if _, err := post(ip, "/append", "path", dir+"/file", "line", "kept"); err != nil {
			t.Errorf("write to %s: %v", dir, err)
		}
	}
	if _, err := post(ip, "/overwrite", "path", "/dev/raw", "text", "block\n"); err != nil {
		t.Errorf("write to the device: %v", err)
	}
	for _, dir := range []string{"/archive", "/image"} {
		if _, err := post(ip, "/append", "path", dir+"/file", "line", "x"); err == nil || !strings.Contains(err.Error(), "read-only") {
			t.Errorf("write to %s: %v", dir, err)
		}
	}
	if got := ask[string](w, ip, "/file", "path", "/archive/old"); got != "paper\n" {
		t.Errorf("the archive holds %q", got)
	}
	type status struct {
		Mode  string
		GID   int
		Bytes int64
	}
	if s := ask[status](w, ip, "/stat", "path", "/scratch"); s.GID != 1234 || !strings.Contains(s.Mode, "rwxrwx") {
		t.Errorf("/scratch: %+v", s)
	}
	if s := ask[status](w, ip, "/stat", "path", "/enforced"); s.Bytes > 32<<20 || s.Bytes < 20<<20 {
		t.Errorf("/enforced: %+v", s)
	}
	if s := ask[status](w, ip, "/stat", "path", "/dev/raw"); !strings.HasPrefix(s.Mode, "D") {
		t.Errorf("/dev/raw: %+v", s)
	}
	write("2") // another pod of that name
	w.Eventually(patience, "another pod", func() error {
		_, err := get(w.ip("holder"), "/readyz")
		return err
	})
	ip = w.ip("holder")
	for path, want := range map[string]string{"/plain/file": "kept\n", "/enforced/file": "kept\n", "/dev/raw": "block\n"} {
		if got := ask[string](w, ip, "/head", "path", path); got != want {
			t.Errorf("%s holds %q after the pod was replaced", path, got)
		}
	}
	if _, err := get(ip, "/head", "path", "/scratch/file"); err == nil {
		t.Error("an ephemeral volume outlived its pod")
	}
}
