package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/volume"
)

// volumeKey tells volumes apart: a name may come back with another uid.
type volumeKey struct{ name, uid string }

func keyOf(v *nodes.Volume) volumeKey { return volumeKey{v.Name, v.UID} }

// volumeWorker converges one volume of the assignment: it makes it, keeps it as
// large as it is to be, unmounts it when no pod uses it, and deletes its data
// when told to. Pods wait for it, it for no pod but to delete.
type volumeWorker struct {
	agent *Agent
	key   volumeKey
	wake  chan struct{}

	// guarded by Agent.mu
	v *nodes.Volume
	// looked is the version that step is at, or was last; nil before.
	looked *nodes.Volume
	// dropped: the assignment does not name it any more. Its data stays.
	dropped bool
	status  nodes.VolumeStatus
	// inUse: a pod may have it staged.
	inUse bool
	// stagedFor are the pods that asked for it since the agent began.
	stagedFor map[nodes.UID]bool
	// copies counts the volumes that are being made from it: nobody may have it
	// staged meanwhile.
	copies int

	// delay and detached, the nodes that the volume was detached from, belong to run.
	delay    time.Duration
	detached map[string]bool
}

func (w *volumeWorker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Back-off of what goes wrong with a volume.
const (
	firstVolumeDelay = time.Second
	maxVolumeDelay   = 2 * time.Minute
)

func (w *volumeWorker) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		done, err := w.step(ctx)
		switch {
		case ctx.Err() != nil || done:
			return
		case err != nil:
			w.delay = min(max(2*w.delay, firstVolumeDelay), maxVolumeDelay)
			timer.Reset(w.delay)
		default:
			w.delay = 0
			timer.Stop()
		}
	}
}

// step does what is to be done now; what is already so is success. It reports
// done when the volume is none of this node's any more.
func (w *volumeWorker) step(ctx context.Context) (done bool, err error) {
	a := w.agent
	a.mu.Lock()
	v, dropped, used, told := w.v, w.dropped, a.used(w), a.told
	w.looked = v
	a.mu.Unlock()
	if dropped {
		return w.leave(ctx, v, used)
	}
	failed := w.detach(ctx, v, told)
	if v.Delete {
		return false, w.delete(ctx, v, used)
	}
	release, err := w.holdOrigin(v)
	if err != nil {
		w.wait(v, err)
		return false, err
	}
	status, err := a.o.Persistent.Ensure(ctx, v)
	release()
	if errors.Is(err, volume.ErrUnready) {
		w.show(v, status, nil)
		return false, err
	}
	if !used && (err == nil || driven(v)) {
		err = cmp.Or(err, w.unstage(ctx, v))
	}
	err = cmp.Or(err, failed)
	w.show(v, status, err)
	return false, err
}

// holdOrigin sees to it that nobody writes to the volume that this one is to be
// made from, until release is called. The error says what that waits for.
func (w *volumeWorker) holdOrigin(v *nodes.Volume) (release func(), err error) {
	a := w.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	if v.From == nil || v.Made || v.Provisioner != nodes.LocalProvisioner {
		return func() {}, nil
	}
	origin := a.volumes[volumeKey{v.From.Name, v.From.UID}]
	switch {
	case origin == nil:
		return nil, fmt.Errorf("volume %s, whose content it begins with, is not on this node yet", v.From.Name)
	case origin.inUse || a.used(origin):
		return nil, fmt.Errorf("a pod uses volume %s: a directory is copied while nobody writes to it, so stop its pods for a moment", v.From.Name)
	}
	origin.copies++
	return func() {
		a.mu.Lock()
		origin.copies--
		a.mu.Unlock()
		a.volumeReady(origin.v)
	}, nil
}

// wait makes known what a volume waits for on this node.
func (w *volumeWorker) wait(v *nodes.Volume, why error) {
	w.show(v, nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumePending, Reason: nodes.VolumeInUse, Message: why.Error()}, nil)
}

// leave ends the work on a volume that is not assigned any more.
func (w *volumeWorker) leave(ctx context.Context, v *nodes.Volume, used bool) (bool, error) {
	if used {
		return false, nil
	}
	if err := w.unstage(ctx, v); err != nil {
		w.agent.log.Warn("leave volume", "volume", v.Name, "err", err)
		return false, err
	}
	return w.agent.forgetVolume(w), nil
}

func (w *volumeWorker) unstage(ctx context.Context, v *nodes.Volume) error {
	a := w.agent
	a.mu.Lock()
	idle := !w.inUse
	a.mu.Unlock()
	if idle {
		return nil
	}
	err := a.o.Persistent.Unstage(ctx, v, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		w.inUse = a.used(w)
		return !w.inUse
	})
	if err != nil { // it may be mounted still
		a.mu.Lock()
		w.inUse = true
		a.mu.Unlock()
	}
	a.pokeCopies(w.key)
	return err
}

