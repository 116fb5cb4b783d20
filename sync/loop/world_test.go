package loop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/planner/scale"
	"github.com/tallyman-dev/tallyman/proxy"
)

// memory is a record in memory. It outlives the loops that use it.
type memory struct {
	mu        sync.Mutex
	decisions map[decisionKey]nodes.Decision
	states    map[string]nodes.NodeState
	history   []nodes.HistoryEntry
	events    []nodes.Event
	broken    bool
}

func newMemory() *memory {
	return &memory{decisions: map[decisionKey]nodes.Decision{}, states: map[string]nodes.NodeState{}}
}

func (m *memory) Decisions() ([]nodes.Decision, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []nodes.Decision
	for _, d := range m.decisions {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b nodes.Decision) int { return strings.Compare(a.Kind+"/"+a.Key, b.Kind+"/"+b.Key) })
	return out, nil
}

func (m *memory) Record(_ context.Context, decisions []nodes.Decision) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken {
		return errors.New("no space left on device")
	}
	for _, d := range decisions {
		if d.Value == nil {
			delete(m.decisions, decisionKey{d.Kind, d.Key})
		} else {
			m.decisions[decisionKey{d.Kind, d.Key}] = d
		}
	}
	return nil
}

func (m *memory) breakDown(broken bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = broken
}

func (m *memory) SaveNode(s nodes.NodeState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states[s.Name] = s
}
func (m *memory) SaveReport(nodes.Report) {}
func (m *memory) ForgetNode(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.states, name)
}

func (m *memory) Observed() ([]nodes.NodeState, []nodes.Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []nodes.NodeState
	for _, s := range m.states {
		out = append(out, s)
	}
	return out, nil
}

func (m *memory) AppendHistory(e nodes.HistoryEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history = append([]nodes.HistoryEntry{e}, m.history...)
}

func (m *memory) UpdateHistory(e nodes.HistoryEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.history {
		if m.history[i].Revision.SHA == e.Revision.SHA {
			m.history[i] = e
			return
		}
	}
}

func (m *memory) SetHistory(entries []nodes.HistoryEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history = slices.Clone(entries)
}

func (m *memory) History(int) []nodes.HistoryEntry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.history)
}

func (m *memory) AppendEvents(e []nodes.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events = append(m.events, e...)
}

func (m *memory) Events(desired.Key) []nodes.Event { return nil }

// machine is one node that runs at once what it is told, unless the image's
// name says otherwise. It refuses what no agent would accept, and it outlives
// the loops.
type machine struct {
	t      *testing.T
	mu     sync.Mutex
	inputs chan Input
	pods   map[nodes.UID]*nodes.Pod
	ledger map[decisionKey]nodes.Decision
	routes uint64
	// started and stopped count pods.
	started, stopped int
	// times, expected and longest are what was said about silence and leases.
	times    []desired.Nodes
	expected map[string]bool
	longest  time.Duration
	// owners are whose the names are, revoked those that Git shuts out.
	owners  map[string]nodes.Member
	revoked []string
	// second, when set, is another node, named n2.
	second *second
	// others is how many pods the other nodes were given.
	others map[string]int
}

func newMachine(t *testing.T) *machine {
	return &machine{t: t, pods: map[nodes.UID]*nodes.Pod{}, ledger: map[decisionKey]nodes.Decision{}, expected: map[string]bool{}, owners: map[string]nodes.Member{}, others: map[string]int{}}
}

// connect gives the machine a new server.
func (m *machine) connect(inputs chan Input) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inputs = inputs
	quantities := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	info := nodes.Node{
		Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDR: netip.MustParsePrefix("10.244.0.0/24"),
		Capacity: quantities, Allocatable: quantities, OS: "linux", Arch: "amd64",
	}
	report := nodes.Report{Node: "n1", Complete: true, Info: &info, Routes: m.routes}
	for _, p := range m.pods {
		report.Statuses = append(report.Statuses, m.status(p))
		report.Held = append(report.Held, p)
	}
	for _, d := range m.ledger {
		report.Ledger = append(report.Ledger, d)
	}
	inputs <- Input{Node: &nodes.NodeState{Node: info, Ready: true, Since: time.Now(), Routes: m.routes}, Report: &report}
}

// trouble reports of every pod why it is not ready.
func (m *machine) trouble(message string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	report := nodes.Report{Node: "n1"}
	for _, p := range m.pods {
		s := m.status(p)
		s.Message = message
		report.Statuses = append(report.Statuses, s)
	}
	m.send(report)
}

