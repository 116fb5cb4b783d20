package loop

import (
	"context"
	"fmt"
	"io/fs"
	"sync"

	"github.com/tallyman-dev/tallyman/desired"
)

// keptLoads is how many loaded revisions are kept: those in force, checked,
// refused or held last.
const keptLoads = 4

// loads keeps what was loaded, so that a checked push is not read a second
// time, nor a commit that changes nothing.
type loads struct {
	load Load
	// wholeTree tells that a revision's Tree covers all that Load may read.
	wholeTree bool

	mu sync.Mutex
	// guarded by mu; the newest first
	kept []*loaded
}

// loaded is the outcome of reading one revision against another.
type loaded struct {
	revision desired.Revision
	previous *desired.Snapshot
	lenient  bool
	snapshot *desired.Snapshot
	problems []desired.Problem
}

// find returns what is known of a revision, nil when it must be read.
func (c *loads) find(rev desired.Revision, previous *desired.Snapshot, lenient bool) *loaded {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.kept {
		if l.previous != previous || l.lenient != lenient {
			continue
		}
		if l.revision.SHA == rev.SHA {
			return l
		}
		if c.wholeTree && rev.Tree != "" && l.revision.Tree == rev.Tree {
			same := *l
			same.revision = rev
			if l.snapshot != nil {
				same.snapshot = l.snapshot.WithRevision(rev)
			}
			return &same
		}
	}
	return nil
}

// get reads a revision unless it is known.
func (c *loads) get(ctx context.Context, rev desired.Revision, previous *desired.Snapshot, lenient bool, open func() (fs.FS, error)) (*loaded, error) {
	found := c.find(rev, previous, lenient)
	if found == nil {
		tree, err := open()
		if err != nil {
			return nil, fmt.Errorf("open revision %s: %w", rev.Short(), err)
		}
		found = &loaded{revision: rev, previous: previous, lenient: lenient}
		found.snapshot, found.problems, err = c.load(ctx, tree, rev, previous, lenient)
		if err != nil {
			return nil, fmt.Errorf("read revision %s: %w", rev.Short(), err)
		}
	}
	c.keep(found)
	return found, nil
}

func (c *loads) keep(l *loaded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := []*loaded{l}
	for _, old := range c.kept {
		if old.revision.SHA != l.revision.SHA && len(kept) < keptLoads {
			kept = append(kept, old)
		}
	}
	c.kept = kept
}
