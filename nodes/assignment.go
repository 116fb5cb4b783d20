package nodes

import (
	"encoding/json"
	"net/netip"

	"github.com/tallyman-dev/tallyman/desired"
)

// Assignment is all that one node is to run now. It is always complete; the
// protocol sends differences, the value does not know of them.
//
// A pod that the node runs and a complete Assignment does not hold is to be
// stopped with its own grace period and forgotten.
type Assignment struct {
	Node string
	// Pods sorted by UID, those with Stop set included until the agent has
	// reported them gone.
	Pods []*Pod
	// Configs are the ConfigMaps and Secrets that these pods read, and the Secrets
	// and CSIDrivers that its volumes need, sorted by key: no others, so a node
	// sees only what its pods may see.
	Configs []*Config
	// Volumes are those that the node's pods use, and those whose data it holds,
	// sorted by name.
	Volumes []*Volume
	// Measured are the pods whose usage the server wants to know, sorted.
	Measured []UID
	// Network are the cluster's addresses, PodCIDR is the node's range of them.
	Network desired.Network
	PodCIDR netip.Prefix
	// Fenced are those of Pods that may only run while the node's lease is valid,
	// sorted.
	Fenced []UID
	// Session is the one whose complete report was heard before this was decided;
	// see NodeState.Session.
	Session uint64
}

// Config is the content of a ConfigMap or Secret, or of a CSIDriver (see
// DriverKey). Immutable and shared.
type Config struct {
	// Key has kind ConfigMap, Secret or CSIDriver.
	Key desired.Key
	// Version changes with the content and says nothing about it.
	Version string
	Data    map[string][]byte
	// Binary are the keys of Data, sorted, that a ConfigMap holds as binaryData:
	// they become files, never environment variables.
	Binary []string `json:",omitempty"`
	// Type is the Secret's type, empty for a ConfigMap.
	Type string
}

// Report is what one agent says about its node. A complete one replaces all
// that was known; others add to it.
type Report struct {
	Node string
	// Local is set by the server for the node of its own machine, whose word
	// about what it holds needs no seal. The protocol does not carry it.
	Local bool
	// Complete is set on the first report of a session.
	Complete bool
	// Info describes the machine; nil when unchanged.
	Info *Node
	// Images are those that the node has; nil when unchanged, or not known.
	Images *Images
	// Routes is the newest route generation in force on the node; 0 says nothing.
	Routes uint64
	// Statuses of pods that changed (all, when Complete).
	Statuses []PodStatus
	// Gone are pods of which nothing is left on the node.
	Gone []UID
	// Held, in a complete report, are the pods that the node has, with their
	// templates: what a server without a record adopts.
	Held []*Pod
	// Left, in a complete report, are pods that are neither held nor gone: the
	// node lost what it knew of them, but something of them is there and may run.
	// They end, or are adopted, by the assignment.
	Left []UID
	// Ledger, in a complete report, is what the node keeps for the server.
	Ledger []Decision
	Events []Event
	// Volumes whose status changed; all that the node holds, when Complete.
	Volumes []VolumeStatus
	// Usage of the pods that the assignment asks to be measured.
	Usage []Usage
	// Fenced are pods that the keeper will kill, from now on, when the lease is
	// over: newly ones, or all when Complete. Once said it holds until the
	// assignment no longer fences the pod.
	Fenced []UID
}

// Decision is one thing that only Tallyman chose: a pod and its node, a
// service's address, a rollout's history, the revision in force. The planner
// alone knows what Value holds; the record and the nodes' ledgers keep it.
type Decision struct {
	// Kind is a bucket, e.g. "pod", "template", "service". Everything but
	// "pod" also belongs to the ledger that agents keep.
	Kind string `json:"kind"`
	Key  string `json:"key"`
	// Value is JSON; nil forgets the decision.
	Value json.RawMessage `json:"value,omitempty"`
}

// PodDecision is the Kind of a Decision that living containers carry, so that
// the ledger need not.
const PodDecision = "pod"

// Input is one thing that the server learned about a node. Node, when set,
// counts before Report.
type Input struct {
	Node   *NodeState
	Report *Report
	// Events are what the server itself noticed, who was refused for example.
	Events []Event
}
