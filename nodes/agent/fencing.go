package agent

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
)

// fencing has the keeper hold the fences of the newest assignment until the end
// of the newest lease, and knows which pods may run.
type fencing struct {
	keeper Keeper
	clock  func() time.Duration
	log    *slog.Logger
	wake   chan struct{}

	mu sync.Mutex
	// guarded by mu
	wanted map[nodes.UID]bool
	// leased is when the newest lease ends.
	leased time.Duration
	// held is until when the keeper said that it holds a fence, told are those of
	// wanted that the server may be told of.
	held map[nodes.UID]time.Duration
	told map[nodes.UID]bool
}

// fenceAgain is the pause after a keeper that did not take a fence.
const fenceAgain = 200 * time.Millisecond

func newFencing(k Keeper, clock func() time.Duration, log *slog.Logger) *fencing {
	return &fencing{
		keeper: k, clock: clock, log: log, wake: make(chan struct{}, 1),
		wanted: map[nodes.UID]bool{}, held: map[nodes.UID]time.Duration{}, told: map[nodes.UID]bool{},
	}
}

func (f *fencing) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// want says which pods may only run while there is a lease.
func (f *fencing) want(pods []nodes.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = make(map[nodes.UID]bool, len(pods))
	for _, uid := range pods {
		f.wanted[uid] = true
	}
	maps.DeleteFunc(f.told, func(uid nodes.UID, _ bool) bool { return !f.wanted[uid] })
	f.poke()
}

// lease notes until when the node's fenced pods may run.
func (f *fencing) lease(ends time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leased = max(f.leased, ends)
	f.poke()
}

// waits reports whether a pod must not start: it is fenced, and its keeper does
// not hold the fence or would kill it at once.
func (f *fencing) waits(uid nodes.UID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted[uid] && f.held[uid] <= f.clock()
}

// fenced are the pods that the server may know to be fenced, sorted.
func (f *fencing) fenced() []nodes.UID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.told))
}

// killed reports whether the keeper has killed a pod for its lease after an
// instant of the wall clock, which is now.
func (f *fencing) killed(ctx context.Context, uid nodes.UID, after, now time.Time) bool {
	f.mu.Lock()
	_, held := f.held[uid]
	f.mu.Unlock()
	if !held {
		return false
	}
	all, err := f.keeper.Fences(ctx)
	if err != nil {
		f.log.Warn("ask the keeper what it killed", "uid", uid, "err", err)
		return false
	}
	i := slices.IndexFunc(all, func(h keeper.HeldFence) bool { return h.Pod == uid })
	if i < 0 || all[i].Killed == 0 {
		return false
	}
	return !now.Add(all[i].Killed - f.clock()).Before(after)
}

// recall learns what the keeper holds for an agent before this one.
func (f *fencing) recall(ctx context.Context) {
	all, err := f.keeper.Fences(ctx)
	if err != nil {
		if ctx.Err() == nil {
			f.log.Warn("the keeper's fences are not known until the next lease", "err", err)
		}
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range all {
		f.held[h.Pod] = h.Ends
		if f.wanted[h.Pod] { // and stored as such, or it would not be known
			f.told[h.Pod] = true
		}
	}
}

// fresh are the wanted fences if there is a lease to hold them for, and those
// among them that stood still until now.
func (f *fencing) fresh() (fences []keeper.Fence, ends time.Duration, idle []nodes.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock()
	if f.leased <= now {
		return nil, 0, nil
	}
	for _, uid := range slices.Sorted(maps.Keys(f.wanted)) {
		parents := spec.CgroupParents(uid)
		fences = append(fences, keeper.Fence{Pod: uid, Groups: parents[:]})
		if f.held[uid] <= now {
			idle = append(idle, uid)
		}
	}
	return fences, f.leased, idle
}

// extend has the keeper hold the wanted fences until the end of the lease. It
// returns those pods that may run from now on and could not before.
func (f *fencing) extend(ctx context.Context) ([]nodes.UID, error) {
	fences, ends, idle := f.fresh()
	if len(fences) == 0 {
		return nil, nil
	}
	if err := f.keeper.Fence(ctx, ends, fences); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fence := range fences {
		f.held[fence.Pod] = max(f.held[fence.Pod], ends)
	}
	return idle, nil
}

// untold are the fences that the keeper holds and the server does not know of.
func (f *fencing) untold() (pods []nodes.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for uid := range f.wanted {
		if _, held := f.held[uid]; held && !f.told[uid] {
			pods = append(pods, uid)
		}
	}
	slices.Sort(pods)
	return pods
}

// tell notes that the server may be told of fences, and gives those that are
// wanted still.
func (f *fencing) tell(pods []nodes.UID) (still []nodes.UID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, uid := range pods {
		if f.wanted[uid] {
			f.told[uid] = true
			still = append(still, uid)
		}
	}
	return still
}

// release has the keeper let pods go that are not to be fenced any more. needed
// says of which it cannot be known yet.
func (f *fencing) release(ctx context.Context, needed func(nodes.UID) bool) error {
	f.mu.Lock()
	var free []nodes.UID
	for uid := range f.held {
		if !f.wanted[uid] {
			free = append(free, uid)
		}
	}
	f.mu.Unlock()
	free = slices.DeleteFunc(free, needed)
	if len(free) == 0 {
		return nil
	}
	if err := f.keeper.Unfence(ctx, free); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, uid := range free {
		delete(f.held, uid)
	}
	return nil
}

// Lease notes until when the node's fenced pods may run.
func (a *Agent) Lease(sent, duration time.Duration) { a.fences.lease(sent + duration) }

// fence keeps the fences right until ctx ends.
func (a *Agent) fence(ctx context.Context) {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.fences.wake:
		case <-again.C:
		}
		if err := a.fenceOnce(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("the keeper does not hold the pods' fences as it should", "err", err, "retry_in", fenceAgain)
			again.Reset(fenceAgain)
		}
	}
}

func (a *Agent) fenceOnce(ctx context.Context) error {
	started, err := a.fences.extend(ctx)
	if err != nil {
		return err
	}
	for _, uid := range started {
		if w := a.worker(uid); w != nil {
			w.poke()
		}
	}
	if pods := a.fences.untold(); len(pods) > 0 {
		// After a reboot the store alone says that they must wait for a lease.
		a.store.settle(ctx, podBucket, assignedKey)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if still := a.fences.tell(pods); len(still) > 0 {
			a.up.Send(nodes.Report{Node: a.o.Name, Fenced: still})
		}
	}
	return a.fences.release(ctx, a.mayRun)
}

// mayRun reports whether something of a pod that the assignment does not hold
// may still run here. A pod that it holds is not fenced because it says so.
func (a *Agent) mayRun(uid nodes.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.assignment == nil || a.partial || !a.isLooked {
		return true
	}
	if slices.ContainsFunc(a.assignment.Pods, func(p *nodes.Pod) bool { return p.UID == uid }) {
		return false
	}
	return a.pods[uid] != nil || a.leftover[uid] != nil || a.sweeping[uid]
}
