//go:build e2e

package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
)

// podManifests has a pod for every group of fields; @HOST is a directory of the machine.
const podManifests = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green, shape: round, file.txt: "first\n"}
binaryData: {bytes: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {word: sesame, other: "42"}
---
apiVersion: v1
kind: Pod
metadata: {name: order, labels: {app: order}}
spec:
  terminationGracePeriodSeconds: 20
  volumes:
    - {name: shared, emptyDir: {}}
    - {name: host, hostPath: {path: @HOST/order, type: DirectoryOrCreate}}
  initContainers:
    - {name: one, image: IMAGE, args: [append, /shared/log, one], volumeMounts: [{name: shared, mountPath: /shared}]}
    - name: sidecar
      image: IMAGE
      restartPolicy: Always
      args: [serve, -listen, ":8081", -first, /shared/log=sidecar, -last, /host/log=sidecar ended]
      startupProbe: {httpGet: {path: /readyz, port: 8081}, periodSeconds: 1, failureThreshold: 20}
      volumeMounts: [{name: shared, mountPath: /shared}, {name: host, mountPath: /host}]
    - {name: two, image: IMAGE, args: [append, /shared/log, two], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
    - name: main
      image: IMAGE
      args: [serve, -first, /shared/log=main, -last, /host/log=main ended]
      volumeMounts: [{name: shared, mountPath: /shared}, {name: host, mountPath: /host}]
      lifecycle:
        postStart: {exec: {command: [/program, append, /host/log, postStart]}}
        preStop: {exec: {command: [/program, append, /host/log, preStop]}}
    - {name: other, image: IMAGE, args: [serve, -listen, ":8082"]}
---
apiVersion: v1
kind: Pod
metadata: {name: environment, labels: {app: environment, tier: front}, annotations: {note: "a note"}}
spec:
  serviceAccountName: default
  containers:
    - name: main
      image: IMAGE
      args: [serve, -last, "$(PLAIN)-$$(PLAIN)-$(ABSENT)"]
      workingDir: /etc
      envFrom:
        - {configMapRef: {name: settings}}
        - {secretRef: {name: hidden}, prefix: S_}
        - {configMapRef: {name: absent, optional: true}}
      resources: {requests: {cpu: 20m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
      env:
        - {name: PLAIN, value: plain}
        - {name: COMPOSED, value: "$(PLAIN) and $(colour) and $(ABSENT)"}
        - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
        - {name: WORD, valueFrom: {secretKeyRef: {name: hidden, key: word}}}
        - {name: NOTHING, valueFrom: {configMapKeyRef: {name: settings, key: absent, optional: true}}}
        - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
        - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
        - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
        - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
---
apiVersion: v1
kind: Pod
metadata: {name: volumes, labels: {app: volumes}}
spec:
  securityContext: {fsGroup: 3000}
  volumes:
    - {name: config, configMap: {name: settings, items: [{key: file.txt, path: deep/file.txt, mode: 0400}, {key: bytes, path: bytes}]}}
    - {name: secret, secret: {secretName: hidden, defaultMode: 0440}}
    - {name: maybe, configMap: {name: absent, optional: true}}
    - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu}}]}}
    - name: projected
      projected:
        sources:
          - {configMap: {name: settings, items: [{key: colour, path: colour}]}}
          - {secret: {name: hidden, items: [{key: word, path: word}]}}
          - {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
    - {name: disk, emptyDir: {}}
    - {name: memory, emptyDir: {medium: Memory, sizeLimit: 4Mi}}
    - {name: dir, hostPath: {path: @HOST/made/here, type: DirectoryOrCreate}}
    - {name: file, hostPath: {path: @HOST/file, type: FileOrCreate}}
  containers:
    - name: main
      image: IMAGE
      resources: {requests: {cpu: 10m}, limits: {cpu: 2, memory: 64Mi}}
      volumeMounts:
        - {name: config, mountPath: /config}
        - {name: config, mountPath: /single.txt, subPath: deep/file.txt}
        - {name: secret, mountPath: /secret, readOnly: true}
        - {name: maybe, mountPath: /maybe}
        - {name: down, mountPath: /down}
        - {name: projected, mountPath: /projected}
        - {name: disk, mountPath: /disk}
        - {name: disk, mountPath: /part, subPath: part}
        - {name: memory, mountPath: /memory}
        - {name: dir, mountPath: /dir}
        - {name: file, mountPath: /host-file}
---
apiVersion: v1
kind: Pod
metadata: {name: confined, labels: {app: confined}}
spec:
  securityContext:
    runAsUser: 1234
    runAsGroup: 2345
    runAsNonRoot: true
    supplementalGroups: [3456]
    seccompProfile: {type: RuntimeDefault}
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "1024"}]
  containers:
    - name: main
      image: IMAGE
      securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}
