// Package nodes is the vocabulary of machines: what a node is, what it is to
// run (Assignment), what it reports (Report), what only Tallyman decided
// (Decision), and the overview that pages and commands show.
//
// All are plain values. A value that was handed on is shared and must not be
// changed; whoever wants another makes another. Instants are wall time in UTC.
package nodes

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Node is one machine as its agent describes it.
type Node struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	// Addrs are the node's own addresses, the preferred one first.
	Addrs []netip.Addr `json:"addrs"`
	// PodCIDR is the range that the node's pods have their addresses from.
	PodCIDR netip.Prefix `json:"pod_cidr"`
	// Capacity is what the machine has, Allocatable what pods may request.
	Capacity    corev1.ResourceList `json:"capacity"`
	Allocatable corev1.ResourceList `json:"allocatable"`
	// Taints keep pods away that don't tolerate them; Unschedulable keeps all new
	// pods away.
	Taints        []corev1.Taint `json:"taints,omitempty"`
	Unschedulable bool           `json:"unschedulable,omitempty"`

	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Kernel  string `json:"kernel"`
	Runtime string `json:"runtime"`
	// Version of the agent.
	Version string `json:"version"`
	// Drivers are the CSI drivers that answer on the node, sorted.
	Drivers []string `json:"drivers,omitempty"`
	// DriverNodes is what is known of them, in the same order; nil from agents that
	// do not say.
	DriverNodes []DriverNode `json:"driver_nodes,omitempty"`
	// BootID changes with every boot of the machine.
	BootID string `json:"boot_id"`
	// Problems are sentences about what keeps the node from doing all that it should.
	Problems []string `json:"problems,omitempty"`
	// WireGuard is the node's public key, base64, where that overlay is in use.
	WireGuard string `json:"wireguard,omitempty"`
}

// NodeState is a node with what the server knows of its connection.
type NodeState struct {
	Node
	// Ready is false from the moment that the server counts the node as silent.
	Ready bool `json:"ready"`
	// Since is when Ready last changed.
	Since time.Time `json:"since"`
	// Reason is one sentence when not ready.
	Reason string `json:"reason,omitempty"`
	// Routes is the newest route generation that the node has in force.
	Routes uint64 `json:"routes"`
	// Session grows with each session that the node begins; an Assignment says
	// which one it was made for.
	Session uint64 `json:"session,omitempty"`
	// Unheard is set, on a node that is not ready, while it is only known from
	// before the server's start: it has not been heard of since, and not for long
	// enough to count as silent.
	Unheard bool `json:"unheard,omitempty"`
	// Lapsed is set, on a node that is not ready, once every lease that the server
	// ever granted it is over by the node's own clock too: fenced pods have stopped.
	Lapsed bool `json:"lapsed,omitempty"`
}

// DriverNode is a CSI driver as it answers on one node.
type DriverNode struct {
	Name string `json:"name"`
	// ID is what the driver calls the node.
	ID string `json:"id"`
	// Controller is set where its controller service answers on the node.
	Controller bool `json:"controller,omitempty"`
	// MaxVolumes bounds the volumes of the driver on the node; 0 for no bound.
	MaxVolumes int64 `json:"max_volumes,omitempty"`
}

// Driver is what is known of a driver on the node; false when nothing is.
func (n *Node) Driver(name string) (DriverNode, bool) {
	for _, d := range n.DriverNodes {
		if d.Name == name {
			return d, true
		}
	}
	return DriverNode{}, false
}
