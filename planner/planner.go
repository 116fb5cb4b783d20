// Package planner decides what happens next: Next(state, change, now) gives
// the state after the change and the plan that leads there.
//
// It is a function of values: no clock, no chance, no I/O, no goroutine, no
// logger. The same inputs give the same plan, byte for byte, and planning a
// converged cluster gives the empty plan. The same code runs the cluster,
// prints what a push would do, drives the simulator and serves the tests.
// DESIGN.md beside this file states its guarantees.
package planner

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/scale"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Config is fixed for the life of a cluster.
type Config struct {
	// SecretKey keys the hash by which a Secret's content enters a template's
	// name, so that the name tells nothing about the content. At least 16 bytes.
	SecretKey []byte
	// Default sets today's defaults in a pod spec: in one that was recorded by an
	// earlier version, before it is compared, and those of pods in a template. It
	// must be a pure function. Nil compares records as they are, and leaves
	// templates as they are written.
	Default func(*corev1.PodSpec)
	// Several tells that more than one server can run the cluster: pods that one
	// node at a time may hold are then fenced unless Git says otherwise.
	Several bool
	// RoutePace bounds what route tables cost, for each is sent to every node and
	// answered by it: after a table, the next one waits this long for each node, at
	// most a second, and takes all that changes until then. Zero makes a table in
	// every step in which routes change.
	RoutePace time.Duration
	// Location finds a time zone by its name; it must give the same one as long
	// as the process runs. Nil knows UTC only.
	Location func(name string) (*time.Location, error)
}

// Change is everything that became known since the last step. Any part may be
// empty; a Change without parts only lets time pass.
type Change struct {
	// Decisions is the whole record, given once, before anything else, when a
	// server starts with one.
	Decisions []nodes.Decision
	// Snapshot is a valid revision that is to be in force from now on, unless
	// the guard holds it.
	Snapshot *desired.Snapshot
	// Source identifies repository, branch and path that Snapshot is from. When
	// it differs from the recorded one, a deletion of anything is held.
	Source string
	// Nodes are those whose connection changed: joined, silent, back, gone.
	Nodes []nodes.NodeState
	// Reports of agents, in the order of their arrival.
	Reports []nodes.Report
	// Samples are the metrics' source's answers to State.Queries.
	Samples []scale.Sample
}

// Plan is the difference as data. The zero Plan is the empty one.
type Plan struct {
	// Revision is the commit in force after this step; empty before the first.
	Revision string
	// Hold is set when Change.Snapshot was not put in force for its deletions;
	// Difference then tells what it would have changed.
	Hold *nodes.Hold
	// Difference is what Change.Snapshot changes against what was in force: for
	// people to review. Empty in a step without a new snapshot.
	Difference []Difference
	// Actions are what this step sets going.
	Actions []Action
	// Waiting is what must happen later, why it can't now, and until when.
	// The first hundred; MoreWaiting counts the others.
	Waiting     []nodes.WaitingItem
	MoreWaiting int
	// Wake is the next instant at which Next must be called even if nothing is
	// reported; zero means never.
	Wake time.Time

	// Decisions must be recorded before Assignments and Routes are handed over.
	Decisions []nodes.Decision
	// Assignments are complete, one for each node whose assignment changed.
	Assignments []nodes.Assignment
	// Routes is the new route table, nil when unchanged.
	Routes *proxy.Table
	// Events to show with their objects.
	Events []nodes.Event
}

// Op is what a revision does to one object.
type Op string

const (
	Create  Op = "create"
	Update  Op = "change"
	Replace Op = "replace"
	Delete  Op = "delete"
)

// Difference is what a revision does to one object.
type Difference struct {
	Op     Op            `json:"op"`
	Object desired.Key   `json:"object"`
	From   desired.Place `json:"from"`
	// Reason is one sentence: "2 pods, new template 7c9f…: image a → b".
	Reason string `json:"reason"`
	// Fields that differ, at most a screenful; values of Secrets are never shown.
	Fields []FieldDifference `json:"fields,omitempty"`
}

// FieldDifference is one changed field. Old and New are short renderings.
type FieldDifference struct {
	Path string `json:"path"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Action is one thing that a step sets going.
type Action struct {
	// Verb is "start", "resize", "scale", "drain", "stop", "forget", "adopt",
	// "remove" and the like.
	Verb   string      `json:"verb"`
	Object desired.Key `json:"object"`
	Node   string      `json:"node,omitempty"`
	Reason string      `json:"reason"`
}

// Empty reports whether the plan changes nothing and waits for nothing: the
// cluster is converged.
func (p *Plan) Empty() bool {
	return p.Hold == nil && len(p.Difference) == 0 && len(p.Actions) == 0 && len(p.Waiting) == 0 &&
		len(p.Decisions) == 0 && len(p.Assignments) == 0 && p.Routes == nil
}