---
apiVersion: v1
kind: Pod
metadata: {name: privileged, labels: {app: privileged}}
spec:
  containers: [{name: main, image: IMAGE, securityContext: {privileged: true}}]
---
apiVersion: v1
kind: Pod
metadata: {name: ordinary, labels: {app: ordinary}}
spec:
  containers: [{name: main, image: IMAGE}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-host, labels: {app: on-host}}
spec:
  hostNetwork: true
  hostPID: true
  containers: [{name: main, image: IMAGE, args: [serve, -listen, ":9090"], readinessProbe: {tcpSocket: {port: 9090}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: sharing, labels: {app: sharing}}
spec:
  shareProcessNamespace: true
  containers:
    - {name: main, image: IMAGE}
    - {name: neighbour, image: IMAGE, args: [stubborn]}
  terminationGracePeriodSeconds: 1
---
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  containers:
    - name: http
      image: IMAGE
      startupProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, failureThreshold: 10}
      readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, failureThreshold: 1}
    - name: tcp
      image: IMAGE
      args: [serve, -listen, ":8081"]
      ports: [{name: web, containerPort: 8081}]
      readinessProbe: {tcpSocket: {port: web}, periodSeconds: 1}
    - name: exec
      image: IMAGE
      args: [serve, -listen, ":8082", -first, /tmp-ready=yes]
      readinessProbe: {exec: {command: [/program, exists, /tmp-ready]}, periodSeconds: 1}
    - name: grpc
      image: IMAGE
      args: [serve, -listen, ":8083", -grpc, ":8084"]
      readinessProbe: {grpc: {port: 8084}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: ill, labels: {app: ill}}
spec:
  containers:
    - name: main
      image: IMAGE
      livenessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1, failureThreshold: 2}
