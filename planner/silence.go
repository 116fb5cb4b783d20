package planner

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/benbjohnson/immutable"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

// lostness is what is thought of a pod whose node does not answer.
type lostness string

const (
	// givenUp pods may run on, which harms nobody: others take their place, and
	// their node stops them when it is back.
	givenUp lostness = "given up"
	// certain is that nothing of the pod runs any more.
	certain lostness = "certain"
)

// muster is what is kept about all nodes together.
type muster struct {
	// ranges by owner; the first of them, taken in number, all have one. rangeless
	// are nodes that wait for one.
	ranges    *immutable.Map[netip.Prefix, string]
	taken     int
	rangeless *immutable.SortedMap[string, struct{}]
	// keyOwners are the nodes by their WireGuard key; keyless tell one that is
	// not theirs yet.
	keyOwners *immutable.Map[string, string]
	keyless   *immutable.SortedMap[string, struct{}]
	// peers are the nodes of the route table, sorted. Never changed in place.
	peers []proxy.Node
	// tainted are the nodes with taints that evict, silent ones included.
	tainted *immutable.SortedMap[string, struct{}]
	// outcasts are the names of the nodes that Git takes out of the cluster.
	outcasts *immutable.SortedMap[string, struct{}]
	// departing are the pods that are to leave a node that answers.
	departing *immutable.SortedMap[nodes.UID, struct{}]
	// doubted are the nodes that are to get no lease yet.
	doubted *immutable.SortedMap[string, struct{}]
	all     census
	zones   *immutable.Map[string, census]
}

func newMuster() muster {
	return muster{
		ranges: immutable.NewMap[netip.Prefix, string](hasher[netip.Prefix](func(p netip.Prefix) uint32 {
			return hashText(string(p.Addr().AsSlice()))
		})),
		rangeless: immutable.NewSortedMap[string, struct{}](nil),
		keyOwners: immutable.NewMap[string, string](nil),
		keyless:   immutable.NewSortedMap[string, struct{}](nil),
		doubted:   immutable.NewSortedMap[string, struct{}](nil),
		outcasts:  newOutcasts(),
		tainted:   immutable.NewSortedMap[string, struct{}](nil),
		departing: immutable.NewSortedMap[nodes.UID, struct{}](comparer[nodes.UID](compareUID)),
		zones:     immutable.NewMap[string, census](nil),
	}
}

// census counts the nodes of the cluster, or of a zone, that are in service.
type census struct{ nodes, silent int }

func (c census) add(s seat, sign int) census {
	c.nodes += sign * boolInt(s.counts)
	c.silent += sign * boolInt(s.counts && s.silent)
	return c
}

// stormy is Kubernetes' orientation: beyond 55 %, and more than two, the fault
// is more likely ours than theirs.
func (c census) stormy() bool { return c.silent > 2 && 100*c.silent >= 55*c.nodes }

// seat is how a node is counted.
type seat struct {
	zone           string
	counts, silent bool
}

// count keeps the census. Nodes that Git has declared out of service are gone
// for good: they take no part. Those that have not been heard of since the start
// may be alive, and do not answer: with most of them missing, one that is silent
// for longer is no more suspect than they are.
func (st *step) count(n *node) {
	known := n.told || n.reported || n.Unheard
	is := seat{zone: n.state.Labels[corev1.LabelTopologyZone], counts: known && !n.outOfService(), silent: !n.live()}
	if is == n.seat {
		return
	}
	for _, change := range []struct {
		seat seat
		sign int
	}{{n.seat, -1}, {is, 1}} {
		st.all = st.all.add(change.seat, change.sign)
		zone, _ := st.zones.Get(change.seat.zone)
		st.zones = st.zones.Set(change.seat.zone, zone.add(change.seat, change.sign))
	}
	n.seat = is
}

// storm says why nothing of a silent node is given up now; empty when it may be.
func (s *State) storm(n *node) string {
	zone, _ := s.zones.Get(n.seat.zone)
	switch {
	case s.all.silent >= s.all.nodes:
		return "no node answers"
	case s.all.stormy():
		return fmt.Sprintf("%d of %s are silent at once", s.all.silent, count(s.all.nodes, "node"))
	case n.seat.zone != "" && zone.stormy():
		return fmt.Sprintf("%d of %s in zone %s are silent at once", zone.silent, count(zone.nodes, "node"), n.seat.zone)
	}
	return ""
}

// afterStorm is how long nodes that are still silent at the end of a storm are
// waited for, as if they had been heard at its end: Kubernetes' controller
// counts anew then, too. Agents that lost their server dial again every ten
// seconds at the latest.
const afterStorm = 15 * time.Second

// outOfService reports whether Git has declared a silent node dead. While the
// node answers the taint only evicts, as in Kubernetes.
func (n *node) outOfService() bool { return !n.live() && declaredDead(n.state.Taints) }

func declaredDead(taints []corev1.Taint) bool {
	for i := range taints {
		if taints[i].Key == corev1.TaintNodeOutOfService {
			return true
		}
	}
	return false
}

