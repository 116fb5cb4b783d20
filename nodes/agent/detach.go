package agent

import (
	"context"
	"errors"
	"slices"

	"github.com/tallyman-dev/tallyman/nodes"
)

// driven reports whether a CSI driver serves a volume.
func driven(v *nodes.Volume) bool {
	return v.Spec.CSI != nil || v.Provisioner != "" && v.Provisioner != nodes.LocalProvisioner
}

// use is what this node has of the volume. While it is in trouble, a record may
// be left. The caller holds mu.
func (w *volumeWorker) use(trouble error) nodes.VolumeUse {
	keeps := w.v.Provisioner != "" && (w.v.Maker == "" || w.v.Maker == w.agent.o.Name)
	switch {
	case !driven(w.v):
		return ""
	case w.inUse:
		return nodes.VolumeUsed
	case keeps || trouble != nil:
		return nodes.VolumeIdle
	}
	return nodes.VolumeUnknown
}

// begins makes known that the volume is about to be used, before it is. The
// caller holds mu.
func (w *volumeWorker) begins() {
	w.inUse = true
	if before := w.status.Use; before == "" || before == nodes.VolumeUsed {
		return
	}
	w.status.Use = nodes.VolumeUsed
	w.agent.up.Send(nodes.Report{Node: w.agent.o.Name, Volumes: []nodes.VolumeStatus{w.status}})
}

// detach carries out the orders to detach the volume from other nodes, each once.
// Those of a stored assignment may have been taken back: the volume may be there
// again by now.
func (w *volumeWorker) detach(ctx context.Context, v *nodes.Volume, told bool) error {
	var failed error
	ordered := map[string]bool{}
	for _, d := range v.Detach {
		if !told || !slices.Contains(d.By, w.agent.o.Name) {
			continue
		}
		ordered[d.Node] = true
		if w.detached[d.Node] {
			continue
		}
		if err := w.agent.o.Persistent.Detach(ctx, v, d.Node, d.ID); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		w.detached[d.Node] = true
		w.agent.log.Info("volume detached from another node", "volume", v.Name, "node", d.Node)
	}
	for node := range w.detached {
		if !ordered[node] {
			delete(w.detached, node)
		}
	}
	return failed
}

// orders are those that the worker has looked at in a version of the volume.
func (w *volumeWorker) orders(v *nodes.Volume) []nodes.DetachStatus {
	var list []nodes.DetachStatus
	for _, d := range v.Detach {
		if slices.Contains(d.By, w.agent.o.Name) {
			list = append(list, nodes.DetachStatus{Node: d.Node, Done: w.detached[d.Node]})
		}
	}
	return list
}

// known adds to what was shown the orders that the worker has and has not looked
// at, and those that it is at. The caller holds mu.
func (w *volumeWorker) known(shown []nodes.DetachStatus) []nodes.DetachStatus {
	list := slices.Clone(shown)
	orders := w.v.Detach
	if w.looked != nil {
		orders = slices.Concat(orders, w.looked.Detach)
	}
	for _, d := range orders {
		there := slices.ContainsFunc(list, func(s nodes.DetachStatus) bool { return s.Node == d.Node })
		if slices.Contains(d.By, w.agent.o.Name) && !there {
			list = append(list, nodes.DetachStatus{Node: d.Node})
		}
	}
	return list
}
