package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// Machine is one machine of a cluster.
type Machine struct {
	Name string
	// Address at the switch.
	Address string

	c      *Cluster
	card   net.HardwareAddr // the same after a reboot
	dir    string           // its disk and its logs
	boots  int
	groups machine.Groups
	life   *exec.Cmd // the first process of its namespaces; nil while it is off
	ended  chan struct{}
	// containerd and tally, while they run.
	containerd, tally *Process
	args              []string // tally's
	clock             *clock   // nil while tally has the outer machine's
	frozen            bool     // the data disk is
}

func (c *Cluster) newMachine(name string) (*Machine, error) {
	number := len(c.machines) + 2
	m := &Machine{
		Name: name, Address: address(number), c: c,
		card: net.HardwareAddr{2, 0, 0, 0, 0, byte(number)}, dir: filepath.Join(c.dir, name),
	}
	return m, m.format()
}

// format puts on a disk what a machine has when somebody gets it.
func (m *Machine) format() error {
	for _, dir := range []string{"/var/lib/tallyman", "/var/lib/containerd", "/root/.", "/usr/local/bin"} {
		if err := os.MkdirAll(m.File(dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range layered {
		if err := os.MkdirAll(filepath.Join(m.dir, "work", dir), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(m.writeEtc(), m.install(machine.Built(m.c.t)))
}

// NewDisk replaces the disk of a machine that is off. Only /root is as before: who
// sets the machine up again brings it along.
func (m *Machine) NewDisk() {
	m.c.t.Helper()
	for path, name := range kept {
		if path != "/root" {
			m.do(os.RemoveAll(filepath.Join(m.dir, "disk", name)))
		}
	}
	m.do(os.RemoveAll(filepath.Join(m.dir, "work")))
	m.do(m.format())
}

// writeEtc configures the machine as somebody who sets one up would: containerd
// without Kubernetes' plugin, a registry that speaks plain HTTP, no resolver.
func (m *Machine) writeEtc() error {
	for path, content := range map[string]string{
		"/etc/hostname":               m.Name + "\n",
		"/etc/hosts":                  "127.0.0.1 localhost\n" + m.Address + " " + m.Name + "\n",
		"/etc/resolv.conf":            "# no resolver\n",
		"/etc/containerd/config.toml": "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[debug]\n  level = \"warn\"\n",
		registryHosts + "/hosts.toml": fmt.Sprintf("server = \"http://%s\"\n", RegistryAddress),
	} {
		path = m.File(path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

const registryHosts = "/etc/containerd/certs.d/" + RegistryAddress

// kept are the folders that a machine's disk holds, with their names there.
var kept = map[string]string{"/etc": "etc", "/root": "root", "/usr/local": "local", "/var/lib": "lib"}

// File is where the test finds a file of the machine. While the machine is
// off, only what its disk keeps is there.
func (m *Machine) File(path string) string {
	if m.life != nil {
		return filepath.Join("/proc", strconv.Itoa(m.life.Process.Pid), "root", path)
	}
	for folder, name := range kept {
		if rest, found := strings.CutPrefix(path, folder+"/"); found {
			return filepath.Join(m.dir, "disk", name, rest)
		}
	}
	m.c.t.Fatalf("machine %s is off and does not keep %s", m.Name, path)
	return ""
}

// install makes a binary the machine's tally. What runs goes on with the one
// that it was started from.
func (m *Machine) install(binary string) error {
	at := m.File(tallyPath)
	next := at + ".next"
	if err := os.Symlink(binary, next); err != nil {
		return err
	}
	return os.Rename(next, at)
}

const tallyPath = "/usr/local/bin/tally"

// Install makes a binary the machine's tally from the next start on.
func (m *Machine) Install(binary string) {
	m.c.t.Helper()
	if err := m.install(binary); err != nil {
		m.c.t.Fatal(err)
	}
}

// SmallDisk gives tally's data a file system of that many bytes, which can then
// be filled. The machine is off and has no data yet.
func (m *Machine) SmallDisk(bytes int64) {
	m.c.t.Helper()
	m.do(os.WriteFile(diskFile(m.dir), nil, 0o600))
	m.do(os.Truncate(diskFile(m.dir), bytes))
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", diskFile(m.dir)).CombinedOutput(); err != nil {
		m.c.t.Fatalf("make a file system: %v: %s", err, out)
	}
}

// Boot turns the machine on: namespaces, the cable, containerd.
func (m *Machine) Boot() {
	m.c.t.Helper()
	m.BootBare()
	m.StartContainerd()
}

// BootBare turns a machine on that runs no containers.
func (m *Machine) BootBare() {
	m.c.t.Helper()
	if err := m.boot(); err != nil {
		m.c.t.Fatalf("boot %s: %v", m.Name, err)
	}
}

func (m *Machine) boot() (err error) {
	m.boots++
	boot, err := json.Marshal(bootOptions{Name: m.Name, Dir: m.dir, Address: m.Address, Gateway: address(1), Boots: m.boots})
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), bootVariable+"="+string(boot))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Setsid:     true,
	}
	power, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.life, m.ended = cmd, make(chan struct{})
	if m.groups, err = machine.NewGroups(m.Name, cmd.Process.Pid); err != nil {
		return err
	}
	if err := m.c.cables.plug(m.Name, m.card, cmd.Process.Pid); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(power, "on"); err != nil {
		return err
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	go func() { cmd.Wait(); close(m.ended) }()
	if err != nil {
		return fmt.Errorf("it did not come up: %w", err)
	}
	if said != running {
		return errors.New(said)
	}
	return nil
}

// Die ends every process of the machine at once, as a power cut does: nobody
// hears a last word of it.
func (m *Machine) Die() {
	m.c.t.Helper()
	if m.life == nil {
		return
	}
	m.ThawDisk() // who waits for a disk cannot be killed
	if err := m.c.cables.unplug(m.Name); err != nil {
		m.c.t.Errorf("machine %s: %v", m.Name, err)
	}
	if err := m.life.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.c.t.Errorf("machine %s: %v", m.Name, err)
	}
	<-m.ended
	m.life = nil
	for _, p := range []*Process{m.containerd, m.tally} {
		if p != nil {
			<-p.ended
		}
	}
	m.containerd, m.tally = nil, nil
	m.c.Eventually(patience, m.Name+"'s control groups end", m.groups.Remove)
}

// forget removes what Die leaves.
func (m *Machine) forget() error { return os.RemoveAll(m.dir) }

// Off tells that the machine does not run.
func (m *Machine) Off() bool { return m.life == nil }