// pokeCopies has those volumes looked at that are to be made from another.
func (a *Agent) pokeCopies(of volumeKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.volumes {
		if w.v.From != nil && !w.v.Made && of == (volumeKey{w.v.From.Name, w.v.From.UID}) {
			w.poke()
		}
	}
}

func (w *volumeWorker) delete(ctx context.Context, v *nodes.Volume, used bool) error {
	status := nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumePending, Reason: nodes.VolumeInUse, Message: "a pod on this node still uses it"}
	if used {
		w.show(v, status, nil)
		return nil
	}
	err := w.agent.o.Persistent.Delete(ctx, v)
	status.Phase, status.Reason, status.Message = nodes.VolumeGone, "", ""
	w.show(v, status, err)
	return err
}

// show makes a volume's status known.
func (w *volumeWorker) show(v *nodes.Volume, status nodes.VolumeStatus, err error) {
	if err != nil {
		status = nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumeFailed, Reason: volume.ReasonProvisioning, Message: err.Error()}
		if why, ok := errors.AsType[*volume.Trouble](err); ok {
			status.Reason = why.Reason
		}
	}
	a := w.agent
	a.mu.Lock()
	defer a.mu.Unlock()
	before := w.status
	status.Use, status.Detach = w.use(err), w.orders(v)
	w.status = status
	if status.Phase == nodes.VolumeReady && !w.v.Made {
		made := *w.v
		made.Made = true
		w.v = &made
		a.store.saveVolume(w.v)
	}
	if reflect.DeepEqual(before, status) {
		return
	}
	a.log.Info("volume", "volume", v.Name, "phase", status.Phase, "reason", status.Reason, "message", status.Message)
	a.up.Send(nodes.Report{Node: a.o.Name, Volumes: []nodes.VolumeStatus{status}, Events: a.volumeEvents(v, before, status)})
	if status.Phase == nodes.VolumeReady {
		a.wakeUsers(v)
	}
}

// volumeEvents tell the claim's owner what became of its volume.
func (a *Agent) volumeEvents(v *nodes.Volume, before, now nodes.VolumeStatus) []nodes.Event {
	e := nodes.Event{Object: v.Claim, Source: "agent " + a.o.Name, First: a.ports.now(), Last: a.ports.now(), Count: 1}
	switch {
	case v.Claim.Name == "":
		return nil
	case now.Phase == nodes.VolumeFailed:
		e.Warning, e.Reason, e.Message = true, now.Reason, now.Message
	case now.Phase == nodes.VolumeReady && !v.Made && v.Provisioner != "":
		e.Reason, e.Message = "ProvisioningSucceeded", "Successfully provisioned volume "+v.Name
	case now.Phase == nodes.VolumeReady && before.Capacity > 0 && now.Capacity > before.Capacity:
		e.Reason, e.Message = "VolumeResizeSuccessful", "Resized volume "+v.Name
	default:
		return nil
	}
	return []nodes.Event{e}
}

// volumeReady has the pods that wait for a volume try again at once.
func (a *Agent) volumeReady(v *nodes.Volume) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wakeUsers(v)
}

// wakeUsers is volumeReady for a caller that holds mu.
func (a *Agent) wakeUsers(v *nodes.Volume) {
	for _, w := range a.pods {
		if usesClaim(w.pod, v.Claim) {
			w.m.VolumeReady()
		}
	}
}

// VolumeReady tells that a volume which the pod waits for is there.
func (m *Machine) VolumeReady() {
	m.post(func() { delete(m.retries, string(opMount)) })
}

// used reports whether a pod has the volume mounted, or is about to. A claim may
// have come back, with another volume, under a name that it had before: its
// pods use the new one unless they asked for this. The caller holds mu.
func (a *Agent) used(w *volumeWorker) bool {
	if w.v.Snapshot {
		return false
	}
	successor := a.volumeOf(w.v.Claim)
	for uid, p := range a.pods {
		mine := w.stagedFor[uid] || successor == nil || successor == w
		if mine && usesClaim(p.pod, w.v.Claim) && !ended(p.m.Status().Phase) {
			return true
		}
	}
	return false
}

// Config is a ConfigMap, Secret or CSIDriver of the assignment; nil when it is
// not there.
func (a *Agent) Config(k desired.Key) *nodes.Config { return a.on.config(k) }

