package agent

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
)

// reasonReset is Kubernetes' word for the end of a container that is restarted
// because of another one.
const reasonReset = "RestartingAllContainers"

// resetting starts the whole pod anew, in its network and with its volumes, when
// a container ended in a way that asks for it (action RestartAllContainers):
// all others end, by a signal and without a preStop hook, as in Kubernetes, and
// then init containers run again. It reports whether that is under way.
func (d *decider) resetting() bool {
	source := d.resetsAll()
	if source == "" || d.through() {
		return false
	}
	left := false
	for _, name := range d.names() {
		if s := d.state(name); name == pauseName || s != running && s != made {
			continue
		}
		left = true
		if k := d.memory.Runs[name].Kill; k == nil || k.Reason != reasonReset {
			why := fmt.Sprintf("Container %s is restarted with all others, because %s exited with code %d", name, source, d.memory.Runs[source].Ended.ExitCode)
			d.actions = append(d.actions, action{op: opYield, container: name, message: why})
		}
	}
	d.killing(nil)
	if !left {
		d.do(opReset, source)
	}
	return true
}

// resetsAll is the first container whose end asks for a restart of all, empty for
// none.
func (d *decider) resetsAll() string {
	for _, name := range d.names() {
		c, r := spec.Find(d.spec, name), d.memory.Runs[name]
		if c != nil && d.state(name) == exited && r.resetsAll(c) {
			return name
		}
	}
	return ""
}

// resetsAll reports whether a run ended in a way that asks for a restart of all:
// by itself, not because another had asked.
func (r *Run) resetsAll(c *corev1.Container) bool {
	return r.Ended != nil && r.Ended.Reason != reasonReset && spec.RestartsAll(c, r.Ended.ExitCode)
}

// yield begins the end of a run for the sake of another container.
func (m *Machine) yield(name, why string) {
	r := m.memory.run(name)
	if r.Kill == nil {
		r.Kill = &Kill{}
	}
	k := r.Kill
	k.Since, k.Grace, k.Reason, k.Message = m.now(), minGrace, reasonReset, why
	k.HookBegun, k.HookDone = true, true
	m.event(false, "Killing", "%s", why)
	m.unprobe(r.ID)
}

// reset forgets the runs of all containers, those last that asked for it:
// whoever finds them, having lost the memory, does the same again.
func (m *Machine) reset(ctx context.Context, source string) error {
	s := &m.pod.Template.Spec
	var last []string
	for _, name := range containerNames(s) {
		c, r := spec.Find(s, name), m.memory.Runs[name]
		switch {
		case c == nil || r == nil || r.ID == "":
		case r.resetsAll(c):
			last = append(last, name)
		default:
			if err := m.forgetRun(ctx, c, r); err != nil {
				return err
			}
		}
	}
	code := m.memory.Runs[source].Ended.ExitCode
	for _, name := range last {
		r := m.memory.Runs[name]
		at := r.next()
		waits, finished := at.After(r.Ended.FinishedAt), r.Ended.FinishedAt
		if err := m.forgetRun(ctx, spec.Find(s, name), r); err != nil {
			return err
		}
		r.restarted(finished, at)
		if waits {
			r.NotBefore = at
		}
	}
	m.memory.Initialized = false
	m.event(false, reasonReset, "Container %s exited with code %d: all containers are restarted", source, code)
	return nil
}

// forgetRun makes a container as if it had not run, but for what is shown of it.
func (m *Machine) forgetRun(ctx context.Context, c *corev1.Container, r *Run) error {
	if err := m.deleteContainer(ctx, r.ID); err != nil {
		return err
	}
	r.Last, r.Ended, r.ID, r.Again = r.Ended, nil, "", false
	r.StartedAt = time.Time{}
	if readsFiles(c) {
		r.Env, r.Resolved = nil, false // an init container may write them anew
	}
	return nil
}

// readsFiles reports whether variables of a container come from files.
func readsFiles(c *corev1.Container) bool {
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FileKeyRef != nil {
			return true
		}
	}
	return false
}
