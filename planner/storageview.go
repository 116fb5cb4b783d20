package planner

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// storageHealth tells how a claim or volume of Git is doing.
func (s *State) storageHealth(h *nodes.ObjectHealth) {
	switch {
	case h.Key.Group == snapshotGroup && h.Key.Kind == kindSnapshot:
		if shot, ok := s.snapshots.Get(h.Key); ok {
			s.snapshotHealth(h, shot)
		}
	case h.Key.Group != "":
	case h.Key.Kind == kindClaim:
		if c, ok := s.claims.Get(h.Key); ok {
			s.claimHealth(h, c)
		}
	case h.Key.Kind == kindVolume:
		if v, ok := s.volumes.Get(h.Key.Name); ok {
			s.volumeHealth(h, v)
		}
	}
}

// inGit reports whether the revision in force, if one is known, has an object.
func (s *State) inGit(k desired.Key) bool { return s.snapshot != nil && s.snapshot.Get(k) != nil }

// ownStorage lists the claims and volumes that Git doesn't have.
func (s *State) ownStorage() []nodes.ObjectHealth {
	var out []nodes.ObjectHealth
	for k, c := range entries(s.claims) {
		if !s.inGit(k) {
			h := nodes.ObjectHealth{Key: k, Owner: c.Owner}
			s.claimHealth(&h, c)
			out = append(out, h)
		}
	}
	for k, shot := range entries(s.snapshots) {
		if !s.inGit(k) {
			h := nodes.ObjectHealth{Key: k}
			s.snapshotHealth(&h, shot)
			out = append(out, h)
		}
	}
	for _, v := range entries(s.volumes) {
		if !s.inGit(v.key()) {
			h := nodes.ObjectHealth{Key: v.key(), Owner: v.Claim}
			s.volumeHealth(&h, v)
			out = append(out, h)
		}
	}
	return out
}

func (s *State) claimHealth(h *nodes.ObjectHealth, c *claim) {
	h.Health, h.Created = nodes.Healthy, c.Created
	view := &nodes.StorageOverview{Phase: string(corev1.ClaimBound), Volume: c.Volume, AccessModes: modesOf(c.Spec.AccessModes)}
	h.Storage = view
	view.Pods = s.mounting(c.Key)
	size := c.wants.Size()
	view.Capacity = size.String()
	if c.wants.Class != nil {
		view.Class = *c.wants.Class
	}
	if c.Volume == "" {
		view.Phase = string(corev1.ClaimPending)
		h.Reason = c.waits
		if !c.consumer {
			h.Health = nodes.Progressing
		}
		if c.stuck {
			h.Health = nodes.Degraded
		}
		return
	}
	v, ok := s.volumes.Get(c.Volume)
	if !ok || v.status != nil && v.status.Phase == nodes.VolumeGone {
		view.Phase = string(corev1.ClaimLost)
		h.Health, h.Reason = nodes.Degraded, "its PersistentVolume "+c.Volume+" is gone"
		return
	}
	view.Class, view.Node, view.Capacity, view.Unenforced = v.Class, v.Node, v.capacity(), v.unenforced()
	switch why := v.unsettled(); {
	case c.Spec.VolumeName != "" && c.Spec.VolumeName != c.Volume:
		h.Health, h.Reason = nodes.Degraded, "it had PersistentVolume "+c.Volume+" before volumeName "+c.Spec.VolumeName+" was written, and keeps it"
	case v.short != "":
		h.Health, h.Reason = nodes.Degraded, v.short
	case why != "":
		h.Health, h.Reason = v.pace(), "PersistentVolume "+v.Name+": "+why
	case c.Adopted:
		h.Reason = "kept: node " + v.Maker + " holds its data and nothing in Git asks for it; to delete it, write the claim in Git and remove it again"
	case s.snapshot != nil && !c.ofGit() && c.Pod == "" && !s.inGit(c.Owner):
		h.Reason = "kept after " + c.Owner.String() + " left Git; to delete it, write the claim in Git and remove it again"
	}
}

