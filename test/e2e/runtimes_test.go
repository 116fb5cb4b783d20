//go:build e2e

package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestRuntimeClass runs a pod by a shim of its own: first it waits, for the
// node doesn't have the program. What the class says it costs is in the pod's
// control group.
func TestRuntimeClass(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("class.yaml", `
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: safe}
handler: other
overhead: {podFixed: {memory: 32Mi}}
`)
	w.clone.Write("safe.yaml", pod("safe", "runtimeClassName: safe\ncontainers: [{name: main, image: "+insideImage+", resources: {limits: {memory: 64Mi}}}]"))
	w.clone.Commit("a class")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		t.Fatalf("push: %s", r.Err)
	}
	w.pod("safe", func(s nodes.PodStatus) error {
		if len(s.Containers) != 1 || s.Containers[0].Reason != "CreateContainerError" || !strings.Contains(s.Message, "containerd finds no containerd-shim-other-v2 in its PATH") {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})

	shim := filepath.Join(w.Containerd.Shims, "containerd-shim-other-v2")
	own, err := exec.LookPath("containerd-shim-runc-v2")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(w.Containerd.Shims, 0o755), os.WriteFile(shim, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	w.ip("safe")
	safe := w.pod("safe", ready)
	if n := safe.Status.Restarts(); n != 0 {
		t.Errorf("%d restarts", n)
	}
	if !slices.Contains(programs(t), shim) {
		t.Errorf("nothing runs %s", shim)
	}
	limit, err := os.ReadFile("/sys/fs/cgroup/memory/tallyman/pod" + string(safe.UID) + "/memory.limit_in_bytes")
	if err != nil { // cgroup v2
		limit, err = os.ReadFile("/sys/fs/cgroup/tallyman/pod" + string(safe.UID) + "/memory.max")
	}
	if got := strings.TrimSpace(string(limit)); err != nil || got != "100663296" {
		t.Errorf("the pod may use %s bytes, want 96 MiB: %v", got, err)
	}
}

// programs are the paths of what runs.
func programs(t *testing.T) (paths []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil { // others have ended
			paths = append(paths, path)
		}
	}
	return paths
}
