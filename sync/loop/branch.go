package loop

import (
	"context"
	"encoding/json"
	"io/fs"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// advanceHolds is for how long a push's own word about the branch outweighs a
// look at the branch that may have been earlier.
const advanceHolds = 500 * time.Millisecond

// branch is how the followed branch is seen; part of runner.
type branch struct {
	sync nodes.Sync
	// trouble is why the newest head is not known; empty when it is.
	trouble string
	// empty tells that trouble only means that there is nothing yet.
	empty bool

	// newest is the commit that was wanted last, wanted all of it.
	newest string
	wanted *target
	// advanced is when a push told newest; deferred a head that contradicts it.
	advanced time.Time
	deferred *Head

	// loading is read right now, next after it; applying is part of the
	// runner's change.
	loading, next, applying *target
	results                 chan result
	failures                int
	// paused tells that next could not be read and waits for its next try.
	paused bool
	// unread is the revision in force before the start while it can't be read.
	unread *target
	// recorded is the commit of the revision in force, as the record has it: it
	// was valid once, so it is read leniently whoever asks for it.
	recorded string

	rejected *nodes.Rejection
	held     *nodes.Hold
}

// target is a revision that should be in force.
type target struct {
	revision desired.Revision
	source   string
	// restored is the revision that was in force before the server started.
	restored bool
	// stale is set when a newer one was applied meanwhile. One that is restored
	// is so when anything is in force, for the newer one may have been held.
	stale bool
}

// result is the end of a target's reading.
type result struct {
	*target
	loaded *loaded
	err    error
}

// head takes in what the source says of its branch.
func (r *runner) head(ctx context.Context, h Head) {
	b := &r.branch
	b.sync.Fetched, b.sync.Next = h.Fetched, h.Next
	if h.Err != nil {
		if trouble := h.Err.Error(); trouble != b.trouble {
			r.o.Log.Warn("no newer revision; the one in force stays", "reason", h.Err)
			b.trouble = trouble
		}
		b.empty = h.Waiting
		return
	}
	if b.trouble != "" {
		r.o.Log.Info("the repository answers again")
	}
	b.trouble, b.empty = "", false
	if h.Revision.SHA == "" || h.Revision.SHA == b.newest {
		b.deferred = nil
		return
	}
	if since := r.o.Now().Sub(b.advanced); since < advanceHolds && since >= 0 {
		b.deferred = &h
		r.retry.Reset(advanceHolds)
		return
	}
	b.deferred = nil
	b.sync.Rewritten = h.Rewritten
	r.want(ctx, &target{revision: h.Revision, source: r.o.SourceName})
}

// advanced takes in that a push moved the branch.
func (r *runner) advanced(ctx context.Context, rev desired.Revision) {
	b := &r.branch
	b.advanced, b.deferred = r.o.Now(), nil
	b.sync.Rewritten = false
	if rev.SHA != b.newest {
		r.want(ctx, &target{revision: rev, source: r.o.SourceName})
	}
}

// restore reads the revision again that was in force before the start, at once
// or, when another one is being read, after it: one at a time is read, or an
// older one could come last.
func (r *runner) restore(ctx context.Context, value *followed) {
	b := &r.branch
	b.recorded = value.Revision.SHA
	b.unread = &target{revision: value.Revision, source: value.Source, restored: true}
	r.restoreAgain(ctx)
}

// want makes t the revision to put in force next.
func (r *runner) want(ctx context.Context, t *target) {
	b := &r.branch
	if b.next != nil {
		r.superseded(b.next.revision, t.revision)
	}
	b.newest, b.wanted, b.next, b.failures, b.paused = t.revision.SHA, t, t, 0, false
	if !r.inForce(t.revision.SHA) && !r.restoring(t.revision.SHA) {
		r.appendHistory(t.revision)
	}
	r.proceed(ctx)
}

func (r *runner) inForce(sha string) bool {
	snapshot := r.state.InForce()
	return snapshot != nil && snapshot.Revision().SHA == sha
}

func (r *runner) restoring(sha string) bool {
	if r.start != nil && r.start.followed != nil && r.start.followed.Revision.SHA == sha {
		return true
	}
	for _, t := range []*target{r.branch.loading, r.branch.unread} {
		if t != nil && t.restored && t.revision.SHA == sha {
			return true
		}
	}
	return false
}

// proceed goes on to the next target when it may: not before the first step,
// and not while another is read, unless this one need not be read.
func (r *runner) proceed(ctx context.Context) {
	b := &r.branch
	if b.next == nil || b.paused || r.start != nil || b.applying != nil {
		return
	}
	if r.inForce(b.next.revision.SHA) {
		r.goBack()
		return
	}
	known := r.loads.find(b.next.revision, r.state.InForce(), r.lenient(b.next))
	switch {
	case known != nil:
		t := b.next
		b.next = nil
		if b.loading != nil && !b.loading.restored {
			b.loading.stale = true
			r.superseded(b.loading.revision, t.revision)
		}
		r.loads.keep(known)
		r.apply(t, known)
	case b.loading == nil:
		t := b.next
		b.next = nil
		r.load(ctx, t)
	}
}

// restartBranch forgets which revisions were in force and were to be, but what is
// known of the branch. It returns the target that was wanted last, if any was.
func (b *branch) restartBranch() (wanted *target) {
	if b.wanted != nil {
		wanted = &target{revision: b.wanted.revision, source: b.wanted.source}
	}
	if b.loading != nil {
		b.loading.stale = true
	}
	*b = branch{
		sync: b.sync, trouble: b.trouble, empty: b.empty, advanced: b.advanced, deferred: b.deferred,
		loading: b.loading, results: b.results,
	}
	return wanted
}

// goBack ends what an intermediate revision left behind when the branch is
// back at the one in force, or tells the planner that another source says it.
func (r *runner) goBack() {
	b := &r.branch
	t := b.next
	b.next, b.rejected = nil, nil
	r.change.Snapshot, r.change.Source = r.state.InForce(), t.source
	b.applying = t
}

// lenient tells that what we would refuse today in t is only noted.
func (r *runner) lenient(t *target) bool { return t.revision.SHA == r.branch.recorded }

// load reads t in a goroutine of its own.
func (r *runner) load(ctx context.Context, t *target) {
	r.branch.loading = t
	previous := r.state.InForce()
	results, loads, source, lenient := r.branch.results, r.loads, r.o.Source, r.lenient(t)
	r.group.Go(func() error {
		open := func() (fs.FS, error) { return source.Tree(ctx, t.revision.SHA) }
		outcome := result{target: t}
		outcome.loaded, outcome.err = loads.get(ctx, t.revision, previous, lenient, open)
		select {
		case results <- outcome:
		case <-ctx.Done():
		}
		return nil
	})
}

// loaded takes in what was read.
func (r *runner) loaded(ctx context.Context, res result) {
	b := &r.branch
	b.loading = nil
	switch {
	case res.stale, res.restored && r.state.InForce() != nil:
	case res.err != nil && res.restored:
		r.restoreLater(res)
	case res.err != nil:
		r.loadFailed(res)
	default:
		b.failures = 0
		r.apply(res.target, res.loaded)
	}
	r.proceed(ctx)
}

// restoreLater tries again to read the revision that was in force before the
// start. Until then, or until another one is in force, nothing is planned.
func (r *runner) restoreLater(res result) {
	b := &r.branch
	wait := r.retryAfter(b.failures)
	b.failures++
	b.unread = res.target
	r.count(func(s *Stats) { s.LoadErrors++ })
	r.o.Log.Warn("the revision in force can't be read again; everything stays as it is",
		"revision", res.revision.SHA, "reason", res.err, "retry_in", wait)
	r.retry.Reset(wait)
}

// restoreAgain repeats restore while nothing is in force.
func (r *runner) restoreAgain(ctx context.Context) {
	b := &r.branch
	switch {
	case b.unread == nil:
	case r.state.InForce() != nil:
		b.unread = nil
	case b.loading != nil:
		r.retry.Reset(r.retryAfter(b.failures))
	default:
		t := b.unread
		b.unread = nil
		r.load(ctx, t)
	}
}

func (r *runner) loadFailed(res result) {
	b := &r.branch
	wait := r.retryAfter(b.failures)
	b.failures++
	r.count(func(s *Stats) { s.LoadErrors++ })
	r.o.Log.Warn("the revision can't be read; the one in force stays",
		"revision", res.revision.SHA, "reason", res.err, "retry_in", wait)
	if b.next == nil {
		b.next, b.paused = res.target, true
		b.trouble = res.err.Error()
		r.retry.Reset(wait)
		return
	}
	r.superseded(res.revision, b.next.revision)
}

// tryAgain repeats what failed.
func (r *runner) tryAgain(ctx context.Context) {
	b := &r.branch
	r.restoreAgain(ctx)
	if h := b.deferred; h != nil {
		b.deferred, b.advanced = nil, time.Time{}
		r.head(ctx, *h)
		return
	}
	if b.next != nil && b.loading == nil {
		b.trouble, b.paused = "", false
		r.proceed(ctx)
	}
}

// apply refuses what was read, or makes it part of the next step.
func (r *runner) apply(t *target, l *loaded) {
	b := &r.branch
	if l.snapshot == nil {
		r.reject(t, l.problems)
		return
	}
	r.change.Snapshot, r.change.Source = l.snapshot, t.source
	b.applying = t
}

func (r *runner) reject(t *target, problems []desired.Problem) {
	b := &r.branch
	if t.restored {
		r.o.Log.Error("the revision in force is no longer valid; everything stays as it is until the next one",
			"revision", t.revision.SHA, "problems", len(problems))
		return
	}
	errors := countErrors(problems)
	b.rejected, b.held = &nodes.Rejection{Revision: t.revision, Problems: problems}, nil
	r.end(t.revision, nodes.OutcomeRejected, plural(errors, "problem"), errors)
	r.o.Log.Warn("revision refused; the one in force stays", "revision", t.revision.SHA, "problems", errors)
}

func countErrors(problems []desired.Problem) int {
	n := 0
	for _, p := range problems {
		if p.Severity == desired.Error {
			n++
		}
	}
	return n
}

// applied takes in what the planner did with a revision.
func (r *runner) applied(hold *nodes.Hold) {
	b := &r.branch
	t := b.applying
	b.applying = nil
	if hold != nil {
		b.held, b.rejected = hold, nil
		r.end(t.revision, nodes.OutcomeHeld, hold.Why, 0)
		r.o.Log.Warn("revision held", "revision", t.revision.SHA, "reason", hold.Why, "confirm", hold.Confirm)
		return
	}
	held := b.held
	b.held = nil
	if _, seen := r.entry(t.revision.SHA); !seen {
		r.appendHistory(t.revision)
	}
	if t.restored {
		r.o.Log.Info("the revision in force is known again", "revision", t.revision.SHA)
		r.holdAgain(held)
		return
	}
	b.rejected = nil
	for _, e := range r.history {
		if e.Outcome == nodes.OutcomePending && e.Revision.SHA != t.revision.SHA && e.Revision.SHA != b.newest {
			r.superseded(e.Revision, t.revision)
		}
	}
	r.recordFollowed(t)
	if r.o.Mirror != nil {
		replace(r.toMove, t.revision.SHA)
	}
	r.o.Log.Info("revision in force", "revision", t.revision.SHA, "subject", t.revision.Subject(), "author", t.revision.Author)
}

// takenBack takes in that the planner holds the revision in force after all: it
// was put in force without a record and before any node had reported. Those
// that have since tell which one is in force.
func (r *runner) takenBack(ctx context.Context, rev desired.Revision, hold *nodes.Hold, reports []nodes.Report) {
	b := &r.branch
	if hold != nil && hold.Revision.SHA == rev.SHA {
		r.end(rev, nodes.OutcomeHeld, hold.Why, 0)
		r.o.Log.Warn("revision held after all", "revision", rev.SHA, "reason", hold.Why, "confirm", hold.Confirm)
		if rev.SHA == b.newest {
			b.held = hold
		}
	}
	b.recorded = ""
	for i := range reports {
		if b.recorded == "" {
			r.recall(ctx, reports[i].Ledger)
		}
	}
}

// holdAgain has the planner look again at a revision that it held before it
// knew the one in force.
func (r *runner) holdAgain(held *nodes.Hold) {
	if b := &r.branch; held != nil && b.next == nil && held.Revision.SHA == b.newest {
		b.next = &target{revision: held.Revision, source: r.o.SourceName}
	}
}

func (r *runner) recordFollowed(t *target) {
	value, err := json.Marshal(followed{Revision: t.revision, Source: t.source})
	if err != nil {
		r.o.Log.Error("revision in force not recorded", "revision", t.revision.SHA, "reason", err)
		return
	}
	r.branch.recorded = t.revision.SHA
	r.outbox.decide(nodes.Decision{Kind: kindFollowed, Key: keyFollowed, Value: value})
}

// syncState tells people how the branch is followed.
func (r *runner) syncState() nodes.Sync {
	b := &r.branch
	s := b.sync
	s.State, s.Message = "synced", ""
	none := r.state.InForce() == nil
	switch {
	case r.outbox.trouble != "":
		s.State, s.Message = "stalled", r.outbox.trouble
	case r.start != nil:
		s.State, s.Message = "waiting", "waiting for the nodes to say what they run"
	case b.trouble != "" && b.empty:
		s.State, s.Message = "waiting", b.trouble
	case b.trouble != "":
		s.State, s.Message = "unreachable", b.trouble
	case b.loading != nil || b.next != nil:
		s.State, s.Message = "fetching", "reading the newest revision"
	case b.rejected != nil:
		s.State = "rejected"
		s.Message = "revision " + b.rejected.Revision.Short() + " is refused: " + plural(countErrors(b.rejected.Problems), "problem")
	case b.held != nil:
		s.State, s.Message = "held", b.held.Why
	case none:
		s.State, s.Message = "waiting", "no revision yet"
	}
	return s
}
