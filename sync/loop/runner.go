package loop

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/planner/scale"
)

// maxDrain bounds the inputs that one step takes together.
const maxDrain = 4096

// runner is what the loop's one goroutine owns.
type runner struct {
	*Loop
	group *errgroup.Group

	state  *planner.State
	change planner.Change
	outbox outbox
	start  *start // nil once started
	// begun is done with the first step.
	begun sync.Once

	branch  branch
	history []nodes.HistoryEntry
	// forgot is set while there was no record and no ledger has told the history.
	forgot  bool
	toMove  chan string // newest revision to mirror
	members members
	// doubt is whether the record counts; nil once it does, or there is none.
	doubt *doubt
	// edition is that of the ledger, as recorded.
	edition uint64
	clock   clock
	// wake is the planner's alarm, retry that of what failed; zero is none.
	wake, retry *time.Timer
	sampling    sampling
	times       times
	// woken is set when the planner must be called although nothing changed.
	woken bool
}

func (l *Loop) newRunner(ctx context.Context, group *errgroup.Group) (*runner, error) {
	decisions, err := l.o.Record.Decisions()
	if err != nil {
		return nil, fmt.Errorf("start from the record: %w", err)
	}
	r := &runner{
		Loop:    l,
		group:   group,
		state:   planner.New(l.o.Planner),
		history: l.o.Record.History(shownHistory),
		toMove:  make(chan string, 1),
		members: members{byName: map[string]nodes.Member{}, told: map[string]uint64{}, tokens: map[string]tokenUse{}},
		wake:    stoppedTimer(),
		retry:   stoppedTimer(),
		clock:   clock{wall: l.o.Now, boot: l.o.Clock},
		times:   times{longest: desired.DefaultSettings().Nodes.Lease},
	}
	r.sampling = sampling{results: make(chan []scale.Sample), alarm: stoppedTimer()}
	r.branch.results = make(chan result)
	r.branch.sync = l.o.SyncInfo
	for _, e := range r.history {
		r.clock.see(later(e.Seen, e.Ended))
	}
	r.begin(ctx, decisions)
	return r, nil
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

func (r *runner) now() time.Time { return r.clock.now() }

// run is the loop: the select decides only why we woke.
func (r *runner) run(ctx context.Context) error {
	defer r.wake.Stop()
	defer r.retry.Stop()
	defer r.sampling.alarm.Stop()
	heads := r.o.Source.Heads()
	for {
		due := false
		select {
		case <-ctx.Done():
			return nil
		case head, open := <-heads:
			if !open {
				heads = nil
				continue
			}
			r.head(ctx, head)
		case rev := <-r.advance:
			r.advanced(ctx, rev)
		case in := <-r.o.Inputs:
			r.input(ctx, in)
		case result := <-r.branch.results:
			r.loaded(ctx, result)
		case q := <-r.admissions:
			q.answer <- r.admit(ctx, q.Admission)
		case samples := <-r.sampling.results:
			r.sampled(samples)
		case <-r.sampling.alarm.C:
			due = true
		case <-r.wake.C:
			r.woken = true
		case <-r.retry.C:
			r.tryAgain(ctx)
		case <-r.start.over():
			r.start.expired = true
		case <-r.doubt.ends():
			r.doubt.over = true
		}
		r.drain(ctx)
		if r.start == nil {
			r.steps(ctx)
		} else if r.starting(ctx) {
			r.steps(ctx)
			r.begun.Do(func() { close(r.started) })
		}
		r.sample(ctx, due)
	}
}

// steps makes one step, and another one for each target that could go on
// because of it.
func (r *runner) steps(ctx context.Context) {
	for {
		r.step(ctx)
		waiting := r.branch.next
		if r.proceed(ctx); r.branch.next == waiting {
			return
		}
	}
}

// drain takes the inputs that are there already, so that one step does for all,
// and so that what a node said before it could know of a change is not taken for
// an answer to it.
func (r *runner) drain(ctx context.Context) {
	for range maxDrain {
		select {
		case in := <-r.o.Inputs:
			r.input(ctx, in)
		default:
			return
		}
	}
}

// input notes what was learned about a node.
func (r *runner) input(ctx context.Context, in Input) {
	if r.heed(ctx, in) {
		return
	}
	if in.Node != nil {
		r.change.Nodes = append(r.change.Nodes, *in.Node)
		r.o.Record.SaveNode(*in.Node)
		r.knowNode(in.Node)
	}
	r.o.Record.AppendEvents(in.Events)
	if in.Report == nil {
		return
	}
	r.change.Reports = append(r.change.Reports, *in.Report)
	r.o.Record.SaveReport(*in.Report)
	r.o.Record.AppendEvents(in.Report.Events)
	if in.Report.Complete && r.start == nil {
		r.recallMembers(in.Report.Ledger)
		r.recallHistory(in.Report.Ledger)
		r.recallEdition(in.Report)
	}
	switch {
	case !in.Report.Complete:
	case r.start != nil:
		r.joined(ctx, in.Report)
	case r.state.InForce() == nil && r.branch.recorded == "":
		r.recall(ctx, in.Report.Ledger)
	}
}

// step plans, records, hands over and publishes.
func (r *runner) step(ctx context.Context) {
	began := time.Now()
	r.settle()
	snapshot := r.change.Snapshot
	if r.woken || !empty(r.change) {
		r.woken = false
		change, before := r.change, r.state.InForce()
		r.change = planner.Change{}
		now := r.now()
		state, plan := r.o.Next(r.state, change, now)
		r.state = state
		r.revoke()
		r.remove()
		r.alarm(plan.Wake, now)
		r.outbox.add(plan)
		r.o.Record.AppendEvents(plan.Events)
		r.count(func(s *Stats) {
			s.Steps++
			s.Actions, s.Waiting = len(plan.Actions), len(plan.Waiting)+plan.MoreWaiting
			s.Decisions += uint64(len(plan.Decisions))
		})
		if snapshot != nil {
			r.applied(plan.Hold)
		}
		if before != nil && r.state.InForce() == nil {
			r.takenBack(ctx, before.Revision(), plan.Hold, change.Reports)
		}
	}
	r.assess()
	r.tune()
	r.deliver(ctx)
	r.publish()
	r.count(func(s *Stats) {
		s.LastStep = time.Since(began)
		s.MaxStep = max(s.MaxStep, s.LastStep)
	})
}

func empty(c planner.Change) bool {
	return len(c.Decisions) == 0 && c.Snapshot == nil && len(c.Nodes) == 0 && len(c.Reports) == 0 && len(c.Samples) == 0
}

// alarm sets the planner's next instant.
func (r *runner) alarm(at, now time.Time) {
	r.wake.Stop()
	if !at.IsZero() {
		r.wake.Reset(max(at.Sub(now), time.Millisecond))
	}
}

func (r *runner) publish() {
	r.board.publish(&view{
		at:       r.clock.last,
		version:  r.o.Version,
		state:    r.state,
		sync:     r.syncState(),
		rejected: r.branch.rejected,
		held:     r.branch.held,
		history:  r.history,
	})
}

// mirror pushes each revision that was put in force to the second remote, the
// newest only, and tries again until it has gone through.
func (r *runner) mirror(ctx context.Context) {
	for {
		var sha string
		select {
		case <-ctx.Done():
			return
		case sha = <-r.toMove:
		}
		for wait := time.Second; ; wait = min(2*wait, 5*time.Minute) {
			err := r.o.Mirror(ctx, sha)
			if err == nil || ctx.Err() != nil {
				break
			}
			r.o.Log.Warn("the mirror did not take the revision", "revision", sha, "reason", err, "retry_in", wait)
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case sha = <-r.toMove:
			case <-timer.C:
			}
			timer.Stop()
		}
	}
}

// retryAfter is how long what failed waits for its next attempt.
func (r *runner) retryAfter(failures int) time.Duration {
	return min(time.Second<<min(failures, 6), time.Minute)
}
