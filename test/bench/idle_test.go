//go:build e2e

package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// idleFor is how long an idle cluster is watched.
const idleFor = time.Minute

// benchIdle measures what Tallyman's own processes take while nothing happens.
// Containers, containerd and its shims are not among them.
func benchIdle(t *testing.T, all *figures) {
	dir := t.TempDir() // before the machine, so that it outlives it
	m := machine.New(t)
	m.Use(ownBinary(t, m, dir))
	image := m.PushImage(app, "app:1")
	m.Up()
	c := m.Clone()
	deployment(c, "idle", image, 10, standard, "idle")
	push(t, c, "ten pods")

	before := usedByAll(t, m)
	time.Sleep(idleFor) // nothing is waited for: the silence is what is measured
	after := usedByAll(t, m)
	var used time.Duration
	memory := 0.0
	for pid, now := range after {
		then, found := before[pid]
		if !found {
			t.Fatalf("process %d came while the cluster was idle", pid)
		}
		size := proportional(t, pid)
		t.Logf("process %d (%s): %.1f MiB, %s of processor time", pid, now.name, size, now.used-then.used)
		used += now.used - then.used
		memory += size
	}
	if len(after) < 2 {
		t.Fatalf("processes %v, want tally up and its keeper", after)
	}
	all.add(t, lower("idle-memory", memory, "MiB", 80))
	all.add(t, lower("idle-processor", 100*used.Seconds()/idleFor.Seconds(), "% of a core", 0.5))
}

// ownBinary is a copy of the binary: pages of it that some other instance on the
// machine maps as well would count for less.
func ownBinary(t *testing.T, m *machine.Machine, dir string) string {
	t.Helper()
	to := filepath.Join(dir, "tally")
	command(t, "", "cp", m.Binary(), to)
	return to
}

type usage struct {
	name string
	used time.Duration
}

// usedByAll finds every process of this machine's tally.
func usedByAll(t *testing.T, m *machine.Machine) map[int]usage {
	t.Helper()
	found := map[int]usage{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		exe, exeErr := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || exeErr != nil || filepath.Base(exe) != "tally" || !bytes.Contains(args, []byte(m.RunDir)) {
			continue
		}
		name := strings.SplitN(string(args), "\x00", 3)[1]
		found[pid] = usage{name: name, used: processorTime(t, pid)}
	}
	return found
}

// proportional is a process' share of the memory that it maps, in MiB.
func proportional(t *testing.T, pid int) float64 {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if rest, found := strings.CutPrefix(line, "Pss:"); found {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				t.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	t.Fatalf("process %d: no Pss in smaps_rollup", pid)
	return 0
}
