// Package fake is a node's persistent volumes without files: a small world in
// memory that keeps the promises of volume.Persistent and passes the same suite
// (nodes/volume/volumetest). The agent's tests and the simulator run on it.
//
// It is deterministic, prints itself, and never waits.
package fake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/volume"
)

// Persistent is the fake. It outlives the agents that use it, as a disk does.
// Safe for concurrent use.
type Persistent struct {
	mu     sync.Mutex // guards what follows
	held   map[id]*nodes.Volume
	staged map[id]bool
	failed map[string]string
	busy   map[string]int
	// detached are the volumes that were detached from other nodes, in order; slow is
	// how long that takes.
	detached []string
	slow     time.Duration
}

// New returns an empty world.
func New() *Persistent {
	return &Persistent{held: map[id]*nodes.Volume{}, staged: map[id]bool{}, failed: map[string]string{}, busy: map[string]int{}}
}

// id tells volumes apart.
type id struct{ name, uid string }

func key(v *nodes.Volume) id { return id{v.Name, v.UID} }

func (i id) String() string { return i.name + "-" + i.uid }

func byName(a, b id) int { return strings.Compare(a.String(), b.String()) }

// Fail has every call for volumes of a name fail for a reason, until it is empty.
func (p *Persistent) Fail(name, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed[name] = why
}

// Busy has a driver still work on its volume of a name the next n times that it
// is ensured.
func (p *Persistent) Busy(name string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy[name] = n
}

// Lose takes a volume's data and metadata away, as a broken disk does.
func (p *Persistent) Lose(v *nodes.Volume) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.held, key(v))
}

// Reboot ends every mount.
func (p *Persistent) Reboot() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.staged)
}

func (p *Persistent) enter(ctx context.Context, v *nodes.Volume) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if why := p.failed[v.Name]; why != "" {
		return errors.New(why)
	}
	return nil
}

// Ensure implements the agent's port.
func (p *Persistent) Ensure(ctx context.Context, v *nodes.Volume) (nodes.VolumeStatus, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumeReady, Capacity: v.Spec.Capacity.Storage().Value()}
	if err := p.enter(ctx, v); err != nil {
		return s, err
	}
	if v.Provisioner != nodes.LocalProvisioner {
		if p.busy[v.Name] > 0 {
			p.busy[v.Name]--
			s.Phase, s.Reason = nodes.VolumePending, volume.ReasonUnready
			return s, volume.ErrUnready
		}
		return s, nil
	}
	kept := p.held[key(v)]
	if kept == nil && v.Made {
		return s, &volume.Trouble{Reason: volume.ReasonMissing, Err: fmt.Errorf("the data of volume %s is missing on this node", v.Name)}
	}
	if kept == nil && v.From != nil && p.held[id{v.From.Name, v.From.UID}] == nil {
		return s, &volume.Trouble{Reason: volume.ReasonProvisioning, Err: fmt.Errorf("volume %s begins with the content of %s, which is not whole on this node", v.Name, v.From.Name)}
	}
	if kept != nil {
		s.Capacity = max(s.Capacity, kept.Spec.Capacity.Storage().Value())
	}
	made := *v
	made.Made, made.Delete = true, false
	if kept == nil || s.Capacity == v.Spec.Capacity.Storage().Value() {
		p.held[key(v)] = &made
	}
	return s, nil
}

// Stage implements the agent's port.
func (p *Persistent) Stage(ctx context.Context, v *nodes.Volume, _ csi.Wish) (volume.Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.enter(ctx, v); err != nil {
		return volume.Volume{}, err
	}
	if v.Provisioner == nodes.LocalProvisioner && p.held[key(v)] == nil {
		return volume.Volume{}, &volume.Trouble{Reason: volume.ReasonMissing, Err: fmt.Errorf("the data of volume %s is missing on this node", v.Name)}
	}
	p.staged[key(v)] = true
	return volume.Volume{Path: "/persistent/" + key(v).String()}, nil
}

// Unstage implements the agent's port.
func (p *Persistent) Unstage(ctx context.Context, v *nodes.Volume, unused func() bool) error {
	if !unused() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.enter(ctx, v); err != nil {
		return err
	}
	delete(p.staged, key(v))
	return nil
}

// Detach implements the agent's port.
func (p *Persistent) Detach(ctx context.Context, v *nodes.Volume, from, id string) error {
	p.mu.Lock()
	slow := p.slow
	p.mu.Unlock()
	time.Sleep(slow)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.enter(ctx, v); err != nil {
		return err
	}
	p.detached = append(p.detached, v.Name+" from "+from+" as "+id)
	return nil
}

// SlowDetach makes Detach take a while.
func (p *Persistent) SlowDetach(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = d
}

// Detached lists what Detach did.
func (p *Persistent) Detached() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.detached)
}

// Delete implements the agent's port.
func (p *Persistent) Delete(ctx context.Context, v *nodes.Volume) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.enter(ctx, v); err != nil {
		return err
	}
	if v.Provisioner != nodes.LocalProvisioner {
		return &volume.Trouble{Reason: volume.ReasonDelete, Err: fmt.Errorf("volume %s was made by somebody else", v.Name)}
	}
	delete(p.staged, key(v))
	delete(p.held, key(v))
	return nil
}

// Held implements the agent's port.
func (p *Persistent) Held(context.Context) ([]*nodes.Volume, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []*nodes.Volume
	for _, k := range slices.SortedFunc(maps.Keys(p.held), byName) {
		list = append(list, p.held[k])
	}
	return list, nil
}

// Sweep implements the agent's port.
func (p *Persistent) Sweep(_ context.Context, assigned func(name, uid string) bool) error {
	p.mu.Lock()
	staged := maps.Clone(p.staged)
	p.mu.Unlock()
	for v := range staged {
		if !assigned(v.name, v.uid) {
			p.mu.Lock()
			delete(p.staged, v)
			p.mu.Unlock()
		}
	}
	return nil
}

// Reset implements the agent's port.
func (p *Persistent) Reset(_ context.Context, remove bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.staged)
	if remove {
		clear(p.held)
	}
	return nil
}

// String prints the world: a line for each volume.
func (p *Persistent) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	lines := map[id]string{}
	for k, v := range p.held {
		lines[k] = "held " + v.Spec.Capacity.Storage().String()
	}
	for k := range p.staged {
		lines[k] = strings.TrimSpace(lines[k] + " staged")
	}
	var b strings.Builder
	for _, k := range slices.SortedFunc(maps.Keys(lines), byName) {
		fmt.Fprintf(&b, "%s %s\n", k, lines[k])
	}
	return b.String()
}