// declaredDead reports whether Git says so of a node that has not reported.
func (s *State) declaredDead(name string) bool {
	said := s.said(name)
	return said != nil && declaredDead(said.Spec.Taints)
}

// noteTaints keeps since when a node has which taints that evict pods, and has
// its pods looked at when these, or its state, have changed.
func (st *step) noteTaints(n *node) {
	shown := n.shown()
	var evicts map[string]time.Time
	for i := range shown.Taints {
		t := &shown.Taints[i]
		if t.Effect != corev1.TaintEffectNoExecute && t.Key != corev1.TaintNodeOutOfService {
			continue
		}
		if evicts == nil {
			evicts = map[string]time.Time{}
		}
		since, known := n.kept.Evicts[taintName(t)]
		if !known {
			since = st.now
		}
		evicts[taintName(t)] = since
	}
	// What the record says of a node that has not been heard of yet still holds.
	if !n.told && !n.reported {
		return
	}
	if !maps.EqualFunc(evicts, n.kept.Evicts, time.Time.Equal) {
		n.kept.Name, n.kept.Evicts = n.Name, evicts
		st.recordMachine(n)
	}
	_, was := st.tainted.Get(n.Name)
	n.look = st.now
	if !n.silent() {
		n.waits, n.calm = false, time.Time{}
		n.spared, n.wasSpared = time.Time{}, false
	}
	switch is := len(evicts) > 0; {
	case is:
		st.tainted = st.tainted.Set(n.Name, struct{}{})
	case was:
		st.tainted = st.tainted.Delete(n.Name)
		n.departed = 0
		st.stayPut(n)
	}
}

// departure is when a pod is to leave its node for the node's taints, by the
// rules of Kubernetes' taint manager; ok is false when it may stay. tolerate
// stands for a toleration of unreachable nodes that the pod does not have.
func departure(p *pod, n *node, tolerate time.Duration) (at time.Time, taint string, ok bool) {
	shown := n.shown()
	for i := range shown.Taints {
		t := &shown.Taints[i]
		since, evicts := n.kept.Evicts[taintName(t)]
		if !evicts || t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		patience, forever := tolerance(p.Template.Spec.Tolerations, t, tolerate)
		if forever {
			continue
		}
		if since.Before(p.Created) {
			since = p.Created // Kubernetes counts from when it first sees the pod there
		}
		if due := since.Add(patience); !ok || due.Before(at) {
			at, taint, ok = due, t.ToString(), true
		}
	}
	return at, taint, ok
}

// tolerance is how long a pod stays with a taint. A node that does not answer
// is not ready either, so a toleration of that counts for it, too.
func tolerance(tolerations []corev1.Toleration, t *corev1.Taint, tolerate time.Duration) (patience time.Duration, forever bool) {
	asked := []corev1.Taint{*t}
	if t.Key == corev1.TaintNodeUnreachable {
		asked = append(asked, corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: t.Effect})
	} else {
		tolerate = 0
	}
	for i := range asked {
		for k := range tolerations {
			if !tolerations[k].ToleratesTaint(klog.Logger{}, &asked[i], false) {
				continue
			}
			if s := tolerations[k].TolerationSeconds; s != nil {
				return time.Duration(max(0, *s)) * time.Second, false
			}
			return 0, true
		}
	}
	return tolerate, false
}

// settle is how long a node must have been silent before anything follows: by
// then those that fell silent for the same reason are known to be.
func settle(s desired.Nodes) time.Duration { return s.SilentAfter / 4 }

// depart looks at the pods of nodes that are silent, or evict their pods.
func (st *step) depart() {
	for _, name := range keysOf(st.tainted) {
		n, ok := st.nodes.Get(name)
		switch {
		case !ok:
		case n.live():
			st.markDepartures(n)
		case n.silent():
			st.giveUp(n)
			st.endSparing(n)
		}
	}
}

// giveUp replaces what a silent node ran, as far as that harms nobody.
func (st *step) giveUp(n *node) {
	why := st.storm(n)
	if n.outOfService() {
		why = ""
	}
	due := !n.look.IsZero() && !n.look.After(st.now)
	if n.waits == (why != "") && !due {
		return
	}
	n = st.nodeFor(n.Name)
	if n.waits && why == "" {
		n.calm = st.now.Add(afterStorm)
	}
	n.waits, n.look = why != "", time.Time{}
	st.nodes = st.nodes.Set(n.Name, n)
	look := time.Time{}
	for _, uid := range keysOf(n.pods) {
		at := st.giveUpPod(n, uid, why)
		if at.After(st.now) && (look.IsZero() || at.Before(look)) {
			look = at
		}
	}
	n = st.nodeFor(n.Name)
	n.look = look
	st.nodes = st.nodes.Set(n.Name, n)
}

