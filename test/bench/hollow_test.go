//go:build e2e

package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/test/machine"
)

const (
	// hollowNodes is the program that connects nodes without machines.
	hollowNodes = "github.com/tallyman-dev/tallyman/test/hollow"

	agentsAddress = "127.0.0.1:7400"

	// joining is how long it may take until all nodes have joined, or all pods run.
	joining = 15 * time.Minute
	// settling is how long a server rests before its memory is measured.
	settling = time.Minute
)

// benchCluster measures a server with many nodes: real record, real protocol,
// TLS, and nodes that only say that their pods run.
func benchCluster(t *testing.T, all *figures) {
	t.Run("1000", func(t *testing.T) {
		_, took := flood(t, 1000, 300)
		all.add(t, higher("end-to-end-1000-nodes-30000-pods", 30000/took.Seconds(), "pods/s", 3000))
	})
	t.Run("5000", func(t *testing.T) {
		m, took := flood(t, 5000, 1500)
		all.add(t, told("end-to-end-5000-nodes-150000-pods", 150000/took.Seconds(), "pods/s"))
		all.add(t, told("server-memory-5000-nodes-150000-pods-at-once", anonymous(t, m.PID()), "MiB"))
		time.Sleep(settling) // nothing is waited for: what it takes to go on is measured
		all.add(t, lower("server-memory-5000-nodes-150000-pods", anonymous(t, m.PID()), "MiB", 1024))
		if _, err := m.Overview(); err != nil {
			t.Fatal(err)
		}
		all.add(t, told("server-memory-5000-nodes-150000-pods-looked-at", anonymous(t, m.PID()), "MiB"))
	})
}

// flood connects hollow nodes and pushes Deployments of a hundred pods each. It
// returns how long it took from the push until all were ready. The nodes share the
// server's cores, so they are given more time than on machines of their own before
// they count as silent.
func flood(t *testing.T, count, deployments int) (m *machine.Machine, took time.Duration) {
	dir := onDisk(t) // cleared away after the machine
	m = machine.New(t)
	m.DataDir = dir
	m.Serve("--listen", agentsAddress)
	c := m.Clone()
	c.Write("cluster.yaml", `apiVersion: tallyman.dev/v1alpha1
kind: Cluster
metadata: {name: large}
spec:
  network: {podCIDR: 10.128.0.0/9}
  nodes: {silentAfter: 40s, lease: 60s}
`)
	c.Commit("begin")
	if r := c.Push("--quiet"); r.Code != 0 {
		t.Fatalf("push: exit code %d: %s", r.Code, r.Err)
	}
	hollow(t, m, count)
	m.Eventually(joining, fmt.Sprintf("%d nodes are connected", count), func() error {
		o, err := m.Overview()
		if err != nil {
			return err
		}
		ready := 0
		for i := range o.Nodes {
			if o.Nodes[i].Ready {
				ready++
			}
		}
		if ready != count {
			time.Sleep(time.Second) // looking costs the server what joining needs
			return fmt.Errorf("%d nodes are ready", ready)
		}
		return nil
	})
	for i := range deployments {
		c.Write(fmt.Sprintf("app%d.yaml", i), fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: app%[1]d}
spec:
  replicas: 100
  selector: {matchLabels: {app: app%[1]d}}
  template:
    metadata: {labels: {app: app%[1]d}}
    spec:
      containers: [{name: app, image: registry.test/app:1, resources: {requests: {cpu: 100m, memory: 128Mi}}}]
`, i))
	}
	sha := c.Commit("all")
	begun := time.Now()
	c.Git("push", "--quiet", "--push-option", "tally.wait=false", "origin", "main")
	return m, converged(t, m, sha).Sub(begun)
}

// onDisk is a directory for a record that is written to a disk, unlike those of
// machines, which are in memory.
func onDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Join(machine.Root(t), "build"), "record-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Fatalf("%s is in memory: what it costs to write the record to a disk can't be measured there", dir)
	}
	return dir
}

// converged waits for a revision, and returns when it had by the server's log: an
// overview of all pods would cost as much as placing thousands.
func converged(t *testing.T, m *machine.Machine, sha string) (at time.Time) {
	t.Helper()
	says := regexp.MustCompile(`(?m)^time=(\S+) level=INFO msg="revision converged" .*revision=` + sha)
	m.Eventually(joining, "the pods are ready", func() error {
		time.Sleep(time.Second)
		log, err := os.ReadFile(filepath.Join(m.Dir, "tally.log"))
		if err != nil {
			return err
		}
		found := says.FindSubmatch(log)
		if found == nil {
			return fmt.Errorf("revision %s has not converged", sha)
		}
		at, err = time.Parse(time.RFC3339, string(found[1]))
		return err
	})
	return at
}

// hollow starts nodes without machines in a process of their own.
func hollow(t *testing.T, m *machine.Machine, count int) {
	t.Helper()
	binary, err := image.BuildBinary(t.Context(), hollowNodes, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := m.TallyRaw("token", "create", "--run-dir", m.RunDir, "--server", "https://"+agentsAddress)
	fields := strings.Fields(r.Out)
	if r.Code != 0 || len(fields) == 0 {
		t.Fatalf("token create: exit code %d: %s", r.Code, r.Err)
	}
	cmd := exec.Command(binary, "-server", agentsAddress, "-token", fields[len(fields)-1], "-dir", t.TempDir(), "-nodes", strconv.Itoa(count))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(m.Dir, "hollow.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		log.Close()
	})
}

// anonymous is what a process holds of memory that no file is behind, in MiB.
func anonymous(t *testing.T, pid int) float64 {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if rest, found := strings.CutPrefix(line, "RssAnon:"); found {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	t.Fatalf("process %d: no RssAnon in its status", pid)
	return 0
}
