package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/proxy"
)

// agent is one node's end, with everything that it was told.
type agent struct {
	name   string
	client *wire.Client

	mu          sync.Mutex
	assignment  *nodes.Assignment
	table       *proxy.Table
	ledger      map[string]string
	assignments int
	leases      []time.Duration
	// kept is the ledger that it comes with.
	kept []nodes.Decision
}

func (a *agent) Hello(context.Context) (nodes.Report, error) {
	return nodes.Report{Node: a.name, Info: &nodes.Node{Name: a.name}, Statuses: []nodes.PodStatus{{UID: "held"}}, Ledger: a.kept}, nil
}

func (a *agent) Assign(assignment *nodes.Assignment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.assignment = assignment
	a.assignments++
}

func (a *agent) Route(t *proxy.Table) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.table = t
}

func (a *agent) Ledger(complete bool, decisions []nodes.Decision) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if complete {
		a.ledger = map[string]string{}
	}
	for _, d := range decisions {
		if d.Value == nil {
			delete(a.ledger, d.Kind+"/"+d.Key)
		} else {
			a.ledger[d.Kind+"/"+d.Key] = string(d.Value)
		}
	}
}

func (a *agent) Lease(sent, duration time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.leases = append(a.leases, duration)
}

func (a *agent) Logs(_ context.Context, q wire.LogQuery, w io.Writer) error {
	_, err := fmt.Fprintf(w, "log of %s on %s", q.Pod, a.name)
	return err
}

// see gives the agent's pods, route generation and ledger as text.
func (a *agent) see() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	pods, generation := "none", uint64(0)
	if a.assignment != nil {
		pods = fmt.Sprint(len(a.assignment.Pods))
	}
	if a.table != nil {
		generation = a.table.Generation
	}
	ledger, err := json.Marshal(a.ledger)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("pods %s routes %d ledger %s", pods, generation, ledger)
}

type world struct {
	*testing.T
	*Registry
	listener *bufconn.Listener
	ctx      context.Context
	running  *sync.WaitGroup
}

func newWorld(t *testing.T) *world { return newWorldWith(t, Options{}) }

// patient takes no busy machine for a silent node.
var patient = desired.Nodes{SilentAfter: time.Minute, Lease: time.Minute}

func newWorldWith(t *testing.T, o Options) *world { return newWorldOf(t, o, patient) }

func newWorldOf(t *testing.T, o Options, times desired.Nodes) *world {
	o.Log, o.Version = slog.New(slog.DiscardHandler), "test"
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Tune(times)
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{T: t, Registry: r, listener: bufconn.Listen(1 << 16), ctx: ctx, running: &sync.WaitGroup{}}
	w.running.Go(func() {
		if err := r.Serve(ctx, Door{Listener: w.listener}); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); w.running.Wait() })
	return w
}

// join starts an agent; leave ends it.
func (w *world) join(name string, kept ...nodes.Decision) (a *agent, leave func()) {
	w.Helper()
	a = &agent{name: name, kept: kept}
	client, err := wire.NewClient(wire.ClientOptions{
		Dial: func(ctx context.Context) (net.Conn, error) { return w.listener.DialContext(ctx) },
		Node: name, Version: "test", Handler: a, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.Fatal(err)
	}
	a.client = client
	ctx, cancel := context.WithCancel(w.ctx)
	var done sync.WaitGroup
	done.Go(func() {
		if err := client.Run(ctx); err != nil {
			w.Errorf("client: %v", err)
		}
	})
	w.running.Go(done.Wait)
	return a, func() { cancel(); done.Wait() }
}

// input waits for the next input that want accepts.
func (w *world) input(what string, want func(Input) bool) Input {
	w.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case in := <-w.Inputs():
			if want(in) {
				return in
			}
		case <-deadline:
			w.Fatalf("no %s", what)
		}
	}
}

func (w *world) joined(name string) Input {
	w.Helper()
	return w.input("join of "+name, func(in Input) bool {
		return in.Node != nil && in.Node.Name == name && in.Node.Ready && in.Report != nil && in.Report.Complete
	})
}

func (w *world) eventually(a *agent, want string) {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		got := a.see()
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("%s sees %q, want %q", a.name, got, want)
		}
	}
}

func decision(kind, key, value string) nodes.Decision {
	d := nodes.Decision{Kind: kind, Key: key}
	if value != "" {
		d.Value = json.RawMessage(value)
	}
	return d
}

