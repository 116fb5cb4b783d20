package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/nodes/probe"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/volume"
)

// act does one action. What is already so is success.
func (m *Machine) act(ctx context.Context, a action) error {
	switch a.op {
	case opMount:
		return m.mountVolumes(ctx)
	case opToken:
		m.renew(ctx)
	case opAttach:
		return m.attach(ctx)
	case opPull:
		m.pull(ctx, a.container)
	case opRun:
		return m.heavy(ctx, func() error { return m.startRun(ctx, a.container) })
	case opPost:
		m.postStart(ctx, a.container)
	case opCollect:
		return m.collectRun(ctx, a.container)
	case opResize:
		return m.resize(ctx)
	case opRenew:
		m.restartToResize(ctx, a.container)
	case opYield:
		m.yield(a.container, a.message)
	case opReset:
		return m.reset(ctx, a.container)
	case opKillOne:
		m.beginKill(a.container)
	case opPre:
		m.preStop(ctx, a.container)
	case opSignal:
		return m.signal(ctx, a.container)
	case opForce:
		return m.forceKill(ctx, a.container)
	case opInit:
		m.memory.Initialized = true
	case opFail:
		m.fail(a)
	case opEnd:
		return m.end(ctx, a.phase)
	case opDelete:
		return m.deleteContainer(ctx, a.container)
	case opFinish:
		return m.finish(ctx)
	default:
		return fmt.Errorf("unknown action %q", a.op)
	}
	return nil
}

// heavy runs f when one of the node's slots is free.
func (m *Machine) heavy(ctx context.Context, f func() error) error {
	select {
	case m.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.slots }()
	return f()
}

// answerWithin is how long the runtime may take to make or start a container,
// as long as a kubelet gives it. A mount that hangs must not hold a slot for ever.
const answerWithin = 2 * time.Minute

// errNoAnswer is returned when the runtime took longer; whether it has done
// what it was asked for is not known.
var errNoAnswer = fmt.Errorf("the container runtime did not answer within %s, a volume may hang", answerWithin)

func answered(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerWithin, errNoAnswer)
	defer cancel()
	err := call(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errNoAnswer) {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return err
}

// context is what the pod's containers are told.
func (m *Machine) context() *spec.Context {
	return &spec.Context{
		Pod: m.pod, IP: m.memory.IP, HostIPs: m.node.addrs, Node: m.node.name,
		Allocatable: m.node.allocatable, Config: m.node.config, Services: m.node.table(), File: m.volumeFile,
	}
}

// maxEnvFile is how large a file of variables may be.
const maxEnvFile = 1 << 20

// volumeFile reads a file of a mounted volume, wherever its links lead within.
func (m *Machine) volumeFile(name, path string) ([]byte, error) {
	v, found := m.mounts[name]
	if !found {
		return nil, fmt.Errorf("the pod has no volume %q", name)
	}
	root, err := os.OpenRoot(v.Path)
	if err != nil {
		return nil, fmt.Errorf("open volume %q: %w", name, err)
	}
	defer root.Close()
	f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read file %s of volume %q: %w", path, name, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEnvFile))
}

func (m *Machine) mountVolumes(ctx context.Context) error {
	pod, src := m.pod, m.volumeSource()
	if !slowVolumes(pod) {
		return m.mountedVolumes(m.volumes.Mount(ctx, pod, src))
	}
	m.spawn(ctx, mountTask, func(ctx context.Context) func() {
		mounts, err := m.volumes.Mount(ctx, pod, src)
		return func() {
			if err := m.mountedVolumes(mounts, err); err != nil && m.memory.Halt == nil {
				m.failed(action{op: opMount}, err)
				return
			}
			m.succeeded(action{op: opMount})
		}
	})
	return nil
}

func (m *Machine) mountedVolumes(mounts map[string]volume.Volume, err error) error {
	if err != nil && m.mounts == nil {
		return fmt.Errorf("mount volumes: %w", err)
	}
	m.mounted = true
	if err == nil {
		m.mounts, m.stale = mounts, ""
		return nil
	}
	// What is mounted stays as it is: running containers need no more.
	if m.stale != err.Error() {
		m.stale = err.Error()
		m.event(true, "FailedMount", "update volumes: %s", err)
	}
	return nil
}

