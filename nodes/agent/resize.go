package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
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
	resized := m.resizable()
	if err := m.checkShrinking(ctx, resized); err != nil {
		return err
	}
	around := m.enclose(ctx)
	for name, want := range resized {
		r := m.memory.Runs[name]
		if err := m.runtime.Update(ctx, r.ID, want); err != nil {
			return fmt.Errorf("resize container %s: %w", name, err)
		}
		r.Applied = &want
		m.event(false, "ResizeCompleted", "Container resources changed in place: %s", name)
	}
	if around != nil {
		return m.enclose(ctx)
	}
	return nil
}

// resizable are the running containers whose resources are to change in place,
// with what they are to have.
func (m *Machine) resizable() map[string]runtime.Resources {
	s, v := &m.pod.Template.Spec, m.glance()
	resized := map[string]runtime.Resources{}
	for _, name := range containerNames(s) {
		c, r := spec.Find(s, name), m.memory.Runs[name]
		if c == nil || r == nil || r.Applied == nil || v.state(name) != running {
			continue
		}
		if want := spec.Limits(s, c); want != *r.Applied && !spec.RestartsToResize(c, *r.Applied, want) {
			resized[name] = want
		}
	}
	return resized
}

// checkShrinking refuses limits below what is in use, as a kubelet does: the
// kernel would kill for them.
func (m *Machine) checkShrinking(ctx context.Context, resized map[string]runtime.Resources) error {
	for name, want := range resized {
		r := m.memory.Runs[name]
		if want.Memory == 0 || r.Applied.Memory != 0 && want.Memory >= r.Applied.Memory {
			continue
		}
		if used := m.using(ctx, r.ID); used >= want.Memory {
			return fmt.Errorf("resize container %s: its new memory limit of %d bytes is below the %d that it uses; "+
				"it is tried again, or set resizePolicy RestartContainer for memory", name, want.Memory, used)
		}
	}
	return nil
}

// using is the memory in use by a container, in bytes; 0 when nobody can tell.
func (m *Machine) using(ctx context.Context, id string) int64 {
	used, err := m.runtime.Usage(ctx, id)
	if err != nil {
		m.log.Debug("read usage", "container_id", id, "err", err)
	}
	return used.Memory
}

// errInUse is returned when the containers of a pod use more than its group may.
var errInUse = errors.New("its containers use more")

// enclose sets the limits of the group around the pod's containers.
func (m *Machine) enclose(ctx context.Context) error {
	if m.cgroups == nil {
		return nil
	}
	limits := spec.PodLimits(&m.pod.Template.Spec)
	if used := m.usingAll(ctx, limits.Memory); used > limits.Memory {
		return fmt.Errorf("limit the pod's memory to %d bytes: %w: %d", limits.Memory, errInUse, used)
	}
	if err := m.cgroups.Ensure(spec.CgroupParent(m.pod), limits, spec.NodeShares(m.node.allocatable)); err != nil {
		return fmt.Errorf("make control group: %w", err)
	}
	return nil
}

// usingAll is the memory in use by the pod, in bytes; not read without a limit.
func (m *Machine) usingAll(ctx context.Context, limit int64) int64 {
	total, v := int64(0), m.glance()
	if limit == 0 {
		return 0
	}
	for name, r := range m.memory.Runs {
		if v.state(name) == running {
			total += m.using(ctx, r.ID)
		}
	}
	return total
}

// restartToResize ends a run; the next one has the new resources.
func (m *Machine) restartToResize(ctx context.Context, name string) {
	r := m.memory.run(name)
	if err := m.enclose(ctx); err != nil {
		m.log.Warn("resize the group around the pod before its container", "err", err)
	}
	r.Again = true
	r.Kill = &Kill{Since: m.now(), Grace: grace(m.pod), Message: "Container " + name + " resize requires restart"}
	m.event(false, "Killing", "%s", r.Kill.Message)
	m.attached = false // with the next attach the group gets its new size
}
