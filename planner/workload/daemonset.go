package workload

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	// firstBackoff is how long a failed pod of a DaemonSet stays before it is
	// replaced; each further failure on its node doubles that, up to maxBackoff.
	// A node without failures for twice maxBackoff starts anew. Kubernetes'
	// numbers.
	firstBackoff = time.Second
	maxBackoff   = 15 * time.Minute
)

// Daemon is a DaemonSet: one pod on each node that it is for.
type Daemon struct {
	Now time.Time
	// Revised is when a revision last changed the workload or what its pods
	// read: the deadline starts anew.
	Revised time.Time
	// Nodes that are known, sorted by name.
	Nodes []DaemonNode
	// OnDelete leaves pods of earlier templates alone.
	OnDelete           bool
	MinReady, Deadline time.Duration
	// Update is the set of today's template; Old are the others.
	Update *Set
	Old    []*Set
	// WasComplete is set once the current template has been fully available.
	WasComplete bool
	// Failures of pods by node.
	Failures map[string]Failures

	surge, unavailable intstr.IntOrString
}

// DaemonNode is a node as a DaemonSet sees it.
type DaemonNode struct {
	Name string
	// Runs is set when a pod is to run on the node, Stays when one that does may
	// go on.
	Runs, Stays bool
	// Silent nodes are left alone: what is known of them may be wrong.
	Silent bool
}

// Failures are the failed pods of a DaemonSet on one node.
type Failures struct {
	Count int       `json:"count"`
	Last  time.Time `json:"last"`
}

// delay is how long the next failed pod stays.
func (f Failures) delay() time.Duration {
	if f.Count == 0 {
		return 0
	}
	return min(maxBackoff, firstBackoff<<min(f.Count-1, 20))
}

func (f Failures) next(now time.Time) Failures {
	if now.Sub(f.Last) > 2*maxBackoff {
		f.Count = 0
	}
	return Failures{Count: f.Count + 1, Last: now}
}

// DaemonSet fills in what a DaemonSet's spec says; nodes, sets, time and
// history are the caller's to add.
func DaemonSet(spec *appsv1.DaemonSetSpec) Daemon {
	d := Daemon{
		OnDelete:    spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType,
		MinReady:    time.Duration(spec.MinReadySeconds) * time.Second,
		Deadline:    DefaultDeadline,
		unavailable: intstr.FromInt32(1),
	}
	if r := spec.UpdateStrategy.RollingUpdate; r != nil {
		if r.MaxUnavailable != nil {
			d.unavailable = *r.MaxUnavailable
		}
		if r.MaxSurge != nil {
			d.surge = *r.MaxSurge
		}
	}
	return d
}

