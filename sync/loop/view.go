package loop

import (
	"context"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
)

const (
	// watchEvery is how often a watcher is told at most.
	watchEvery = 50 * time.Millisecond
	// watchShare is how much longer than making an overview the pause after it is,
	// and watchPause that pause at most.
	watchShare = 9
	watchPause = 5 * time.Second
	// shownHistory is how many revisions an overview lists.
	shownHistory = 50
)

// view is everything there is to see after one step. Immutable; the overview
// is made when somebody looks.
type view struct {
	serial   uint64
	at       time.Time
	version  string
	state    *planner.State
	sync     nodes.Sync
	rejected *nodes.Rejection
	held     *nodes.Hold
	// history, the newest first.
	history []nodes.HistoryEntry

	once sync.Once
	made *nodes.Overview
	took time.Duration
}

func (v *view) overview() *nodes.Overview {
	v.once.Do(func() {
		begun := time.Now()
		o := v.state.Overview(v.at)
		o.Serial, o.At, o.Version = v.serial, v.at, v.version
		o.Sync, o.Rejected, o.Held, o.History = v.sync, v.rejected, v.held, v.history
		v.made, v.took = o, time.Since(begun)
	})
	return v.made
}

// entry returns the newest entry of a revision; ok is false when it was not
// seen, or too long ago.
func (v *view) entry(sha string) (e nodes.HistoryEntry, ok bool) {
	for _, e := range v.history {
		if e.Revision.SHA == sha {
			return e, true
		}
	}
	return e, false
}

// inForce tells whether the cluster follows this revision.
func (v *view) inForce(sha string) bool {
	snapshot := v.state.InForce()
	return snapshot != nil && snapshot.Revision().SHA == sha
}

// board holds the newest view and tells those who wait for the next one.
type board struct {
	mu sync.Mutex
	// guarded by mu
	newest  *view
	changed chan struct{}
}

func newBoard(first *view) *board { return &board{newest: first, changed: make(chan struct{})} }

func (b *board) publish(v *view) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v.serial = b.newest.serial + 1
	b.newest = v
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *board) look() *view {
	v, _ := b.watch()
	return v
}

// watch returns the newest view and a channel that is closed when there is a newer one.
func (b *board) watch() (*view, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.newest, b.changed
}

// Watch yields the overview now and after every change, at most one in 50 ms and
// fewer of a large cluster; a reader that is slow gets the newest. The channel is closed when ctx ends.
func (l *Loop) Watch(ctx context.Context) <-chan *nodes.Overview {
	out := make(chan *nodes.Overview)
	go func() {
		defer close(out)
		for {
			v, changed := l.board.watch()
			if !l.offer(ctx, out, v, changed) {
				return
			}
			if !pause(ctx, max(watchEvery, min(watchShare*v.took, watchPause))) {
				return
			}
		}
	}()
	return out
}

// offer hands out the newest view's overview, waiting for the next change
// when the reader has taken it. It reports false when ctx has ended.
func (l *Loop) offer(ctx context.Context, out chan<- *nodes.Overview, v *view, changed <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case out <- v.overview():
	}
	select {
	case <-ctx.Done():
		return false
	case <-changed:
		return true
	}
}

// pause waits and reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
