package sim

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/registry"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/proxy"
)

// witness sees every step of the planner, everything that is handed over and
// every start and end of a container, across all lives of server and agents,
// and holds it against the invariants.
type witness struct {
	world *world

	mu sync.Mutex
	// guarded by mu
	first error
	// deaf is set while a server dies: nobody hears what it still says.
	deaf bool
	// voice is the newest server: no other one counts.
	voice *server
	// fresh is set until a server has made its first step.
	fresh bool
	last  *view
	steps int
	calls int
	// latest is the last of those calls in words.
	latest string
	// known is since when the server knows what is in force; zero while it can't
	// read that again and leaves everything, routes too, as it is.
	known time.Time

	// force is the revision that is truly in force, source where it came from;
	// suspect is one that the guard should have held.
	force, suspect *commit
	source         string
	// changed is when force last changed, acted is set once something was handed
	// over since: then it is recorded.
	changed time.Time
	acted   bool
	// held are the commits that the guard holds as it should.
	held map[*commit]bool

	decided map[nodes.UID]*nodes.Pod
	stopped map[nodes.UID]bool
	handed  map[string]nodes.Assignment
	table   *proxy.Table
	// planned is when the tables that are still to be handed over were planned, by
	// their generation. What leaves the routes has its time from then on where
	// several servers write to a store that may take seconds; else from the handing over.
	planned map[uint64]time.Time
	// runs are what the Jobs' runs were begun for.
	runs map[desired.Key]run
	// excluded is since when a pod is in no table any more, by name and address:
	// a StatefulSet's pods bear the names of those before them.
	excluded map[string]time.Time
	data     *ledger
	crons    map[desired.Key]*cron
	silence  silence
	// turned is when the state of nodes last changed; servers' clocks may be wrong.
	turned map[string]time.Time
	// drained is since when nodes are, by what is in force.
	drained map[string]time.Time
	over    map[nodes.UID]bool
	// done are the pods that were seen to have ended. A new leader may not know it
	// of one whose node lost its store, until the agent has looked at what is left.
	done   map[nodes.UID]bool
	killed int
}

func newWitness(w *world) *witness {
	return &witness{
		world: w, last: &view{}, decided: map[nodes.UID]*nodes.Pod{}, stopped: map[nodes.UID]bool{},
		handed: map[string]nodes.Assignment{}, excluded: map[string]time.Time{}, planned: map[uint64]time.Time{}, held: map[*commit]bool{},
		runs: map[desired.Key]run{}, data: newLedger(w.extras.keep), crons: map[desired.Key]*cron{},
		silence: silence{}, turned: map[string]time.Time{}, drained: map[string]time.Time{}, over: map[nodes.UID]bool{}, done: map[nodes.UID]bool{},
	}
}

// report keeps the first thing that went wrong.
func (x *witness) report(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fail(err)
}

// fail is report for those who hold mu.
func (x *witness) fail(err error) {
	if err != nil && x.first == nil {
		x.first = err
		x.world.note("VIOLATED %v", err)
	}
}

func (x *witness) violation() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.first
}

func (x *witness) count(r *Result) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r.Steps, r.Pods, r.Volumes, r.Ends = x.steps, len(x.decided), len(x.data.owners), len(x.data.ordered)
	r.Away, r.Killed = len(x.over), x.killed
}

// truth is the commit in force; nil before the first.
func (x *witness) truth() *commit {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.force
}

// from is where the truth came from.
func (x *witness) from() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.source
}

func (x *witness) newServer(s *server) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.voice, x.deaf, x.fresh, x.known = s, false, true, time.Time{}
}

func (x *witness) deafen() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.deaf = true
}

// sees reports whether the planner counts a node as connected.
func (x *witness) sees(node string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last.nodes[node].Ready
}

// toldAll reports whether what is in force has been in force for long enough
// that the nodes' ledgers tell it.
func (x *witness) toldAll() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return time.Since(x.changed) > 5*time.Second
}

// knowsIntent reports whether the server has known the revision in force for so long.
func (x *witness) knowsIntent(since time.Duration) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return !x.known.IsZero() && time.Since(x.known) >= since
}

// holds reports whether the guard must hold a commit that follows the truth.
func (x *witness) holds(c *commit) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	why := x.force.intent.mustHold(c.intent, x.world.source != x.source, x.last.running, x.losesData(x.last, x.force.intent, c.intent))
	return x.held[c] || why != "" && !confirms(c.revision, len(x.force.intent.gone(c.intent)))
}