// Limits are maxSurge and maxUnavailable for the nodes there are, percentages
// rounded up; when both come to 0, one pod may be unavailable.
func (d *Daemon) Limits() (surge, unavailable int) {
	wanted := d.wanted() + d.unheard()
	surge, unavailable = scaled(&d.surge, wanted, true), scaled(&d.unavailable, wanted, true)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// unheard counts the silent nodes that are to run a pod.
func (d *Daemon) unheard() int {
	n := 0
	for i := range d.Nodes {
		if d.Nodes[i].Runs && d.Nodes[i].Silent {
			n++
		}
	}
	return n
}

// wanted counts the nodes that answer and are to run a pod.
func (d *Daemon) wanted() int {
	n := 0
	for i := range d.Nodes {
		if d.Nodes[i].Runs && !d.Nodes[i].Silent {
			n++
		}
	}
	return n
}

// daemonPod is a pod with the template that it has.
type daemonPod struct {
	*Pod
	hash string
}

// post is one node with the pods that are there.
type post struct {
	*DaemonNode
	// new and old are the running pod of today's template and of an earlier one.
	new, old *daemonPod
	failed   []*daemonPod
	// leaving is set while a pod is on its way out.
	leaving bool
}

func (p *post) empty() bool { return p.new == nil && p.old == nil && len(p.failed) == 0 }

// daemonSteps collects what is to be done now.
type daemonSteps struct {
	*Daemon
	Steps
	posts    []post
	failures map[string]Failures
	wake     time.Time
}

// Next says which pods to create and which to remove now, and the failures to
// remember; wake is when a failed pod may be replaced.
func (d *Daemon) Next() (steps Steps, failures map[string]Failures, wake time.Time) {
	s := d.plan()
	surge, unavailable := d.Limits()
	for i := range s.posts {
		s.tend(&s.posts[i], surge > 0 && !d.OnDelete)
	}
	switch {
	case d.OnDelete:
	case surge > 0:
		s.rollSurging(surge)
	default:
		s.roll(unavailable)
	}
	return s.Steps, s.failures, s.wake
}

// plan sorts the pods by node; what more there is than one pod of today's
// template and one of earlier ones goes.
func (d *Daemon) plan() *daemonSteps {
	s := &daemonSteps{Daemon: d, failures: maps.Clone(d.Failures), posts: make([]post, 0, len(d.Nodes))}
	for i := range d.Nodes {
		if !d.Nodes[i].Silent {
			s.posts = append(s.posts, post{DaemonNode: &d.Nodes[i]})
		}
	}
	for _, set := range d.sets() {
		pods := make([]daemonPod, len(set.Pods))
		for i, p := range oldestFirst(set.Pods) {
			pods[i] = daemonPod{p, set.Hash}
			if at := s.post(cmp.Or(p.Node, p.Aim)); at != nil {
				s.enter(at, set, &pods[i])
			}
		}
	}
	return s
}

// post of a node that answers; nil for another.
func (s *daemonSteps) post(node string) *post {
	i, found := slices.BinarySearchFunc(s.posts, node, func(p post, name string) int { return strings.Compare(p.Name, name) })
	if !found {
		return nil
	}
	return &s.posts[i]
}

func (s *daemonSteps) enter(at *post, set *Set, p *daemonPod) {
	switch {
	case p.Leaving:
		at.leaving = true
	case p.done():
		at.failed = append(at.failed, p)
	case set == s.Update:
		at.new = s.keep(at.new, p)
	default:
		at.old = s.keep(at.old, p)
	}
}

// keep chooses between a pod and a younger one: the one that serves, else the
// older.
func (s *daemonSteps) keep(older, p *daemonPod) *daemonPod {
	if older == nil {
		return p
	}
	if s.available(p) && !s.available(older) {
		older, p = p, older
	}
	s.remove(p, "the node has another pod of the DaemonSet")
	return older
}

// oldestFirst orders pods; those of an earlier incarnation are older.
func oldestFirst(pods []Pod) []*Pod {
	out := make([]*Pod, 0, len(pods))
	for i := range pods {
		out = append(out, &pods[i])
	}
	order := func(a, b *Pod) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Incarnation, b.Incarnation))
	}
	if !slices.IsSortedFunc(out, order) {
		slices.SortFunc(out, order)
	}
	return out
}

func (d *Daemon) sets() []*Set {
	sets := slices.Clone(d.Old)
	if d.Update != nil {
		sets = append(sets, d.Update)
	}
	return sets
}

func (d *Daemon) available(p *daemonPod) bool {
	if p == nil {
		return false
	}
	at, ok := p.availableAt(d.MinReady)
	return ok && !at.After(d.Now)
}

func (s *daemonSteps) remove(p *daemonPod, reason string) {
	s.Removes = append(s.Removes, Remove{UID: p.UID, Hash: p.hash, Reason: reason})
}

func (s *daemonSteps) create(p *post) {
	if s.Update != nil {
		s.Creates = append(s.Creates, Create{Hash: s.Update.Hash, Count: 1, Ordinal: NoOrdinal, Node: p.Name})
	}
}

// tend gives a node its pod, and takes away what must not be there. Two pods
// stand side by side only while the older one serves and the newer doesn't.
func (s *daemonSteps) tend(p *post, surging bool) {
	if !p.Stays {
		s.abandon(p)
		return
	}
	p.failed = slices.DeleteFunc(p.failed, func(f *daemonPod) bool { return s.replaceFailed(p, f) })
	switch {
	case p.new != nil && p.old != nil:
		s.choose(p, surging)
	case p.Runs && p.empty() && (surging || !p.leaving):
		s.create(p)
	}
}

// abandon takes all pods from a node that is not for them.
func (s *daemonSteps) abandon(p *post) {
	for _, pod := range append(slices.Clone(p.failed), p.old, p.new) {
		if pod != nil {
			s.remove(pod, "node "+p.Name+" is no longer one that the DaemonSet is for")
		}
	}
	p.old, p.new, p.failed = nil, nil, nil
}

// replaceFailed takes away a pod that has ended; false while it must stay, for
// too many have failed on the node.
func (s *daemonSteps) replaceFailed(p *post, f *daemonPod) bool {
	if f.Phase == corev1.PodFailed {
		known := s.failures[p.Name]
		if until := known.Last.Add(known.delay()); s.Now.Before(until) {
			s.wake = earliest(s.wake, until)
			return false
		}
		if s.failures == nil {
			s.failures = map[string]Failures{}
		}
		s.failures[p.Name] = known.next(s.Now)
	}
	s.remove(f, ended(f.Pod))
	p.leaving = true
	return true
}

