package planner

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// assess tells anew how every touched group is doing.
func (st *step) assess() {
	for _, k := range slices.SortedFunc(maps.Keys(st.touched), desired.Key.Compare) {
		if g := st.edit(k); g != nil {
			st.assessGroup(g)
		}
	}
}

func (st *step) assessGroup(g *group) {
	g.waiting, g.line = nil, ""
	before, waits := g.verdict, ""
	kept := st.keeps(g)
	switch {
	case kept != "":
		g.verdict = workload.Verdict{Health: nodes.Progressing, Reason: kept}
	case g.object == nil:
		g.verdict = workload.Verdict{Health: nodes.Progressing, Reason: "no longer in Git; its pods are stopping"}
	default:
		g.verdict, waits = st.verdict(g)
	}
	st.noteLate(g, &before)
	if g.verdict.Complete && g.current != nil && !g.current.complete {
		done := *g.current
		done.complete = true
		st.swapSet(g, &done)
		st.recordSet(g, &done)
		if g.object != nil {
			st.prune(g, g.kind().history(g))
		}
	}
	g.wake = g.verdict.Wake
	st.collectWaiting(g, waits)
	if len(g.waiting) == 0 && g.wake.IsZero() && !g.verdict.Late {
		st.active = st.active.Delete(g.key)
	} else {
		st.active = st.active.Set(g.key, struct{}{})
	}
}

// noteLate keeps since when a group is late. One that is late at the first
// look after a start, and that the revision in force has not changed, was so
// before that revision.
func (st *step) noteLate(g *group, before *workload.Verdict) {
	switch first := before.Health == ""; {
	case !g.verdict.Late || first && g.revised.Before(st.force.Since):
		g.lateSince = time.Time{}
	case !before.Late:
		g.lateSince = st.now
	}
}

func (st *step) verdict(g *group) (v workload.Verdict, waits string) {
	k := g.kind()
	v, waits = k.assess(st, g)
	if cold := k.frozen(st.State, g); cold != "" && !v.Complete {
		waits = cold
	}
	return v, waits
}

// settled reports whether nothing more is expected of a group.
func (g *group) settled() bool {
	switch {
	case g.verdict.Over, g.verdict.Health == nodes.Healthy:
		return true
	case g.verdict.Health == nodes.Suspended:
		return g.verdict.Available == g.verdict.Current
	default:
		return false
	}
}

func (st *step) collectWaiting(g *group, waits string) {
	if !g.settled() {
		reason := g.verdict.Reason
		if waits != "" {
			reason = waits
		}
		g.line = g.key.String() + ": " + reason
		if g.object != nil || st.keeps(g) != "" {
			g.waiting = append(g.waiting, nodes.WaitingItem{Object: g.key, Reason: reason, Deadline: g.verdict.Deadline})
		}
	}
	stopping := 0
	for _, p := range g.pods {
		n, _ := st.nodes.Get(p.Node)
		switch {
		case p.lost != "" && !n.live():
		case p.Stop != nil:
			stopping++
			g.waiting = append(g.waiting, nodes.WaitingItem{Object: p.Key(), Reason: fmt.Sprintf("stopping, at most %s: %s", p.Stop.Grace, p.Stop.Reason)})
		case p.leaving != "":
			stopping++
			g.waiting = append(g.waiting, nodes.WaitingItem{Object: p.Key(), Reason: "leaving the routes before it stops: " + p.leaving, Deadline: p.drainBy})
			if !p.drainBy.IsZero() && (g.wake.IsZero() || p.drainBy.Before(g.wake)) {
				g.wake = p.drainBy
			}
		}
	}
	if g.line == "" && stopping > 0 {
		g.line = g.key.String() + ": " + count(stopping, "old pod") + " still to stop"
	}
}

// why is one clause that says why a pod is not ready; empty when it is.
func why(p *pod) string {
	switch {
	case p.held != "" && p.departs == "":
		return clause("NodeNotReady", p.held)
	case p.refusal == gated:
		return gated
	case p.refusal != "":
		return "FailedScheduling: " + p.refusal
	case p.status == nil || p.status.Ready:
		return ""
	}
	for _, list := range [][]nodes.ContainerStatus{p.status.Init, p.status.Containers} {
		for i := range list {
			if text := containerTrouble(&list[i]); text != "" {
				return text
			}
		}
	}
	return clause(p.status.Reason, p.status.Message)
}

func containerTrouble(c *nodes.ContainerStatus) string {
	switch {
	case c.Ready || c.State == nodes.Terminated && c.ExitCode == 0:
		return ""
	case c.State == nodes.Running:
		return ""
	case c.State == nodes.Waiting && (c.Reason == "" || c.Reason == "PodInitializing"):
		return ""
	}
	text := clause(c.Reason, c.Message)
	if c.State == nodes.Terminated {
		text = clause(c.Reason, fmt.Sprintf("exit code %d %s", c.ExitCode, c.Message))
	} else if c.Last != nil {
		last := fmt.Sprintf("last run ended with exit code %d (%s)", c.Last.ExitCode, c.Last.Reason)
		if c.Last.Reason == "StartError" { // the runtime's words, not the program's
			last = clause(last, c.Last.Message)
		}
		text = clause(text, last)
	}
	return text
}

func clause(reason, message string) string {
	message = strings.TrimSpace(message)
	switch {
	case reason == "":
		return message
	case message == "":
		return reason
	default:
		return reason + ": " + message
	}
}
