package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// usageEvery is how often the usage of measured pods is read.
const usageEvery = 5 * time.Second

// reading is what a container had used at one instant.
type reading struct {
	at  time.Time
	cpu time.Duration
}

// meter turns readings of the runtime into usage. It belongs to one goroutine.
type meter struct {
	// before are the last readings by container ID.
	before map[string]reading
}

// usage reads what the assignment asks for, for as long as it asks for
// anything: without an autoscaler no timer runs.
func (a *Agent) usage(ctx context.Context) {
	m := &meter{}
	tick := time.NewTimer(0) // the stored assignment may ask already
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.measuring:
		case <-tick.C:
		}
		pods := a.measured()
		if len(pods) == 0 {
			m.before = nil
			continue
		}
		if found := m.read(ctx, a, pods); len(found) > 0 {
			a.up.Send(nodes.Report{Node: a.o.Name, Usage: found})
		}
		tick.Reset(usageEvery)
	}
}

// measured are the pods whose usage the server wants to know.
func (a *Agent) measured() map[nodes.UID]*Machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.assignment == nil {
		return nil
	}
	found := make(map[nodes.UID]*Machine, len(a.assignment.Measured))
	for _, uid := range a.assignment.Measured {
		if w := a.pods[uid]; w != nil {
			found[uid] = w.m
		}
	}
	return found
}

// wakeUsage has the usage read anew when other pods are to be measured.
func (a *Agent) wakeUsage(old, x *nodes.Assignment) {
	if old != nil && slices.Equal(old.Measured, x.Measured) {
		return
	}
	select {
	case a.measuring <- struct{}{}:
	default:
	}
}

// read measures the running containers of pods. Cpu is known from the second
// reading of a container on; a pod of which none is known is left out.
func (m *meter) read(ctx context.Context, a *Agent, pods map[nodes.UID]*Machine) []nodes.Usage {
	fresh := map[string]reading{}
	var all []nodes.Usage
	for _, uid := range slices.Sorted(maps.Keys(pods)) {
		u := nodes.Usage{Pod: uid}
		status := pods[uid].Status()
		for _, c := range slices.Concat(status.Init, status.Containers) {
			if c.State == nodes.Running {
				m.container(ctx, a, &c, fresh, &u)
			}
		}
		if len(u.Containers) > 0 {
			all = append(all, u)
		}
	}
	m.before = fresh
	return all
}

func (m *meter) container(ctx context.Context, a *Agent, c *nodes.ContainerStatus, fresh map[string]reading, u *nodes.Usage) {
	used, err := a.o.Runtime.Usage(ctx, c.ID)
	if err != nil {
		if !errors.Is(err, runtime.ErrNotFound) { // ended since
			a.log.Debug("read usage", "container_id", c.ID, "err", err)
		}
		return
	}
	r := reading{a.ports.now(), used.CPU}
	fresh[c.ID] = r
	before, known := m.before[c.ID]
	window := r.at.Sub(before.at)
	if !known || window <= 0 {
		return
	}
	u.At, u.Window = r.at, window
	u.Containers = append(u.Containers, nodes.ContainerUsage{
		Name: c.Name, Memory: used.Memory,
		CPU: int64(float64(max(0, r.cpu-before.cpu)) / float64(window) * 1e9),
	})
}
