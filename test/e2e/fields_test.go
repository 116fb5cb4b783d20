//go:build e2e

package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// fieldManifests have a pod for every group of rarer fields.
const fieldManifests = `
apiVersion: v1
kind: Pod
metadata: {name: named, labels: {app: named}}
spec:
  hostname: a
  subdomain: b
  setHostnameAsFQDN: true
  containers: [{name: main, image: IMAGE}]
---
apiVersion: v1
kind: Pod
metadata: {name: overridden, labels: {app: overridden}}
spec:
  hostnameOverride: c.example.org
  subdomain: b
  containers: [{name: main, image: IMAGE}]
---
apiVersion: v1
kind: Pod
metadata: {name: rules, labels: {app: rules}}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: IMAGE
      restartPolicy: Never
      restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]
---
apiVersion: v1
kind: Pod
metadata: {name: together, labels: {app: together}}
spec:
  restartPolicy: Never
  volumes: [{name: d, emptyDir: {}}]
  initContainers:
    - {name: writer, image: IMAGE, args: [append, /d/log, begun], volumeMounts: [{name: d, mountPath: /d}]}
  containers:
    - name: main
      image: IMAGE
      volumeMounts: [{name: d, mountPath: /d}]
      restartPolicy: Never
      restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]
    - {name: other, image: IMAGE, args: [stubborn]}
---
apiVersion: v1
kind: Pod
metadata: {name: filed, labels: {app: filed}}
spec:
  volumes: [{name: d, emptyDir: {}}]
  initContainers:
    - {name: writer, image: IMAGE, args: [append, /d/env, "WORD='from a file'"], volumeMounts: [{name: d, mountPath: /d}]}
  containers:
    - name: main
      image: IMAGE
      env: [{name: SAID, valueFrom: {fileKeyRef: {volumeName: d, path: env, key: WORD}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: whole, labels: {app: whole}}
spec:
  resources: {requests: {memory: 32Mi, cpu: 50m}, limits: {memory: 96Mi, cpu: "1"}}
  containers: [{name: main, image: IMAGE}]
---
apiVersion: v1
kind: Pod
metadata: {name: equipped, labels: {app: equipped}}
spec:
  containers: [{name: main, image: IMAGE, resources: {limits: {example.org/fuse: 1}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: second, labels: {app: second}}
spec:
  containers: [{name: main, image: IMAGE, resources: {limits: {example.org/fuse: 1}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: gated, labels: {app: gated}}
spec:
  schedulingGates: [{name: example.org/wait}]
  containers: [{name: main, image: IMAGE}]
---
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {app: full}}
spec:
  restartPolicy: Never
  containers:
    - {name: main, image: IMAGE, resources: {limits: {ephemeral-storage: 256Ki}}}
---
apiVersion: v1
kind: Pod
metadata: {name: sized, labels: {app: sized}}
spec:
  containers:
    - name: main
      image: IMAGE
      resizePolicy: [{resourceName: memory, restartPolicy: RESTART}]
      resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: CPU, memory: MEMORY}}
`

func fields(cpu, memory, restart string) string {
	return strings.NewReplacer("IMAGE", insideImage, "CPU", cpu, "MEMORY", memory, "RESTART", restart).Replace(fieldManifests)
}

func TestFields(t *testing.T) {
	device := filepath.Join("/dev", fmt.Sprintf("tally-test-%d", os.Getpid()))
	if r := shell("mknod " + device + " c 1 7"); r.Code != 0 { // as /dev/full
		t.Fatal(r.Err)
	}
	t.Cleanup(func() { os.Remove(device) })
	w := newWorld(t, "--device", "example.org/fuse="+device)
	w.clone.Write("pods.yaml", fields("500m", "64Mi", "NotRequired"))
	w.clone.Commit("pods with rarer fields")
	w.clone.Push("-o", "tally.wait=false")

	t.Run("host names", func(t *testing.T) { hostNames(w.in(t)) })
	t.Run("restart rules", func(t *testing.T) { restartRules(w.in(t)) })
	t.Run("all containers restart", func(t *testing.T) { allRestart(w.in(t)) })
	t.Run("variables from a file", func(t *testing.T) { fromFile(w.in(t)) })
	t.Run("resources of the pod", func(t *testing.T) { wholeResources(w.in(t)) })
	t.Run("devices", func(t *testing.T) { devices(w.in(t), device) })
	t.Run("gates", func(t *testing.T) { gates(w.in(t)) })
	t.Run("resize", func(t *testing.T) { resize(w.in(t)) })
	t.Run("ephemeral storage", func(t *testing.T) { ephemeral(w.in(t)) })
}

func hostNames(w *world) {
	for pod, want := range map[string]string{"named": "a.b.default.svc.cluster.local", "overridden": "c.example.org"} {
		if got := ask[facts](w, w.ip(pod), "/self").Host; got != want {
			w.t.Errorf("pod %s is called %s, want %s", pod, got, want)
		}
	}
}

// restarted waits until the pod's container runs for the nth time.
func restarted(w *world, pod string, n int) {
	w.t.Helper()
	w.pod(pod, func(s nodes.PodStatus) error {
		if s.Restarts() != n || !s.Ready {
			return fmt.Errorf("%d restarts, ready %t: %s %s", s.Restarts(), s.Ready, s.Reason, s.Message)
		}
		return nil
	})
}

func restartRules(w *world) {
	_, _ = fresh.Post(address(w.ip("rules"), "/exit", []string{"code", "42"}), "", nil) // it answers nothing any more
	restarted(w, "rules", 1)
	_, _ = fresh.Post(address(w.ip("rules"), "/exit", []string{"code", "1"}), "", nil)
	w.pod("rules", func(s nodes.PodStatus) error {
		if s.Phase != "Failed" {
			return fmt.Errorf("phase %s", s.Phase)
		}
		return nil
	})
}

