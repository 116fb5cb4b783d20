package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
)

const (
	// killWithin is how long the kernel may take to kill what the keeper tells it
	// to; the margin of leases covers it.
	killWithin = 1500 * time.Millisecond
	// lateWithin is when the keeper looks again for what was made late.
	lateWithin = 100 * time.Millisecond
)

// watchman is a machine's keeper: it keeps no logs, for the fake runtime's
// containers write none, but its fences kill, whether there is an agent or not.
type watchman struct {
	machine *machine

	mu sync.Mutex
	// guarded by mu
	held map[nodes.UID]*fence
	// gone is set while there is no keeper, or it stands still.
	gone bool
}

// fence is one that the keeper holds, with the timer of its end.
type fence struct {
	keeper.HeldFence
	timer *time.Timer
}

func newWatchman(m *machine) *watchman {
	return &watchman{machine: m, held: map[nodes.UID]*fence{}}
}

func (k *watchman) OpenLog(_ context.Context, l keeper.Log) (keeper.Pipes, error) {
	return keeper.Pipes{Stdout: "/fifo/" + l.ID + ".out", Stderr: "/fifo/" + l.ID + ".err"}, nil
}
func (k *watchman) CloseLog(context.Context, string) error   { return nil }
func (k *watchman) SetDNS(context.Context, keeper.DNS) error { return nil }

// begin is the way of a call from the agent.
func (k *watchman) begin(ctx context.Context) error {
	if err := k.machine.runtime.begin(ctx, 5*time.Millisecond); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone {
		return errors.New("no keeper answers")
	}
	return nil
}

// Fence implements agent.Keeper.
func (k *watchman) Fence(ctx context.Context, ends time.Duration, pods []keeper.Fence) error {
	if err := k.begin(ctx); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.machine.clock.now(); ends <= now {
		return fmt.Errorf("the lease was over %s ago", now-ends)
	}
	for _, p := range pods {
		h := k.held[p.Pod]
		if h == nil {
			h = &fence{HeldFence: keeper.HeldFence{Fence: p}}
			k.held[p.Pod] = h
		}
		if ends > h.Ends {
			k.arm(h, ends)
		}
	}
	return nil
}

// arm sets the end of a fence. The caller holds mu.
func (k *watchman) arm(h *fence, ends time.Duration) {
	if h.timer != nil {
		h.timer.Stop()
	}
	h.Ends = ends
	h.timer = time.AfterFunc(k.machine.clock.until(ends), func() {
		time.AfterFunc(k.machine.kernel.takes(), func() { k.strike(h) })
	})
}

// strike kills a pod.
func (k *watchman) strike(h *fence) {
	k.mu.Lock()
	held := k.held[h.Pod] == h && !k.gone
	k.mu.Unlock()
	if b := k.machine.world.o.Bug; !held || b != nil && b.Spares {
		return
	}
	if killed := k.machine.runtime.Destroy(h.Pod); killed > 0 {
		k.machine.world.witness.kills()
		k.machine.world.note("keeper of %s kills pod %s", k.machine.name, h.Pod)
		k.mu.Lock()
		h.Killed = k.machine.clock.now()
		k.mu.Unlock()
	}
}

// Unfence implements agent.Keeper.
func (k *watchman) Unfence(ctx context.Context, pods []nodes.UID) error {
	if err := k.begin(ctx); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, uid := range pods {
		delete(k.held, uid)
	}
	return nil
}

// Fences implements agent.Keeper.
func (k *watchman) Fences(ctx context.Context) (list []keeper.HeldFence, err error) {
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, uid := range slices.Sorted(maps.Keys(k.held)) {
		list = append(list, k.held[uid].HeldFence)
	}
	return list, nil
}

// made is told that a container of a pod was made: the keeper looks again for
// what appears after the end.
func (k *watchman) made(uid nodes.UID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if h := k.held[uid]; h != nil && h.Ends <= k.machine.clock.now() {
		time.AfterFunc(lateWithin, func() { k.strike(h) })
	}
}

// reboot forgets the fences: they hold within one boot.
func (k *watchman) reboot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.held)
	k.gone = false
}