// activity counts what was planned and handed over, to see that a cluster is at
// rest, and describes the latest.
func (x *witness) activity() (calls int, latest string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.calls, x.latest
}

// next is planner.Next with a witness.
func (x *witness) next(by *server, s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
	plan := planner.Next
	if b := x.world.o.Bug; b != nil && b.Next != nil {
		plan = b.Next
	}
	after, p := plan(s, c, now)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.deaf || x.voice != by || x.first != nil {
		return after, p
	}
	x.steps++
	if !p.Empty() {
		x.calls++
		x.latest = fmt.Sprintf("last it planned: hold %v, %d differences, actions %v, waiting %v, decisions %s, %d assignments, routes %v",
			p.Hold != nil, len(p.Difference), p.Actions, p.Waiting, decisionsText(p.Decisions), len(p.Assignments), p.Routes != nil)
	}
	if p.Routes != nil {
		x.planned[p.Routes.Generation] = time.Now()
	}
	if _, again := plan(s, c, now); !reflect.DeepEqual(p, again) {
		x.fail(violated(3, "the same inputs gave two plans"))
	}
	st := &step{now: now, plan: p, before: x.last, after: newView(after.Overview(now)), decided: x.decided}
	x.world.leaveOutStrangers(st.after.nodes)
	if x.fresh {
		st.before = baseline(s, c, now)
		x.noteDone(st.before)
		x.takeBack(st.before.force)
		x.fresh = false
	}
	x.noteDone(st.after)
	if x.known.IsZero() && st.after.force != "" {
		x.known = time.Now()
	}
	st.commit = x.world.repo.commit(st.after.force)
	st.begun, st.data, st.crons, st.demand = x.runs, x.data, x.crons, x.world.demand
	st.git, st.silence, st.over, st.runs = x.world.repo, x.silence, x.over, x.world.runsOn
	x.silence.note(st)
	x.noteTurns(st)
	x.putInForce(st)
	x.noteHold(st)
	if st.commit != nil {
		st.intent = st.commit.intent
	}
	x.noteWords(st)
	st.drained = x.drained
	for _, check := range stepInvariants {
		x.fail(check(st))
	}
	x.fail(x.convergedIsReachable(st))
	if st.after.converged && len(p.Actions) == 0 && len(p.Waiting) == 0 {
		_, more := plan(after, planner.Change{}, now)
		x.fail(convergedPlansNothing(more))
	}
	x.noteRuns(st)
	x.last = st.after
	return after, p
}

// noteTurns keeps when nodes came and went.
func (x *witness) noteTurns(st *step) {
	for name, n := range st.after.nodes {
		if !n.Since.Equal(x.last.nodes[name].Since) {
			x.turned[name] = time.Now()
		}
	}
}

// leaveOutStrangers keeps of a view's nodes the machines of the world.
func (w *world) leaveOutStrangers(known map[string]nodes.NodeState) {
	maps.DeleteFunc(known, func(name string, _ nodes.NodeState) bool {
		return !slices.ContainsFunc(w.nodes, func(m *machine) bool { return m.name == name })
	})
}

// convergedIsReachable: invariant 10. When a revision is said to be converged,
// every node that is connected routes to every ready pod behind a service.
func (x *witness) convergedIsReachable(st *step) error {
	if !st.after.converged || st.before.converged && st.before.force == st.after.force || st.intent == nil {
		return nil
	}
	var want []string
	for _, p := range st.after.pods {
		if p.ready && !p.stopping && st.after.nodes[p.node].Ready && st.intent.serves(p.workload) {
			want = append(want, p.namespace+"/"+p.name+" "+p.addr)
		}
	}
	for _, m := range x.world.nodes {
		// What an agent that came back has in force is the older table that it had
		// stored, until its session begins.
		back := m.since.After(x.world.began) && time.Since(m.since) < settled
		if m.agent == nil || back || !st.after.nodes[m.name].Ready {
			continue
		}
		routed := routed(m.kernel.table())
		for _, pod := range want {
			if !routed[pod] {
				return violated(10, "revision %s is said to be converged, and node %s does not route to pod %s but by %s",
					st.after.force[36:], m.name, pod, printRoutes(m.kernel.table()))
			}
		}
	}
	return nil
}

// run is what a Job's run was begun for, and when.
type run struct {
	started time.Time
	of      workload
}

// noteRuns keeps what each Job's run was begun for. A changed Job may have to
// wait for its node before its next run begins.
func (x *witness) noteRuns(st *step) {
	for k, j := range st.after.jobs {
		if w, wanted := st.intentOf(k); wanted && !x.runs[k].started.Equal(j.Started) {
			x.runs[k] = run{started: j.Started, of: w}
		}
	}
	for k := range x.runs {
		if _, wanted := st.intentOf(k); !wanted {
			delete(x.runs, k)
		}
	}
}