func (m *machine) status(p *nodes.Pod) nodes.PodStatus {
	ready := !strings.HasPrefix(p.Template.Spec.Containers[0].Image, "broken")
	s := nodes.PodStatus{
		UID: p.UID, Phase: corev1.PodRunning, IP: fmt.Sprintf("10.244.0.%d", 2+p.Incarnation%200), Started: p.Created,
		Initialized: true, ContainersReady: ready, Ready: ready, ReadySince: p.Created,
	}
	if !ready {
		s.Reason, s.Message = "ContainersNotReady", "the container is not ready"
	}
	return s
}

func (m *machine) Ledger(decisions []nodes.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range decisions {
		switch {
		case d.Kind == nodes.PodDecision:
		case d.Value == nil:
			delete(m.ledger, decisionKey{d.Kind, d.Key})
		default:
			m.ledger[decisionKey{d.Kind, d.Key}] = d
		}
	}
}

func (m *machine) Member(n nodes.Member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owners[n.Name] = n
}

func (m *machine) Revoke(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revoked = names
}

// owner is the machine that has a name, as the loop last said.
func (m *machine) owner(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owners[name].Identity
}

func (m *machine) Route(t *proxy.Table) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.routes = t.Generation
	m.send(nodes.Report{Node: "n1", Routes: t.Generation})
}

// send never blocks: the channels of these tests are large.
func (m *machine) send(r nodes.Report) {
	select {
	case m.inputs <- Input{Report: &r}:
	default:
		m.t.Error("the loop does not take its inputs")
	}
}

func (m *machine) Tune(n desired.Nodes) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times = append(m.times, n)
}

func (m *machine) Expect(known []nodes.NodeState, longest time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.longest = longest
	for _, n := range known {
		m.expected[n.Name] = true
	}
}

func (m *machine) Assign(a nodes.Assignment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.Node == "n2" && m.second != nil {
		m.second.assign(a)
	}
	if a.Node != "n1" {
		m.others[a.Node] = len(a.Pods)
		return
	}
	report := nodes.Report{Node: "n1"}
	wanted := map[nodes.UID]bool{}
	for _, p := range a.Pods {
		wanted[p.UID] = true
		_, running := m.pods[p.UID]
		switch {
		case p.Stop != nil && running:
			delete(m.pods, p.UID)
			m.stopped++
			report.Gone = append(report.Gone, p.UID)
		case p.Stop != nil:
			report.Gone = append(report.Gone, p.UID)
		case !running:
			m.pods[p.UID] = p
			m.started++
			report.Statuses = append(report.Statuses, m.status(p))
		}
	}
	for uid := range m.pods {
		if !wanted[uid] {
			delete(m.pods, uid)
			m.stopped++
		}
	}
	m.send(report)
}

// counts gives running, started and stopped pods.
func (m *machine) counts() [3]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return [3]int{len(m.pods), m.started, m.stopped}
}

// repository is a source whose trees are snapshots.
type repository struct {
	heads chan Head
	mu    sync.Mutex
	// commits by sha; a commit without objects is invalid.
	commits map[string][]*desired.Object
	loads   map[string]int
	broken  error
	// slow is how long it takes to open a commit.
	slow map[string]time.Duration
	// stricter refuses every revision that is not read leniently, as a later
	// version may.
	stricter bool
	// settings of every revision.
	settings desired.Settings
}

func (r *repository) Heads() <-chan Head { return r.heads }
func (r *repository) Revision(_ context.Context, sha string) (desired.Revision, error) {
	return revision(sha), nil
}

func (r *repository) Tree(_ context.Context, sha string) (fs.FS, error) {
	r.mu.Lock()
	wait := r.slow[sha]
	r.mu.Unlock()
	time.Sleep(wait)
	r.mu.Lock()
	defer r.mu.Unlock()
	return fstest.MapFS{}, r.broken
}

func (r *repository) load(_ context.Context, _ fs.FS, rev desired.Revision, _ *desired.Snapshot, lenient bool) (*desired.Snapshot, []desired.Problem, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loads[rev.SHA]++
	objects := r.commits[rev.SHA]
	if objects == nil || r.stricter && !lenient {
		return nil, []desired.Problem{{Severity: desired.Error, Code: "invalid", File: "web.yaml", Line: 3, Message: "must be positive"}}, nil
	}
	return desired.NewSnapshot(rev, r.settings, slices.Clone(objects), nil), nil, nil
}

func (r *repository) commit(sha string, objects ...*desired.Object) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.commits[sha] = objects
}

