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
	// barred are those of wanted, now or before, that are to go.
	barred map[nodes.UID]bool
	// leased is when the newest lease ends.
	leased time.Duration
	// held is until when the keeper said that it holds a fence, told are those of
	// wanted that the server may be told of.
	held map[nodes.UID]time.Duration
	told map[nodes.UID]bool
}

// fenceAgain is the pause before what could not be done about fences is tried again.
const fenceAgain = 200 * time.Millisecond

func newFencing(k Keeper, clock func() time.Duration, log *slog.Logger) *fencing {
	return &fencing{
		keeper: k, clock: clock, log: log, wake: make(chan struct{}, 1),
		wanted: map[nodes.UID]bool{}, barred: map[nodes.UID]bool{}, held: map[nodes.UID]time.Duration{}, told: map[nodes.UID]bool{},
	}
}

func (f *fencing) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// want takes in which pods may only run while there is a lease. Those of them that
// are to go may have been given away: they start with no lease either, even if
// their machine is about to and has not heard of it.
func (f *fencing) want(x *nodes.Assignment, hasMachine func(nodes.UID) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stays := make(map[nodes.UID]bool, len(x.Pods))
	for _, p := range x.Pods {
		stays[p.UID] = p.Stop == nil
	}
	known := f.barred
	maps.Copy(known, f.wanted)
	f.wanted = make(map[nodes.UID]bool, len(x.Fenced))
	for _, uid := range x.Fenced {
		f.wanted[uid], known[uid] = true, true
	}
	maps.DeleteFunc(known, func(uid nodes.UID, _ bool) bool { return stays[uid] || !hasMachine(uid) })
	f.barred = known
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
// not hold the fence or would kill it at once, or it is to go.
func (f *fencing) waits(uid nodes.UID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.barred[uid] || f.wanted[uid] && f.held[uid] <= f.clock()
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
		all, err := a.fenceOnce(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("the keeper does not hold the pods' fences as it should", "err", err, "retry_in", fenceAgain)
		}
		if err != nil || !all {
			again.Reset(fenceAgain)
		}
	}
}

// fenceOnce does what can be done about the fences now; all is false when
// something is left to do.
func (a *Agent) fenceOnce(ctx context.Context) (all bool, err error) {
	started, err := a.fences.extend(ctx)
	if err != nil {
		return false, err
	}
	for _, uid := range started {
		if w := a.worker(uid); w != nil {
			w.poke()
		}
	}
	all = a.tellFences()
	return all, a.fences.release(ctx, a.mayRun)
}

// tellFences tells the server which fences the keeper holds. After a reboot the
// store alone says that those pods must wait for a lease: until it does, nothing
// is told and false returned. Leases wait for no disk.
func (a *Agent) tellFences() bool {
	pods := a.fences.untold()
	if len(pods) == 0 {
		return true
	}
	if !a.store.written(podBucket, assignedKey) {
		return false
	}
	if still := a.fences.tell(pods); len(still) > 0 {
		a.up.Send(nodes.Report{Node: a.o.Name, Fenced: still})
	}
	return true
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
