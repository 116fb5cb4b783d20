package sim

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/planner"
)

// step is one step of the planner, as the invariants see it.
type step struct {
	now           time.Time
	plan          *planner.Plan
	before, after *view
	// commit is the one in force afterwards, intent what it says; nil before the first.
	commit *commit
	intent *intent
	// begun is what the Jobs' runs were begun for.
	begun map[desired.Key]run
	// suspect is the commit in force when the guard should have held it.
	suspect *commit
	data    *ledger
	crons   map[desired.Key]*cron
	demand  *demand
	decided map[nodes.UID]*nodes.Pod
	git     *repository
	silence silence
	// over are pods that had ended when they were given away.
	over map[nodes.UID]bool
	// drained is since when nodes are.
	drained map[string]time.Time
	// runs reports whether a pod runs on a node in truth.
	runs func(node string, uid nodes.UID) bool
}

// stepInvariants hold after every step of the planner.
var stepInvariants = []func(*step) error{
	onlyGitMakesPods, onlyValidRevisionsAreInForce, neverTooManyPods, neverTooFewPods,
	onePodAnOrdinal, nothingGoesForLackOfKnowledge, nothingVanishes, guardHolds, routesLeadToReadyPods, jobsCountOnce, dataOutlivesItsClaim,
	schedulesMakeJobs, sizesFollowUsage, podsArePlacedWell, drainsOneByOne, givesUpNoMoreThanItMay, rangesDiffer,
}

// made are the pods that the step decided on; gone those that it lets go.
func (s *step) made(f func(nodes.UID, podView)) {
	for uid, p := range s.after.pods {
		if _, known := s.before.pods[uid]; !known && s.decided[uid] == nil {
			f(uid, p)
		}
	}
}

func (s *step) leaving(f func(podView)) {
	for uid, p := range s.after.pods {
		if b, known := s.before.pods[uid]; known && p.stopping && !b.stopping {
			f(p)
		}
	}
}

// onlyGitMakesPods: invariant 1.
func onlyGitMakesPods(s *step) (err error) {
	s.made(func(uid nodes.UID, p podView) {
		if s.intent == nil {
			err = violated(1, "pod %s was made while nothing is in force", p.name)
		} else if _, wanted := s.intentOf(p.workload); !wanted {
			err = violated(1, "pod %s was made for %s, which is not in Git", p.name, p.workload)
		}
	})
	return err
}

// onlyValidRevisionsAreInForce: invariant 2.
func onlyValidRevisionsAreInForce(s *step) error {
	if s.after.force != "" && (s.commit == nil || !s.commit.valid) {
		return violated(2, "revision %s is in force and not valid", s.after.force)
	}
	return nil
}

// neverTooManyPods: invariant 4. Of a DaemonSet it is each node that must not
// have too many: after a change of the strategy, others may still have two.
func neverTooManyPods(s *step) (err error) {
	live, checked, there := map[desired.Key]int{}, map[desired.Key]bool{}, map[post]int{}
	for _, p := range s.after.pods {
		if !p.stopping && !p.done {
			live[p.workload]++
			there[p.post()]++
		}
	}
	s.made(func(_ nodes.UID, p podView) {
		w, found := s.intentOf(p.workload)
		switch most, _ := w.bounds(p.workload.Kind); {
		case p.workload.Kind != kindDaemonSet:
			checked[p.workload] = true
		case found && p.node != "" && w.replicas > 0 && there[p.post()] > most/w.replicas:
			err = violated(4, "%s has %d pods on %s, at most %d are allowed", p.workload, there[p.post()], p.node, most/w.replicas)
		}
	})
	for k := range checked {
		if k.Kind == kindStatefulSet {
			continue // one that shrinks fills its gaps first; see onePodAnOrdinal
		}
		w, found := s.intentOf(k)
		if most, _ := w.bounds(k.Kind); found && live[k] > most {
			err = violated(4, "%s has %d pods, at most %d are allowed", k, live[k], most)
		}
	}
	return err
}

