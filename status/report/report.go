// Package report puts an overview into words: one verdict, the workloads with
// their pods as a tree, and the tables of `tally status` and `tally history`.
//
// Everything is a function of values: the same overview and instant give the
// same text, byte for byte. Text from a repository or a node is cleaned of what
// could steer a terminal (see Clean). It reads nothing and prints nothing.
package report

import (
	"fmt"
	"strings"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Level orders verdicts; the higher, the more it needs a human.
type Level int

const (
	// Good: everything runs as the newest revision says.
	Good Level = iota
	// Working: on the way there.
	Working
	// Attention: what runs is well, but is not what Git says or may not be.
	Attention
	// Bad: something does not run and will not by itself.
	Bad
)

// Word names a level for people and style sheets.
func (l Level) Word() string {
	return [...]string{"healthy", "progressing", "attention", "degraded"}[l]
}

// Verdict is the state of the whole cluster at a glance.
type Verdict struct {
	Level Level
	// Short is a word or two, for titles.
	Short string
	// Sentence says why.
	Sentence string
}

// Healthy reports whether scripts may go on: `tally status` exits with 0.
func Healthy(o *nodes.Overview) bool { return Judge(o).Level == Good }

// Judge finds the verdict over an overview: the worst thing first.
func Judge(o *nodes.Overview) Verdict {
	c := Count(o)
	switch {
	case c.Degraded > 0:
		return Verdict{Bad, count(c.Degraded, "object") + " degraded", c.sentence()}
	case c.SilentNodes > 0:
		return Verdict{Bad, count(c.SilentNodes, "node") + " not ready", fmt.Sprintf("%d of %s not ready", c.SilentNodes, count(len(o.Nodes), "node"))}
	case o.Sync.State == "stalled":
		return Verdict{Bad, "record not writable", Clean(o.Sync.Message)}
	case o.Outcome == nodes.OutcomeFailed:
		return Verdict{Bad, "rollout failed", "the revision in force did not get healthy"}
	case o.Rejected != nil:
		return Verdict{Attention, "revision rejected", fmt.Sprintf("revision %s was rejected (%s); the last good one stays in force",
			Clean(o.Rejected.Revision.Short()), count(len(o.Rejected.Problems), "problem"))}
	case o.Held != nil:
		return Verdict{Attention, "revision held", fmt.Sprintf("revision %s waits for a confirmation in Git", Clean(o.Held.Revision.Short()))}
	case o.Sync.State == "unreachable":
		return Verdict{Attention, "repository unreachable", "the repository does not answer; the last good revision stays in force"}
	case o.InForce == nil:
		return Verdict{Working, "no revision yet", "nothing was pushed yet"}
	case c.Progressing > 0:
		return Verdict{Working, count(c.Progressing, "object") + " progressing", c.sentence()}
	case !o.Plan.Converged:
		return Verdict{Working, "converging", waiting(len(o.Plan.Waiting))}
	}
	return Verdict{Good, "all healthy", c.sentence()}
}

func waiting(n int) string {
	if n == 0 {
		return "the plan is being carried out"
	}
	return "the plan waits for " + count(n, "thing")
}

// Counts sums up what an overview lists. What Tallyman made for an object
// counts as part of that object, pods for themselves.
type Counts struct {
	Objects, Healthy, Progressing, Degraded, Suspended int
	Pods, ReadyPods, Restarts                          int
	SilentNodes                                        int
}

// Count sums up an overview.
func Count(o *nodes.Overview) Counts {
	var c Counts
	for i := range o.Objects {
		object := &o.Objects[i]
		if object.Owner.IsZero() || object.Owner == object.Key {
			c.add(object.Health)
		}
		if object.Pod != nil {
			c.Pods++
			c.Restarts += object.Pod.Status.Restarts()
			if object.Pod.Status.Ready {
				c.ReadyPods++
			}
		}
	}
	for _, n := range o.Nodes {
		if !n.Ready {
			c.SilentNodes++
		}
	}
	return c
}

func (c *Counts) add(h nodes.Health) {
	c.Objects++
	switch h {
	case nodes.Healthy:
		c.Healthy++
	case nodes.Progressing:
		c.Progressing++
	case nodes.Degraded:
		c.Degraded++
	case nodes.Suspended:
		c.Suspended++
	}
}

// sentence is one line such as "40 of 42 objects healthy, 1 degraded, 1 progressing".
func (c Counts) sentence() string {
	if c.Objects == c.Healthy {
		return count(c.Objects, "object") + " healthy"
	}
	parts := []string{fmt.Sprintf("%d of %s healthy", c.Healthy, count(c.Objects, "object"))}
	for _, part := range []struct {
		n    int
		word string
	}{{c.Degraded, "degraded"}, {c.Progressing, "progressing"}, {c.Suspended, "suspended"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.word))
		}
	}
	return strings.Join(parts, ", ")
}

// count gives "1 pod", "2 pods".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