// giveUpPod says when to look at the pod again; zero for not by itself.
func (st *step) giveUpPod(n *node, uid nodes.UID, storm string) time.Time {
	g, p := st.pod(uid)
	if p == nil || p.done() || p.lost == certain {
		return time.Time{}
	}
	if n.outOfService() {
		st.lose(p, certain, "node "+n.Name+" is out of service")
		return time.Time{}
	}
	at, _, ok := departure(p, n, st.settings().Tolerate)
	switch {
	case !ok:
		st.holdBack(p, "")
		return time.Time{}
	case storm != "":
		st.holdBack(p, storm+": the fault may be elsewhere, so nothing is given up")
		return time.Time{}
	}
	if calm := n.kept.Evicts[unreachable].Add(settle(st.settings())); at.Before(calm) {
		at = calm
	}
	if at.Before(n.calm) {
		at = n.calm
	}
	if at.After(st.now) {
		st.holdBack(p, "")
		return at
	}
	st.giveUpDue(n, g, p)
	return time.Time{}
}

const unreachable = corev1.TaintNodeUnreachable + ":" + string(corev1.TaintEffectNoExecute)

// giveUpDue decides about a pod whose time on a silent node is over.
func (st *step) giveUpDue(n *node, g *group, p *pod) {
	alone, stuck := st.tie(g, p)
	alone = alone || st.failoverOf(g, p) == desired.FailoverFenced
	reason := "node " + n.Name + " does not answer"
	switch {
	case stuck != "":
		st.holdBack(p, stuck+": the pod waits for it")
	case !alone && p.lost == "":
		st.lose(p, givenUp, reason)
	case !alone:
	case !p.fenced:
		st.holdBack(p, "it may still run there and is not fenced: it waits for its node, or until Git says that the node is out of service")
	case !n.Lapsed:
		st.holdBack(p, "it may run there until the node's lease is over")
	default:
		st.lose(p, certain, reason+" and its lease is over")
	}
}

// tie says whether only one pod of its place may run at a time, for it has an
// identity or a volume that one node may hold, and why nothing could follow it
// elsewhere.
func (s *State) tie(g *group, p *pod) (alone bool, stuck string) {
	alone = g.key.Kind == kindStatefulSet
	for _, k := range p.claims {
		c, ok := s.claims.Get(k)
		if !ok || c.Pod != "" { // an ephemeral volume goes with its pod
			continue
		}
		v, ok := s.volumes.Get(c.Volume)
		switch {
		case !ok:
		case v.Node != "":
			stuck = "volume " + v.Name + " of claim " + k.Name + " is on node " + v.Node
			if v.Reach != nil {
				stuck += ", which alone reaches it as its driver says"
			}
		case v.Spec.Local != nil || v.Spec.HostPath != nil:
			stuck = "volume " + v.Name + " of claim " + k.Name + " is on the node itself"
		case !v.shared():
			alone = true
		}
	}
	return alone, stuck
}

// holdBack notes why a pod is still bound to a node that it should have left.
func (st *step) holdBack(p *pod, why string) {
	if p.held == why {
		return
	}
	st.change(p.UID, func(p *pod) { p.held = why })
	st.dirtyGroups[p.Workload] = true
}

// lose counts a pod as gone. Its decision stays, with the order to stop where
// that can't harm, for its node may come back with it.
func (st *step) lose(p *pod, how lostness, reason string) {
	st.dirtyServicesOf(p)
	st.stirred(p.request)
	if how == certain {
		st.leaveClaims(p)
	}
	fresh := p.leaving == ""
	p = st.change(p.UID, func(p *pod) {
		p.lost, p.held, p.departs = how, "", ""
		if p.leaving == "" {
			p.leaving = reason
		}
	})
	st.departing = st.departing.Delete(p.UID)
	st.dirtyGroups[p.Workload] = true
	if fresh {
		st.event(p.Key(), true, "NodeNotReady", "Replaced elsewhere: "+reason)
		st.act("give up", p.Key(), p.Node, reason)
	}
	st.draining = st.draining.Delete(p.UID)
	if p.Stop == nil && (how == certain || p.status == nil) {
		st.stop(p.UID)
		return
	}
	st.recordPod(p)
}

// lost reports whether a pod counts as gone.
func (st *step) lost(uid nodes.UID) bool {
	_, p := st.pod(uid)
	return p != nil && p.lost != ""
}

// returned drains what a node that answers again still has of pods that were
// given up.
func (st *step) returned(n *node) {
	for uid := range keys(n.pods) {
		if _, p := st.pod(uid); p != nil && p.lost == givenUp && p.Stop == nil {
			st.draining = st.draining.Set(uid, struct{}{})
		}
	}
}

func (st *step) settings() desired.Nodes { return st.snapshot.Settings().Nodes }

// wakeForDepartures looks again when the next pod is due to leave its node.
func (st *step) wakeForDepartures() {
	for name := range keys(st.tainted) {
		n, ok := st.nodes.Get(name)
		if !ok {
			continue
		}
		for _, at := range []time.Time{n.look, n.spared} {
			if at.After(st.now) {
				st.wakeAt(at)
			}
		}
	}
}

func keysOf[K, V any](m *immutable.SortedMap[K, V]) []K {
	out := make([]K, 0, m.Len())
	for k := range keys(m) {
		out = append(out, k)
	}
	return out
}