func revision(sha string) desired.Revision {
	message := "change " + sha
	if _, n, confirmed := strings.Cut(sha, "-confirm-"); confirmed {
		message += "\n\nTally-Confirm: delete " + n
	}
	return desired.Revision{SHA: sha, Message: message, Author: "Ann", Time: time.Unix(0, 0).UTC()}
}

func deployment(name, image string, replicas int32) *desired.Object {
	labels := map[string]string{"app": name}
	surge, unavailable := intstr.FromString("25%"), intstr.FromString("25%")
	deadline, grace, limit := int32(600), int64(30), int32(10)
	return &desired.Object{
		Key:         desired.Key{Group: "apps", Kind: "Deployment", Namespace: "default", Name: name},
		From:        desired.Place{File: name + ".yaml", Line: 1},
		Fingerprint: fmt.Sprint(name, image, replicas),
		Value: &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
			Spec: appsv1.DeploymentSpec{
				Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
				ProgressDeadlineSeconds: &deadline, RevisionHistoryLimit: &limit,
				Strategy: appsv1.DeploymentStrategy{
					Type:          appsv1.RollingUpdateDeploymentStrategyType,
					RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
				},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: labels},
					Spec: corev1.PodSpec{
						Containers:    []corev1.Container{{Name: "c", Image: image}},
						RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace,
					},
				},
			},
		},
	}
}

// world is one loop with all that it stands on.
type world struct {
	*testing.T
	*Loop
	began      time.Time
	repository *repository
	record     *memory
	machine    *machine
	inputs     chan Input
	// several tells that the cluster may have more nodes than the machine.
	several bool
	// next plans the steps; nil is the planner.
	next    func(s *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan)
	metrics func(ctx context.Context, source string, queries []string) []scale.Sample
	stop    func()
	// wrong is by how much the server's wall clock is ahead.
	wrong atomic.Int64
	// pace is how slowly route tables follow each other; zero for at once.
	pace time.Duration
}

// run calls f in a bubble of virtual time with a fresh cluster.
func run(t *testing.T, f func(w *world)) {
	runWith(t, func(*world) {}, f)
}

// runWith prepares the world before its loop starts.
func runWith(t *testing.T, prepare, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			T: t, began: time.Now(), record: newMemory(), machine: newMachine(t),
			repository: &repository{commits: map[string][]*desired.Object{}, loads: map[string]int{}, settings: desired.DefaultSettings()},
		}
		prepare(w)
		w.start()
		w.machine.connect(w.inputs)
		synctest.Wait()
		f(w)
		w.stop()
	})
}

// start makes a new loop on the record, repository and machine that are there.
func (w *world) start() {
	w.repository.heads = make(chan Head, 1)
	w.inputs = make(chan Input, 10_000)
	loop, err := New(Options{
		Source: w.repository, Load: w.repository.load, Record: w.record, Executor: w.machine, Inputs: w.inputs,
		Planner: planner.Config{SecretKey: []byte("0123456789abcdef"), RoutePace: w.pace}, SourceName: "embedded main .",
		SyncInfo: nodes.Sync{Repo: "embedded", Branch: "main", Path: "."}, Version: "test",
		Log: slog.New(slog.DiscardHandler), Single: !w.several, Metrics: w.metrics, Next: w.next,
		Now:   func() time.Time { return time.Now().Add(time.Duration(w.wrong.Load())) },
		Clock: func() time.Duration { return time.Since(w.began) },
	})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error)
	go func() { done <- loop.Run(ctx) }()
	w.Loop = loop
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("run: %v", err)
		}
	}
}

// push checks, advances and follows, as a git push does.
func (w *world) push(sha string) (output string, accepted bool) {
	var out bytes.Buffer
	ok, err := w.Check(w.Context(), CheckQuery{SHA: sha, Revision: revision(sha), Tree: fstest.MapFS{}}, &out)
	if err != nil {
		w.Fatalf("check %s: %v", sha, err)
	}
	if !ok {
		return out.String(), false
	}
	w.Advance(revision(sha))
	if err := w.Follow(w.Context(), sha, &out); err != nil {
		w.Fatalf("follow %s: %v", sha, err)
	}
	return out.String(), true
}

// head tells of a new head and lets everything settle.
func (w *world) head(h Head) {
	w.repository.heads <- h
	synctest.Wait()
}

func (w *world) outcome(sha string) nodes.Outcome {
	for _, e := range w.Overview().History {
		if e.Revision.SHA == sha {
			return e.Outcome
		}
	}
	return ""
}

func (w *world) inForce() string {
	if rev := w.Overview().InForce; rev != nil {
		return rev.SHA
	}
	return ""
}