func (m *Machine) attach(ctx context.Context) error {
	s := &m.pod.Template.Spec
	hostname, err := spec.KernelHostname(m.pod, m.node.cluster().Domain)
	if err != nil {
		return err
	}
	box := network.Sandbox{
		UID: m.pod.UID, Hostname: hostname, HostNetwork: s.HostNetwork, HostIPC: s.HostIPC,
	}
	if c := s.SecurityContext; c != nil && len(c.Sysctls) > 0 {
		box.Sysctls = map[string]string{}
		for _, sysctl := range c.Sysctls {
			box.Sysctls[sysctl.Name] = sysctl.Value
		}
	}
	err = m.heavy(ctx, func() (err error) {
		m.net, err = m.network.Add(ctx, box)
		return err
	})
	if err != nil {
		return fmt.Errorf("attach pod to the network: %w", err)
	}
	m.memory.IP = m.net.IP
	if s.HostNetwork && len(m.node.addrs) > 0 {
		m.memory.IP = m.node.addrs[0]
	}
	// What runs already had its group before, and goes on with its limits.
	if err := m.enclose(ctx); err != nil && !errors.Is(err, errInUse) {
		return err
	}
	m.attached = true
	return nil
}

// collectRun writes down how a run ended.
func (m *Machine) collectRun(ctx context.Context, name string) error {
	r := m.memory.run(name)
	m.unprobe(r.ID)
	if cancel := m.busy["hook"+name]; cancel != nil {
		cancel()
	}
	s, found := m.seen[r.ID]
	t := &nodes.Termination{StartedAt: r.StartedAt, FinishedAt: m.now(), ExitCode: 137, Reason: "ContainerStatusUnknown"}
	if !found {
		t.Message = "the container vanished without an exit code"
	} else {
		t.ExitCode, t.Reason = s.ExitCode, reasonOf(s.ExitCode, s.OOMKilled)
		if !s.Finished.IsZero() {
			t.FinishedAt = s.Finished.UTC()
		}
		t.Message = m.lastWords(ctx, name, r, t)
	}
	fenced := t.ExitCode != 0 && m.node.killed(ctx, m.pod.UID, r.StartedAt)
	if fenced {
		t.Reason, t.Message = "LeaseExpired", "killed because the node's lease was not renewed in time"
		m.event(true, "LeaseExpired", "Container %s was killed because the node's lease was not renewed in time", name)
		r.Delay, r.Restarted = 0, time.Time{} // that was no crash of its own
	}
	t.Signal = signalOf(t.ExitCode)
	if k := r.Kill; k != nil {
		t.Reason, t.Message = cmp.Or(k.Reason, t.Reason), cmp.Or(t.Message, k.Message)
	}
	r.Ended, r.Kill, r.Started, r.Ready, r.Presumed = t, nil, false, false, false
	delete(m.probed, name)
	m.log.Info("container ended", "container", name, "exit_code", t.ExitCode, "reason", t.Reason)
	if name != pauseName && t.ExitCode != 0 && r.restartAt(t.FinishedAt).After(t.FinishedAt) && m.memory.Halt == nil {
		m.event(true, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", name, m.pod.Name, m.pod.Namespace, m.pod.UID)
	}
	return nil
}

const (
	maxTermination   = 4096
	maxLogTerminated = 2048
	logLines         = 80
)

// lastWords is the run's termination message.
func (m *Machine) lastWords(ctx context.Context, name string, r *Run, t *nodes.Termination) string {
	c := spec.Find(&m.pod.Template.Spec, name)
	if c == nil {
		return ""
	}
	if dir, err := m.volumes.Dir(m.pod.UID); err == nil {
		if text := head(filepath.Join(dir, r.ID+messageSuffix), maxTermination); text != "" {
			return text
		}
	}
	if c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError || t.ExitCode == 0 {
		return ""
	}
	// Only a deleted container has written all of its log.
	if err := m.deleteContainer(ctx, r.ID); err != nil {
		m.log.Warn("read the end of a log that may be incomplete", "container", name, "err", err)
	}
	var out strings.Builder
	if err := m.readLog(ctx, m.logPath(name, r.Next-1), logLines, &out); err != nil {
		return ""
	}
	text := out.String()
	return strings.ToValidUTF8(text[max(0, len(text)-maxLogTerminated):], "")
}

// head reads at most n bytes of a file, which may be of any size: a container
// writes it. Nothing when it cannot.
func head(path string, n int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(n)))
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(string(data), "?")
}

// logPath is where a run's log goes.
func (m *Machine) logPath(name string, attempt int) string {
	return logPath(m.node.logs, m.pod.UID, name, attempt)
}

func logPath(dir string, uid nodes.UID, name string, attempt int) string {
	return filepath.Join(dir, string(uid), strings.TrimPrefix(name, "@"), fmt.Sprintf("%d.log", attempt))
}

