package agent

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
)

// ending stops the sidecars, last first, and gives the pod its final phase.
func (d *decider) ending() {
	left := false
	for _, name := range d.names() {
		if s := d.state(name); s == running || s == made {
			left = true
			if d.memory.Runs[name].Kill == nil {
				d.do(opKillOne, name)
			}
		}
	}
	if left {
		return
	}
	phase := corev1.PodSucceeded
	for i := range d.spec.Containers {
		if d.memory.Runs[d.spec.Containers[i].Name].Ended.ExitCode != 0 {
			phase = corev1.PodFailed
		}
	}
	d.actions = append(d.actions, action{op: opEnd, phase: phase})
}

// halting ends everything, then forgets the pod or leaves it failed.
func (d *decider) halting() {
	h := d.memory.Halt
	left := false
	for _, name := range d.names() {
		if s := d.state(name); s == running || s == made {
			left = true
		}
	}
	d.killing(h)
	switch {
	case left || len(d.actions) > 0 || d.busy[mountTask]: // that ends soon, and says so
	case h.Forget:
		d.try(opFinish, "")
	case d.memory.Ended == "":
		d.actions = append(d.actions, action{op: opEnd, phase: corev1.PodFailed})
	}
}

// minGrace is the least that a container gets between its signal and the kill
// when it waited for others, unless the pod gets no grace at all.
const minGrace = 2 * time.Second

// killing carries on the ending of every run that has one; with a halt every
// living run has.
func (d *decider) killing(h *Halt) {
	for _, name := range d.names() {
		s := d.state(name)
		r := d.memory.Runs[name]
		if s != running && s != made || (r.Kill == nil && h == nil) {
			continue
		}
		if r.Kill == nil || h != nil && r.Kill.deadline().After(h.Since.Add(h.Grace)) {
			d.do(opKillOne, name)
			continue
		}
		d.kill(name, r.Kill, d.turn(name))
	}
}

func (d *decider) kill(name string, k *Kill, turn bool) {
	deadline := k.deadline()
	late := !d.now.Before(deadline)
	c := spec.Find(d.spec, name)
	hook := c != nil && c.Lifecycle != nil && c.Lifecycle.PreStop != nil && k.Grace > 0
	switch {
	case hook && !k.HookBegun && !late:
		d.do(opPre, name)
	case !late && (hook && !k.HookDone || !turn):
		d.at(deadline)
	case k.Grace == 0 && k.Forced.IsZero():
		d.do(opForce, name)
	case k.Grace > 0 && k.Signaled.IsZero() && d.unanswered(k):
		d.at(d.now.Add(lookAtQueue))
	case k.Grace > 0 && k.Signaled.IsZero():
		d.try(opSignal, name)
	default:
		d.force(name, k, deadline)
	}
}

const (
	// queuePatience is how long a pod that left the routes may take to accept
	// what still came over them; lookAtQueue is how often that is looked at.
	queuePatience = time.Second
	lookAtQueue   = 5 * time.Millisecond
	// routesPatience is how long a pod that is to stop is kept for routes that its
	// own node is slow to change.
	routesPatience = 5 * time.Second
)

// unanswered reports whether a signal would still reset connections that the
// kernel made for the pod and no program has accepted, or that this node still
// leads to it. Afterwards nothing does, so that the queue only becomes shorter.
func (d *decider) unanswered(k *Kill) bool {
	within := func(patience time.Duration) bool { return d.now.Before(k.Since.Add(min(patience, k.Grace/2))) }
	return d.queued && within(queuePatience) || d.rerouting && within(routesPatience)
}

// forceAgain is how long a killed container may take to be seen dead.
const forceAgain = 5 * time.Second

func (d *decider) force(name string, k *Kill, deadline time.Time) {
	at := k.Signaled.Add(min(minGrace, k.Grace))
	if deadline.After(at) {
		at = deadline
	}
	if !k.Forced.IsZero() {
		at = k.Forced.Add(forceAgain)
	}
	if d.now.Before(at) {
		d.at(at)
		return
	}
	d.do(opForce, name)
}

// sidecar reports whether a name is that of a sidecar.
func (d *decider) sidecar(name string) bool {
	return slices.ContainsFunc(d.spec.InitContainers, func(c corev1.Container) bool { return c.Name == name && spec.Sidecar(&c) })
}

// turn reports whether a container may be signalled: a sidecar only when the
// containers and the sidecars after it have ended, the pause container last.
func (d *decider) turn(name string) bool {
	if name != pauseName && !d.sidecar(name) {
		return true
	}
	if r := d.memory.Runs[name]; d.memory.Halt == nil && r.Kill != nil && r.Kill.Message != "" {
		return true // it alone is restarted
	}
	after := false
	for _, other := range d.names() {
		if after && (d.state(other) == running || d.state(other) == made) {
			return false
		}
		after = after || other == name
	}
	return true
}
