// Package cluster gives a test several machines: each with process, mount,
// network, control group and host name namespaces of its own, a disk that
// outlives a reboot, and containerd, joined by a switch whose cables can be cut.
//
// Inside a machine everything is where it is on a real one: /var/lib/tallyman,
// /run/tallyman, /run/containerd/containerd.sock, /usr/local/bin/tally. What is
// written below /etc, /root, /usr/local and /var/lib stays on the machine's disk.
//
// It makes no assertion about Tallyman; it starts, stops, breaks and looks.
package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/registry"
	"github.com/tallyman-dev/tallyman/test/machine"
)

// Main runs the tests of a package that uses machines. Call it from TestMain.
func Main(m *testing.M) {
	if text := os.Getenv(bootVariable); text != "" {
		os.Exit(live(text))
	}
	machine.Main(m)
}

// patience is how long what the harness itself does may take.
const patience = time.Minute

// Cluster is some machines, a switch that joins them, and a registry. It
// belongs to one test, whose own processes are one more machine at the switch.
type Cluster struct {
	t        testing.TB
	dir      string
	cables   *cables
	registry *registry.Registry
	machines []*Machine
	// askingTally is made when it is first needed; see asking.
	askingTally string
}

// New makes a cluster without machines and clears everything away when the
// test ends.
func New(t testing.TB) *Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "c")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, dir: dir}
	t.Cleanup(c.clear)
	if c.cables, err = newCables(); err != nil {
		t.Fatal(err)
	}
	c.registry, err = registry.Start(context.Background(), registry.Options{Dir: filepath.Join(dir, "registry"), Addr: RegistryAddress})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// In has failures of the cluster and its machines count for a subtest until it ends.
func (c *Cluster) In(t testing.TB) {
	outer := c.t
	c.t = t
	t.Cleanup(func() { c.t = outer })
}

// Machine adds a machine and boots it.
func (c *Cluster) Machine(name string) *Machine {
	c.t.Helper()
	m := c.MachineOff(name)
	m.Boot()
	return m
}

// MachineOff adds a machine without turning it on.
func (c *Cluster) MachineOff(name string) *Machine {
	c.t.Helper()
	m, err := c.newMachine(name)
	if err != nil {
		c.t.Fatalf("machine %s: %v", name, err)
	}
	c.machines = append(c.machines, m)
	return m
}

// PushImage builds a Go program of this module and pushes it as
// RegistryAddress/name; env tells versions of one program apart.
func (c *Cluster) PushImage(program, name string, env ...string) string {
	c.t.Helper()
	ref := RegistryAddress + "/" + name
	machine.PushProgram(c.t, program, ref, env...)
	return ref
}

// Eventually tries until it works, see machine.Eventually.
func (c *Cluster) Eventually(patience time.Duration, what string, try func() error) {
	c.t.Helper()
	machine.Eventually(c.t, patience, what, try)
}

func (c *Cluster) clear() {
	for _, m := range c.machines {
		if c.t.Failed() {
			m.show()
		}
		m.Die()
		if err := m.forget(); err != nil {
			c.t.Errorf("machine %s: %v", m.Name, err)
		}
	}
	if c.registry != nil {
		if err := c.registry.Stop(); err != nil {
			c.t.Error(err)
		}
	}
	if c.cables != nil {
		if err := c.cables.close(); err != nil {
			c.t.Error(err)
		}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Error(err)
	}
}

// show tells what a machine's logs say.
func (m *Machine) show() {
	logs, _ := filepath.Glob(filepath.Join(m.dir, "*.log"))
	for _, path := range logs {
		machine.ShowLog(m.c.t, filepath.Base(path)+" of machine "+m.Name, path)
	}
}

// address of the machine with this number at the switch; the test's is 1.
func address(number int) string { return fmt.Sprintf("192.168.77.%d", number) }

// RegistryAddress is where all machines and the test reach the registry.
const RegistryAddress = "192.168.77.1:7490"
