package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/probe"
)

// postStart runs the hook beside the steps. When it fails, the container is
// ended and restarted by its policy.
func (m *Machine) postStart(ctx context.Context, name string) {
	c, r := spec.Find(&m.pod.Template.Spec, name), m.memory.run(name)
	id, ip := r.ID, m.memory.IP
	m.spawn(ctx, "hook"+name, func(ctx context.Context) func() {
		err := m.hook(ctx, c, id, ip, c.Lifecycle.PostStart)
		return func() {
			if r.ID != id || ctx.Err() != nil && err != nil && r.Ended != nil {
				return
			}
			if err == nil {
				r.Hooked = true
				return
			}
			m.event(true, "FailedPostStartHook", "PostStartHook failed: %s", err)
			if r.Kill == nil && r.Ended == nil {
				r.Kill = &Kill{Since: m.now(), Grace: grace(m.pod), Message: "FailedPostStartHook: " + err.Error()}
			}
		}
	})
}

// preStop runs the hook for as long as the grace period lasts.
func (m *Machine) preStop(ctx context.Context, name string) {
	c, r := spec.Find(&m.pod.Template.Spec, name), m.memory.run(name)
	id, ip, kill := r.ID, m.memory.IP, r.Kill
	kill.HookBegun = true
	left := kill.deadline().Sub(m.now())
	if cancel := m.busy["hook"+name]; cancel != nil {
		cancel()
	}
	m.spawn(ctx, "stop"+name, func(ctx context.Context) func() {
		limited, cancel := context.WithTimeout(ctx, left)
		defer cancel()
		err := m.hook(limited, c, id, ip, c.Lifecycle.PreStop)
		return func() {
			kill.HookDone = true
			if err != nil && r.Ended == nil {
				m.event(true, "FailedPreStopHook", "PreStopHook failed: %s", err)
			}
		}
	})
}

func (m *Machine) hook(ctx context.Context, c *corev1.Container, id string, ip netip.Addr, h *corev1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		var out bytes.Buffer
		code, err := m.runtime.Exec(ctx, id, h.Exec.Command, &out)
		if err != nil {
			return err
		}
		if code != 0 {
			text := strings.TrimSpace(strings.ToValidUTF8(string(out.Bytes()[:min(out.Len(), 1024)]), "?"))
			return fmt.Errorf("command %q exited with %d: %s", strings.Join(h.Exec.Command, " "), code, text)
		}
	case h.HTTPGet != nil:
		return probe.HTTP(ctx, h.HTTPGet, ip, c.Ports)
	case h.Sleep != nil:
		select {
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	case h.TCPSocket != nil:
		return errors.New("tcpSocket is no lifecycle hook: it always fails, as in Kubernetes")
	}
	return nil
}
