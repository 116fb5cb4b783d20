package sim

import (
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Bug is planted into a cluster to see that the invariants would notice. Any
// part may be nil.
type Bug struct {
	// Name says what goes wrong; Invariants are those that may notice first.
	Name       string
	Invariants []int
	// Rich wants clusters that have everything, Many those of many machines,
	// Fenced those of them that are about StatefulSets which fail over.
	Rich, Many, Fenced bool
	// Next stands in for the planner.
	Next func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan)
	// Load changes what was read, Assign and Route what is handed to nodes.
	Load   func(s *desired.Snapshot) *desired.Snapshot
	Assign func(w *world, a nodes.Assignment) nodes.Assignment
	Route  func(w *world, t *proxy.Table) *proxy.Table
	// Several wants worlds of several servers.
	Several bool
	// Clings has servers lead for ever once they are elected, and the store take
	// whatever they write.
	Clings bool
	// Tended wants machines that somebody looks after.
	Tended bool
	// Tames has watchdogs never reset their machines.
	Tames bool
	// Hastes has the server's clock run twice as fast, Spares has keepers never kill.
	Hastes, Spares bool
	// Freezes has the planner's time stand still while the server's clock is behind.
	Freezes bool
}