func TestNodeIsToldTheNewestOnly(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		pods := make([]*nodes.Pod, i)
		for j := range pods {
			pods[j] = &nodes.Pod{UID: nodes.UID(fmt.Sprint(j)), Template: &nodes.Template{Hash: "h"}}
		}
		w.Assign(nodes.Assignment{Node: "n1", Pods: pods})
		w.Route(&proxy.Table{Generation: uint64(i + 1)})
	}
	a, _ := w.join("n1")
	w.eventually(a, "pods 4 routes 5 ledger null")
	if a.mu.Lock(); a.assignments != 1 {
		t.Errorf("told %d assignments", a.assignments)
	}
	a.mu.Unlock()
	w.Assign(nodes.Assignment{Node: "n1"})
	w.eventually(a, "pods 0 routes 5 ledger null")
}

// TestNothingIsSaidBeforeTheLoopHas is invariant 9's half of the registry: a
// server that has just started stops no pod and wipes no ledger.
func TestNothingIsSaidBeforeTheLoopHas(t *testing.T) {
	w := newWorld(t)
	a, _ := w.join("n1")
	w.joined("n1")
	w.Route(&proxy.Table{Generation: 1})
	w.eventually(a, "pods none routes 1 ledger null")
}

func TestLedgerTravelsToThreeNodes(t *testing.T) {
	w := newWorld(t)
	w.Ledger([]nodes.Decision{decision("service", "a", "1"), decision("service", "b", "2"), decision(nodes.PodDecision, "p", "3")})
	agents, leave := map[string]*agent{}, map[string]func(){}
	for _, name := range []string{"n1", "n2", "n3", "n4"} {
		agents[name], leave[name] = w.join(name)
		w.joined(name)
	}
	full := `pods none routes 0 ledger {"service/a":"1","service/b":"2"}`
	for _, name := range []string{"n1", "n2", "n3"} {
		w.eventually(agents[name], full)
	}
	w.Ledger([]nodes.Decision{decision("service", "a", ""), decision("network", "c", "4")})
	changed := `pods none routes 0 ledger {"network/c":"4","service/b":"2"}`
	for _, name := range []string{"n1", "n2", "n3"} {
		w.eventually(agents[name], changed)
	}
	w.eventually(agents["n4"], "pods none routes 0 ledger null")
	leave["n2"]()
	w.eventually(agents["n4"], changed)
	// What it kept grows old, now that another one keeps it.
	back, _ := w.join("n2", decision("service", "a", "1"))
	w.joined("n2")
	w.eventually(back, "pods none routes 0 ledger {}")
}

func TestSilenceAndReturn(t *testing.T) {
	w := newWorldOf(t, Options{}, desired.Nodes{SilentAfter: time.Second, Lease: time.Minute})
	_, leave := w.join("n1")
	w.joined("n1")
	leave()
	silent := w.input("silence", func(in Input) bool { return in.Node != nil && !in.Node.Ready })
	if silent.Node.Name != "n1" || !strings.Contains(silent.Node.Reason, "no word") {
		t.Errorf("silence: %+v", silent.Node)
	}
	w.Tune(patient)
	w.join("n1")
	w.joined("n1")
	if all := w.Nodes(); len(all) != 1 || !all[0].Ready || all[0].Reason != "" {
		t.Errorf("nodes %+v", all)
	}
}

func TestNewerSessionTakesOver(t *testing.T) {
	w := newWorld(t)
	w.Assign(nodes.Assignment{Node: "n1"})
	old, leaveOld := w.join("n1")
	w.joined("n1")
	w.eventually(old, "pods 0 routes 0 ledger null")
	leaveOld()
	fresh, _ := w.join("n1")
	w.joined("n1")
	w.Assign(nodes.Assignment{Node: "n1", Pods: []*nodes.Pod{{UID: "a"}}})
	w.eventually(fresh, "pods 1 routes 0 ledger null")
}

