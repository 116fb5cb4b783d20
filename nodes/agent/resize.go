package agent

import (
	"context"
	"fmt"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
)

// resizing gives running containers the resources that the manifest says now,
// in place, or by a restart where their resizePolicy wants one.
func (d *decider) resizing() {
	inPlace := false
	for _, name := range d.names() {
		c, r := spec.Find(d.spec, name), d.memory.Runs[name]
		if c == nil || r == nil || r.Applied == nil || r.Kill != nil || d.state(name) != running {
			continue
		}
		switch want := spec.Limits(d.spec, c); {
		case want == *r.Applied:
		case spec.RestartsToResize(c, *r.Applied, want):
			d.do(opRenew, name)
		default:
			inPlace = true
		}
	}
	if inPlace {
		d.try(opResize, "")
	}
}

// resize changes what running containers may use. The group around the pod
// goes first when that grows and last when it shrinks: the kernel refuses it in
// the wrong order.
func (m *Machine) resize(ctx context.Context) error {
	s := &m.pod.Template.Spec
	around := m.fence()
	v := m.glance()
	for _, name := range containerNames(s) {
		c, r := spec.Find(s, name), m.memory.Runs[name]
		if c == nil || r == nil || r.Applied == nil || v.state(name) != running {
			continue
		}
		want := spec.Limits(s, c)
		if want == *r.Applied || spec.RestartsToResize(c, *r.Applied, want) {
			continue
		}
		if err := m.runtime.Update(ctx, r.ID, want); err != nil {
			return fmt.Errorf("resize container %s: %w", name, err)
		}
		r.Applied = &want
		m.event(false, "ResizeCompleted", "Container resources changed in place: %s", name)
	}
	if around != nil {
		return m.fence()
	}
	return nil
}

// fence sets the limits of the group around the pod's containers.
func (m *Machine) fence() error {
	if m.cgroups == nil {
		return nil
	}
	if err := m.cgroups.Ensure(spec.CgroupParent(m.pod), spec.PodLimits(&m.pod.Template.Spec)); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	return nil
}

// restartToResize ends a run; the next one has the new resources.
func (m *Machine) restartToResize(name string) {
	r := m.memory.run(name)
	if err := m.fence(); err != nil {
		m.log.Warn("resize the group around the pod before its container", "err", err)
	}
	r.Again = true
	r.Kill = &Kill{Since: m.now(), Grace: grace(m.pod), Message: "Container " + name + " resize requires restart"}
	m.event(false, "Killing", "%s", r.Kill.Message)
	m.attached = false // with the next attach the group gets its new size
}
