package observed

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Part is one of the kinds of things that a record holds.
type Part string

// The parts of a record.
const (
	PartDecisions Part = "decisions"
	PartNodes     Part = "nodes"
	PartStatuses  Part = "statuses"
	PartHistory   Part = "history"
	PartEvents    Part = "events"
)

// Place is where a value stands.
type Place struct {
	Part Part
	// Of is a decision's kind and a status' node; empty in the other parts.
	Of string
	// Key is unique within Part and Of: a decision's key, a node's name, a pod's
	// uid; for history a growing number as 16 hexadecimal digits, for an event 32
	// of them.
	Key string
}

func (p Place) compare(o Place) int {
	if c := strings.Compare(string(p.Part), string(o.Part)); c != 0 {
		return c
	}
	if c := strings.Compare(p.Of, o.Of); c != 0 {
		return c
	}
	return strings.Compare(p.Key, o.Key)
}

// Change is a new value for a place; nil ends what is there. Values are JSON.
type Change struct {
	Place
	Value json.RawMessage
}

// Backend is what a Store keeps its data in. The Store never calls two of its
// methods at once.
type Backend interface {
	// Fresh tells that the backend was empty when it was opened.
	Fresh() bool
	// Load yields everything but decisions, in the order of Key within a part.
	Load(ctx context.Context, yield func(Change) error) error
	// Decisions returns them all, ordered by kind and key.
	Decisions(ctx context.Context) ([]nodes.Decision, error)
	// Write returns once the changes are durable: all of them, or, when it fails
	// or the process ends before, none or all. No two are of one place.
	Write(ctx context.Context, changes []Change) error
	Close() error
}

// decisionsOf turns decisions into changes; of two about the same, the later counts.
func decisionsOf(decisions []nodes.Decision) []Change {
	at := make(map[Place]int, len(decisions))
	changes := make([]Change, 0, len(decisions))
	for _, d := range decisions {
		change := Change{Place{PartDecisions, d.Kind, d.Key}, d.Value}
		if i, twice := at[change.Place]; twice {
			changes[i] = change
			continue
		}
		at[change.Place] = len(changes)
		changes = append(changes, change)
	}
	return changes
}
