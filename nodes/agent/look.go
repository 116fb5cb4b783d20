package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// setUpNetwork tries until it succeeds, and closes tried after the first time.
// A node whose network can't be set up says so and goes on with all but new
// pods: it is no silent one, and what runs on it is not to be given away.
func (a *Agent) setUpNetwork(ctx context.Context, tried chan<- struct{}) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := a.o.Network.Setup(ctx)
		if ctx.Err() == nil {
			a.tellSetup(err)
		}
		if tried != nil {
			close(tried)
			tried = nil
		}
		if err == nil {
			a.wakeRoutes()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// firstLook learns what runs, again and again until it succeeds. It reports
// false when ctx ended first.
func (a *Agent) firstLook(ctx context.Context) bool {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := a.look(ctx)
		if err == nil {
			close(a.looked)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		a.log.Warn("node is not ready to run pods", "err", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// look asks the runtime for everything and hands it to the pods.
func (a *Agent) look(ctx context.Context) error {
	asOf := a.ports.now()
	all, err := a.o.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	byPod := map[nodes.UID][]runtime.Status{}
	for _, s := range all {
		uid := nodes.UID(s.Labels[labelPod])
		if uid == "" {
			uid = podOf(s.ID)
		}
		byPod[uid] = append(byPod[uid], s)
	}
	a.mu.Lock()
	for uid, w := range a.pods {
		w.m.Observe(asOf, byPod[uid])
		delete(byPod, uid)
	}
	a.leftover, a.isLooked = byPod, true
	a.reconcile()
	a.mu.Unlock()
	return a.sweepRest(ctx)
}

// sweepRest removes networks and volumes of pods that have no container left
// and are not assigned.
func (a *Agent) sweepRest(ctx context.Context) error {
	var uids []nodes.UID
	attached, err := a.o.Network.List(ctx)
	if err != nil {
		return fmt.Errorf("list pod networks: %w", err)
	}
	for _, at := range attached {
		uids = append(uids, at.UID)
	}
	mounted, err := a.o.Volumes.List(ctx)
	if err != nil {
		return fmt.Errorf("list pod volumes: %w", err)
	}
	uids = append(uids, mounted...)
	logged, err := os.ReadDir(a.on.logs)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list pod logs: %w", err)
	}
	for _, e := range logged {
		uids = append(uids, nodes.UID(e.Name()))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, uid := range uids {
		if a.leftover[uid] == nil {
			a.leftover[uid] = []runtime.Status{}
		}
	}
	a.sweep()
	return nil
}

// sweep begins to remove what is left of pods that a known assignment does not
// hold. The caller holds mu.
func (a *Agent) sweep() {
	if a.assignment == nil || a.partial || a.ctx == nil {
		return
	}
	for uid, containers := range a.leftover {
		if a.pods[uid] != nil {
			delete(a.leftover, uid)
			continue
		}
		if a.sweeping[uid] {
			continue
		}
		a.sweeping[uid] = true
		ctx := a.ctx
		a.running.Go(func() { a.sweepPod(ctx, uid, containers) })
	}
}

func (a *Agent) sweepPod(ctx context.Context, uid nodes.UID, containers []runtime.Status) {
	if len(containers) > 0 {
		a.log.Info("sweep pod that is not assigned", "uid", uid, "containers", len(containers))
	}
	err := a.remove(ctx, uid, containers)
	a.store.settle(ctx, podBucket, string(uid))
	if err != nil && ctx.Err() == nil {
		a.log.Warn("sweep pod", "uid", uid, "err", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.sweeping, uid)
	if err != nil {
		return // the next resync tries again
	}
	delete(a.leftover, uid)
	delete(a.memories, uid)
	a.store.put(memoryBucket, string(uid), nil)
	if a.pods[uid] == nil {
		a.up.Send(nodes.Report{Node: a.o.Name, Gone: []nodes.UID{uid}})
	}
}

// remove ends containers with their own grace and removes all of the pod.
func (a *Agent) remove(ctx context.Context, uid nodes.UID, containers []runtime.Status) error {
	grace := time.Duration(0)
	for _, s := range containers {
		if s.State != runtime.Running {
			continue
		}
		seconds, err := strconv.Atoi(s.Labels[labelGrace])
		if err != nil {
			seconds = 30
		}
		grace = max(grace, time.Duration(seconds)*time.Second)
		if err := a.o.Runtime.Kill(ctx, s.ID, "SIGTERM"); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return fmt.Errorf("stop container %s: %w", s.ID, err)
		}
	}
	a.awaitExit(ctx, containers, grace)
	for _, s := range containers {
		if err := a.o.Runtime.Delete(ctx, s.ID); err != nil && !errors.Is(err, runtime.ErrNotFound) {
			return fmt.Errorf("delete container %s: %w", s.ID, err)
		}
		if err := a.o.Keeper.CloseLog(ctx, s.ID); err != nil {
			a.log.Warn("close log", "container_id", s.ID, "err", err)
		}
	}
	if err := leave(ctx, &a.ports, a.on, uid); err != nil {
		return err
	}
	return a.o.Runtime.ReleaseImages(ctx, string(uid))
}

// awaitExit waits until none of the containers runs, at most for grace.
func (a *Agent) awaitExit(ctx context.Context, containers []runtime.Status, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	for _, s := range containers {
		for ctx.Err() == nil {
			now, err := a.o.Runtime.Status(ctx, s.ID)
			if err != nil || now.State != runtime.Running {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// reconcile makes the workers be those of the assignment. The caller holds mu.
func (a *Agent) reconcile() {
	if !a.isLooked || a.assignment == nil || a.ctx == nil {
		return
	}
	wanted := make(map[nodes.UID]bool, len(a.assignment.Pods))
	for _, p := range a.assignment.Pods {
		wanted[p.UID] = true
		w := a.pods[p.UID]
		switch {
		case w == nil && !a.sweeping[p.UID]:
			a.begin(p)
		case w != nil && w.pod != p:
			w.pod = p
			w.m.Assign(p)
		}
	}
	for uid, w := range a.pods {
		if !wanted[uid] && !w.dropped {
			w.dropped = true
			w.m.Drop()
		}
	}
	a.reconcileVolumes()
	for uid := range a.memories {
		if !wanted[uid] && a.leftover[uid] == nil && !a.partial {
			delete(a.memories, uid)
			a.store.put(memoryBucket, string(uid), nil)
		}
	}
	a.sweep()
}

// begin starts to work on a pod. The caller holds mu.
func (a *Agent) begin(p *nodes.Pod) {
	w := &worker{agent: a, pod: p, wake: make(chan struct{}, 1)}
	w.m = newMachine(p, a.memories[p.UID], a.leftover[p.UID], a.on, a.ports, a.log, w.poke)
	delete(a.memories, p.UID)
	delete(a.leftover, p.UID)
	a.pods[p.UID] = w
	ctx := a.ctx
	a.running.Go(func() { w.run(ctx) })
}

// follow takes the runtime's events until ctx ends.
func (a *Agent) follow(ctx context.Context, events <-chan runtime.Event) {
	for e := range events {
		switch {
		case e.Reconnected:
			a.log.Info("container runtime is back")
			select {
			case a.lookAgain <- struct{}{}:
			default:
			}
		case e.ID != "" && !e.OOM:
			a.exited(ctx, e.ID)
		}
	}
}

// exited looks at a container of which an exit was told.
func (a *Agent) exited(ctx context.Context, id string) {
	w := a.worker(podOf(id))
	if w == nil {
		return
	}
	s, err := a.o.Runtime.Status(ctx, id)
	switch {
	case errors.Is(err, runtime.ErrNotFound):
		w.m.Vanished(id)
	case err != nil:
		a.log.Warn("look at container", "container_id", id, "err", err)
	default:
		w.m.Exited(s)
	}
}

// drift repairs pod networks that something else damaged.
func (a *Agent) drift(ctx context.Context) {
	changes := a.o.Network.Drift()
	for {
		select {
		case <-ctx.Done():
			return
		case uid := <-changes:
			a.log.Warn("pod network was damaged from outside and is repaired", "uid", uid)
			if uid != "" {
				if w := a.worker(uid); w != nil {
					w.m.Drifted()
				}
				continue
			}
			for _, w := range a.workers() {
				w.m.Drifted()
			}
		}
	}
}

// resync looks at everything now and then, and when the runtime is back.
func (a *Agent) resync(ctx context.Context) {
	tick := time.NewTicker(resyncEvery)
	defer tick.Stop()
	for n := 1; ; {
		select {
		case <-ctx.Done():
			return
		case <-a.lookAgain:
			a.lookUntilSeen(ctx)
			a.pulled()
		case <-tick.C:
			n++
			a.checkForwarders()
			a.resyncOnce(ctx, n%measureEvery == 0)
			if n%measureEvery == 0 {
				a.pulled() // or collected
			}
		}
	}
}

func (a *Agent) resyncOnce(ctx context.Context, measure bool) {
	if err := a.look(ctx); err != nil {
		a.log.Debug("resync", "err", err)
		return
	}
	a.pokeVolumes()
	for _, w := range a.workers() {
		w.m.Resync()
		if measure {
			a.checkLimits(ctx, w)
		}
	}
}

// lookUntilSeen looks again until the runtime, which may be up only half, has
// answered; then nothing waits for its retry any more.
func (a *Agent) lookUntilSeen(ctx context.Context) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := a.look(ctx)
		if err == nil {
			break
		}
		a.log.Debug("look at containers", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
	for _, w := range a.workers() {
		w.m.Available()
	}
}
