package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// adopt makes up a memory from what the containers' labels tell, for a pod
// whose own memory was lost. Hooks of running containers count as through, and
// the containers as ready until a probe says otherwise.
func adopt(p *nodes.Pod, containers []runtime.Status, boot string, now time.Time) *Memory {
	m := &Memory{Boot: boot, Started: now}
	m.takeUp(p, containers)
	for _, s := range containers {
		if !s.Created.IsZero() && s.Created.Before(m.Started) {
			m.Started = s.Created
		}
		if r := m.Runs[s.Labels[labelContainer]]; r != nil && r.ID == s.ID && s.State == runtime.Running {
			r.Hooked, r.Presumed = true, true
			m.IP, _ = netip.ParseAddr(s.Labels[labelAddress]) // invalid until it is attached again
		}
	}
	return m
}

// takeUp adds the runs that are newer than the memory: the agent was killed
// between their start and the write that would have told of them. A hook that
// may have been under way runs again.
func (m *Memory) takeUp(p *nodes.Pod, containers []runtime.Status) {
	if m.Ended != "" {
		return
	}
	for _, s := range containers {
		name := s.Labels[labelContainer]
		attempt, err := strconv.Atoi(s.Labels[labelAttempt])
		if name == "" || err != nil || attempt < m.run(name).Next {
			continue
		}
		r := m.run(name)
		r.begin(spec.Find(&p.Template.Spec, name), s.ID, attempt, s.Created)
		r.Image, r.StartedAt = cmp.Or(r.Image, s.ImageID), s.Started
		r.ImageID = cmp.Or(r.ImageID, s.ImageID)
		m.Initialized = m.Initialized || slices.ContainsFunc(p.Template.Spec.Containers, func(c corev1.Container) bool { return c.Name == name })
	}
}
