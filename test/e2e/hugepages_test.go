//go:build e2e

package e2e_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

const hugeManifests = `
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec:
  securityContext: {fsGroup: 1234}
  volumes: [{name: d, emptyDir: {medium: HugePages}}]
  containers:
    - name: main
      image: IMAGE
      resources: {limits: {memory: 64Mi, hugepages-2Mi: 4Mi}}
      volumeMounts: [{name: d, mountPath: /d}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  containers: [{name: main, image: IMAGE, resources: {limits: {memory: 64Mi, hugepages-2Mi: 64Gi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: silent}
spec:
  volumes: [{name: d, emptyDir: {medium: HugePages-2Mi}}]
  containers: [{name: main, image: IMAGE, volumeMounts: [{name: d, mountPath: /d}]}]
`

// TestHugePages: a pod gets what it requests of them, and no more although the
// machine has more.
func TestHugePages(t *testing.T) {
	limitHugePages(t)
	setAside(t, 4)
	w := newWorld(t)
	w.clone.Write("pods.yaml", strings.ReplaceAll(hugeManifests, "IMAGE", insideImage))
	w.clone.Commit("huge pages")
	if r := w.clone.Push("-o", "tally.wait=false"); r.Code != 0 {
		t.Fatalf("push: %s", r.Err)
	}
	ip := w.ip("huge")
	if dir := ask[map[string]any](w, ip, "/stat", "path", "/d"); dir["mode"] != "dgrwxrwxrwx" || dir["gid"] != 1234.0 {
		t.Errorf("the volume: %v", dir)
	}
	take := func(file string, pages int) error {
		_, err := post(ip, "/take", "path", "/d/"+file, "bytes", strconv.Itoa(pages<<21))
		return err
	}
	if err := take("two", 2); err != nil {
		t.Errorf("two pages: %v", err)
	}
	if err := take("third", 1); err == nil {
		t.Error("it took a third page")
	}
	if taken, err := os.ReadFile(pagesFile("free_hugepages")); err != nil || strings.TrimSpace(string(taken)) == "0" {
		t.Errorf("free pages: %q, %v", taken, err)
	}
	w.pod("silent", func(s nodes.PodStatus) error {
		if len(s.Containers) != 1 || !strings.Contains(s.Containers[0].Message, "no container of the pod requests hugepages-2Mi") {
			return fmt.Errorf("status %+v", s)
		}
		return nil
	})
	for _, object := range w.overview().Objects {
		if object.Key.Name == "greedy" && !strings.Contains(object.Reason, "lacks hugepages-2Mi (want 64Gi, most free ") {
			t.Errorf("the greedy pod: %s", object.Reason)
		}
	}
}

func pagesFile(name string) string {
	return filepath.Join("/sys/kernel/mm/hugepages/hugepages-2048kB", name)
}

// setAside has the kernel keep more huge pages while the test runs.
func setAside(t *testing.T, pages int) {
	t.Helper()
	file := pagesFile("nr_hugepages")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	had, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Error(err)
		}
	})
	want := fmt.Sprintln(had + pages)
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
	if has, err := os.ReadFile(file); err != nil || string(has) != want {
		t.Fatalf("the kernel has set aside %s of %s pages: %v", has, want, err)
	}
}

// limitHugePages mounts the control groups for huge pages where the machine has
// version 1 and these are not mounted.
func limitHugePages(t *testing.T) {
	t.Helper()
	const root, dir = "/sys/fs/cgroup", "/sys/fs/cgroup/hugetlb"
	var s unix.Statfs_t
	if err := unix.Statfs(root, &s); err != nil {
		t.Fatal(err)
	}
	if s.Type == unix.CGROUP2_SUPER_MAGIC || unix.Statfs(dir, &s) == nil && s.Type == unix.CGROUP_SUPER_MAGIC {
		return
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	// The kernel makes hierarchies only for those whose groups are the machine's,
	// as those of the first process here are.
	mount := exec.Command("nsenter", "--cgroup=/proc/1/ns/cgroup", "mount", "-t", "cgroup", "-o", "hugetlb", "cgroup", dir)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatal(mount, err, string(out), os.Remove(dir))
	}
	t.Cleanup(func() {
		// A hierarchy with groups would outlive its mount.
		if err := errors.Join(removeGroups(filepath.Join(dir, "tallyman")), unix.Unmount(dir, 0), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
}

func removeGroups(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, removeGroups(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, unix.Rmdir(dir))
}
