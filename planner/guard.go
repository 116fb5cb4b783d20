package planner

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

const confirmTrailer = "Tally-Confirm"

// guard holds a revision that would delete more than is allowed, or that comes
// from elsewhere and touches what is in force, without a word of confirmation
// in its commit message; nil lets it pass.
func (st *step) guard(c *comparison, source string) *nodes.Hold {
	why := st.objection(c, source)
	ends := slices.Concat(c.gone, c.lost)
	confirm := fmt.Sprintf("delete %d", len(ends))
	if why == "" || confirmed(c.next.Revision(), confirm) {
		return nil
	}
	return &nodes.Hold{Revision: c.next.Revision(), Deletes: ends, Why: why, Confirm: confirmTrailer + ": " + confirm}
}

func confirmed(r desired.Revision, confirm string) bool {
	return slices.ContainsFunc(r.Trailers(confirmTrailer), func(v string) bool {
		return strings.EqualFold(strings.Join(strings.Fields(v), " "), confirm)
	})
}

// objection says why a revision needs confirmation; empty when it doesn't.
func (st *step) objection(c *comparison, source string) string {
	if st.force.Source != "" && source != st.force.Source {
		if harm := st.harm(c); harm != "" {
			return fmt.Sprintf("the followed repository, branch or path changed from %s to %s, and %s", st.force.Source, source, harm)
		}
	}
	if len(c.gone) == 0 {
		return lossWith(c.lost)
	}
	if len(c.gone) == c.size() {
		return fmt.Sprintf("everything in force (%s) would be deleted", count(c.size(), "object"))
	}
	for _, k := range c.gone {
		if k.Kind == kindNamespace && k.Group == "" && !impliesNamespace(c.next, k.Name) {
			if pods := st.livePods(k.Name); pods > 0 {
				return fmt.Sprintf("the Namespace %s would be deleted with %s in it", k.Name, count(pods, "running pod"))
			}
		}
	}
	if lost := st.dataLost(c); len(lost) > 0 {
		return fmt.Sprintf("the data of %s would be deleted %s after: %s",
			countData(lost), c.next.Settings().KeepData, listKeys(lost))
	}
	if why := lossWith(c.lost); why != "" {
		return why
	}
	return overGuard(st.bounds(c.next), c)
}

// countData counts claims and snapshots.
func countData(lost []desired.Key) string {
	if slices.ContainsFunc(lost, func(k desired.Key) bool { return k.Kind != kindClaim }) {
		return count(len(lost), "object")
	}
	return count(len(lost), "claim")
}

// maxListed bounds the objects that a sentence names.
const maxListed = 10

func listKeys(list []desired.Key) string {
	var names []string
	for _, k := range list[:min(maxListed, len(list))] {
		names = append(names, k.String())
	}
	if more := len(list) - maxListed; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// harm says what of the objects in force a revision changes or deletes; empty
// when it leaves them all as they are.
func (st *step) harm(c *comparison) string {
	changed := 0
	for _, k := range c.changed {
		if c.had(k) && st.alters(c, k) {
			changed++
		}
	}
	switch gone := len(c.gone); {
	case gone == 0 && changed == 0:
		return ""
	case gone == 0:
		return count(changed, "object") + " would be changed and none deleted"
	case changed == 0:
		return count(gone, "object") + " would be deleted"
	default:
		return count(changed, "object") + " would be changed and " + count(gone, "object") + " deleted"
	}
}

// bounds are the guard's numbers in force: a revision can't loosen its own guard.
func (st *step) bounds(next *desired.Snapshot) desired.Guard {
	if st.snapshot != nil {
		return st.snapshot.Settings().Guard
	}
	return next.Settings().Guard
}

func overGuard(bounds desired.Guard, c *comparison) string {
	if len(c.gone) <= bounds.Objects {
		return ""
	}
	lost := map[string]int{}
	for _, k := range c.gone {
		lost[k.Kind]++
	}
	for _, kind := range slices.Sorted(maps.Keys(lost)) {
		if total := c.sizeOf(kind); lost[kind]*100 > bounds.Percent*total {
			return fmt.Sprintf("%s would be deleted, among them %d of %d of kind %s: more than the guard's %s and %d %%",
				count(len(c.gone), "object"), lost[kind], total, kind, count(bounds.Objects, "object"), bounds.Percent)
		}
	}
	return ""
}

// impliesNamespace reports whether objects remain that need the namespace.
func impliesNamespace(next *desired.Snapshot, name string) bool {
	for o := range next.All() {
		if o.Key.Namespace == name {
			return true
		}
	}
	return false
}

func (s *State) livePods(namespace string) int {
	n := 0
	for k, g := range entries(s.groups) {
		if k.Namespace != namespace {
			continue
		}
		for _, p := range g.pods {
			if !p.done() {
				n++
			}
		}
	}
	return n
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