// intentOf is what Git says of a workload: of a CronJob's Job what it says of
// the CronJob, of what is autoscaled with the size that it has.
func (s *step) intentOf(k desired.Key) (workload, bool) {
	if s.intent == nil {
		return workload{}, false
	}
	w, found := s.intent.workloads[k]
	if !found {
		w, found = s.intent.workloads[s.maker(k)]
	}
	if _, scaled := s.intent.scalerOf(k); scaled {
		w.replicas = s.after.wanted[k]
	}
	return w, found
}

// neverTooFewPods: invariant 4. Of a DaemonSet it is the nodes that must not be
// without: a pod may go where another one serves, however few others do.
func neverTooFewPods(s *step) (err error) {
	left, covered := map[desired.Key]int{}, map[post]bool{}
	for _, p := range s.after.pods {
		if p.stopping || !s.available(&p) || covered[p.post()] {
			continue
		}
		left[p.workload]++
		if p.workload.Kind == kindDaemonSet {
			covered[p.post()] = true
		}
	}
	s.leaving(func(p podView) {
		w, found := s.intentOf(p.workload)
		_, least := w.bounds(p.workload.Kind)
		if p.workload.Kind == kindDaemonSet {
			least += len(s.after.nodes) - w.replicas // some may not have joined yet
		}
		if found && !p.surplus(&w) && !s.mercyIsOver(p) && !covered[p.post()] && s.available(&p) && left[p.workload] < least {
			err = violated(4, "pod %s of %s goes and leaves %d available, at least %d must stay", p.name, p.workload, left[p.workload], least)
		}
	})
	return err
}

// post is what a DaemonSet's pods on one node share.
type post struct {
	workload desired.Key
	node     string
}

func (p *podView) post() post { return post{p.workload, p.node} }

func (s *step) available(p *podView) bool {
	w, _ := s.intentOf(p.workload)
	since := p.readySince.Add(time.Duration(w.minReady) * time.Second)
	return p.ready && !p.done && s.after.nodes[p.node].Ready && (w.minReady == 0 || !since.After(s.now))
}

// onePodAnOrdinal: invariant 5. No second pod while something is left of the
// first, unless that has certainly ended, and each has the name of its ordinal.
func onePodAnOrdinal(s *step) error {
	names := map[string]nodes.UID{}
	for uid, p := range s.after.pods {
		if p.workload.Kind != kindStatefulSet {
			continue
		}
		name := p.namespace + "/" + p.name
		if s.isOver(uid, p) {
			continue
		}
		if other, twice := names[name]; twice {
			return violated(5, "the pods %s and %s are both %s", other, uid, name)
		}
		names[name] = uid
		if p.ordinal() < 0 {
			return violated(5, "a pod of %s is called %s", p.workload, p.name)
		}
	}
	return nil
}

// isOver reports whether a pod that was given away has truly ended.
func (s *step) isOver(uid nodes.UID, p podView) bool {
	if p.stopping && p.node != "" && !s.after.nodes[p.node].Ready && !s.runs(p.node, uid) {
		s.over[uid] = true
	}
	return s.over[uid]
}

// ordinal of a StatefulSet's pod; -1 when its name has none.
func (p *podView) ordinal() int {
	n, err := strconv.Atoi(strings.TrimPrefix(p.name, p.workload.Name+"-"))
	if err != nil {
		return -1
	}
	return n
}

// surplus reports whether an ordinal is beyond what is wanted.
func (p *podView) surplus(w *workload) bool {
	return p.workload.Kind == kindStatefulSet && p.ordinal() >= w.replicas
}

// nothingGoesForLackOfKnowledge: invariant 7.
func nothingGoesForLackOfKnowledge(s *step) (err error) {
	live := s.live()
	s.leaving(func(p podView) {
		w, wanted := s.intentOf(p.workload)
		switch n := s.after.nodes[p.node]; {
		case s.after.force == "":
			err = violated(7, "pod %s goes while nothing is in force", p.name)
		case wanted && p.node != "" && !n.Ready:
			// See givesUpNoMoreThanItMay.
		case s.leavesItsNode(p):
		case wanted && !p.done && p.hash == s.after.templates[p.workload] && p.hash == s.before.templates[p.workload] && live[p.workload] <= w.replicas && p.workload.Kind != kindPod && p.workload.Kind != kindJob && !p.surplus(&w):
			err = violated(7, "pod %s of %s goes for no reason", p.name, p.workload)
		}
	})
	return err
}

