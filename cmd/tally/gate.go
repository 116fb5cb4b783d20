package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/desired/manifest"
	"github.com/tallyman-dev/tallyman/sync/gitrepo"
	"github.com/tallyman-dev/tallyman/sync/loop"
	"github.com/tallyman-dev/tallyman/sync/remote"
)

// source shows a gitrepo.Repository as the loop wants to see it.
type source struct {
	*gitrepo.Repository
	heads chan loop.Head
}

func newSource(r *gitrepo.Repository) *source {
	return &source{Repository: r, heads: make(chan loop.Head)}
}

func (s *source) Heads() <-chan loop.Head { return s.heads }

// run hands heads on until ctx ends.
func (s *source) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case h := <-s.Repository.Heads():
			select {
			case <-ctx.Done():
				return nil
			case s.heads <- loopHead(h):
			}
		}
	}
}

// gate lets the loop decide about pushes to the embedded remote.
type gate struct {
	repository *gitrepo.Repository
	loop       control
	// tip is held while the branch is looked at and the loop told of it, so that
	// the loop hears of two pushes in their order.
	tip sync.Mutex
}

// control is what pushes need of the loop.
type control interface {
	Check(ctx context.Context, q loop.CheckQuery, w io.Writer) (ok bool, err error)
	Advance(rev desired.Revision)
	Follow(ctx context.Context, sha string, w io.Writer) error
}

// Check implements remote.Gate.
func (g *gate) Check(ctx context.Context, p remote.Push, w io.Writer) error {
	view, err := g.repository.Quarantine(p.ObjectDirs...)
	if err != nil {
		return err
	}
	revision, err := view.Revision(ctx, p.New)
	if err != nil {
		return err
	}
	tree, err := view.Tree(ctx, p.New)
	if err != nil {
		return err
	}
	ok, err := g.loop.Check(ctx, loop.CheckQuery{SHA: p.New, Revision: revision, Tree: tree, Branch: p.Branch, Old: p.Old}, w)
	if err != nil {
		return err
	}
	if !ok {
		return remote.ErrRefused
	}
	return nil
}

// Follow implements remote.Gate.
func (g *gate) Follow(ctx context.Context, sha string, w io.Writer) error {
	revision, err := g.repository.Revision(ctx, sha)
	if err != nil {
		return fmt.Errorf("read the pushed commit: %w", err)
	}
	tip, err := g.advance(ctx, revision)
	if err != nil {
		return err
	}
	if tip != sha {
		_, err := fmt.Fprintf(w, "superseded by %s\n", desired.Revision{SHA: tip}.Short())
		return err
	}
	return g.loop.Follow(ctx, sha, w)
}

// advance tells the loop of a pushed commit, unless the branch has moved on:
// hooks of two pushes may come in any order. It returns what the branch points at.
func (g *gate) advance(ctx context.Context, revision desired.Revision) (tip string, err error) {
	g.tip.Lock()
	defer g.tip.Unlock()
	tip, err = g.repository.Tip(ctx)
	if err == nil && tip == revision.SHA {
		g.loop.Advance(revision)
	}
	return tip, err
}

// loader binds the manifest loader to the followed path.
func loader(path string) loop.Load {
	l := manifest.NewLoader()
	return func(ctx context.Context, tree fs.FS, rev desired.Revision, previous *desired.Snapshot, lenient bool) (*desired.Snapshot, []desired.Problem, error) {
		return l.Load(ctx, tree, rev, manifest.LoadOptions{Path: path, Previous: previous, Lenient: lenient})
	}
}

// loopHead translates what a look at the repository found.
func loopHead(h gitrepo.Head) loop.Head {
	return loop.Head{
		Revision: h.Revision, Rewritten: h.Rewritten, Previous: h.Previous, Err: h.Err, Fetched: h.Fetched, Next: h.Next,
		Waiting: errors.Is(h.Err, gitrepo.ErrEmpty) || errors.Is(h.Err, gitrepo.ErrNoBranch),
	}
}
