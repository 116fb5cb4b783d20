package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing/fstest"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/sync/loop"
)

// commit is one revision of the simulated repository.
type commit struct {
	revision desired.Revision
	// intent is what it says; invalid commits say it, too, but must not be followed.
	intent *intent
	valid  bool
	// snapshot is made once and must never be changed by anybody; objects is
	// what it looked like then.
	snapshot *desired.Snapshot
	objects  string
}

// repository is the followed branch. It outlives the server.
type repository struct {
	mu sync.Mutex
	// guarded by mu
	commits map[string]*commit
	order   []*commit
	heads   chan loop.Head
	broken  error
}

func newRepository() *repository { return &repository{commits: map[string]*commit{}} }

// Revision implements loop.Source.
func (r *repository) Revision(_ context.Context, sha string) (desired.Revision, error) {
	c := r.commit(sha)
	if c == nil {
		return desired.Revision{}, fmt.Errorf("no commit %s", sha)
	}
	return c.revision, nil
}

// Tree implements loop.Source.
func (r *repository) Tree(context.Context, string) (fs.FS, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fstest.MapFS{}, r.broken
}

func (r *repository) commit(sha string) *commit {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.commits[sha]
}

func (r *repository) head() *commit {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.order[len(r.order)-1]
}

// follow begins to tell a new server what the branch points to.
func (r *repository) follow() *follower {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &follower{repository: r, heads: make(chan loop.Head, 1)}
	r.heads = f.heads
	r.tell()
	return f
}

// follower is the repository as one server follows it. Implements loop.Source.
type follower struct {
	*repository
	heads chan loop.Head
}

// Heads implements loop.Source.
func (f *follower) Heads() <-chan loop.Head { return f.heads }

// tell says the newest head in the place of one that nobody has taken. The
// caller holds mu.
func (r *repository) tell() {
	if r.heads == nil {
		return
	}
	select {
	case <-r.heads:
	default:
	}
	if r.broken != nil {
		r.heads <- loop.Head{Err: r.broken}
		return
	}
	r.heads <- loop.Head{Revision: r.order[len(r.order)-1].revision, Fetched: time.Now()}
}

// breakDown makes the repository unreachable, or mends it.
func (r *repository) breakDown(broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = nil
	if broken {
		r.broken = errors.New("could not resolve host")
	}
	r.tell()
}

func (r *repository) add(c *commit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.revision.SHA = fmt.Sprintf("%040x", len(r.order)+1)
	c.revision.Tree = fmt.Sprintf("%040x", 1<<32+len(r.order))
	c.snapshot = c.intent.snapshot(c.revision)
	c.objects = printObjects(c.snapshot)
	r.commits[c.revision.SHA] = c
	r.order = append(r.order, c)
	r.tell()
}

// push adds a commit to the branch.
func (w *world) push(i *intent, subject string, trailers ...string) *commit {
	i.complete()
	w.tended.say(i)
	w.fleet.settle(i, w.shape.nodes)
	c := &commit{intent: i, valid: true, revision: desired.Revision{Message: message(subject, trailers), Author: "Ann", Time: time.Now()}}
	w.repo.add(c)
	w.result.Revisions++
	w.note("push %s: %s", c.revision.SHA[36:], strings.ReplaceAll(c.revision.Message, "\n", " | "))
	return c
}

// pushInvalid adds one that no server may follow.
func (w *world) pushInvalid(i *intent) {
	i.complete()
	w.tended.say(i)
	w.fleet.settle(i, w.shape.nodes)
	c := &commit{intent: i, revision: desired.Revision{Message: "invalid", Author: "Ann", Time: time.Now()}}
	w.repo.add(c)
	w.result.Revisions++
	w.note("push %s, which is invalid", c.revision.SHA[36:])
}

func message(subject string, trailers []string) string {
	return strings.Join(slices.Concat([]string{subject, ""}, trailers), "\n")
}

// load is the simulated reader of trees.
func (w *world) load(ctx context.Context, _ fs.FS, rev desired.Revision, _ *desired.Snapshot, _ bool) (*desired.Snapshot, []desired.Problem, error) {
	select {
	case <-time.After(20 * time.Millisecond):
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	c := w.repo.commit(rev.SHA)
	switch {
	case c == nil:
		return nil, nil, fmt.Errorf("no commit %s", rev.SHA)
	case !c.valid:
		return nil, []desired.Problem{{Severity: desired.Error, Code: "invalid", File: "all.yaml", Line: 3, Message: "must be positive"}}, nil
	}
	if b := w.o.Bug; b != nil && b.Load != nil {
		return b.Load(c.snapshot), nil, nil
	}
	return c.snapshot, nil, nil
}
