package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// Command makes a command that runs on the machine. Only Exec and spawn may
// start it.
func (m *Machine) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("sh", append([]string{"-c", m.entry() + ` exec "$@"`, "sh", name}, args...)...)
}

// entry is shell text that moves the shell into the machine's control groups
// and namespaces; the shell's children already belong to the machine's processes.
func (m *Machine) entry() string {
	var text strings.Builder
	for _, dir := range m.groups {
		fmt.Fprintf(&text, "echo 0 > %s/%s/cgroup.procs && ", dir, machine.ProcessGroup)
	}
	namespaces := fmt.Sprintf("/proc/%d/ns/", m.life.Process.Pid)
	fmt.Fprintf(&text, "set -- nsenter --no-fork --mount=%[1]smnt --net=%[1]snet --uts=%[1]suts --ipc=%[1]sipc --cgroup=%[1]scgroup --time=%[1]stime_for_children -- \"$@\" &&", namespaces)
	return text.String()
}

// Exec runs a command on the machine to its end.
func (m *Machine) Exec(cmd *exec.Cmd) machine.Result {
	inside := m.Command(cmd.Args[0], cmd.Args[1:]...)
	cmd.Path, cmd.Args, cmd.Err = inside.Path, inside.Args, inside.Err
	return machine.Run(cmd, func(cmd *exec.Cmd) error { return m.start(cmd, nil) })
}

// Run runs a program on the machine to its end.
func (m *Machine) Run(name string, args ...string) machine.Result {
	return m.Exec(exec.Command(name, args...))
}

// Tally runs a client command of tally against the machine's own server.
func (m *Machine) Tally(command string, args ...string) machine.Result {
	return m.Run("tally", append([]string{command}, args...)...)
}

// start starts a command among the machine's processes: the children of a
// thread that has entered their namespace are there, the thread itself is not.
// Children have what clock does to the thread, too, where there is one.
func (m *Machine) start(cmd *exec.Cmd, clock *clock) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		started <- func() error {
			space, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", m.life.Process.Pid))
			if err != nil {
				return err
			}
			defer space.Close()
			if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWPID); err != nil {
				return fmt.Errorf("enter machine %s: %w", m.Name, err)
			}
			if clock != nil {
				if err := clock.filter(); err != nil {
					return err
				}
			}
			return cmd.Start()
		}()
	}()
	return <-started
}

// Process is a program that runs on a machine.
type Process struct {
	m     *Machine
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
}

// Start runs a program on the machine until it ends or is ended; its output
// goes to a log that a failing test shows.
func (m *Machine) Start(name string, args ...string) *Process {
	m.c.t.Helper()
	return m.startBy(nil, name, args...)
}

func (m *Machine) startBy(clock *clock, name string, args ...string) *Process {
	m.c.t.Helper()
	log, err := os.OpenFile(m.Log(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.c.t.Fatal(err)
	}
	defer log.Close()
	p := &Process{m: m, name: name, cmd: m.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := m.start(p.cmd, clock); err != nil {
		m.c.t.Fatalf("start %s on %s: %v", name, m.Name, err)
	}
	go func() { p.cmd.Wait(); close(p.ended) }()
	return p
}

// Log is the file with the output of a program that Start runs.
func (m *Machine) Log(name string) string { return filepath.Join(m.dir, filepath.Base(name)+".log") }

// PID of the process as the test sees it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Signal sends a signal: SIGSTOP freezes the process, SIGCONT lets it go on.
func (p *Process) Signal(s syscall.Signal) {
	p.m.c.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.m.c.t.Fatalf("%s of %s: %s: %v", p.name, p.m.Name, s, err)
	}
}

// Kill ends the process as a crash would.
func (p *Process) Kill() { p.end(syscall.SIGKILL) }

// Stop asks the process to end and waits until it has.
func (p *Process) Stop() { p.end(syscall.SIGTERM) }

func (p *Process) end(s syscall.Signal) {
	p.m.c.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.m.c.t.Errorf("%s of %s: %v", p.name, p.m.Name, err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.m.c.t.Errorf("%s of %s did not end", p.name, p.m.Name)
		p.cmd.Process.Kill()
		<-p.ended
	}
}

// containerdSocket as the machine sees it.
const containerdSocket = "/run/containerd/containerd.sock"

// StartContainerd starts containerd, for the first time or after its end.
func (m *Machine) StartContainerd() {
	m.c.t.Helper()
	m.containerd = m.Start("containerd")
	m.c.Eventually(patience, "containerd of "+m.Name+" answers", func() error {
		select {
		case <-m.containerd.ended:
			m.c.t.Fatalf("containerd of %s ended at once", m.Name)
		default:
		}
		c, err := client.New(m.File(containerdSocket))
		if err != nil {
			return err
		}
		defer c.Close()
		if serving, err := c.IsServing(m.c.t.Context()); err != nil || !serving {
			return fmt.Errorf("serving: %t, %w", serving, err)
		}
		return nil
	})
}

// Containerd is the machine's.
func (m *Machine) Containerd() *Process { return m.containerd }

// Processes of the machine, containers included, whose command line contains
// all words, as the test sees them.
func (m *Machine) Processes(words ...string) []int {
	group := "/" + filepath.Base(m.groups[0])
	var found []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		content, err := os.ReadFile(file)
		if err != nil || !containsAll(strings.ReplaceAll(string(content), "\x00", " "), words) {
			continue
		}
		groups, err := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		pid, numberErr := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && numberErr == nil && strings.Contains(string(groups), group+"/") {
			found = append(found, pid)
		}
	}
	return found
}

func containsAll(line string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(line, word) {
			return false
		}
	}
	return true
}
