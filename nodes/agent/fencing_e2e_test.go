//go:build e2e

package agent

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/containerd"
)

// agentOf tells a process of this test that it is the agent: the folder, the
// runtime's socket and the image.
const agentOf = "TALLY_TEST_AGENT"

// leaseOf is short, that the test is; renewed twice a second while the server
// that this test plays can be reached.
const leaseOf = 4 * time.Second

// TestAFencedPodDiesWithItsLease, on a real machine, though its agent is stopped,
// has no server, or was killed. The pod beside it, which is not fenced, goes on.
func TestAFencedPodDiesWithItsLease(t *testing.T) {
	if args := os.Getenv(agentOf); args != "" {
		agentProcess(t, strings.Split(args, "|"))
		return
	}
	m := newMachineE2E(t)
	t.Cleanup(func() { // when all agents are dead
		_, kill := m.start()
		kill(true)
	})
	a := m.agentProcess()
	m.containers("both run", "u1_web_0", "u2_web_0")

	// What is executed in a container dies with it.
	executed := make(chan error, 1)
	go func() {
		_, err := m.runtime.Exec(context.Background(), "u1_web_0", []string{"/program", "forever"}, os.Stderr)
		executed <- err
	}()
	m.eventually("a program is executed in the container", func() bool { return len(m.processes("u1")) > 1 })
	signalTo(t, a, syscall.SIGSTOP)
	m.killed("u1")
	m.containers("the agent is stopped", "u2_web_0")
	<-executed
	signalTo(t, a, syscall.SIGCONT)
	m.containers("the agent goes on", "u1_web_1", "u2_web_0")

	signalTo(t, a, syscall.SIGUSR1)
	m.killed("u1")
	m.containers("the server cannot be reached", "u2_web_0")
	signalTo(t, a, syscall.SIGUSR1)
	m.containers("the server is back", "u1_web_2", "u2_web_0")

	signalTo(t, a, syscall.SIGKILL)
	_ = a.Wait()
	m.killed("u1")
	m.containers("the agent was killed", "u2_web_0")

	m.agentProcess()
	m.containers("there is another agent", "u1_web_3", "u2_web_0")
}

func signalTo(t *testing.T, c *exec.Cmd, s syscall.Signal) {
	t.Helper()
	need(t, c.Process.Signal(s))
}

// agentProcess starts an agent as a process of its own.
func (m *machine) agentProcess() *exec.Cmd {
	m.t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^"+m.t.Name()+"$")
	cmd.Env = append(os.Environ(), agentOf+"="+m.dir+"|"+m.daemon.Address+"|"+m.image)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	need(m.t, cmd.Start())
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// agentProcess is that process. It plays the server, too: SIGUSR1 takes it away
// and brings it back.
func agentProcess(t *testing.T, args []string) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	m := &machine{t: t, dir: args[0], image: args[2], status: map[nodes.UID]nodes.PodStatus{}, gone: map[nodes.UID]bool{}}
	var err error
	m.runtime, err = containerd.New(containerd.Options{
		Address: args[1], CertsDir: filepath.Join(m.dir, "certs"), RunDir: filepath.Join(m.dir, "run/containerd"), Log: log,
	})
	need(t, err)
	run := filepath.Join(m.dir, "run")
	m.keeper, err = keeper.Start(t.Context(), keeper.StartOptions{Command: []string{"/proc/self/exe", "run-keeper", run}, RunDir: run, Log: log})
	need(t, err)
	a, _ := m.start()
	x := assign()
	for _, uid := range []string{"u1", "u2"} {
		x.Pods = append(x.Pods, pod(uid, corev1.PodSpec{Containers: []corev1.Container{m.container("web")}}))
	}
	x.Fenced = []nodes.UID{"u1"}
	a.Assign(x)
	toggle := make(chan os.Signal, 1)
	signal.Notify(toggle, syscall.SIGUSR1)
	reached := true
	for renew := time.NewTicker(500 * time.Millisecond); ; {
		select {
		case <-toggle:
			reached = !reached
		case <-renew.C:
			if reached {
				a.Lease(boottime.Now(), leaseOf)
			}
		}
	}
}

// containers waits until just these run.
func (m *machine) containers(when string, ids ...string) {
	m.t.Helper()
	m.eventually(when+": "+strings.Join(ids, ", "), func() bool {
		all, err := m.runtime.List(m.t.Context())
		need(m.t, err)
		var running []string
		for _, s := range all {
			if s.State == runtime.Running {
				running = append(running, s.ID)
			}
		}
		slices.Sort(running)
		return slices.Equal(running, ids)
	})
}

// killed waits until nothing of a pod is alive, and sees that its keeper did
// that, when the lease was over and not before.
func (m *machine) killed(uid nodes.UID) {
	m.t.Helper()
	held := func() keeper.HeldFence {
		all, err := m.keeper.Fences(m.t.Context())
		need(m.t, err)
		i := slices.IndexFunc(all, func(h keeper.HeldFence) bool { return h.Pod == uid })
		if i < 0 {
			m.t.Fatalf("no fence of %s: %+v", uid, all)
		}
		return all[i]
	}
	m.eventually("nothing of the pod is alive", func() bool { return len(m.processes(uid)) == 0 })
	if h := held(); h.Killed < h.Ends || boottime.Now() < h.Ends {
		m.t.Errorf("dead without its keeper: %+v", h)
	}
}

// processes are those in a pod's groups.
func (m *machine) processes(uid nodes.UID) (pids []string) {
	m.t.Helper()
	for _, parent := range spec.CgroupParents(uid) {
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory"} {
			_ = filepath.WalkDir(filepath.Join(root, parent), func(path string, _ os.DirEntry, err error) error {
				if err == nil && filepath.Base(path) == "cgroup.procs" {
					list, _ := os.ReadFile(path)
					pids = append(pids, strings.Fields(string(list))...)
				}
				return nil
			})
		}
	}
	return pids
}
