package agent

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/probe"
)

// status is the pod's status as Kubernetes would compute it.
func (m *Machine) status() nodes.PodStatus {
	s := nodes.PodStatus{
		UID: m.pod.UID, Started: m.memory.Started, ReadySince: m.memory.ReadySince,
		Initialized: m.memory.Initialized,
	}
	if m.memory.IP.IsValid() {
		s.IP = m.memory.IP.String()
	}
	podSpec := &m.pod.Template.Spec
	for i := range podSpec.InitContainers {
		s.Init = append(s.Init, m.containerStatus(&podSpec.InitContainers[i], true))
	}
	for i := range podSpec.Containers {
		s.Containers = append(s.Containers, m.containerStatus(&podSpec.Containers[i], false))
	}
	s.Phase = phase(m.memory, podSpec, s.Containers)
	s.ContainersReady = s.Phase == corev1.PodRunning && allReady(podSpec, &s)
	s.Ready = s.ContainersReady && s.Initialized
	s.Reason, s.Message = m.why(&s)
	return s
}

func allReady(podSpec *corev1.PodSpec, s *nodes.PodStatus) bool {
	for i, c := range s.Init {
		if spec.Sidecar(&podSpec.InitContainers[i]) && !c.Ready {
			return false
		}
	}
	for _, c := range s.Containers {
		if !c.Ready {
			return false
		}
	}
	return true
}

// phase follows Kubernetes: a pod is pending until each of its containers has
// started once.
func phase(memory *Memory, s *corev1.PodSpec, containers []nodes.ContainerStatus) nodes.Phase {
	if memory.Ended != "" {
		return memory.Ended
	}
	if !memory.Initialized {
		return corev1.PodPending
	}
	for _, c := range containers {
		if c.State == nodes.Waiting && c.Last == nil {
			return corev1.PodPending
		}
	}
	return corev1.PodRunning
}

func (m *Machine) containerStatus(c *corev1.Container, init bool) nodes.ContainerStatus {
	s := nodes.ContainerStatus{Name: c.Name, Image: c.Image, State: nodes.Waiting}
	r := m.memory.Runs[c.Name]
	if r == nil || r.ID == "" {
		s.Reason, s.Message = m.waiting(c.Name)
		if r != nil {
			s.Restarts, s.Last = max(r.Next-1, 0), r.Last
		}
		if r != nil && r.Last != nil && !r.NotBefore.IsZero() {
			s.Reason, s.Message = m.backingOff(c.Name, r.NotBefore.Sub(r.Last.FinishedAt))
		}
		return s
	}
	s.ID, s.ImageID, s.Restarts, s.Last = r.ID, r.ImageID, max(r.Next-1, 0), r.Last
	switch m.glance().state(c.Name) {
	case running:
		s.State, s.StartedAt, s.Started = nodes.Running, r.StartedAt, r.Started
		s.Ready = r.Started && r.Ready || r.Presumed
	case made:
		s.Reason, s.Message = m.waiting(c.Name)
	case exited:
		m.ended(&s, c, r, init)
	}
	return s
}

// glance is a view good for asking states only.
func (m *Machine) glance() *view { return &view{memory: m.memory, seen: m.seen} }

// ended shows a run that is over: as terminated, or as waiting for the next.
func (m *Machine) ended(s *nodes.ContainerStatus, c *corev1.Container, r *Run, init bool) {
	if r.Ended == nil {
		// Not written down yet; that comes with the same step.
		s.State, s.Reason = nodes.Terminated, "Error"
		return
	}
	d := &decider{view: &view{memory: m.memory, seen: m.seen}, spec: &m.pod.Template.Spec}
	crashed := r.Ended
	again := m.memory.Halt == nil && m.memory.Ended == "" && d.again(c)
	if init && !spec.Sidecar(c) {
		again = again && crashed.ExitCode != 0
		s.Ready = crashed.ExitCode == 0
	}
	t, inTrouble := m.trouble[c.Name]
	switch wait := r.restartAt(crashed.FinishedAt).Sub(crashed.FinishedAt); {
	case again && inTrouble:
		s.State, s.Reason, s.Message, s.Last = nodes.Waiting, t.reason, t.message, crashed
	case again && m.node.unleased(m.pod.UID):
		s.State, s.Reason, s.Message, s.Last = nodes.Waiting, waitingForLease, leaseMessage, crashed
	case again && wait > 0:
		s.State, s.Last = nodes.Waiting, crashed
		s.Reason, s.Message = m.backingOff(c.Name, wait)
	default:
		s.State, s.Reason, s.Message = nodes.Terminated, crashed.Reason, crashed.Message
		s.StartedAt, s.FinishedAt, s.ExitCode, s.Signal = crashed.StartedAt, crashed.FinishedAt, crashed.ExitCode, crashed.Signal
	}
}

// backingOff are the words for a container that crashes again and again.
func (m *Machine) backingOff(name string, wait time.Duration) (reason, message string) {
	return "CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", wait, name, m.pod.Name, m.pod.Namespace, m.pod.UID)
}

