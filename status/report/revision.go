package report

import (
	"fmt"
	"strings"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Fate is what has become of one revision so far.
type Fate struct {
	// Done is false while it may still change; Good then means nothing.
	Done bool
	// Good tells that the revision is in force, converged and healthy.
	Good bool
	// Message is one sentence.
	Message string
}

// FateOf tells what has become of the revision whose commit id begins with sha.
func FateOf(o *nodes.Overview, sha string) Fate {
	if o.InForce != nil && strings.HasPrefix(o.InForce.SHA, sha) {
		return fateInForce(o)
	}
	for _, entry := range o.History {
		if strings.HasPrefix(entry.Revision.SHA, sha) {
			return fateRecorded(entry)
		}
	}
	return Fate{Message: "revision " + sha + " has not been seen yet"}
}

func fateInForce(o *nodes.Overview) Fate {
	short := o.InForce.Short()
	verdict := Judge(o)
	switch {
	case o.Outcome == nodes.OutcomeFailed:
		return Fate{Done: true, Message: fmt.Sprintf("revision %s failed: %s", short, failure(o, verdict.Sentence))}
	case o.Outcome == nodes.OutcomeConverged && Count(o).Degraded == 0:
		return Fate{Done: true, Good: true, Message: fmt.Sprintf("revision %s is converged and healthy%s", short, caveat(o))}
	}
	return Fate{Message: fmt.Sprintf("revision %s: %s", short, verdict.Sentence)}
}

// failure is the sentence that a push is told, or otherwise.
func failure(o *nodes.Overview, otherwise string) string {
	if said := said(o, nodes.OutcomeFailed); said != "" {
		return said
	}
	return otherwise
}

// caveat is what the convergence of the revision in force leaves out.
func caveat(o *nodes.Overview) string {
	if said := said(o, nodes.OutcomeConverged); said != "" {
		return "; " + said
	}
	return ""
}

// said is the message of the revision in force with this outcome.
func said(o *nodes.Overview, outcome nodes.Outcome) string {
	for _, e := range o.History {
		if e.Revision.SHA == o.InForce.SHA && e.Outcome == outcome {
			return e.Message
		}
	}
	return ""
}

func fateRecorded(e nodes.HistoryEntry) Fate {
	switch e.Outcome {
	case nodes.OutcomeConverged:
		return Fate{Done: true, Good: true, Message: fmt.Sprintf("revision %s converged; a newer one is in force now", e.Revision.Short())}
	case nodes.OutcomeRejected, nodes.OutcomeHeld, nodes.OutcomeFailed, nodes.OutcomeSuperseded:
		message := fmt.Sprintf("revision %s was %s", e.Revision.Short(), e.Outcome)
		if e.Message != "" {
			message += ": " + e.Message
		}
		return Fate{Done: true, Message: message}
	}
	return Fate{Message: fmt.Sprintf("revision %s is %s", e.Revision.Short(), e.Outcome)}
}
