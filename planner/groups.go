package planner

import (
	"maps"
	"slices"
	"strconv"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// maxRounds bounds the rounds in which steps of one group make others possible.
const maxRounds = 16

// reconcile moves every group that something happened to.
func (st *step) reconcile() {
	for range maxRounds {
		dirty := slices.SortedFunc(maps.Keys(st.dirtyGroups), desired.Key.Compare)
		if len(dirty) == 0 {
			return
		}
		clear(st.dirtyGroups)
		for _, k := range dirty {
			if g := st.edit(k); g != nil {
				st.touched[k] = true
				st.reconcileGroup(g)
			}
		}
	}
}

func (st *step) reconcileGroup(g *group) {
	if g.object == nil {
		st.retire(g)
		return
	}
	if g.stale {
		st.settleTemplate(g)
	}
	if g.kind().frozen(st.State, g) != "" {
		return
	}
	before := *g
	k := g.kind()
	k.reconcile(st, g)
	st.prune(g, k.history(g))
	if before.counter != g.counter || before.scaledMax != g.scaledMax || before.stable != g.stable || before.proven != g.proven {
		st.recordWorkload(g)
	}
}

// retire ends a group that Git no longer has, and forgets it once nothing is
// left.
func (st *step) retire(g *group) {
	if st.keeps(g) != "" {
		return
	}
	for _, p := range slices.Clone(g.pods) {
		st.leave(p.UID, g.key.Kind+" "+g.key.Name+" is no longer in Git")
	}
	for _, made := range st.madeBy(g.key) {
		st.discard(made.key, g.key.String()+" is no longer in Git")
	}
	if _, has := st.made.Get(g.key); len(g.pods) > 0 || has {
		return
	}
	st.unmake(g)
	for _, s := range g.sets {
		st.forgetSet(g, s)
		st.unindex(g, s, nil)
	}
	g.sets = nil
	st.remind(g)
	st.decide(kindOfWorkload, keyText(g.key), nil)
	switch {
	case g.run != nil:
		st.decide(kindOfJob, keyText(g.key), nil)
	case g.cron != nil:
		st.decide(kindOfCronJob, keyText(g.key), nil)
	}
	st.groups = st.groups.Delete(g.key)
	st.active = st.active.Delete(g.key)
	delete(st.owned, g.key)
	delete(st.touched, g.key)
	if g.key.Kind == kindPod {
		st.freeName(g.key)
	}
}

// frozen says why nothing may be changed about a group's pods now: it has some
// on a node that does not answer, so that what is known of them may be wrong.
func (s *State) frozen(g *group) string {
	for _, p := range g.pods {
		if p.Node == "" || p.leaving != "" {
			continue
		}
		n, _ := s.nodes.Get(p.Node)
		if n.live() || n.silent() && fungible(g) && s.storm(n) == "" {
			continue
		}
		if p.held != "" && n.silent() {
			return "pod " + p.Name + " is on node " + p.Node + ", which does not answer; " + p.held
		}
		if n == nil || !n.reported {
			return "waiting for node " + p.Node + " to report what it runs"
		}
		return "node " + p.Node + " is silent: nothing is changed about its pods"
	}
	return ""
}

// fungible reports whether a group goes on while one of its pods is not heard
// of: that one counts as not ready, and what is decided about it is carried out
// when its node is back. A StatefulSet in order waits for it then, as for any
// pod that is not ready; a parallel one does not. An ordinal is free only when
// nothing is left of its pod.
func fungible(g *group) bool {
	switch g.kind().(type) {
	case deployments, replicaSets, jobs, statefulSets:
		return true
	}
	return false
}

// settleTemplate finds the set of today's template, or makes one.
func (st *step) settleTemplate(g *group) {
	g.stale = false
	w, ok := st.wantedOf(g.object)
	if !ok {
		return
	}
	newest := 0
	if len(g.sets) > 0 {
		newest = g.sets[len(g.sets)-1].revision
	}
	for _, s := range slices.Backward(g.sets) {
		if st.matches(g, s, &w) {
			st.makeCurrent(g, s, newest, w.content)
			return
		}
	}
	if g.kind().paused(g.object) {
		g.current = nil
		g.stale = true
		return
	}
	g.current = st.newSet(g, &w)
}

// makeCurrent returns to a set that exists: an earlier one gets a new
// revision, for it is the newest again.
func (st *step) makeCurrent(g *group, s *set, newest int, content string) {
	changed := *s
	if s.content == unknownContent {
		changed.content = content
	}
	if s.revision != newest {
		changed.revision, changed.since, changed.complete = newest+1, st.now, false
	}
	if changed.content == s.content && changed.revision == s.revision {
		g.current = s
		return
	}
	st.swapSet(g, &changed)
	slices.SortStableFunc(g.sets, compareSets)
	g.current = &changed
	st.recordSet(g, &changed)
}

// rollout adds what a group has to the rules of its kind.
func (st *step) rollout(g *group, r workload.Rollout) workload.Rollout {
	r.Now, r.Revised = st.now, g.revised
	r.ScaledMax = g.scaledMax
	bySet := make(map[string]*workload.Set, len(g.sets))
	sizes := make(map[*set]int, len(g.sets))
	for _, p := range g.pods {
		sizes[p.set]++
	}
	for _, s := range g.sets {
		view := &workload.Set{Hash: s.hash, Since: s.since, Pods: make([]workload.Pod, 0, sizes[s])}
		bySet[s.hash] = view
		if g.current != nil && g.current.hash == s.hash {
			r.Current, r.WasComplete = view, s.complete
		} else {
			r.Old = append(r.Old, view)
		}
	}
	for _, p := range g.pods {
		if p.lost != "" && (p.lost == certain || !r.Recreate) {
			continue
		}
		view := bySet[p.set.hash]
		view.Pods = append(view.Pods, st.viewOf(p))
	}
	return r
}

func (st *step) viewOf(p *pod) workload.Pod {
	v := workload.Pod{
		UID: p.UID, Name: p.Name, Node: p.Node, Aim: p.aim, Created: p.Created, Incarnation: p.Incarnation,
		Ordinal: p.Ordinal, Leaving: p.leaving != "" || p.Stop != nil, Why: why(p),
	}
	if cost := p.AllAnnotations()[costAnnotation]; cost != "" {
		v.Cost, _ = strconv.Atoi(cost)
	}
	if p.status != nil {
		v.Phase, v.Ready, v.ReadySince, v.Restarts = p.status.Phase, p.status.Ready, p.status.ReadySince, p.status.Restarts()
	}
	if st.unreachable(p) {
		v.Ready, v.Silent = false, true
		if v.Why == "" && p.Workload.Kind != kindDaemonSet { // which leaves its node alone
			v.Why = clause("NodeNotReady", "node "+p.Node+" does not answer")
		}
	}
	return v
}

// carryOut turns steps into decisions and tells how each set's size changed.
func (st *step) carryOut(g *group, steps workload.Steps) map[string]int {
	sizes := map[string]int{}
	for _, r := range steps.Removes {
		sizes[r.Hash]--
		st.leave(r.UID, r.Reason)
	}
	for _, c := range steps.Creates {
		sizes[c.Hash] += c.Count
		s := g.set(c.Hash)
		for range c.Count {
			st.create(g, s, &c)
		}
	}
	return sizes
}

// prune forgets the oldest sets without pods beyond the history limit.
func (st *step) prune(g *group, limit int) {
	var empty []*set
	for _, s := range g.sets {
		if s != g.current && s.hash != g.stable && !slices.ContainsFunc(g.pods, func(p *pod) bool { return p.set.hash == s.hash }) {
			empty = append(empty, s)
		}
	}
	if len(empty) <= limit {
		return
	}
	drop := empty[:len(empty)-limit]
	g.sets = slices.DeleteFunc(slices.Clone(g.sets), func(s *set) bool { return slices.Contains(drop, s) })
	for _, s := range drop {
		st.forgetSet(g, s)
		st.unindex(g, s, g.sets)
	}
	st.remind(g)
}

// unindex takes the labels of a set out of the index that no other set or pod
// of its group has.
func (st *step) unindex(g *group, s *set, others []*set) {
	if particular(s.request) {
		st.particular--
	}
	for k, v := range s.template.Labels {
		st.unindexLabel(g, others, k, v)
	}
}

// unindexPod does the same for a pod's own labels.
func (st *step) unindexPod(g *group, p *pod) {
	for k, v := range p.Labels {
		st.unindexLabel(g, g.sets, k, v)
	}
}

func (st *step) unindexLabel(g *group, sets []*set, key, value string) {
	bySet := func(s *set) bool { return s.template.Labels[key] == value }
	byPod := func(p *pod) bool { return len(p.Labels) > 0 && p.Labels[key] == value }
	if !slices.ContainsFunc(sets, bySet) && !slices.ContainsFunc(g.pods, byPod) {
		st.groupLabels.remove(pair{g.key.Namespace, key, value}, g.key)
	}
}