// DriversChanged tells that Options.Drivers are others than before: what waits
// for one tries again.
func (a *Agent) DriversChanged() {
	a.tell()
	a.pokeVolumes()
	for _, w := range a.workers() {
		w.m.DriversChanged()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.volumesSwept || a.ctx == nil || a.ctx.Err() != nil {
		return
	}
	a.sweep()
	ctx := a.ctx
	a.running.Go(func() { a.sweepVolumes(ctx) })
}

// DriversChanged has a pod try again to have its volumes, or to part with them.
func (m *Machine) DriversChanged() {
	m.post(func() {
		delete(m.retries, string(opMount))
		delete(m.retries, string(opFinish))
	})
}

// volumeOf finds the volume that is bound to a claim. The caller holds mu.
func (a *Agent) volumeOf(claim desired.Key) *volumeWorker {
	for _, w := range a.volumes {
		if w.v.Claim == claim && !w.v.Delete && !w.dropped {
			return w
		}
	}
	return nil
}

// reconcileVolumes makes the workers be those of the assignment. The caller
// holds mu.
func (a *Agent) reconcileVolumes() {
	wanted := make(map[volumeKey]bool, len(a.assignment.Volumes))
	for _, v := range a.assignment.Volumes {
		wanted[keyOf(v)] = true
		w := a.volumes[keyOf(v)]
		if w == nil {
			a.beginVolume(v)
			continue
		}
		a.reassign(w, v)
	}
	if !a.partial && !a.volumesSwept {
		a.volumesSwept = true
		ctx := a.ctx
		a.running.Go(func() { a.sweepVolumes(ctx) })
	}
	for key, w := range a.volumes {
		if !wanted[key] && !w.dropped && !a.partial {
			w.dropped = true
			w.poke()
		}
	}
}

func (a *Agent) beginVolume(v *nodes.Volume) {
	w := &volumeWorker{
		agent: a, key: keyOf(v), v: v, wake: make(chan struct{}, 1), inUse: true, stagedFor: map[nodes.UID]bool{}, detached: map[string]bool{},
	}
	w.status = nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumePending, Use: w.use(nil)}
	a.volumes[w.key] = w
	ctx := a.ctx
	a.running.Go(func() { w.run(ctx) })
}

// reassign hands over a newer version of a volume. That it was made is not
// forgotten.
func (a *Agent) reassign(w *volumeWorker, v *nodes.Volume) {
	if w.v.Made && !v.Made {
		made := *v
		made.Made = true
		v = &made
	}
	if !w.dropped && reflect.DeepEqual(w.v, v) {
		return
	}
	w.v, w.dropped = v, false
	a.store.saveVolume(v)
	w.poke()
}

// forgetVolume takes a volume off the list, unless it was assigned again.
func (a *Agent) forgetVolume(w *volumeWorker) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !w.dropped {
		w.poke()
		return false
	}
	delete(a.volumes, w.key)
	return true
}

// sweepVolumes finishes, once the assignment is known, what the last agent had
// begun with volumes that are none of this node's any more.
func (a *Agent) sweepVolumes(ctx context.Context) {
	err := a.o.Persistent.Sweep(ctx, func(name, uid string) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.volumes[volumeKey{name, uid}] != nil
	})
	if err != nil && ctx.Err() == nil {
		a.log.Warn("sweep volumes", "err", err)
	}
}

// pokeVolumes has all volumes looked at: one that a pod used may be free.
func (a *Agent) pokeVolumes() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.volumes {
		w.poke()
	}
}

// volumeStatuses are those of all volumes, with what is kept of them: also of
// those whose data lies here and that no assignment names.
func (a *Agent) volumeStatuses(held []*nodes.Volume) []nodes.VolumeStatus {
	var list []nodes.VolumeStatus
	for _, w := range a.volumes {
		s := w.status
		s.Held, s.Detach = w.v, w.known(s.Detach)
		list = append(list, s)
	}
	for _, v := range held {
		if a.volumes[keyOf(v)] != nil {
			continue
		}
		phase := nodes.VolumePending
		if v.Made {
			phase = nodes.VolumeReady
		}
		list = append(list, nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: phase, Capacity: v.Spec.Capacity.Storage().Value(), Held: v})
	}
	slices.SortFunc(list, func(x, y nodes.VolumeStatus) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.UID, y.UID))
	})
	return list
}

// mountTask is what Machine.busy calls the mounting of volumes that may take long.
const mountTask = "mount"

// begun reports whether an action goes on beside the steps.
func (m *Machine) begun(a action) bool {
	return a.op == opPull || a.op == opToken || a.op == opMount && m.busy[mountTask] != nil
}