// waiting is why a container was not made yet.
func (m *Machine) waiting(name string) (reason, message string) {
	if t, found := m.trouble[name]; found {
		return t.reason, t.message
	}
	if t, found := m.imageTrouble(); found {
		return t.reason, t.message
	}
	if m.node.unleased(m.pod.UID) {
		return waitingForLease, leaseMessage
	}
	if t, found := m.trouble[""]; found {
		return t.reason, t.message
	}
	if len(m.pod.Template.Spec.InitContainers) > 0 && !m.memory.Initialized {
		return "PodInitializing", ""
	}
	return "ContainerCreating", ""
}

// why is one word and one sentence for a pod that is not ready.
func (m *Machine) why(s *nodes.PodStatus) (reason, message string) {
	h := m.memory.Halt
	switch {
	case h != nil && (h.Reason != "" || h.Message != "" && !h.Forget):
		return h.Reason, h.Message
	case s.Phase == corev1.PodSucceeded:
		return "PodCompleted", ""
	case h != nil:
		return "Terminating", h.Message
	case s.Ready:
		return "", ""
	}
	for i := range s.Init {
		c := &s.Init[i]
		sidecar := spec.Sidecar(&m.pod.Template.Spec.InitContainers[i])
		if reason, message, found := m.whyContainer(c); found && (!c.Ready && (sidecar || c.State != nodes.Running)) {
			return reason, "init container " + c.Name + ": " + message
		} else if c.State == nodes.Running && !sidecar && !s.Initialized {
			return "PodInitializing", "init container " + c.Name + " is running"
		}
	}
	for i := range s.Containers {
		if reason, message, found := m.whyContainer(&s.Containers[i]); found {
			return reason, "container " + s.Containers[i].Name + ": " + message
		}
	}
	return "", ""
}

func (m *Machine) whyContainer(c *nodes.ContainerStatus) (reason, message string, found bool) {
	switch {
	case c.Ready || c.State == nodes.Terminated && c.ExitCode == 0:
		return "", "", false
	case c.State == nodes.Waiting && c.Reason == "CrashLoopBackOff":
		return c.Reason, fmt.Sprintf("%s; it last exited with code %d (%s)", c.Message, c.Last.ExitCode, c.Last.Reason), true
	case c.State == nodes.Waiting && c.Message != "":
		return c.Reason, c.Message, true
	case c.State == nodes.Waiting:
		return c.Reason, "waiting to start", true
	case c.State == nodes.Terminated:
		return c.Reason, fmt.Sprintf("exited with code %d", c.ExitCode), true
	}
	if text := m.probed[c.Name]; text != "" {
		return "ContainersNotReady", text, true
	}
	if !c.Started {
		return "ContainersNotReady", "has not started yet (startup probe or postStart hook)", true
	}
	return "ContainersNotReady", "the readiness probe has not succeeded yet", true
}

// attend sees to it that every running container has the probes it should.
func (m *Machine) attend() {
	podSpec := &m.pod.Template.Spec
	v := m.glance()
	for _, name := range containerNames(podSpec) {
		r, c := m.memory.Runs[name], spec.Find(podSpec, name)
		if c == nil || r == nil || v.state(name) != running || !r.Hooked {
			continue
		}
		m.attendOne(c, r)
	}
}

func (m *Machine) attendOne(c *corev1.Container, r *Run) {
	if !r.Started {
		if r.Kill != nil {
			return
		}
		if c.StartupProbe != nil {
			m.probe(c, r, probe.Startup, c.StartupProbe, probe.Unknown)
			return
		}
		r.Started = true
		m.poke()
	}
	if c.ReadinessProbe == nil && (!r.Ready || r.Presumed) {
		r.Ready, r.Presumed = true, false
		m.poke()
	}
	if c.ReadinessProbe != nil {
		known := probe.Unknown
		if r.Ready {
			known = probe.Success
		}
		m.probe(c, r, probe.Readiness, c.ReadinessProbe, known)
	}
	if c.LivenessProbe != nil && r.Kill == nil && m.memory.Halt == nil {
		m.probe(c, r, probe.Liveness, c.LivenessProbe, probe.Success)
	}
}

func (m *Machine) probe(c *corev1.Container, r *Run, kind probe.Kind, p *corev1.Probe, known probe.State) {
	key := r.ID + "/" + string(kind)
	if m.probing[key] {
		return
	}
	m.probing[key] = true
	m.prober.Add(probe.Target{
		Key: probe.Key{Container: r.ID, Kind: kind}, Probe: p, IP: m.memory.IP,
		Ports: c.Ports, Started: r.StartedAt, Known: known,
	})
}

// unprobe ends the probes of a run.
func (m *Machine) unprobe(id string, kinds ...probe.Kind) {
	if len(kinds) == 0 {
		kinds = []probe.Kind{probe.Startup, probe.Liveness, probe.Readiness}
	}
	for _, k := range kinds {
		if key := id + "/" + string(k); m.probing[key] {
			delete(m.probing, key)
			m.prober.Remove(id, k)
		}
	}
}

// signalOf splits an exit code of 128+n.
func signalOf(code int32) int32 {
	if code > 128 && code < 128+65 {
		return code - 128
	}
	return 0
}

// reasonOf names how a run ended.
func reasonOf(code int32, oom bool) string {
	switch {
	case oom:
		return "OOMKilled"
	case code == 0:
		return "Completed"
	}
	return "Error"
}
