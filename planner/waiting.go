package planner

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/benbjohnson/immutable"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
)

// waiter is a pod without a node. Those that ask for the same lie side by side.
type waiter struct {
	// aim is the one node that it is for.
	aim         string
	group       desired.Key
	hash        string
	incarnation uint64
}

func waiterOf(p *pod) waiter { return waiter{p.aim, p.Workload, p.set.hash, p.Incarnation} }

func compareWaiters(a, b waiter) int {
	return cmp.Or(strings.Compare(a.aim, b.aim), a.group.Compare(b.group), strings.Compare(a.hash, b.hash), cmp.Compare(a.incarnation, b.incarnation))
}

type waiters = immutable.SortedMap[waiter, struct{}]

// waitingPod finds a pod that waits.
func (s *State) waitingPod(w waiter) *pod {
	g, ok := s.groups.Get(w.group)
	if !ok {
		return nil
	}
	if i, found := g.find(w.incarnation); found {
		return g.pods[i]
	}
	return nil
}

// stir is what happened that may help pods which wait.
type stir struct {
	// all is set when anything may.
	all bool
	// rooms are the nodes with more room than before; nodes is set when one is
	// another than it was, for pods that are spread.
	rooms map[string]bool
	nodes bool
	// claims is set when something happened to claims or volumes.
	claims bool
	// came are the pods that came to a node, or left it, one of each template.
	came map[*place.Request]bool
}

func newStir() stir {
	return stir{rooms: map[string]bool{}, came: map[*place.Request]bool{}}
}

// stirred notes a pod that came to a node, left it, or is about to.
func (st *step) stirred(r *place.Request) { st.stir.came[r] = true }

// helps reports whether a pod that came or left may help another.
func (s *stir) helps(r *place.Request, namespaceLabels func(string) map[string]string) bool {
	for by := range s.came {
		if r.Helped(by, namespaceLabels) {
			return true
		}
	}
	return false
}

// helped are the pods that wait and that what happened may help.
func (st *step) helped() (out []nodes.UID) {
	if st.stir.all || st.keepsRoom {
		for w := range keys(st.pending) {
			if p := st.waitingPod(w); p != nil {
				out = append(out, p.UID)
			}
		}
		return out
	}
	return st.affected()
}

// affected judges those that wait by what happened.
func (st *step) affected() (out []nodes.UID) {
	rooms := make([]*place.Node, 0, len(st.stir.rooms))
	for name := range st.stir.rooms {
		if n, ok := st.nodes.Get(name); ok {
			rooms = append(rooms, n.load)
		}
	}
	// Those for any node are judged template by template, of the others only
	// those for a node with room are looked at.
	out = st.helpedFor("", rooms)
	for _, n := range rooms {
		out = append(out, st.helpedFor(n.Name(), []*place.Node{n})...)
	}
	if st.stir.claims || st.stir.nodes || len(st.stir.came) > 0 {
		out = append(out, st.helpedElsewhere()...)
	}
	return out
}

// helpedFor judges the pods with an aim by one pod of each template.
func (st *step) helpedFor(aim string, rooms []*place.Node) (out []nodes.UID) {
	it := st.pending.Iterator()
	for it.Seek(waiter{aim: aim}); !it.Done(); {
		w, _, _ := it.Next()
		if w.aim != aim {
			break
		}
		p := st.waitingPod(w)
		if p == nil {
			continue
		}
		if st.helps(p, rooms) {
			out = append(out, p.UID)
			continue
		}
		if len(p.claims) == 0 && p.request == p.set.request {
			it.Seek(waiter{w.aim, w.group, w.hash + "\x00", 0})
		}
	}
	return out
}

// helps reports whether what happened may help a pod.
func (st *step) helps(p *pod, rooms []*place.Node) bool {
	if st.stir.claims && len(p.claims) > 0 || st.stir.nodes && p.request.Spreads() {
		return true
	}
	return st.stir.helps(p.request, st.namespaceLabels) || slices.ContainsFunc(rooms, func(n *place.Node) bool { return n.MayRun(p.request) })
}

// candidate is a pod in the order in which they choose.
type candidate struct {
	uid         nodes.UID
	priority    int32
	created     time.Time
	group       desired.Key
	incarnation uint64
}

// inOrder sorts pods: higher priority first, then those that have waited longest.
func (st *step) inOrder(uids []nodes.UID) []candidate {
	list := make([]candidate, 0, len(uids))
	for _, uid := range uids {
		if g, p := st.pod(uid); p != nil && p.Node == "" {
			list = append(list, candidate{uid, priority(p), p.Created, g.key, p.Incarnation})
		}
	}
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), a.created.Compare(b.created), a.group.Compare(b.group), cmp.Compare(a.incarnation, b.incarnation))
	})
	return slices.CompactFunc(list, func(a, b candidate) bool { return a.uid == b.uid })
}

// priority of a pod; one that says nothing has 0.
func priority(p *pod) int32 {
	if p.set.template.Spec.Priority == nil {
		return 0
	}
	return *p.set.template.Spec.Priority
}

// helpedElsewhere judges the pods that are for one node each, and have not been
// asked for the room there.
func (st *step) helpedElsewhere() (out []nodes.UID) {
	it := st.pending.Iterator()
	for it.Seek(waiter{aim: "\x00"}); !it.Done(); {
		w, _, _ := it.Next()
		if p := st.waitingPod(w); p != nil && st.helps(p, nil) {
			out = append(out, p.UID)
		}
	}
	return out
}
