package agent

import (
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/pressure"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/probe"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Assign hands over a newer version of the pod.
func (m *Machine) Assign(p *nodes.Pod) {
	m.post(func() {
		m.pod = p
		m.obey(p)
		for name := range m.trouble { // what was missing may be there now
			delete(m.retries, string(opMount))
			if r := m.memory.Runs[name]; r == nil || r.Ended == nil {
				delete(m.retries, string(opRun)+name)
			}
		}
	})
}

// obey takes over the pod's Stop.
func (m *Machine) obey(p *nodes.Pod) {
	if p.Stop != nil {
		m.halt(Halt{Since: m.now(), Grace: p.Stop.Grace, Forget: true, Message: p.Stop.Reason})
	}
}

// halt ends all containers. A halt that is under way only becomes stricter.
func (m *Machine) halt(h Halt) {
	if cancel := m.busy[mountTask]; cancel != nil {
		cancel()
	}
	old := m.memory.Halt
	if old == nil {
		m.memory.Halt = &h
		return
	}
	old.Forget = old.Forget || h.Forget
	if h.Since.Add(h.Grace).Before(old.Since.Add(old.Grace)) {
		old.Grace = max(h.Since.Add(h.Grace).Sub(old.Since), 0)
	}
}

// Drop ends the pod because the node's assignment no longer holds it.
func (m *Machine) Drop() {
	m.post(func() {
		m.halt(Halt{Since: m.now(), Grace: grace(m.pod), Forget: true, Message: "no longer assigned to this node"})
	})
}

// evictionGrace is what Kubernetes gives a pod that a node must end at once.
const evictionGrace = time.Second

// Evict ends the pod, nearly at once, and leaves it failed. One that is ending
// already only does so faster.
func (m *Machine) Evict(message string) {
	m.post(func() {
		if m.memory.Ended != "" {
			return
		}
		if m.memory.Halt == nil {
			m.event(true, "Evicted", "%s", message)
		}
		m.halt(Halt{Since: m.now(), Grace: min(evictionGrace, grace(m.pod)), Reason: "Evicted", Message: message})
	})
}

// Decline ends the pod, and leaves it failed, if it waits for room on the disk
// to begin. A pod that is critical for the system goes on waiting.
func (m *Machine) Decline(message string) {
	m.post(func() {
		if m.memory.Ended != "" || m.memory.Halt != nil || pressure.Critical(&m.pod.Template.Spec) || !m.roomless() {
			return
		}
		m.event(true, "Evicted", "%s", message)
		m.halt(Halt{Since: m.now(), Reason: "Evicted", Message: message})
	})
}

// roomless reports whether nothing of the pod runs because the disk is full.
func (m *Machine) roomless() bool {
	if s := m.Status(); s.Phase != corev1.PodPending || len(alive(&s)) > 0 {
		return false
	}
	for _, t := range m.trouble {
		if strings.Contains(t.message, "no space left") {
			return true
		}
	}
	return false
}

// Exited tells what became of one of the pod's containers.
func (m *Machine) Exited(s runtime.Status) {
	m.post(func() {
		if age(s.State) >= age(m.seen[s.ID].State) {
			m.seen[s.ID] = s
		}
	})
}

// Vanished tells that the runtime knows a container no more.
func (m *Machine) Vanished(id string) {
	m.post(func() { delete(m.seen, id) })
}

// Observe replaces all that is known of the pod's containers. asOf is when the
// question was put: what was made since stays, and what was seen to have
// started or ended since has.
func (m *Machine) Observe(asOf time.Time, containers []runtime.Status) {
	m.post(func() {
		fresh := make(map[string]runtime.Status, len(containers))
		for _, s := range containers {
			fresh[s.ID] = s
		}
		for id, s := range m.seen {
			then, listed := fresh[id]
			made := !listed && !s.Created.Before(asOf)
			further := listed && age(s.State) > age(then.State)
			if made || further {
				fresh[id] = s
			}
		}
		m.seen = fresh
		for name, r := range m.memory.Runs {
			if s := fresh[r.ID]; r.ID != "" && r.StartedAt.IsZero() && s.State != runtime.Created {
				m.started(name, r, s.Started) // the runtime died before it could answer
			}
		}
	})
}

// age orders the states of a container, which never goes back.
func age(s runtime.State) int {
	switch s {
	case runtime.Running:
		return 1
	case runtime.Exited:
		return 2
	}
	return 0
}

// Available tells that the container runtime is back: nothing waits for its
// retry any more.
func (m *Machine) Available() {
	now := m.now()
	m.post(func() {
		// What failed since is not the better for it: a step may have lasted long.
		maps.DeleteFunc(m.retries, func(_ string, r *retry) bool { return !r.since.After(now) })
	})
}

// Shed has the containers of a pod that has ended deleted, to make room. What
// they told must be on the disk by then: they cannot tell it again.
func (m *Machine) Shed() {
	m.post(func() {
		m.shed = m.shed || m.memory.Ended != "" && m.node.saved(m.pod.UID)
	})
}

// Drifted tells that something of the pod's network vanished.
func (m *Machine) Drifted() {
	m.post(func() { m.attached = false })
}

// Resync looks whether the files of the pod's volumes are as they should be.
func (m *Machine) Resync() {
	m.post(func() {
		if m.memory.Ended == "" && m.memory.Halt == nil {
			m.mounted = false
		}
	})
}

// Probed tells the outcome of a probe.
func (m *Machine) Probed(r probe.Result) {
	m.post(func() { m.probeResult(r) })
}

func (m *Machine) probeResult(r probe.Result) {
	name, run := m.byID(r.Container)
	if run == nil {
		return
	}
	if r.Failed {
		m.probed[name] = r.Message
		m.event(true, "Unhealthy", "%s", r.Message)
	}
	if r.Kind == probe.Readiness || r.State != probe.Success {
		run.Presumed = false
	}
	switch {
	case r.Kind == probe.Readiness:
		run.Ready = r.State == probe.Success
		if run.Ready {
			delete(m.probed, name)
		}
	case r.State == probe.Failure:
		m.restart(name, run, r.Kind)
	case r.Kind == probe.Startup && r.State == probe.Success:
		run.Started = true
		delete(m.probed, name)
		m.unprobe(run.ID, probe.Startup)
	}
}

// restart ends a run whose liveness or startup probe failed.
func (m *Machine) restart(name string, run *Run, kind probe.Kind) {
	if run.Kill != nil || m.memory.Halt != nil {
		return
	}
	c := spec.Find(&m.pod.Template.Spec, name)
	p, word := c.LivenessProbe, "liveness"
	if kind == probe.Startup {
		p, word = c.StartupProbe, "startup"
	}
	wait := grace(m.pod)
	if p != nil && p.TerminationGracePeriodSeconds != nil {
		wait = time.Duration(*p.TerminationGracePeriodSeconds) * time.Second
	}
	m.unprobe(run.ID, probe.Liveness, probe.Startup)
	run.Kill = &Kill{Since: m.now(), Grace: wait, Message: fmt.Sprintf("Container %s failed %s probe, will be restarted", name, word)}
	m.event(false, "Killing", "%s", run.Kill.Message)
}

// byID finds the current run with this ID in the runtime.
func (m *Machine) byID(id string) (string, *Run) {
	for name, run := range m.memory.Runs {
		if run.ID == id {
			return name, run
		}
	}
	return "", nil
}