func allRestart(w *world) {
	ip := w.ip("together")
	_, _ = fresh.Post(address(ip, "/exit", []string{"code", "42"}), "", nil) // it answers nothing any more
	restarted(w, "together", 3)
	if now := w.ip("together"); now != ip {
		w.t.Errorf("the pod is at %s, and was at %s", now, ip)
	}
	if got := ask[string](w, ip, "/file", "path", "/d/log"); got != "begun\nbegun\n" {
		w.t.Errorf("init containers wrote %q", got)
	}
}

func fromFile(w *world) {
	if got := ask[map[string]string](w, w.ip("filed"), "/env")["SAID"]; got != "from a file" {
		w.t.Errorf("the variable is %q", got)
	}
}

// memoryLimit is that of a pod's container, as it sees it itself.
func memoryLimit(w *world, pod string) string {
	ip := w.ip(pod)
	limit, err := tryAsk[string](ip, "/file", "path", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
	if err != nil { // cgroup v2
		limit = ask[string](w, ip, "/file", "path", "/sys/fs/cgroup/memory.max")
	}
	return strings.TrimSpace(limit)
}

func wholeResources(w *world) {
	if got := memoryLimit(w, "whole"); got != "100663296" {
		w.t.Errorf("a container without a limit has %s bytes, want its pod's 96 MiB", got)
	}
}

func devices(w *world, path string) {
	w.Eventually(patience, "one of two pods has the device", func() error {
		o, err := w.Overview()
		if err != nil {
			return err
		}
		with, without := "", ""
		for _, object := range o.Objects {
			switch p := object.Pod; {
			case p == nil || object.Key.Name != "equipped" && object.Key.Name != "second":
			case p.Status.Ready:
				with = p.Status.IP
			case strings.Contains(object.Reason, "lacks example.org/fuse"):
				without = object.Key.Name
			}
		}
		if with == "" || without == "" {
			return fmt.Errorf("with the device: %q, waiting for it: %q", with, without)
		}
		_, err = tryAsk[map[string]any](with, "/stat", "path", path)
		return err
	})
}

func gates(w *world) {
	for _, object := range w.overview().Objects {
		if object.Pod != nil && object.Key.Name == "gated" {
			if object.Pod.Node != "" || !strings.Contains(object.Reason, "SchedulingGated") {
				w.t.Errorf("the gated pod: node %q, %s", object.Pod.Node, object.Reason)
			}
		}
	}
}

func resize(w *world) {
	before := w.pod("sized", ready)
	if got := memoryLimit(w, "sized"); got != "67108864" {
		w.t.Errorf("memory limit %s, want 64 MiB", got)
	}
	w.clone.Write("pods.yaml", fields("1", "128Mi", "NotRequired"))
	w.clone.Commit("more for one")
	w.clone.Push("-o", "tally.wait=false")
	w.Eventually(patience, "the limit grows", func() error {
		if got := memoryLimit(w, "sized"); got != "134217728" {
			return fmt.Errorf("memory limit %s", got)
		}
		return nil
	})
	after := w.pod("sized", ready)
	if after.UID != before.UID || after.Status.Restarts() != 0 || after.Status.Containers[0].ID != before.Status.Containers[0].ID {
		w.t.Errorf("the pod was replaced or restarted: %+v", after)
	}
	// What is in use is not taken away: the kernel would kill for it.
	fill(w, w.ip("sized"), "/dev/shm/filler", 62, 1<<20)
	w.clone.Write("pods.yaml", fields("1", "64Mi", "NotRequired"))
	w.clone.Commit("too little for one")
	w.clone.Push("-o", "tally.wait=false")
	w.Eventually(patience, "the resize is refused", func() error {
		page, err := w.page("/api/v1/events?kind=Pod&namespace=default&name=sized")
		if err == nil && !strings.Contains(page, "ResizeError") {
			err = fmt.Errorf("events %s", page)
		}
		return err
	})
	if got := memoryLimit(w, "sized"); got != "134217728" {
		w.t.Errorf("memory limit %s while more than 64 MiB are in use", got)
	}
	if now := w.pod("sized", ready); now.Status.Containers[0].ID != before.Status.Containers[0].ID {
		w.t.Errorf("the container was killed: %+v", now)
	}
	w.clone.Write("pods.yaml", fields("1", "128Mi", "NotRequired"))
	w.clone.Commit("as before")
	w.clone.Push("-o", "tally.wait=false")
}

// fill makes a container write lines into a file of its own.
func fill(w *world, ip, path string, lines, size int) {
	w.t.Helper()
	line := strings.Repeat("x", size)
	for range lines {
		response, err := fresh.Post("http://"+ip+":8080/append?path="+path, "application/x-www-form-urlencoded", strings.NewReader("line="+line))
		if err != nil || response.StatusCode != http.StatusOK {
			w.t.Fatalf("fill %s: %v %v", path, response, err)
		}
		response.Body.Close()
	}
}

func ephemeral(w *world) {
	fill(w, w.ip("full"), "/filler", 16, 32<<10)
	w.Eventually(2*time.Minute, "the pod that holds too much is evicted", func() error {
		for _, object := range w.overview().Objects {
			if object.Pod != nil && object.Key.Name == "full" && object.Pod.Status.Reason == "Evicted" &&
				strings.Contains(object.Pod.Status.Message, "exceeds the total limit of containers 256Ki") {
				return nil
			}
		}
		return fmt.Errorf("it is not")
	})
}
