// Package workload holds the rules by which a workload's pods change: one
// file a kind, each a function from what is there to what comes next.
//
// The rules are Kubernetes' own: how many pods a rollout may add and take
// away, which pod goes first, when a rollout is complete or late. They know
// nothing of nodes, routes or records; the planner turns their Steps into
// pods. Guarantees: no step takes the available pods below
// replicas − maxUnavailable, and pods that are not leaving never exceed
// replicas + maxSurge; the same input gives the same steps in the same order.
package workload

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// DefaultDeadline is how long a workload without a progress deadline of its
// own may go on without progress before it counts as failed: Kubernetes'
// default for Deployments.
const DefaultDeadline = 10 * time.Minute

// Pod is what the rules need to know of one pod.
type Pod struct {
	UID  nodes.UID
	Name string
	// Node is empty while the pod waits for one; Aim is the one node that the
	// pod is for, empty for any.
	Node, Aim string

	Phase nodes.Phase
	// Ready as of ReadySince, which is when Ready last changed.
	Ready      bool
	ReadySince time.Time
	Created    time.Time
	Restarts   int
	// Cost is the pod-deletion-cost annotation: lower goes first.
	Cost        int
	Incarnation uint64
	// Ordinal of a StatefulSet's or an Indexed Job's pod, else NoOrdinal.
	Ordinal int
	// Leaving pods are on their way out and count only where a rule waits for
	// them to be gone.
	Leaving bool
	// Silent is set while its node does not answer: it is not Ready then, though it
	// may be.
	Silent bool
	// Why is one clause that says why the pod is not ready; empty when it is.
	Why string
}

func (p *Pod) done() bool {
	return p.Phase == corev1.PodSucceeded || p.Phase == corev1.PodFailed
}

// availableAt is when a pod counts as available; ok is false while it is not
// even ready. Without minReadySeconds nobody's clock is asked, as in Kubernetes.
func (p *Pod) availableAt(minReady time.Duration) (at time.Time, ok bool) {
	if !p.Ready || p.Leaving || p.done() {
		return time.Time{}, false
	}
	if minReady == 0 {
		return time.Time{}, true
	}
	return p.ReadySince.Add(minReady), true
}

// Set is the pods that share one template: a ReplicaSet.
type Set struct {
	Hash string
	// Since is when the set became the current one of its workload.
	Since time.Time
	// Pods of the set, in any order, leaving ones included.
	Pods []Pod
}

// NoOrdinal is that of pods that are all alike.
const NoOrdinal = -1

// Create asks for new pods of one set.
type Create struct {
	Hash  string
	Count int
	// Ordinal of the one pod, or NoOrdinal.
	Ordinal int
	// Name of the one pod; empty to have one made up from the owner's.
	Name string
	// Node that the one pod is for; empty leaves the choice to placement.
	Node string
}

// Remove asks for the end of one pod.
type Remove struct {
	UID    nodes.UID
	Hash   string
	Reason string
}

// Steps are what a workload does now.
type Steps struct {
	Creates []Create
	Removes []Remove
	// Waits says in one sentence what the workload waits for; may be empty.
	Waits string
}

// Empty reports whether nothing is to be done now.
func (s Steps) Empty() bool { return len(s.Creates) == 0 && len(s.Removes) == 0 }

// Verdict is how a workload is doing.
type Verdict struct {
	Wanted, Current, Updated, Ready, Available int

	Health nodes.Health
	// Reason is one sentence when not Healthy.
	Reason string
	// Late is set when the workload made no progress for as long as its
	// deadline allows.
	Late bool
	// Complete is set when every pod is of the current template and available.
	Complete bool
	// Over is set when nothing more is expected: what has ended, well or not, and
	// what goes on by itself without anyone waiting for it.
	Over bool
	// Deadline is when it will count as late; Wake is the next instant at which
	// the verdict or the steps may change by themselves. Zero means never.
	Deadline, Wake time.Time
}

// compareRemoval orders pods by who goes first, as Kubernetes does: without a
// node, not running, not ready, cheap to delete, on a crowded node, ready for
// a shorter time, restarted more often, newer.
func compareRemoval(a, b *Pod, crowd map[string]int) int {
	return cmp.Or(
		compareBool(a.Node != "", b.Node != ""),
		cmp.Compare(phaseRank(a.Phase), phaseRank(b.Phase)),
		compareBool(a.Ready, b.Ready),
		cmp.Compare(a.Cost, b.Cost),
		cmp.Compare(crowd[b.Node], crowd[a.Node]),
		b.ReadySince.Compare(a.ReadySince),
		cmp.Compare(b.Restarts, a.Restarts),
		b.Created.Compare(a.Created),
		cmp.Compare(b.Incarnation, a.Incarnation),
		strings.Compare(string(a.UID), string(b.UID)),
	)
}

func phaseRank(p nodes.Phase) int {
	switch p {
	case corev1.PodRunning:
		return 2
	case corev1.PodUnknown:
		return 1
	default:
		return 0
	}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// removalOrder sorts pods so that those to remove first come first.
func removalOrder(pods []*Pod) []*Pod {
	crowd := map[string]int{}
	for _, p := range pods {
		crowd[p.Node]++
	}
	slices.SortFunc(pods, func(a, b *Pod) int { return compareRemoval(a, b, crowd) })
	return pods
}

// firstTrouble is the clause of the oldest pod that says why it isn't ready.
func firstTrouble(sets ...*Set) string {
	for _, s := range sets {
		if s == nil {
			continue
		}
		for i := range s.Pods {
			if p := &s.Pods[i]; !p.Leaving && !p.Ready && p.Why != "" {
				return fmt.Sprintf("pod %s: %s", p.Name, p.Why)
			}
		}
	}
	return ""
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