---
apiVersion: v1
kind: Pod
metadata: {name: with-port, labels: {app: with-port}}
spec:
  containers: [{name: main, image: IMAGE, ports: [{containerPort: 8080, hostPort: 8099}, {containerPort: 8080, hostPort: 8099, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hosts, labels: {app: hosts}}
spec:
  hostname: called
  subdomain: family
  hostAliases: [{ip: 10.1.2.3, hostnames: [friend.example, friend]}]
  dnsPolicy: None
  dnsConfig: {nameservers: [10.96.0.10], searches: [default.svc.cluster.local], options: [{name: ndots, value: "3"}]}
  containers: [{name: main, image: IMAGE}]
`

// facts is what the program inside tells about itself.
type facts struct {
	UID, GID, PID int
	Groups        []int
	Dir, Host     string
	Args          []string
	Status        map[string]string
	Processes     []string
}

// file is what it tells about a file.
type file struct {
	Mode     string
	UID, GID int
	TmpFS    bool
	Bytes    int64
}

func TestPods(t *testing.T) {
	w := newWorld(t)
	host := filepath.Join(w.Dir, "host")
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	manifests := strings.NewReplacer("IMAGE", insideImage, "@HOST", host).Replace(podManifests)
	w.clone.Write("pods.yaml", manifests)
	w.clone.Apply("pods of all kinds")

	t.Run("containers start in order", func(t *testing.T) { startOrder(w.in(t), host) })
	t.Run("environment", func(t *testing.T) { podEnvironment(w.in(t)) })
	t.Run("volumes", func(t *testing.T) { podVolumes(w.in(t), host) })
	t.Run("security", func(t *testing.T) { podSecurity(w.in(t)) })
	t.Run("namespaces", func(t *testing.T) { podNamespaces(w.in(t)) })
	t.Run("resources", func(t *testing.T) { podResources(w.in(t)) })
	t.Run("readiness follows the probe", func(t *testing.T) { readiness(w.in(t)) })
	t.Run("liveness restarts", func(t *testing.T) { liveness(w.in(t)) })
	t.Run("host port", func(t *testing.T) { hostPort(w.in(t)) })
	t.Run("hosts and resolver", func(t *testing.T) { hosts(w.in(t)) })
	t.Run("files change in place", func(t *testing.T) { filesChange(w.in(t), manifests) })
	t.Run("containers end in order", func(t *testing.T) { endOrder(w.in(t), host) })
}

func startOrder(w *world, host string) {
	if got, want := ask[string](w, w.ip("order"), "/file", "path", "/shared/log"), "one\nsidecar\ntwo\nmain\n"; got != want {
		w.t.Errorf("started in the order %q, want %q", got, want)
	}
	content, err := os.ReadFile(filepath.Join(host, "order", "log"))
	if err != nil || string(content) != "postStart\n" {
		w.t.Errorf("the hook wrote %q, %v", content, err)
	}
}

// endOrder removes the pod: its hook runs, then its containers end, the sidecar last.
func endOrder(w *world, host string) {
	w.clone.Write("pods.yaml", "")
	w.clone.Apply("no pods\n\nTally-Confirm: delete 14")
	w.Eventually(patience, "the pod has ended", func() error {
		content, err := os.ReadFile(filepath.Join(host, "order", "log"))
		if err != nil {
			return err
		}
		if want := "postStart\npreStop\nmain ended\nsidecar ended\n"; string(content) != want {
			return fmt.Errorf("%q, want %q", content, want)
		}
		return nil
	})
}

func podEnvironment(w *world) {
	status := w.pod("environment", ready)
	got := ask[map[string]string](w, w.ip("environment"), "/env")
	want := map[string]string{
		"colour": "green", "shape": "round", "file.txt": "first\n", "S_word": "sesame", "S_other": "42",
		"PLAIN": "plain", "COMPOSED": "plain and green and $(ABSENT)", "COLOUR": "green", "WORD": "sesame",
		"NAME": "environment", "NAMESPACE": "default", "UID": string(status.UID), "TIER": "front", "NOTE": "a note",
		"NODE": "node", "ACCOUNT": "default", "POD_IP": status.Status.IP, "MEMORY": "64", "CPU": "20",
	}
	for name, value := range want {
		if got[name] != value {
			w.t.Errorf("%s=%q, want %q", name, got[name], value)
		}
	}
	if _, set := got["NOTHING"]; set || got["HOST_IP"] == "" {
		w.t.Errorf("NOTHING is set (%t) or HOST_IP=%q is not: %q", set, got["HOST_IP"], got)
	}
	self := ask[facts](w, status.Status.IP, "/self")
	if self.Dir != "/etc" || self.Host != "environment" || self.Args[len(self.Args)-1] != "plain-$(PLAIN)-$(ABSENT)" {
		w.t.Errorf("in %s on %s with %q", self.Dir, self.Host, self.Args)
	}
}

func podVolumes(w *world, host string) {
	ip := w.ip("volumes")
	for path, want := range map[string]string{
		"/config/deep/file.txt": "first\n", "/config/bytes": "\x00\x01\x02", "/single.txt": "first\n", "/secret/word": "sesame",
		"/down/labels": "app=\"volumes\"", "/down/cpu": "2",
		"/projected/colour": "green", "/projected/word": "sesame", "/projected/name": "volumes",
	} {
		if got := ask[string](w, ip, "/file", "path", path); strings.TrimSpace(got) != strings.TrimSpace(want) {
			w.t.Errorf("%s holds %q, want %q", path, got, want)
		}
	}
	for path, want := range map[string]file{
		"/config/deep/file.txt": {Mode: "-r--r-----", GID: 3000}, "/secret/word": {Mode: "-r--r-----", GID: 3000, TmpFS: true},
		"/config/bytes": {Mode: "-rw-r--r--", GID: 3000}, "/maybe": {}, "/memory": {TmpFS: true}, "/disk": {GID: 3000}, "/part": {},
	} {
		got := ask[file](w, ip, "/stat", "path", path)
		if want.Mode != "" && got.Mode != want.Mode || want.GID != 0 && got.GID != want.GID || want.TmpFS && !got.TmpFS {
			w.t.Errorf("%s is %+v, want %+v", path, got, want)
		}
	}
	if got := ask[file](w, ip, "/stat", "path", "/memory"); got.Bytes != 4<<20 {
		w.t.Errorf("the memory volume has %d bytes, want 4 MiB", got.Bytes)
	}
	for path, shown := range map[string]string{"/dir/x": host + "/made/here/x", "/host-file": host + "/file"} {
		if _, err := post(ip, "/append", "path", path, "line", "written"); err != nil {
			w.t.Error(err)
		}
		if content, err := os.ReadFile(shown); err != nil || string(content) != "written\n" {
			w.t.Errorf("%s: %q, %v", shown, content, err)
		}
	}
	if _, err := post(ip, "/append", "path", "/secret/word", "line", "x"); err == nil {
		w.t.Error("a secret volume can be written to")
	}
}

// try reports what the program inside may do.
func (w *world) may(prefix, what string) bool {
	w.t.Helper()
	_, err := post(w.ip(prefix), "/try", "what", what)
	if err != nil && !strings.Contains(err.Error(), "422") {
		w.t.Fatal(err)
	}
	return err == nil
}

func podSecurity(w *world) {
	self := ask[facts](w, w.ip("confined"), "/self")
	if self.UID != 1234 || self.GID != 2345 || !slices.Contains(self.Groups, 3456) {
		w.t.Errorf("user %d, group %d, groups %v", self.UID, self.GID, self.Groups)
	}
	if self.Status["NoNewPrivs"] != "1" || self.Status["Seccomp"] != "2" || self.Status["CapBnd"] != "0000000000000400" {
		w.t.Errorf("no new privileges %s, seccomp %s, capabilities %s", self.Status["NoNewPrivs"], self.Status["Seccomp"], self.Status["CapBnd"])
	}
	allowed := map[string][]string{}
	for _, prefix := range []string{"confined", "ordinary", "privileged"} {
		for _, what := range []string{"root", "unshare", "mount", "low"} {
			if w.may(prefix, what) {
				allowed[prefix] = append(allowed[prefix], what)
			}
		}
	}
	// The confined pod asks for ports below 1024 to be privileged, and 1234 lacks the capability in its effective set.
	want := map[string][]string{"ordinary": {"root", "low"}, "privileged": {"root", "unshare", "mount", "low"}}
	if diff := cmp.Diff(want, allowed); diff != "" {
		w.t.Errorf("what containers may do, want -, got +:\n%s", diff)
	}
}

func podNamespaces(w *world) {
	self, err := tryAsk[facts]("127.0.0.1:9090", "/self")
	if err != nil {
		w.t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		w.t.Fatal(err)
	}
	if self.Host != name {
		w.t.Errorf("on the host's network the name is %s, want %s", self.Host, name)
	}
	if !slices.ContainsFunc(self.Processes, func(p string) bool { return strings.Contains(p, "tally up") }) {
		w.t.Errorf("with hostPID, the processes are %q", self.Processes)
	}
	shared := ask[facts](w, w.ip("sharing"), "/self")
	if shared.PID == 1 || !slices.Contains(shared.Processes, "/program stubborn") {
		w.t.Errorf("with a shared process namespace: process %d, others %q", shared.PID, shared.Processes)
	}
	alone := ask[facts](w, w.ip("ordinary"), "/self")
	if alone.PID != 1 || len(alone.Processes) != 1 || alone.Host != "ordinary" {
		w.t.Errorf("an ordinary pod: process %d of %q on %s", alone.PID, alone.Processes, alone.Host)
	}
}

func podResources(w *world) {
	ip := w.ip("environment")
	limit, err := tryAsk[string](ip, "/file", "path", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
	quota, period := "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000"
	if err != nil { // cgroup v2
		limit = ask[string](w, ip, "/file", "path", "/sys/fs/cgroup/memory.max")
		quota, period = "/sys/fs/cgroup/cpu.max", "50000 100000"
	}
	if strings.TrimSpace(limit) != "67108864" {
		w.t.Errorf("memory limit %q, want 64 MiB", limit)
	}
	if got := strings.TrimSpace(ask[string](w, ip, "/file", "path", quota)); got != period {
		w.t.Errorf("processor time %q, want %q", got, period)
	}
}

func readiness(w *world) {
	ip := w.ip("probed")
	if _, err := post(ip, "/ready", "is", "false"); err != nil {
		w.t.Fatal(err)
	}
	w.pod("probed", func(s nodes.PodStatus) error {
		if s.Ready || s.Containers[0].Ready || !s.Containers[1].Ready || !s.Containers[2].Ready || !s.Containers[3].Ready {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if _, err := post(ip, "/ready", "is", "true"); err != nil {
		w.t.Fatal(err)
	}
	if s := w.pod("probed", ready); s.Status.Restarts() != 0 {
		w.t.Errorf("%d restarts, want none: readiness restarts nothing", s.Status.Restarts())
	}
}

func liveness(w *world) {
	w.ip("ill") // it listens
	before := w.pod("ill", ready)
	if _, err := post(before.Status.IP, "/ready", "is", "false"); err != nil {
		w.t.Fatal(err)
	}
	after := w.pod("ill", func(s nodes.PodStatus) error {
		if s.Restarts() == 0 {
			return errors.New("no restart yet")
		}
		return ready(s)
	})
	if after.UID != before.UID || after.Status.IP != before.Status.IP {
		w.t.Errorf("a restart made pod %s at %s of %s at %s", after.UID, after.Status.IP, before.UID, before.Status.IP)
	}
}

func hostPort(w *world) {
	w.Eventually(patience, "the host port answers", func() error {
		got, err := get("127.0.0.1:8099", "/")
		if err == nil && got != "with-port" {
			err = fmt.Errorf("%q answered", got)
		}
		return err
	})
	if got := udp(w.t, "127.0.0.1:8099"); got != "with-port" {
		w.t.Errorf("over UDP %q answered", got)
	}
}

func hosts(w *world) {
	ip := w.ip("hosts")
	if self := ask[facts](w, ip, "/self"); self.Host != "called" {
		w.t.Errorf("the name is %s, want called", self.Host)
	}
	contains(w.t, "/etc/hosts", ask[string](w, ip, "/file", "path", "/etc/hosts"),
		"10.1.2.3\tfriend.example\tfriend", ip+"\tcalled.family.default.svc.cluster.local\tcalled")
	contains(w.t, "/etc/resolv.conf", ask[string](w, ip, "/file", "path", "/etc/resolv.conf"),
		"nameserver 10.96.0.10", "search default.svc.cluster.local", "options ndots:3")
}

// filesChange pushes another content: files follow in place, those mounted by
// subPath and environments roll the pod.
func filesChange(w *world, manifests string) {
	manifests = strings.ReplaceAll(manifests, "colour: green", "colour: blue")
	w.clone.Write("pods.yaml", manifests)
	w.clone.Apply("another colour")
	if got := ask[map[string]string](w, w.ip("environment"), "/env"); got["COLOUR"] != "blue" {
		w.t.Errorf("COLOUR=%q, want blue", got["COLOUR"])
	}
	w.Eventually(patience, "the file follows", func() error {
		got, err := tryAsk[string](w.ip("volumes"), "/file", "path", "/projected/colour")
		if err == nil && got != "blue" {
			err = fmt.Errorf("it holds %q", got)
		}
		return err
	})
}
