// Package sim plays whole clusters in virtual time: the real planner, control
// loop, record, registry, wire protocol and agents on fake machines, with
// faults drawn from a seed, and checks the invariants of the design (1 to 10,
// and of 11 that a node is given the Secrets of its own pods alone) at every step.
// It is what finds the orders of events that nobody thinks of. That nothing in a
// manifest is ignored without a word (12) is held by the tests of desired/manifest.
//
// What is real: sync/loop, planner, nodes/observed (bbolt on a memory file
// system), nodes/registry and nodes/wire with gRPC over connections in memory,
// nodes/agent with its store, nodes/probe. What is fake: the repository
// (package desired's snapshots are built without YAML), and of a machine the
// container runtime (nodes/runtime/fake), network, volumes (the persistent ones
// are nodes/volume/fake), keeper and the kernel's routes. Every fake takes its
// time, so that faults hit operations half-way.
//
// A world is small, one machine or a few, or it is one of many machines
// (fleet.go): zones, pods that care where they run, clocks that drift, and the
// faults of a data centre. Its keepers kill fenced pods by their own clocks,
// and no two machines may run one ordinal, by what truly runs on them.
//
// Some of those have somebody who looks after them (tended.go): Git cordons and
// drains nodes and declares machines dead that are off, whatever else it says or
// takes back; keepers die, or stand still with their agents, and watchdogs bite.
//
// Several servers may share a store (several.go): they elect a leader, stand
// still, die, lose the store or its answers, and the store its quorum. The store
// is a fake that passes the record's suite. What is real of them is what a server
// is made of; the election is a copy of nodes/observed/etcd's rules. Their nodes
// get their ranges of pod addresses from the planner.
//
// A seed fixes the cluster, the revisions and the faults. It does not fix what
// Go's runtime leaves to chance, by which retries are jittered too: the order of timers of one
// instant, of goroutines, of ready cases of a select and of maps. A failing seed fails again often, not
// always, which is why -times repeats it.
//
// It does not test the YAML reader, Git, containerd or the kernel: end-to-end
// tests do.
package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing/synctest"
	"time"
)

// Options of one run.
type Options struct {
	Seed uint64
	// Several servers share a store, in a world of many machines.
	Several bool
	// Plain leaves out claims, autoscalers and CronJobs: older seeds failed
	// without them.
	Plain bool
	// Rich has them all.
	Rich bool
	// Many is a world of many machines, Fenced one of those that is about
	// StatefulSets which fail over.
	Many, Fenced bool
	// Tended machines, of those of many, have somebody look after them.
	Tended bool
	// Dir is an empty directory for what the machines store.
	Dir string
	// Bug is planted; nil for none.
	Bug *Bug
}

// Result tells what a run did.
type Result struct {
	// Err is the violated invariant, or what else went wrong; nil when all held.
	Err error
	// Trace is what happened, a line each.
	Trace []string
	// Steps of the planner, Pods that were ever decided on, Faults and Revisions.
	Steps, Pods, Faults, Revisions int
	// Volumes that pods were given, and Ends of data that were ordered.
	Volumes, Ends int
	// Away are the pods that were given away, Killed those that a keeper killed.
	Away, Killed int
}

// world is one simulated cluster.
type world struct {
	o          Options
	rng        *rand.Rand
	chance     *rand.Rand // of several servers
	began      time.Time
	repo       *repository
	shape      shape
	extras     *extras
	fleet      *fleet // nil but in worlds of many machines
	tended     *tended
	demand     *demand
	hosts      []*host // of several servers
	store      *shared // of theirs; nil for a lone one
	clock      *boottime
	wall       wallClock // the server's, of a lone one
	source     string    // what the server is told to follow
	nodes      []*machine
	witness    *witness
	repoBroken bool
	backup     []byte // the oldest copy of the record; nil for none
	result     Result

	mu sync.Mutex
	// guarded by mu
	trace []string
	// server is the one that leads; nil while none does.
	server *server
	// troubled is when the way from agents to routes was last disturbed.
	troubled time.Time
}

