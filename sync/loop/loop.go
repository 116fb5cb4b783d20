// Package loop is the control loop: why we woke → values → plan → record →
// hand over → publish. It joins the repository, the planner, the record and
// the nodes, each behind an interface that it declares itself.
//
// It guarantees that one goroutine alone owns the cluster's state; that a
// decision is durable before any node hears of it; that a revision which can't
// be read or is refused changes nothing; and that nothing is planned after a
// start before the nodes that are known have said what they run, or had their
// time to. An idle cluster costs it nothing: it has no timer but the planner's.
//
// It decides nothing about pods (package planner) and knows neither Git nor
// the network. DESIGN.md says more.
package loop

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/planner/scale"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Source is the followed branch.
type Source interface {
	// Heads yields what the branch points to; the newest replaces one that
	// nobody has taken.
	Heads() <-chan Head
	// Revision describes a commit.
	Revision(ctx context.Context, sha string) (desired.Revision, error)
	// Tree is the whole tree of a commit.
	Tree(ctx context.Context, sha string) (fs.FS, error)
}

// Head is what the followed branch points to, or why nobody knows.
type Head struct {
	Revision desired.Revision
	// Rewritten tells that Revision does not descend from Previous.
	Rewritten bool
	Previous  string
	// Err says why there is no newer Revision.
	Err error
	// Waiting tells that Err only means that there is nothing yet: an empty
	// repository, a branch that does not exist.
	Waiting bool
	// Fetched is when the repository answered last, Next the next attempt.
	Fetched, Next time.Time
}

// Load turns a revision's tree into a snapshot, which is nil when a problem of
// severity error is among the problems. The error is for a tree that can't be
// read. Lenient is set for a revision that is in force already.
type Load func(ctx context.Context, tree fs.FS, rev desired.Revision, previous *desired.Snapshot, lenient bool) (*desired.Snapshot, []desired.Problem, error)

// Record remembers what a restart must not forget.
type Record interface {
	Decisions() ([]nodes.Decision, error)
	// Record returns once the decisions are durable.
	Record(ctx context.Context, decisions []nodes.Decision) error

	SaveNode(state nodes.NodeState)
	SaveReport(r nodes.Report)
	// ForgetNode drops what was saved of a node.
	ForgetNode(name string)
	// Observed returns what the nodes said last.
	Observed() ([]nodes.NodeState, []nodes.Report)

	AppendHistory(e nodes.HistoryEntry)
	UpdateHistory(e nodes.HistoryEntry)
	// SetHistory replaces all of it, the newest first.
	SetHistory(entries []nodes.HistoryEntry)
	// History returns the newest first.
	History(limit int) []nodes.HistoryEntry

	AppendEvents(events []nodes.Event)
	Events(object desired.Key) []nodes.Event
}

// Executor carries out what was planned. It never blocks.
type Executor interface {
	Ledger(decisions []nodes.Decision)
	Route(t *proxy.Table)
	Assign(a nodes.Assignment)
	// Tune says how long nodes may be silent and hold leases.
	Tune(n desired.Nodes)
	// Expect names nodes that earlier servers granted leases, of longest at most.
	Expect(known []nodes.NodeState, longest time.Duration)
	// Member says which machine a node's name belongs to, once that is recorded.
	Member(m nodes.Member)
	// Revoke says all names that the revision in force shuts out.
	Revoke(names []string)
}

// Input is what was learned about a node.
type Input = nodes.Input

// Options of a Loop. All but Metrics, Mirror, Now, Clock, Next, Grace and Version must be given.
type Options struct {
	Source   Source
	Load     Load
	Record   Record
	Executor Executor
	Inputs   <-chan Input
	Planner  planner.Config
	// Next plans each step; default planner.Next. The simulator looks at every
	// step through it.
	Next func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan)
	// SourceName identifies repository, branch and path.
	SourceName string
	// SyncInfo names repository, branch and path for people; the loop fills in the rest.
	SyncInfo nodes.Sync
	// Single tells that the cluster can have but one node: a start without a
	// record need not wait for others.
	Single bool
	// Grace is how long the loop waits after a start for nodes that it knows of
	// and that have not reported; default 5 s.
	Grace   time.Duration
	Version string
	// Now is the wall clock; default time.Now.
	Now func() time.Time
	// Clock counts how time passes while Now is behind what the planner saw;
	// default boottime.Now.
	Clock func() time.Duration
	Log   *slog.Logger
	// Metrics, when set, asks a metrics' source; one sample for each query.
	Metrics func(ctx context.Context, source string, queries []string) []scale.Sample
	// Mirror, when set, pushes a revision that was put in force elsewhere.
	Mirror func(ctx context.Context, sha string) error
}

