package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

const group = "/tallyman/podx"

// hierarchy is a directory that looks like one of either version: the files
// are there as the kernel makes them.
func hierarchy(t *testing.T, v2 bool, groups ...string) *Tree {
	t.Helper()
	root := t.TempDir()
	for _, group := range groups {
		makeGroup(t, root, v2, group)
	}
	return &Tree{root: root, v2: v2}
}

func makeGroup(t *testing.T, root string, v2 bool, group string) {
	t.Helper()
	files := map[string]string{
		"cpu/cpu.shares": "1024\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n", "memory/memory.limit_in_bytes": "9223372036854771712\n",
	}
	if v2 {
		files = map[string]string{"/cpu.weight": "100\n", "/cpu.max": "max 100000\n", "/memory.max": "max\n"}
	}
	for name, text := range files {
		controller, file, _ := strings.Cut(name, "/")
		dir := filepath.Join(root, controller, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func values(t *testing.T, tree *Tree, group string) map[string]string {
	t.Helper()
	got := map[string]string{}
	paths, err := filepath.Glob(filepath.Join(tree.root, "*", group, "*"))
	if err != nil {
		t.Fatal(err)
	}
	v2, err := filepath.Glob(filepath.Join(tree.root, group, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, v2...) {
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			continue // a group below
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got[filepath.Base(path)] = strings.TrimSpace(string(data))
	}
	return got
}

func TestEnsure(t *testing.T) {
	limited := runtime.Resources{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 1 << 20}
	for _, c := range []struct {
		name string
		v2   bool
		r    runtime.Resources
		want map[string]string
	}{
		{"v1", false, limited, map[string]string{"cpu.shares": "512", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "memory.limit_in_bytes": "1048576"}},
		{"v1 without limits", false, runtime.Resources{CPUShares: 2}, map[string]string{"cpu.shares": "2", "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "memory.limit_in_bytes": "-1"}},
		{"v2", true, limited, map[string]string{"cpu.weight": "20", "cpu.max": "50000 100000", "memory.max": "1048576"}},
		{"v2 without limits", true, runtime.Resources{CPUShares: 2}, map[string]string{"cpu.weight": "1", "cpu.max": "max 100000", "memory.max": "max"}},
	} {
		tree := hierarchy(t, c.v2, group)
		for range 2 {
			if err := tree.Ensure(group, c.r, 2048); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		if diff := cmp.Diff(c.want, values(t, tree, group)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

// TestBestEffortGetsWhatOthersLeave: the kernel gives a new group as much as a
// pod that requests a whole core.
func TestBestEffortGetsWhatOthersLeave(t *testing.T) {
	const around, pod = "/tallyman/besteffort", "/tallyman/besteffort/podx"
	for _, c := range []struct {
		v2         bool
		file, want string
	}{
		{false, "cpu.shares", "2"}, {true, "cpu.weight", "1"},
	} {
		tree := hierarchy(t, c.v2, around, pod)
		if err := tree.Ensure(pod, runtime.Resources{CPUShares: 2, Memory: 1 << 20}, 2048); err != nil {
			t.Fatal(err)
		}
		if got := values(t, tree, around); got[c.file] != c.want {
			t.Errorf("%s of %s is %q, want %q", c.file, around, got[c.file], c.want)
		}
		if got := values(t, tree, around); got["memory.max"] == "1048576" || got["memory.limit_in_bytes"] == "1048576" {
			t.Error("the pod's memory limit is around all best-effort pods")
		}
	}
}

// TestPodsWeighAsMuchAsTheNodeHasForThem: against its other programs, which
// would otherwise leave all pods together a single one's part. What somebody
// else limits them to stays.
func TestPodsWeighAsMuchAsTheNodeHasForThem(t *testing.T) {
	for _, c := range []struct {
		v2                bool
		file, want        string
		memory, limited   string
		memoryFile, quota string
	}{
		{false, "cpu.shares", "4096", "memory/tallyman", "1048576", "memory.limit_in_bytes", "-1"},
		{true, "cpu.weight", "157", "tallyman", "1048576", "memory.max", "max 100000"},
	} {
		tree := hierarchy(t, c.v2, all, group)
		if err := os.WriteFile(filepath.Join(tree.root, c.memory, c.memoryFile), []byte(c.limited), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := tree.Ensure(group, runtime.Resources{CPUShares: 512, CPUQuota: 1000, CPUPeriod: 100_000}, 4096); err != nil {
			t.Fatal(err)
		}
		got := values(t, tree, all)
		if got[c.file] != c.want || got[c.memoryFile] != c.limited || got["cpu.max"] != "" && got["cpu.max"] != c.quota {
			t.Errorf("the group around all pods has %v", got)
		}
	}
}

func TestOnlyOursAreTouched(t *testing.T) {
	tree := &Tree{root: t.TempDir()}
	for _, parent := range []string{"/system.slice", "/tallyman", "/tallyman/../x", "tallyman/x"} {
		if err := tree.Ensure(parent, runtime.Resources{}, 2048); err == nil {
			t.Errorf("made %s", parent)
		}
		if err := tree.Remove(parent); err == nil {
			t.Errorf("removed %s", parent)
		}
	}
}

func TestRemoveTakesTheGroupsBelow(t *testing.T) {
	tree := &Tree{root: t.TempDir()}
	below := filepath.Join(tree.root, "memory", group, "container")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tree.Remove(group); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Dir(below)); !os.IsNotExist(err) {
		t.Errorf("still there: %v", err)
	}
}
