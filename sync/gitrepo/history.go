package gitrepo

import (
	"container/heap"
	"context"
	"errors"
	"fmt"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
)

// Descends reports whether the commit to is from or a descendant of it. A
// commit that is not there any more is nobody's ancestor.
//
// Both histories are walked from the newest commit on, and the walk ends when
// nothing is left that only to reaches. Every commit between from and to is
// such a one, so clocks that went wrong make the walk longer, never its answer
// false.
func (v *View) Descends(ctx context.Context, from, to string) (bool, error) {
	ancestor, err := v.commit(ctx, from)
	if errors.Is(err, ErrNoRevision) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	descendant, err := v.commit(ctx, to)
	if err != nil {
		return false, err
	}
	w := &walk{view: v, reached: map[plumbing.Hash]reach{}}
	w.push(descendant, fromTo)
	w.push(ancestor, fromAncestor)
	for w.open > 0 {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if w.reached[ancestor.Hash]&fromTo != 0 {
			return true, nil
		}
		if err := w.step(); err != nil {
			return false, fmt.Errorf("walk from %s to %s: %w", to, from, err)
		}
	}
	return w.reached[ancestor.Hash]&fromTo != 0, nil
}

// reach says from which of the two ends a commit was reached.
type reach uint8

const (
	fromTo reach = 1 << iota
	fromAncestor
)

// walk is the state of one Descends.
type walk struct {
	view    *View
	queue   commitQueue
	reached map[plumbing.Hash]reach
	// open counts the queued visits that, when they were queued, only to reached.
	open int
}

type visit struct {
	commit *object.Commit
	reach  reach
}

func (w *walk) push(c *object.Commit, r reach) {
	before := w.reached[c.Hash]
	now := before | r
	if now == before {
		return
	}
	w.reached[c.Hash] = now
	if now == fromTo {
		w.open++
	}
	heap.Push(&w.queue, visit{c, now})
}

func (w *walk) step() error {
	next := heap.Pop(&w.queue).(visit)
	if next.reach == fromTo {
		w.open--
	}
	for _, parent := range next.commit.ParentHashes {
		commit, err := w.view.readCommit(parent)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			continue // a shallow clone ends here
		}
		if err != nil {
			return err
		}
		w.push(commit, w.reached[next.commit.Hash])
	}
	return nil
}

// commitQueue is a heap with the newest commit first.
type commitQueue []visit

func (q commitQueue) Len() int { return len(q) }
func (q commitQueue) Less(i, j int) bool {
	return q[i].commit.Committer.When.After(q[j].commit.Committer.When)
}
func (q commitQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *commitQueue) Push(x any)   { *q = append(*q, x.(visit)) }
func (q *commitQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = visit{}
	*q = old[:len(old)-1]
	return last
}