// live counts the pods that each workload had, with those that came to light in
// this step.
func (s *step) live() map[desired.Key]int {
	live := map[desired.Key]int{}
	for uid, p := range s.after.pods {
		if !s.before.pods[uid].stopping && !p.done {
			live[p.workload]++
		}
	}
	return live
}

// nothingVanishes: invariant 7.
func nothingVanishes(s *step) error {
	for uid, p := range s.before.pods {
		ended := p.done && p.workload.Kind == kindJob // counted, and its node lost it
		if _, there := s.after.pods[uid]; !there && p.node != "" && !p.stopping && p.workload.Kind != kindPod && !ended {
			return violated(7, "pod %s was forgotten without having been stopped", p.name)
		}
	}
	return nil
}

// jobsCountOnce: invariant 9. A Job counts no more successes than it wants, exactly as many
// when it is complete, and never fewer than before in the same run.
func jobsCountOnce(s *step) error {
	for k, j := range s.after.jobs {
		before, known := s.before.jobs[k]
		w, wanted := s.intentOf(k)
		switch {
		case j.Succeeded > j.Completions || j.Condition != "" && j.Succeeded != j.Completions:
			return violated(9, "%s counts %d of %d successes, condition %q", k, j.Succeeded, j.Completions, j.Condition)
		case known && before.Condition != "" && j.Condition == "" && (wanted && w == s.begun[k].of || s.maker(k) != desired.Key{}):
			return violated(9, "%s was complete and runs again", k)
		}
	}
	return nil
}

// neverAfterItsEnd: invariant 9. A Job that has ended starts nothing.
func neverAfterItsEnd(v *view, decided map[nodes.UID]*nodes.Pod, c runtime.Status) error {
	p := decided[nodes.UID(c.Labels[labelPod])]
	if p == nil || p.Stop != nil {
		return nil
	}
	if j, found := v.jobs[p.Workload]; found && j.Condition != "" {
		return violated(9, "container %s of %s starts after the end of the Job", c.ID, p.Workload)
	}
	return nil
}

// guardHolds: invariant 8.
func guardHolds(s *step) (err error) {
	if s.suspect == nil {
		return nil
	}
	s.leaving(func(p podView) {
		if _, wanted := s.intentOf(p.workload); !wanted {
			err = violated(8, "revision %s deletes %s, and nobody confirmed it", s.suspect.revision.SHA[36:], p.workload)
		}
	})
	return err
}

// confirms reports whether a revision carries the word for so many deletions.
func confirms(r desired.Revision, deletions int) bool {
	return strings.Contains(r.Message, fmt.Sprintf("\nTally-Confirm: delete %d", deletions)) &&
		!strings.Contains(r.Message, fmt.Sprintf("\nTally-Confirm: delete %d0", deletions))
}

// routesLeadToReadyPods: invariant 10.
func routesLeadToReadyPods(s *step) error {
	if s.plan.Routes == nil {
		return nil
	}
	pods := map[string]podView{}
	for _, p := range s.after.pods {
		if old, found := pods[p.namespace+"/"+p.name]; !found || old.stopping {
			pods[p.namespace+"/"+p.name] = p
		}
	}
	for _, v := range s.plan.Routes.Services {
		if s.intent == nil || s.intent.services[desired.Key{Kind: kindService, Namespace: v.Namespace, Name: v.Name}].early {
			continue
		}
		for _, port := range v.Ports {
			for _, e := range port.Endpoints {
				if p := pods[v.Namespace+"/"+e.Pod]; !p.ready || p.stopping || p.done {
					return violated(10, "service %s/%s leads to pod %s, which is not ready", v.Namespace, v.Name, e.Pod)
				}
			}
		}
	}
	return nil
}

// convergedPlansNothing: invariant 3.
func convergedPlansNothing(p *planner.Plan) error {
	if p.Empty() {
		return nil
	}
	return violated(3, "a converged cluster gives a plan: actions %v, waiting %v, %d decisions, %d assignments, routes %v",
		p.Actions, p.Waiting, len(p.Decisions), len(p.Assignments), p.Routes != nil)
}