// Loop is the control loop. Safe for concurrent use.
type Loop struct {
	o       Options
	board   *board
	loads   *loads
	advance chan desired.Revision
	// admissions are the questions of Admit.
	admissions chan admission
	// checking is held by the push that is being checked.
	checking chan struct{}
	// started is closed once the first step is done.
	started chan struct{}

	mu sync.Mutex
	// guarded by mu
	stats Stats
}

// Stats are counters for the metrics page.
type Stats struct {
	// Steps of the planner, how long the last one took with recording and
	// handing over, and the longest.
	Steps             uint64
	LastStep, MaxStep time.Duration
	// Actions and Waiting of the last plan; Decisions altogether.
	Actions, Waiting int
	Decisions        uint64
	// Revisions by outcome.
	Revisions map[nodes.Outcome]uint64
	// RecordErrors and LoadErrors count what was tried again.
	RecordErrors, LoadErrors uint64
}

// New makes a loop; Run makes it work.
func New(o Options) (*Loop, error) {
	for name, missing := range map[string]bool{
		"source": o.Source == nil, "loader": o.Load == nil, "record": o.Record == nil,
		"executor": o.Executor == nil, "inputs": o.Inputs == nil, "logger": o.Log == nil,
		"planner key of at least 16 bytes": len(o.Planner.SecretKey) < 16,
	} {
		if missing {
			return nil, errors.New("loop: no " + name)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Clock == nil {
		o.Clock = boottime.Now
	}
	if o.Next == nil {
		o.Next = planner.Next
	}
	o.Grace = cmp.Or(o.Grace, 5*time.Second)
	l := &Loop{
		o:          o,
		loads:      &loads{load: o.Load, wholeTree: o.SyncInfo.Path == "" || o.SyncInfo.Path == "."},
		advance:    make(chan desired.Revision, 1),
		admissions: make(chan admission),
		checking:   make(chan struct{}, 1),
		started:    make(chan struct{}),
		stats:      Stats{Revisions: map[nodes.Outcome]uint64{}},
	}
	first := &view{at: o.Now().UTC(), version: o.Version, state: planner.New(o.Planner), sync: o.SyncInfo}
	first.sync.State, first.sync.Message = "waiting", "the server is starting"
	l.board = newBoard(first)
	return l, nil
}

// Run follows the source and the nodes until ctx ends, and returns nil then. An
// error means that the record could not be read at the start.
func (l *Loop) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	r, err := l.newRunner(ctx, group)
	if err != nil {
		return err
	}
	if l.o.Mirror != nil {
		group.Go(func() error { r.mirror(ctx); return nil })
	}
	group.Go(func() error { return r.run(ctx) })
	return group.Wait()
}

// Advance tells that the branch moved to rev: it is applied at once, without
// waiting for the source to notice.
func (l *Loop) Advance(rev desired.Revision) { replace(l.advance, rev) }

// replace puts v into a channel of capacity one in the place of what is there.
func replace[T any](c chan T, v T) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}

// Overview is what runs against what should, now. Never nil, immutable.
func (l *Loop) Overview() *nodes.Overview { return l.board.look().overview() }

// Events are those of one object, the oldest first.
func (l *Loop) Events(object desired.Key) []nodes.Event { return l.o.Record.Events(object) }

// Stats returns the counters.
func (l *Loop) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Revisions = make(map[nodes.Outcome]uint64, len(l.stats.Revisions))
	for outcome, n := range l.stats.Revisions {
		s.Revisions[outcome] = n
	}
	return s
}

func (l *Loop) count(f func(s *Stats)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(&l.stats)
}