// mounting lists the pods on nodes that use a claim, sorted by name.
func (s *State) mounting(k desired.Key) []string {
	users, ok := s.users.Get(k)
	if !ok {
		return nil
	}
	var names []string
	for uid := range keys(users) {
		if _, p := s.pod(uid); p != nil && p.Node != "" && !p.done() {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (s *State) volumeHealth(h *nodes.ObjectHealth, v *volume) {
	h.Health = nodes.Healthy
	h.Storage = &nodes.StorageOverview{
		Phase: string(v.phase()), Claim: v.Claim, Class: v.Class, Capacity: v.capacity(), AccessModes: modesOf(v.Spec.AccessModes),
		Node: v.Node, Unenforced: v.unenforced(),
	}
	if why := v.unsettled(); why != "" {
		h.Health, h.Reason = v.pace(), why
		return
	}
	if v.Bound || v.Claim.IsZero() {
		if s.snapshot != nil && v.FromGit && v.object == nil {
			h.Reason = "no longer in Git; it stays while " + v.Claim.String() + " has it"
		}
		return
	}
	switch {
	case v.FromGit:
		h.Reason = "released by " + v.Claim.String() + ", which alone can have it again; what Git describes is never deleted"
	case !v.deletes():
		h.Reason = "released by " + v.Claim.String() + "; its data is kept (reclaim policy Retain) and comes back with " + v.comesBack()
	case s.snapshot == nil: // how long it is kept is not known yet
		h.Reason = "released by " + v.Claim.String()
	case v.Released.IsZero():
		h.Reason = "kept: node " + v.Maker + " holds its data, and " + v.Claim.String() + " has another volume"
	default:
		h.Storage.Until = v.Released.Add(s.snapshot.Settings().KeepData)
		h.Reason = "released by " + v.Claim.String() + "; its data comes back with " + v.comesBack() + " until " + h.Storage.Until.UTC().Format(time.RFC3339)
		if node := v.heldElsewhere(); node != "" {
			h.Reason += ", and after that until node " + node + " has said that it has nothing of it any more, or was removed from the cluster"
		}
	}
}

// comesBack names what gets released data back.
func (v *volume) comesBack() string {
	if v.Snapshot {
		return "a snapshot of that name"
	}
	return "a claim of that name"
}

func (v *volume) phase() corev1.PersistentVolumePhase {
	switch {
	case v.status != nil && v.status.Phase == nodes.VolumeFailed:
		return corev1.VolumeFailed
	case v.Bound:
		return corev1.VolumeBound
	case !v.Claim.IsZero():
		return corev1.VolumeReleased
	default:
		return corev1.VolumeAvailable
	}
}

// pace is the health of a volume that a node has something to do about.
func (v *volume) pace() nodes.Health {
	if v.status != nil && (v.status.Phase == nodes.VolumeFailed || v.status.Phase == nodes.VolumeGone) {
		return nodes.Degraded
	}
	return nodes.Progressing
}

// capacity is what the volume has, as far as its node told.
func (v *volume) capacity() string {
	wanted := v.view.Capacity()
	if v.status == nil || v.status.Capacity == 0 || v.status.Capacity == wanted.Value() {
		return wanted.String()
	}
	return resource.NewQuantity(v.status.Capacity, resource.BinarySI).String()
}

func (v *volume) unenforced() string {
	if v.status == nil {
		return ""
	}
	return v.status.Unenforced
}

func modesOf(list []corev1.PersistentVolumeAccessMode) []string {
	out := make([]string, len(list))
	for i, m := range list {
		out[i] = string(m)
	}
	return out
}

// dataAfter says what becomes of data when an object leaves Git; empty for one
// that has none.
func (st *step) dataAfter(c *comparison, k desired.Key) string {
	keep := c.next.Settings().KeepData
	if held, ok := st.claims.Get(k); ok {
		v, ok := st.volumes.Get(held.Volume)
		switch {
		case !ok || !v.Bound:
			return "it has no data"
		case v.deletes():
			return fmt.Sprintf("its data (PersistentVolume %s) is deleted %s after", v.Name, keep)
		default:
			return "its data stays on PersistentVolume " + v.Name
		}
	}
	if shot, ok := st.snapshots.Get(k); ok {
		v, ok := st.volumes.Get(shot.Volume)
		switch {
		case !ok || !v.Bound:
			return "it has no data"
		case v.deletes():
			return fmt.Sprintf("its data (VolumeSnapshotContent %s) is deleted %s after", v.Name, keep)
		default:
			return "its data stays as VolumeSnapshotContent " + v.Name
		}
	}
	kept, ends := 0, 0
	for _, held := range entries(st.claims) {
		switch {
		case held.Owner != k || held.Pod != "" || c.next.Get(held.Key) != nil:
		case held.EndsWithOwner:
			ends++
		default:
			kept++
		}
	}
	switch {
	case ends > 0:
		return fmt.Sprintf("%s with it, whose data is deleted %s after unless their class retains it", count(ends, "claim"), keep)
	case kept > 0:
		return count(kept, "claim") + " stay with their data"
	}
	return ""
}