// noteDone keeps that pods have ended, which nothing takes back.
func (x *witness) noteDone(v *view) {
	for uid, p := range v.pods {
		if p.done {
			x.done[uid] = true
		} else if x.done[uid] {
			p.done = true
			v.pods[uid] = p
		}
	}
}

// baseline is what a server knows when it begins, before it decides anything.
func baseline(s *planner.State, c planner.Change, now time.Time) *view {
	c.Snapshot = nil
	state, _ := planner.Next(s, c, now)
	return newView(state.Overview(now))
}

// takeBack forgets a revision that one of several servers put in force and could
// not record before another one led: what that finds recorded is in force.
func (x *witness) takeBack(recorded string) {
	if x.world.store == nil || x.force == nil || x.force.revision.SHA == recorded {
		return
	}
	if x.acted && recorded != "" {
		x.fail(violated(2, "revision %s was acted upon, and the next server finds that %s is in force", x.force.revision.SHA[36:], recorded[36:]))
	}
	x.world.note("in force again: %q; %s was not recorded", recorded, x.force.revision.SHA[36:])
	x.force, x.suspect, x.changed = x.world.repo.commit(recorded), nil, time.Now()
}

// putInForce notes that another revision is in force, unless the guard should
// have held it: then it is a suspect until it deletes something.
func (x *witness) putInForce(st *step) {
	c, source := st.commit, sourceOf(st.plan, x.source)
	if c == nil || c == x.force && source == x.source {
		return
	}
	st.suspect = x.suspect
	if x.force != nil {
		gone := len(x.force.intent.gone(c.intent))
		why := x.force.intent.mustHold(c.intent, source != x.source, st.before.running, x.losesData(st.before, x.force.intent, c.intent))
		if why != "" && !confirms(c.revision, gone) {
			x.suspect, st.suspect = c, c
			return
		}
	}
	x.force, x.source, x.suspect, st.suspect, x.changed, x.acted = c, source, nil, nil, time.Now(), false
	x.world.note("in force: %s", c.revision.SHA[36:])
}

// noteHold checks a hold against the guard as the simulator understands it.
func (x *witness) noteHold(st *step) {
	if st.plan.Hold == nil || x.force == nil {
		return
	}
	c := x.world.repo.commit(st.plan.Hold.Revision.SHA)
	if x.force.intent.mustHold(c.intent, x.world.source != x.source, st.before.running, x.losesData(st.before, x.force.intent, c.intent)) == "" {
		x.fail(violated(8, "revision %s is held for no reason: %s", c.revision.SHA[36:], st.plan.Hold.Why))
	}
	x.held[c] = true
}

// sourceOf is where the revision in force came from, as the plan records it.
func sourceOf(p *planner.Plan, before string) string {
	for _, d := range p.Decisions {
		var value struct{ Source string }
		if d.Kind == "inforce" && json.Unmarshal(d.Value, &value) == nil {
			return value.Source
		}
	}
	return before
}

// hands is the executor with a witness in between.
type hands struct {
	world  *world
	server *server
	to     *registry.Registry

	mu sync.Mutex
	// guarded by mu
	// left counts what is still handed over when dying is not nil: then the
	// server dies, and dying is closed.
	left  int
	dying chan struct{}
}

// dieAfter has the server die after it has handed over so many things more.
// The channel is closed when it does.
func (h *hands) dieAfter(n int) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.left, h.dying = n, make(chan struct{})
	return h.dying
}