// choose ends the time of two pods on one node: the older one's unless only it
// serves. Beside that the newer one may stay only while surging.
func (s *daemonSteps) choose(p *post, surging bool) {
	switch {
	case !p.old.Ready, s.available(p.new):
		s.remove(p.old, s.outdated())
		p.old = nil
	case !surging:
		s.remove(p.new, "the node has another pod of the DaemonSet")
		p.new = nil
	}
}

func (s *daemonSteps) outdated() string { return "replaced by the template " + hashOf(s.Update) }

// roll takes old pods away: those that are not available at once, for they
// serve nobody, then as many others as may be missing. What a silent node has
// counts as missing.
func (s *daemonSteps) roll(limit int) {
	missing := s.unheard()
	var candidates []*post
	for i := range s.posts {
		p := &s.posts[i]
		switch {
		case !p.Stays || !p.Runs && p.old == nil:
		case p.old != nil && s.available(p.old):
			candidates = append(candidates, p)
		case p.old != nil:
			s.remove(p.old, s.outdated())
			missing++
		case !s.available(p.new):
			missing++
		}
	}
	for _, p := range candidates[:max(0, min(limit-missing, len(candidates)))] {
		s.remove(p.old, s.outdated())
	}
}

// rollSurging starts new pods beside old ones: beside those that are not
// available at once, beside others as many as the surge allows. The old ones
// go when the new ones are available (see choose).
func (s *daemonSteps) rollSurging(limit int) {
	surplus, available := s.unheard(), 0
	var candidates, sunset []*post
	for i := range s.posts {
		p := &s.posts[i]
		if s.available(p.old) || p.old == nil && s.available(p.new) {
			available++
		}
		switch {
		case p.old == nil:
		case p.new != nil, len(p.failed) > 0:
			surplus++
		case !p.Runs && !s.available(p.old):
			s.remove(p.old, s.outdated())
		case !p.Runs:
			sunset = append(sunset, p)
		case !s.available(p.old):
			s.create(p)
		default:
			candidates = append(candidates, p)
		}
	}
	for _, p := range sunset[:max(0, min(available-s.wanted(), len(sunset)))] {
		s.remove(p.old, s.outdated())
	}
	for _, p := range candidates[:max(0, min(limit-surplus, len(candidates)))] {
		s.create(p)
	}
}

// Verdict says how the workload is doing. What is on silent nodes is not
// waited for.
func (d *Daemon) Verdict() Verdict {
	v := Verdict{Wanted: d.wanted()}
	t := tally{now: d.Now, minReady: d.MinReady, update: d.Update, unknown: d.silent()}
	t.count(&v, d.sets())
	_, unavailable := d.Limits()
	covered, outdated := d.coverage()
	v.Available = covered
	v.Complete = covered == v.Wanted && (outdated == 0 || d.OnDelete)
	describe := fmt.Sprintf("%d of %s available", covered, plural(v.Wanted, "pod"))
	if outdated > 0 && !d.OnDelete {
		describe = fmt.Sprintf("%d of %s available, %s still there", t.updatedAvailable, plural(v.Wanted, "updated pod"), plural(outdated, "old pod"))
	}
	if n := d.unheard(); n > 0 && !v.Complete {
		describe += ", " + plural(n, "node") + " silent"
	}
	v.judge(lateness{
		now: d.Now, progress: latest(d.Revised, t.progress), deadline: d.Deadline, wasComplete: d.WasComplete,
		least: v.Wanted - unavailable, leaving: t.leaving, describe: describe, trouble: t.trouble(d.Old),
	})
	if v.Health == nodes.Healthy {
		v.Reason = join(d.remarks(outdated), v.Reason)
	}
	return v
}

// silent are the nodes whose pods nothing is known of now.
func (d *Daemon) silent() map[string]bool {
	silent := map[string]bool{}
	for i := range d.Nodes {
		if d.Nodes[i].Silent {
			silent[d.Nodes[i].Name] = true
		}
	}
	return silent
}

// coverage counts the nodes with an available pod, and those with a pod of an
// earlier template, of the nodes that are to run one.
func (d *Daemon) coverage() (covered, outdated int) {
	for _, p := range d.plan().posts {
		if !p.Runs {
			continue
		}
		if d.available(p.new) || d.available(p.old) {
			covered++
		}
		if p.old != nil {
			outdated++
		}
	}
	return covered, outdated
}

// remarks says what a healthy DaemonSet still is not.
func (d *Daemon) remarks(outdated int) string {
	var parts []string
	if outdated > 0 {
		parts = append(parts, "update strategy OnDelete: "+plural(outdated, "pod")+" of an earlier template")
	}
	if n := d.unheard(); n > 0 {
		parts = append(parts, plural(n, "node")+" silent")
	}
	if len(d.Nodes) > 0 && d.wanted() == 0 && d.unheard() == 0 {
		parts = append(parts, "no node matches its node selector, affinity and tolerations")
	}
	return join(parts...)
}