// Run plays one seed. It must be called in a bubble of testing/synctest and
// ends all that it starts.
func Run(o Options) Result {
	w := &world{
		o: o, rng: rand.New(rand.NewPCG(o.Seed, 0x7a11)), began: time.Now(), source: "embedded main .",
	}
	w.shape, w.extras = drawShape(w.rng), drawExtras(o.Seed)
	switch {
	case o.Plain:
		w.extras = plainExtras(o.Seed)
	case o.Rich:
		w.extras = richExtras(o.Seed)
	}
	if o.Many || o.Fenced || o.Several {
		w.fleet, w.shape = drawFleet(o.Seed, o.Fenced)
	}
	if o.Tended {
		w.tended, w.extras = drawTended(o.Seed), plainExtras(o.Seed)
		w.fleet.tended = true
	}
	w.clock = newBoottime(w.fleet.drift())
	if o.Bug != nil && o.Bug.Hastes {
		w.clock = newBoottime(100_000)
	}
	w.repo, w.demand = newRepository(), newDemand()
	if o.Several {
		w.drawServers()
	}
	w.witness = newWitness(w)
	err := w.play()
	w.end()
	if first := w.witness.violation(); first != nil {
		err = first
	}
	w.result.Err, w.result.Trace = err, w.trace
	w.witness.count(&w.result)
	return w.result
}

// play is the life of a cluster: it begins, suffers, and comes to rest.
func (w *world) play() error {
	w.note("shape %+v, claims %v, data kept %v, autoscalers %v, schedules %v", w.shape, w.extras.storage, w.extras.keep, w.extras.scalers, w.extras.schedules)
	for i := range w.shape.nodes {
		m, err := newMachine(w, i)
		if err != nil {
			return err
		}
		w.nodes = append(w.nodes, m)
	}
	w.push(w.firstIntent(), "first revision")
	if err := w.startServer(); err != nil {
		return err
	}
	for _, m := range w.nodes {
		if err := m.startAgent(); err != nil {
			return err
		}
	}
	for range w.shape.events {
		w.pause()
		if err := w.anyEvent(); err != nil {
			return err
		}
		w.extras.event(w)
		synctest.Wait()
		if err := w.checkNow(); err != nil {
			return err
		}
	}
	if err := w.heal(); err != nil {
		return err
	}
	if err := w.bringBack(); err != nil {
		return err
	}
	if err := w.bury(); err != nil {
		return err
	}
	if err := w.quieten(); err != nil {
		return err
	}
	return w.converge()
}

// pause lets time pass: often a moment, so that things happen at once, seldom
// long enough for everything to settle.
func (w *world) pause() {
	d := time.Duration(w.rng.IntN(400)) * time.Millisecond
	switch w.rng.IntN(10) {
	case 0, 1, 2:
		d = time.Duration(w.rng.IntN(5000)) * time.Millisecond
	case 3:
		d = time.Duration(w.rng.IntN(60)) * time.Second
	}
	time.Sleep(d)
	synctest.Wait()
}

// end stops everything that runs.
func (w *world) end() {
	for _, m := range w.nodes {
		m.killAgent()
		m.runtime.end()
	}
	w.killServer()
	for _, h := range w.hosts {
		h.kill()
	}
	synctest.Wait()
}

// note writes a line of the trace.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = append(w.trace, fmt.Sprintf("%9.3f  ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// violation is a broken invariant.
type violation struct {
	// number is the invariant's in the design.
	number int
	text   string
}

func (v *violation) Error() string { return fmt.Sprintf("invariant %d: %s", v.number, v.text) }

func violated(number int, format string, args ...any) error {
	return &violation{number: number, text: fmt.Sprintf(format, args...)}
}

// Invariant is the number of the invariant that err says was broken; 0 for
// other errors.
func Invariant(err error) int {
	var v *violation
	if errors.As(err, &v) {
		return v.number
	}
	return 0
}