// lives reports whether the server lives to hand over the next thing, and may.
func (h *hands) lives() bool {
	if t := h.server.term; t != nil {
		h.server.host.held.pass(nil)
		if !t.leads() {
			return false
		}
		if leads := h.world.store.leads(); leads > t.revision {
			h.world.witness.report(violated(5, "server %s of term %d hands over while term %d has begun", h.server.host.name, t.revision, leads))
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dying == nil {
		return true
	}
	if h.left == 0 {
		close(h.dying)
	}
	h.left--
	return h.left >= 0
}

func (h *hands) hears() bool {
	x := h.world.witness
	x.mu.Lock()
	defer x.mu.Unlock()
	x.calls++
	x.latest = "last it handed over to a node, or its routes"
	return !x.deaf && x.voice == h.server
}

// Ledger implements loop.Executor. The loop may note which revision it follows
// when it could read that again: that is no activity.
func (h *hands) Ledger(d []nodes.Decision) {
	if h.lives() {
		h.to.Ledger(d)
	}
}

// Member implements loop.Executor.
func (h *hands) Member(m nodes.Member) { h.to.Member(m) }

// Revoke implements loop.Executor.
func (h *hands) Revoke(names []string) { h.to.Revoke(names) }

// Route implements loop.Executor.
func (h *hands) Route(t *proxy.Table) {
	if !h.lives() {
		return
	}
	if b := h.world.o.Bug; b != nil && b.Route != nil {
		t = b.Route(h.world, t)
	}
	if h.hears() {
		h.world.witness.routes(t)
	}
	h.to.Route(t)
}

// Assign implements loop.Executor.
func (h *hands) Assign(a nodes.Assignment) {
	if !h.lives() {
		return
	}
	planned := a
	if b := h.world.o.Bug; b != nil && b.Assign != nil {
		a = b.Assign(h.world, a)
	}
	if h.hears() {
		h.world.witness.assigned(planned)
		h.world.witness.report(ownSecretsOnly(&a))
	}
	h.to.Assign(a)
}

// Tune implements loop.Executor.
func (h *hands) Tune(n desired.Nodes) { h.to.Tune(n) }

// Expect implements loop.Executor.
func (h *hands) Expect(known []nodes.NodeState, longest time.Duration) { h.to.Expect(known, longest) }

// routes notes a table that is handed over.
func (x *witness) routes(t *proxy.Table) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.table != nil && t.Generation <= x.table.Generation {
		x.fail(violated(10, "route generation %d follows %d", t.Generation, x.table.Generation))
	}
	now, since := routed(t), time.Now()
	if x.world.store != nil {
		since = x.planned[t.Generation]
	}
	clear(x.planned)
	for name := range routed(x.table) {
		if !now[name] {
			x.excluded[name] = since
		}
	}
	for name := range now {
		delete(x.excluded, name)
	}
	x.table, x.acted = t, true
}

// routed are the pods that a table leads to, by name and address.
func routed(t *proxy.Table) map[string]bool {
	names := map[string]bool{}
	if t == nil {
		return names
	}
	for _, s := range t.Services {
		for _, p := range s.Ports {
			for _, e := range p.Endpoints {
				names[s.Namespace+"/"+e.Pod+" "+e.Addr.String()] = true
			}
		}
	}
	return names
}

// printRoutes is a table in one line.
func printRoutes(t *proxy.Table) string {
	var b strings.Builder
	if t == nil {
		return "none"
	}
	fmt.Fprintf(&b, "generation %d", t.Generation)
	for _, s := range t.Services {
		fmt.Fprintf(&b, " %s/%s:", s.Namespace, s.Name)
		for _, p := range s.Ports {
			for _, e := range p.Endpoints {
				fmt.Fprintf(&b, " %s=%s", e.Pod, e.Addr)
			}
		}
	}
	return b.String()
}

// assigned notes what a node is told.
func (x *witness) assigned(a nodes.Assignment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range a.Pods {
		x.decided[p.UID] = p
		if p.Stop != nil {
			x.stopped[p.UID] = true
		}
	}
	x.handed[a.Node], x.acted = a, true
	x.fail(nodeHoldsItsPods(&a, x.last, 1000*x.world.shape.cpu))
	x.fail(portsAreFree(&a, x.last, x.world.repo))
}

// assignmentOf is what a node was handed last; the zero one before the first.
func (x *witness) assignmentOf(node string) nodes.Assignment {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.handed[node]
}

// kills is told that a keeper killed a pod.
func (x *witness) kills() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.killed++
}

// starts is told before a container starts on m, beside those that run there.
func (x *witness) starts(m *machine, c runtime.Status, beside []runtime.Status) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fail(decidedBeforeItStarts(x.decided, c))
	x.fail(neverAfterItsEnd(x.last, x.decided, c))
	x.fail(notDoubled(c, beside))
	x.fail(x.world.startsAlone(m, c))
}

// atOnce is how long what a node says may wait while a step is made.
const atOnce = 50 * time.Millisecond

