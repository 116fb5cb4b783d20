package agent

import (
	"context"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// describe is the node as it is now.
func (a *Agent) describe(ctx context.Context) nodes.Node {
	info := a.info
	if i, err := a.o.Runtime.Info(ctx); err == nil {
		info.Runtime = i.Name + " " + i.Version
	}
	info.PodCIDR, info.WireGuard = a.o.Network.PodCIDR(), a.o.Network.PublicKey()
	if a.o.Devices != nil {
		capacity, allocatable := counted(a.o.Devices.Counts())
		info.Capacity, info.Allocatable = maps.Clone(info.Capacity), maps.Clone(info.Allocatable)
		maps.Copy(info.Capacity, capacity)
		maps.Copy(info.Allocatable, allocatable)
	}
	if a.o.Drivers != nil {
		info.DriverNodes = a.o.Drivers.Nodes()
		for _, d := range info.DriverNodes {
			info.Drivers = append(info.Drivers, d.Name)
		}
		if topology := a.o.Drivers.Topology(); len(topology) > 0 {
			maps.Copy(topology, info.Labels)
			info.Labels = topology
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	info.Taints = slices.Concat(info.Taints, a.taints)
	for _, trouble := range []string{a.noNetwork, a.networkTrouble} {
		if trouble != "" {
			info.Problems = append(info.Problems, trouble)
		}
	}
	if a.cutOff || a.noNetwork != "" {
		info.Taints = append(info.Taints, corev1.Taint{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule})
	}
	return info
}

// tell has the server told soon what the node is like now.
func (a *Agent) tell() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// tellChanges reports the node whenever it is another, until ctx ends.
func (a *Agent) tellChanges(ctx context.Context) {
	var told nodes.Node
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.changed:
		}
		if info := a.describe(ctx); !reflect.DeepEqual(info, told) {
			told = info
			a.up.Send(nodes.Report{Node: a.o.Name, Info: &info})
		}
	}
}
