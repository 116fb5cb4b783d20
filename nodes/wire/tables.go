package wire

import (
	"sync"

	"github.com/tallyman-dev/tallyman/proxy"
)

// Tables shares the newest route table among the clients of one process that
// have the same server: a generation says the same to all, so one puts it together
// and there is one copy of what thousands of nodes hold. The zero Tables is ready;
// safe for concurrent use.
type Tables struct {
	mu sync.Mutex
	// newest is guarded by mu; nil before the first.
	newest *proxy.Table
}

// find is the table of a generation; nil when it is not known, or t is nil.
func (t *Tables) find(generation uint64) *proxy.Table {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.newest == nil || t.newest.Generation != generation {
		return nil
	}
	return t.newest
}

// keep notes a complete table.
func (t *Tables) keep(table *proxy.Table) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.newest == nil || table.Generation > t.newest.Generation {
		t.newest = table
	}
}