func TestReportsArrive(t *testing.T) {
	w := newWorld(t)
	a, _ := w.join("n1")
	w.joined("n1")
	a.client.Send(nodes.Report{Routes: 7, Statuses: []nodes.PodStatus{{UID: "p", Ready: true}}})
	in := w.input("report", func(in Input) bool { return in.Report != nil && len(in.Report.Statuses) == 1 })
	if in.Report.Node != "n1" || in.Report.Routes != 7 || in.Report.Complete || !in.Report.Statuses[0].Ready {
		t.Errorf("report %+v", in.Report)
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	w.join("n1")
	w.joined("n1")
	reader, err := w.Logs(t.Context(), "n1", wire.LogQuery{Pod: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if text, err := io.ReadAll(reader); err != nil || string(text) != "log of p on n1" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := w.Logs(t.Context(), "elsewhere", wire.LogQuery{Pod: "p"}); err == nil {
		t.Error("a log came from a node that does not exist")
	}
}

func TestInputsMerge(t *testing.T) {
	q := newInputs()
	ready := &nodes.NodeState{Ready: true}
	q.add("n1", Input{Node: ready, Report: &nodes.Report{
		Node: "n1", Complete: true, Routes: 3, Held: []*nodes.Pod{{UID: "a"}, {UID: "b"}},
		Statuses: []nodes.PodStatus{{UID: "a"}, {UID: "b"}},
	}})
	q.add("n2", Input{Report: &nodes.Report{Node: "n2"}})
	for i := range 2 * maxEvents {
		q.add("n1", Input{Report: &nodes.Report{
			Node: "n1", Routes: 4, Statuses: []nodes.PodStatus{{UID: "a", Message: fmt.Sprint(i)}}, Gone: []nodes.UID{"b"},
			Events: []nodes.Event{{Message: fmt.Sprint(i)}},
		}})
	}
	in, ok := q.take()
	r := in.Report
	if !ok || in.Node != ready || !r.Complete || r.Routes != 4 || len(r.Held) != 1 || len(r.Statuses) != 1 ||
		r.Statuses[0].Message != fmt.Sprint(2*maxEvents-1) || len(r.Gone) != 1 || len(r.Events) != maxEvents {
		t.Fatalf("merged into %+v with %d events", in, len(r.Events))
	}
	q.add("n1", Input{Report: &nodes.Report{Node: "n1", Gone: []nodes.UID{"x"}}})
	q.add("n1", Input{Report: &nodes.Report{Node: "n1", Complete: true, Routes: 1}})
	if in, _ := q.take(); in.Report.Node != "n2" {
		t.Errorf("order: %+v", in.Report)
	}
	if in, _ := q.take(); !in.Report.Complete || in.Report.Routes != 1 || len(in.Report.Gone) != 1 {
		t.Errorf("a complete report after others: %+v", in.Report)
	}
}

// fullReport has something in every field of a report.
func fullReport(t *testing.T) *nodes.Report {
	r := &nodes.Report{
		Node: "n1", Local: true, Complete: true, Info: &nodes.Node{Name: "n1"}, Images: &nodes.Images{}, Routes: 3,
		Statuses: []nodes.PodStatus{{UID: "a"}}, Gone: []nodes.UID{"x"}, Held: []*nodes.Pod{{UID: "a"}},
		Ledger: []nodes.Decision{{Kind: "k"}}, Events: []nodes.Event{{Reason: "Pulled"}},
		Volumes: []nodes.VolumeStatus{{Name: "v", UID: "1", Phase: nodes.VolumeReady, Held: &nodes.Volume{Name: "v"}}},
		Usage:   []nodes.Usage{{Pod: "a"}}, Fenced: []nodes.UID{"a"}, Left: []nodes.UID{"l"},
	}
	for field, value := range reflect.ValueOf(*r).Fields() {
		if value.IsZero() {
			t.Fatalf("this test does not fill Report.%s", field.Name)
		}
	}
	return r
}

func TestMergingLosesNothing(t *testing.T) {
	nothing := &nodes.Report{Node: "n1"}
	for name, merged := range map[string]*nodes.Report{
		"before nothing":               mergeReports(fullReport(t), nothing),
		"after nothing":                mergeReports(nothing, fullReport(t)),
		"a complete report after less": mergeReports(&nodes.Report{Node: "n1", Volumes: []nodes.VolumeStatus{{Name: "old"}}}, fullReport(t)),
	} {
		if diff := cmp.Diff(fullReport(t), merged, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestWhatWasLeftMayGo: the end of a pod that was left counts.
func TestWhatWasLeftMayGo(t *testing.T) {
	left := &nodes.Report{Node: "n1", Complete: true, Left: []nodes.UID{"a", "b"}}
	merged := mergeReports(left, &nodes.Report{Node: "n1", Gone: []nodes.UID{"a"}})
	if !slices.Equal(merged.Left, []nodes.UID{"b"}) || len(left.Left) != 2 {
		t.Errorf("left: %v, of %v", merged.Left, left.Left)
	}
}

func TestVolumesAndUsageMerge(t *testing.T) {
	held, source := &nodes.Volume{Name: "v", UID: "1"}, &corev1.CSIPersistentVolumeSource{Driver: "d"}
	merged := mergeReports(
		&nodes.Report{
			Node: "n1", Complete: true, Usage: []nodes.Usage{{Pod: "a", Window: 1}, {Pod: "b", Window: 2}},
			Volumes: []nodes.VolumeStatus{{Name: "v", UID: "1", Phase: nodes.VolumeReady, Held: held, Source: source}, {Name: "w", UID: "2", Phase: nodes.VolumePending}},
		},
		&nodes.Report{
			Node: "n1", Usage: []nodes.Usage{{Pod: "a", Window: 3}, {Pod: "c", Window: 4}},
			Volumes: []nodes.VolumeStatus{{Name: "v", UID: "1", Phase: nodes.VolumeGone}, {Name: "v", UID: "3", Phase: nodes.VolumeReady}},
		},
	)
	want := &nodes.Report{
		Node: "n1", Complete: true, Usage: []nodes.Usage{{Pod: "a", Window: 3}, {Pod: "b", Window: 2}, {Pod: "c", Window: 4}},
		Volumes: []nodes.VolumeStatus{
			{Name: "v", UID: "1", Phase: nodes.VolumeGone, Held: held, Source: source},
			{Name: "w", UID: "2", Phase: nodes.VolumePending},
			{Name: "v", UID: "3", Phase: nodes.VolumeReady},
		},
	}
	if diff := cmp.Diff(want, merged); diff != "" {
		t.Errorf("merged (-want +got):\n%s", diff)
	}
}

func TestOnlyTheNodeOfAPodGetsItsToken(t *testing.T) {
	w := newWorldWith(t, Options{Token: func(p *nodes.Pod, r nodes.TokenRequest) (nodes.Token, error) {
		return nodes.Token{Value: p.Name + " for " + r.Audience}, nil
	}})
	w.Assign(nodes.Assignment{Node: "n1", Pods: []*nodes.Pod{{UID: "u1", Name: "web", Template: asking("vault", 3600)}}})
	w.Assign(nodes.Assignment{Node: "n2"})
	a, _ := w.join("n1")
	w.joined("n1")
	b, _ := w.join("n2")
	w.joined("n2")
	q := nodes.TokenRequest{Pod: "u1", Audience: "vault", Expiry: time.Hour}
	if got, err := a.client.Token(t.Context(), q); err != nil || got.Value != "web for vault" {
		t.Errorf("the pod's node got %+v, %v", got, err)
	}
	if got, err := b.client.Token(t.Context(), q); err == nil || !strings.Contains(err.Error(), "pod u1 is not bound to node n2") {
		t.Errorf("another node got %+v, %v", got, err)
	}
}

// TestRoutesOfTheFutureAreNotBelieved: one node must not number the tables of all.
func TestRoutesOfTheFutureAreNotBelieved(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	w := newWorldWith(t, Options{Now: func() time.Time { return now }})
	a, _ := w.join("n1")
	w.joined("n1")
	var told []nodes.Event
	decade := uint64(now.AddDate(10, 0, 0).UnixMilli())
	for i, c := range []struct{ says, counts uint64 }{
		{decade, decade}, // a server whose clock was ahead
		{1<<64 - 1, 0},
		{1<<64 - 2, 0},
		{1 << 63, 0},
		{0, 0},
		{decade + 1, decade + 1},
	} {
		uid := nodes.UID(fmt.Sprint("report", i))
		a.client.Send(nodes.Report{Routes: c.says, Statuses: []nodes.PodStatus{{UID: uid}}})
		in := w.input("report", func(in Input) bool {
			told = append(told, in.Events...)
			return in.Report != nil && in.Report.Statuses[0].UID == uid
		})
		if in.Report.Routes != c.counts {
			t.Errorf("says %d, counts as %d, want %d", c.says, in.Report.Routes, c.counts)
		}
		if all := w.Nodes(); all[0].Routes != decade && i < 5 {
			t.Errorf("says %d: node %+v", c.says, all[0])
		}
	}
	if len(told) != 1 || told[0].Reason != "RoutesNotBelieved" || told[0].Object.Name != "n1" {
		t.Errorf("told %+v", told)
	}
	w.Route(&proxy.Table{Generation: 1<<62 + 1})
	a.client.Send(nodes.Report{Routes: 1<<62 + 1})
	w.input("report of our own table", func(in Input) bool { return in.Report != nil && in.Report.Routes == 1<<62+1 })
}
