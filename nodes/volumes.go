package nodes

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// LocalProvisioner is the name of the built-in provisioner: a directory, or a
// file system in a file, on one node.
const LocalProvisioner = "tallyman.dev/local"

// Volume is one PersistentVolume as a node handles it. Immutable and shared.
//
// A volume that a node holds and its assignment does not name stays as it is:
// only Delete removes data.
type Volume struct {
	// Name of the PersistentVolume.
	Name string `json:"name"`
	// UID tells volumes of one name apart.
	UID string `json:"uid"`
	// Claim that is bound to it; zero while none is.
	Claim desired.Key `json:"claim,omitzero"`
	// Provisioner makes it: LocalProvisioner or the name of a CSI driver; empty
	// for one that Git describes and somebody else made.
	Provisioner string `json:"provisioner,omitempty"`
	// Class is the name of its StorageClass, Parameters what that says to the provisioner.
	Class      string            `json:"class,omitempty"`
	Parameters map[string]string `json:"parameters,omitempty"`
	// Node that holds the data; empty where any node that Spec's affinity allows
	// can reach it.
	Node string `json:"node,omitempty"`
	// Maker is the node that makes, grows and deletes it; empty for one that Git
	// describes, and from servers that do not say: whoever is given it then does.
	Maker string `json:"maker,omitempty"`
	// Reach is from where it can be used, as its driver said when it was made; nil
	// when nobody knows, and then from its Node alone.
	Reach *Reach `json:"reach,omitempty"`
	// Spec has the capacity that is wanted, which may grow; its source is empty
	// while only the provisioner knows it (LocalProvisioner: always).
	Spec corev1.PersistentVolumeSpec `json:"spec"`
	// Size in bytes that it has, as its last maker said; 0 when that is not known.
	Size int64 `json:"size,omitempty"`
	// Made is set once a node has reported it ready: one that then has nothing
	// of it says so, and never begins anew with an empty one.
	Made bool `json:"made,omitempty"`
	// Released is since when Claim has it no more: only a claim of that name may
	// have it again. Zero while it is bound.
	Released time.Time `json:"released,omitzero"`
	// Delete orders the end of the data; the node then reports VolumeGone.
	Delete bool `json:"delete,omitempty"`
	// From is what its content begins with; nil for nothing.
	From *Origin `json:"from,omitempty"`
	// Snapshot tells that it is a snapshot of From, which Claim then names as a
	// VolumeSnapshot: nobody mounts it, others begin with it.
	Snapshot bool `json:"snapshot,omitempty"`
	// Detach orders nodes to detach it from others, of which nothing runs any more
	// and which cannot do so themselves.
	Detach []Detachment `json:"detach,omitempty"`
	// Seal proves that the server said all that matters of this; only the server
	// can make or check it.
	Seal []byte `json:"seal,omitempty"`
}

// Reach is a set of places, as CSI drivers describe them.
type Reach struct {
	// Topology lists alternatives: a node that has all labels of one reaches the
	// volume. Empty: every node where the driver runs.
	Topology []map[string]string `json:"topology,omitempty"`
}

// Detachment takes a volume from a node by the driver's controller service.
type Detachment struct {
	// Node that had it, ID what its driver calls that node.
	Node string `json:"node"`
	ID   string `json:"id"`
	// By are the nodes that are to see to it.
	By []string `json:"by"`
}

// Origin is the volume, or the snapshot, that another begins with: of the same
// provisioner, on the same node. For a CSI driver one of Volume and Snapshot is
// set, for LocalProvisioner none.
type Origin struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
	// Volume is the driver's handle of a volume, Snapshot that of a snapshot.
	Volume   string `json:"volume,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
}

// VolumePhase is how far a node is with a volume.
type VolumePhase string

const (
	// VolumePending: being made, or waiting for what Message says.
	VolumePending VolumePhase = "pending"
	// VolumeReady: pods can mount it.
	VolumeReady VolumePhase = "ready"
	// VolumeFailed: Message says why; it is tried again.
	VolumeFailed VolumePhase = "failed"
	// VolumeGone: nothing is left of its data.
	VolumeGone VolumePhase = "gone"
)

// VolumeUse is what a node has of a volume.
type VolumeUse string

const (
	// VolumeUsed: it is attached, staged or mounted, or may be.
	VolumeUsed VolumeUse = "used"
	// VolumeIdle: it is not, and the node keeps a record of it.
	VolumeIdle VolumeUse = "idle"
	// VolumeUnknown: the node has nothing of it.
	VolumeUnknown VolumeUse = "none"
)

// VolumeInUse is the Reason of a volume that waits until no pod uses another,
// or itself.
const VolumeInUse = "VolumeInUse"

// VolumeStatus is what an agent reports about one volume.
type VolumeStatus struct {
	Name  string      `json:"name"`
	UID   string      `json:"uid"`
	Phase VolumePhase `json:"phase"`
	// Capacity in bytes that it really has; 0 when unknown.
	Capacity int64 `json:"capacity,omitempty"`
	// Unenforced says in one sentence why its size is only a promise; empty
	// when programs cannot write more.
	Unenforced string `json:"unenforced,omitempty"`
	// Source is what a CSI driver made: handle and attributes, of a snapshot the
	// handle. Nil otherwise.
	Source *corev1.CSIPersistentVolumeSource `json:"source,omitempty"`
	// Reach is what a CSI driver said when it made the volume; nil otherwise.
	Reach *Reach `json:"reach,omitempty"`
	// Use is what the node has of a volume that a CSI driver serves; empty when it
	// does not say. It is told that a volume is used before it is.
	Use VolumeUse `json:"use,omitempty"`
	// Detach are the orders of Volume.Detach that the node has.
	Detach []DetachStatus `json:"detach,omitempty"`
	// Reason is a word, Message one sentence, when not ready.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Held is, in a complete report, the volume as the node keeps it beside its
	// data: what a server without a record adopts.
	Held *Volume `json:"held,omitempty"`
}

// DetachStatus is how far a node is with detaching a volume from another.
type DetachStatus struct {
	// Node that it is to be detached from.
	Node string `json:"node"`
	// Done: it is not attached there any more.
	Done bool `json:"done,omitempty"`
}