// beginKill gives a run the pod's own time to end.
func (m *Machine) beginKill(name string) {
	r := m.memory.run(name)
	k := Kill{Since: m.now(), Grace: grace(m.pod)}
	if h := m.memory.Halt; h != nil {
		k.Since, k.Grace = h.Since, h.Grace
	}
	if r.Kill == nil {
		r.Kill = &k
		if name != pauseName {
			m.event(false, "Killing", "Stopping container %s", name)
		}
	} else {
		r.Kill.Since, r.Kill.Grace = k.Since, k.Grace
	}
	m.unprobe(r.ID, probe.Liveness, probe.Startup)
}

func (m *Machine) signal(ctx context.Context, name string) error {
	r := m.memory.run(name)
	if m.seen[r.ID].State == runtime.Created {
		return m.forceKill(ctx, name)
	}
	if err := m.kill(ctx, r.ID, m.stopSignal(name)); err != nil {
		return err
	}
	r.Kill.Signaled = m.now()
	return nil
}

// kill sends a signal; a container that is not there has ended.
func (m *Machine) kill(ctx context.Context, id, signal string) error {
	err := m.runtime.Kill(ctx, id, signal)
	if errors.Is(err, runtime.ErrNotFound) {
		delete(m.seen, id)
		return nil
	}
	if err != nil {
		return fmt.Errorf("send %s to container %s: %w", signal, id, err)
	}
	return nil
}

func (m *Machine) stopSignal(name string) string {
	c := spec.Find(&m.pod.Template.Spec, name)
	if c != nil && c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		return string(*c.Lifecycle.StopSignal)
	}
	if s := m.memory.run(name).StopSignal; s != "" {
		return s
	}
	return "SIGTERM"
}

func (m *Machine) forceKill(ctx context.Context, name string) error {
	r := m.memory.run(name)
	if m.seen[r.ID].State == runtime.Created {
		return m.deleteContainer(ctx, r.ID)
	}
	if err := m.kill(ctx, r.ID, "SIGKILL"); err != nil {
		return err
	}
	r.Kill.Forced = m.now()
	return nil
}

// fail ends the pod's containers and leaves it failed.
func (m *Machine) fail(a action) {
	if a.reason != "" {
		m.event(true, a.reason, "%s", a.message)
	}
	m.halt(Halt{Since: m.now(), Grace: grace(m.pod), Reason: a.reason, Message: a.message})
}

// end gives the pod its final phase. Its address is free for others.
func (m *Machine) end(ctx context.Context, phase nodes.Phase) error {
	if err := m.network.Remove(ctx, m.pod.UID); err != nil {
		return fmt.Errorf("detach ended pod from the network: %w", err)
	}
	if err := release(&m.ports, m.pod.UID); err != nil {
		return err
	}
	m.attached = false
	m.memory.Ended = phase
	m.log.Info("pod ended", "phase", phase)
	return nil
}

func (m *Machine) deleteContainer(ctx context.Context, id string) error {
	if err := m.runtime.Delete(ctx, id); err != nil && !errors.Is(err, runtime.ErrNotFound) {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	delete(m.seen, id)
	if err := m.keeper.CloseLog(ctx, id); err != nil {
		m.log.Warn("close log", "container_id", id, "err", err)
	}
	return nil
}

// finish leaves nothing of the pod on the node.
func (m *Machine) finish(ctx context.Context) error {
	for what, cancel := range m.busy {
		m.log.Debug("cancel", "task", what)
		cancel()
	}
	for id := range m.seen {
		m.unprobe(id)
		if err := m.deleteContainer(ctx, id); err != nil {
			return err
		}
	}
	if err := leave(ctx, &m.ports, m.node, m.pod.UID); err != nil {
		return err
	}
	if err := m.releaseImages(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	m.gone = true
	m.mu.Unlock()
	m.log.Info("pod gone")
	return nil
}

// leave removes what a pod without containers still has on the node.
func leave(ctx context.Context, p *ports, on *surroundings, uid nodes.UID) error {
	if err := p.network.Remove(ctx, uid); err != nil {
		return fmt.Errorf("detach pod %s from the network: %w", uid, err)
	}
	if err := p.volumes.Unmount(ctx, uid); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(on.logs, string(uid))); err != nil {
		return fmt.Errorf("remove logs of pod %s: %w", uid, err)
	}
	if err := ungroup(p, uid); err != nil {
		return err
	}
	return release(p, uid)
}

// ungroup removes the control group around a pod, of which nobody may know any
// more where it is.
func ungroup(p *ports, uid nodes.UID) error {
	if p.cgroups == nil {
		return nil
	}
	for _, group := range spec.CgroupParents(uid) {
		if err := p.cgroups.Remove(group); err != nil {
			return fmt.Errorf("remove control group of pod %s: %w", uid, err)
		}
	}
	return nil
}