// nodeHoldsItsPods: invariant 6. has is the node's cpu in thousandths.
func nodeHoldsItsPods(a *nodes.Assignment, v *view, has int64) error {
	var cpu, pods int64
	for _, p := range a.Pods {
		if v.pods[p.UID].done {
			continue
		}
		pods++
		for i := range p.Template.Spec.Containers {
			cpu += p.Template.Spec.Containers[i].Resources.Requests.Cpu().MilliValue()
		}
	}
	if cpu > has {
		return violated(6, "node %s is to run pods that request %dm cpu and has %dm", a.Node, cpu, has)
	}
	if pods > mostPods {
		return violated(6, "node %s is to run %d pods and takes %d", a.Node, pods, mostPods)
	}
	return nil
}

// ownSecretsOnly: invariant 11. A node sees the Secrets that its pods name.
func ownSecretsOnly(a *nodes.Assignment) error {
	named := map[desired.Key]bool{}
	for _, p := range a.Pods {
		for i := range p.Template.Spec.Containers {
			for _, e := range p.Template.Spec.Containers[i].Env {
				if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
					named[desired.Key{Kind: kindSecret, Namespace: p.Namespace, Name: e.ValueFrom.SecretKeyRef.Name}] = true
				}
			}
		}
	}
	for _, c := range a.Configs {
		if c.Key.Kind == kindSecret && !named[c.Key] {
			return violated(11, "node %s is given %s, which none of its pods names", a.Node, c.Key)
		}
	}
	return nil
}

// decidedBeforeItStarts: invariant 1.
func decidedBeforeItStarts(decided map[nodes.UID]*nodes.Pod, c runtime.Status) error {
	if p := decided[nodes.UID(c.Labels[labelPod])]; p == nil {
		return violated(1, "container %s starts, and no decision knows its pod", c.ID)
	}
	return nil
}

// startsAlone: invariant 5. A StatefulSet's container starts on no machine while
// the ordinal runs on another.
func (w *world) startsAlone(m *machine, c runtime.Status) error {
	if workloadOf(c).Kind != kindStatefulSet {
		return nil
	}
	for _, other := range w.nodes {
		if other == m {
			continue // the runtime itself holds its names
		}
		for _, o := range other.runtime.running() {
			if o.Labels[labelName] == c.Labels[labelName] && o.Labels[labelNamespace] == c.Labels[labelNamespace] && o.Labels[labelContainer] == c.Labels[labelContainer] {
				return violated(5, "%s/%s starts on %s as pod %s and runs on %s as pod %s", c.Labels[labelNamespace], c.Labels[labelName], m.name, c.Labels[labelPod], other.name, o.Labels[labelPod])
			}
		}
	}
	return nil
}

// runsOnce: invariant 5. Whatever the planner believes, no two machines run the
// pod of one ordinal.
func (w *world) runsOnce() error {
	holder := map[string]string{}
	for _, m := range w.nodes {
		for _, c := range m.runtime.running() {
			if workloadOf(c).Kind != kindStatefulSet {
				continue
			}
			name := c.Labels[labelNamespace] + "/" + c.Labels[labelName] + "/" + c.Labels[labelContainer]
			if other, twice := holder[name]; twice {
				return violated(5, "%s runs as pod %s and as pod %s on %s", name, other, c.Labels[labelPod], m.name)
			}
			holder[name] = c.Labels[labelPod]
		}
	}
	return nil
}

// notDoubled: invariant 9.
func notDoubled(c runtime.Status, beside []runtime.Status) error {
	for _, o := range beside {
		if o.ID != c.ID && o.Labels[labelPod] == c.Labels[labelPod] && o.Labels[labelContainer] == c.Labels[labelContainer] {
			return violated(9, "container %s starts while %s runs", c.ID, o.ID)
		}
	}
	return nil
}

// endsOnlyWhenTold: invariants 7 and 9. No probe of the simulator restarts a
// container, so an agent ends one only with its pod.
func endsOnlyWhenTold(stopped map[nodes.UID]bool, node string, c runtime.Status) error {
	if !stopped[nodes.UID(c.Labels[labelPod])] {
		return violated(9, "node %s ends container %s, and nobody told its pod to stop", node, c.ID)
	}
	return nil
}