// ends is told before an agent ends a container that runs.
func (x *witness) ends(m *machine, c runtime.Status) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fail(endsOnlyWhenTold(x.stopped, m.name, c))
	name := c.Labels[labelNamespace] + "/" + c.Labels[labelName] + " " + m.network.addrOf(nodes.UID(c.Labels[labelPod])).String()
	since, excluded := x.excluded[name]
	for _, other := range x.world.nodes {
		n, known := x.last.nodes[other.name]
		// A node that came back since has the routes of its time; so has an agent
		// that died in the moment between a table's coming into force and its storing.
		away := excluded && (other != m && x.turned[other.name].After(since.Add(-atOnce)) || !other.since.Before(since))
		if other.agent != nil && known && n.Ready && !away && routed(other.kernel.table())[name] {
			if !excluded || time.Since(since) < time.Second {
				x.fail(violated(10, "pod %s is ended while node %s still routes to it by %s; excluded: %v, %v ago; newest table %s", name, other.name,
					printRoutes(other.kernel.table()), excluded, time.Since(since), printRoutes(x.table)))
			}
		}
	}
}

const (
	labelPod       = "tallyman.dev/pod-uid"
	labelName      = "tallyman.dev/pod-name"
	labelNamespace = "tallyman.dev/pod-namespace"
	labelContainer = "tallyman.dev/container"
	labelRevision  = "tallyman.dev/revision"
	labelWorkload  = "tallyman.dev/workload"
)

// view is what the planner knew after a step.
type view struct {
	force     string
	converged bool
	pods      map[nodes.UID]podView
	nodes     map[string]nodes.NodeState
	// templates are the newest ones of the workloads.
	templates map[desired.Key]string
	jobs      map[desired.Key]*nodes.JobOverview
	claims    map[desired.Key]*nodes.StorageOverview
	// wanted counts the pods that workloads are to have.
	wanted map[desired.Key]int
	// makers are the CronJobs of Jobs that have one.
	makers map[desired.Key]desired.Key
	crons  map[desired.Key]*nodes.CronJobOverview
}

// podView is one pod in a view.
type podView struct {
	workload             desired.Key
	namespace, name      string
	addr                 string
	node, revision, hash string
	stopping, done       bool
	ready                bool
	readySince           time.Time
}

func newView(o *nodes.Overview) *view {
	v := &view{
		converged: o.Plan.Converged, pods: map[nodes.UID]podView{}, nodes: map[string]nodes.NodeState{}, templates: map[desired.Key]string{},
		jobs: map[desired.Key]*nodes.JobOverview{}, claims: map[desired.Key]*nodes.StorageOverview{}, wanted: map[desired.Key]int{},
		makers: map[desired.Key]desired.Key{}, crons: map[desired.Key]*nodes.CronJobOverview{},
	}
	if o.InForce != nil {
		v.force = o.InForce.SHA
	}
	for _, n := range o.Nodes {
		v.nodes[n.Name] = n.NodeState
	}
	owners := map[desired.Key]desired.Key{}
	for i := range o.Objects {
		h := &o.Objects[i]
		switch {
		case h.Pod != nil:
			v.pods[h.Pod.UID] = newPodView(h, owners)
		case h.Key.Kind == kindReplicaSet && !h.Owner.IsZero():
			owners[h.Key] = h.Owner
		case h.Key.Kind == kindClaim && h.Storage != nil:
			v.claims[h.Key] = h.Storage
		default:
			v.wanted[h.Key] = h.Wanted
			v.templates[h.Key] = h.Template
			if h.Job != nil {
				v.jobs[h.Key] = h.Job
			}
			if h.Owner.Kind == kindCronJob {
				v.makers[h.Key] = h.Owner
			}
			if h.CronJob != nil {
				v.crons[h.Key] = h.CronJob
			}
		}
	}
	return v
}

func newPodView(h *nodes.ObjectHealth, owners map[desired.Key]desired.Key) podView {
	s := &h.Pod.Status
	p := podView{
		workload: h.Owner, namespace: h.Key.Namespace, name: h.Key.Name, addr: h.Pod.IP, node: h.Pod.Node, revision: h.Pod.Revision, hash: h.Template,
		stopping: h.Pod.Stopping, done: s.Done(), ready: s.Ready, readySince: s.ReadySince,
	}
	if top, found := owners[h.Owner]; found {
		p.workload = top
	}
	if h.Owner.IsZero() {
		p.workload = h.Key
	}
	return p
}

// running counts the pods of a namespace that have not ended.
func (v *view) running(namespace string) int {
	n := 0
	for _, p := range v.pods {
		if p.namespace == namespace && !p.done {
			n++
		}
	}
	return n
}

func decisionsText(decisions []nodes.Decision) string {
	var b strings.Builder
	for _, d := range decisions {
		fmt.Fprintf(&b, "[%s %s %s]", d.Kind, d.Key, d.Value)
	}
	return b.String()
}
