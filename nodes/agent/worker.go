package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

// worker drives the machine of one pod and reports what it shows.
type worker struct {
	agent *Agent
	m     *Machine
	wake  chan struct{}

	// guarded by Agent.mu
	pod     *nodes.Pod
	dropped bool

	// sent belongs to run.
	sent *nodes.PodStatus
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run steps until the pod is gone or ctx ends.
func (w *worker) run(ctx context.Context) {
	defer w.m.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		next, done, _ := w.m.Step(ctx) // the status tells the error
		if done {
			// The server may have another run in its place as soon as it hears that
			// it is gone. An agent that dies must not find it among those to run.
			w.agent.store.settle(ctx, podBucket, string(w.m.pod.UID))
		}
		if ctx.Err() != nil {
			return
		}
		w.report()
		if done {
			w.agent.forget(w)
			return
		}
		if next.IsZero() {
			timer.Stop()
			continue
		}
		timer.Reset(next.Sub(w.agent.ports.now()))
	}
}

// report sends what changed since the last time.
func (w *worker) report() {
	status, events, gone := w.m.take(w.sent)
	w.agent.setHostPorts(w.m.pod.UID, w.m.hostPorts(gone))
	r := nodes.Report{Node: w.agent.o.Name, Events: events}
	switch {
	case gone:
		r.Gone = []nodes.UID{w.m.pod.UID}
	case status != nil:
		if ended(status.Phase) && (w.sent == nil || !ended(w.sent.Phase)) {
			w.agent.pokeVolumes()
		}
		w.sent = status
		r.Statuses = []nodes.PodStatus{*status}
	case len(events) == 0:
		return
	}
	w.agent.up.Send(r)
}

// forget takes a pod that is gone off the list. The server has it assigned
// until it has heard so; then a stopped pod is begun again, finds nothing and
// is gone again, which says it once more.
func (a *Agent) forget(w *worker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pods[w.m.pod.UID] == w {
		delete(a.pods, w.m.pod.UID)
	}
	a.fences.poke()
	for _, v := range a.volumes { // it may have been the last to use one
		delete(v.stagedFor, w.m.pod.UID)
		v.poke()
	}
}

// hostPorts are the node's ports that lead to this pod.
func (m *Machine) hostPorts(gone bool) []proxy.HostPort {
	s := &m.pod.Template.Spec
	if gone || s.HostNetwork || !m.attached || !m.memory.IP.IsValid() || m.memory.Ended != "" {
		return nil
	}
	var list []proxy.HostPort
	for _, containers := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range containers {
			for _, p := range containers[i].Ports {
				if p.HostPort != 0 {
					list = append(list, hostPort(p, m.memory.IP))
				}
			}
		}
	}
	return list
}

func hostPort(p corev1.ContainerPort, ip netip.Addr) proxy.HostPort {
	out := proxy.HostPort{
		Protocol: proxy.Protocol(p.Protocol), HostPort: uint16(p.HostPort),
		Endpoint: netip.AddrPortFrom(ip, uint16(p.ContainerPort)),
	}
	if out.Protocol == "" {
		out.Protocol = proxy.TCP
	}
	if host, err := netip.ParseAddr(p.HostIP); err == nil && !host.IsUnspecified() {
		out.HostIP = host
	}
	return out
}

func (a *Agent) setHostPorts(uid nodes.UID, ports []proxy.HostPort) {
	a.mu.Lock()
	same := slices.Equal(a.hostPorts[uid], ports)
	if len(ports) == 0 {
		delete(a.hostPorts, uid)
	} else {
		a.hostPorts[uid] = ports
	}
	a.mu.Unlock()
	if !same {
		a.wakeRoutes()
	}
}
