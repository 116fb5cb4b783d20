package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

// nopHandler is an agent that does nothing.
type nopHandler struct{}

func (nopHandler) Hello(context.Context) (nodes.Report, error)     { return nodes.Report{}, nil }
func (nopHandler) Assign(*nodes.Assignment)                        {}
func (nopHandler) Route(*proxy.Table)                              {}
func (nopHandler) Ledger(bool, []nodes.Decision)                   {}
func (nopHandler) Lease(sent, duration time.Duration)              {}
func (nopHandler) Logs(context.Context, LogQuery, io.Writer) error { return nil }

// agent remembers what it was told.
type agent struct {
	nopHandler
	mu          sync.Mutex
	assignments []*nodes.Assignment
	logs        func(ctx context.Context, q LogQuery, w io.Writer) error
	changed     chan struct{}
}

func newAgent() *agent { return &agent{changed: make(chan struct{}, 100)} }

func (a *agent) Hello(context.Context) (nodes.Report, error) {
	return nodes.Report{Node: "n1", Info: &nodes.Node{Name: "n1"}, Statuses: []nodes.PodStatus{{UID: "old"}}}, nil
}

func (a *agent) Assign(assignment *nodes.Assignment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.assignments = append(a.assignments, assignment)
	a.changed <- struct{}{}
}

func (a *agent) Logs(ctx context.Context, q LogQuery, w io.Writer) error { return a.logs(ctx, q, w) }

// world is a server and one agent on an in-memory network that can be cut.
type world struct {
	t        *testing.T
	agent    *agent
	client   *Client
	sessions chan *Session
	reports  chan *nodes.Report

	mu       sync.Mutex
	listener *bufconn.Listener
	conns    []net.Conn
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, agent: newAgent(), sessions: make(chan *Session, 10), reports: make(chan *nodes.Report, 100),
		listener: bufconn.Listen(1 << 16),
	}
	server, err := NewServer(ServerOptions{Version: "test", Accept: w.accept, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w.client, err = NewClient(ClientOptions{
		Dial: w.dial, Node: "n1", Version: "test", Handler: w.agent, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(ctx, w.listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	running.Go(func() {
		if err := w.client.Run(ctx); err != nil {
			t.Errorf("client: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

func (w *world) accept(ctx context.Context, s *Session) error {
	w.sessions <- s
	for {
		report, err := s.Receive()
		if err != nil {
			return err
		}
		w.reports <- report
	}
}

func (w *world) dial(ctx context.Context) (net.Conn, error) {
	conn, err := w.listener.DialContext(ctx)
	if err == nil {
		w.mu.Lock()
		w.conns = append(w.conns, conn)
		w.mu.Unlock()
	}
	return conn, err
}

// cut breaks every connection.
func (w *world) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func (w *world) assigned() *nodes.Assignment {
	w.t.Helper()
	receive(w.t, w.agent.changed, "assignment")
	w.agent.mu.Lock()
	defer w.agent.mu.Unlock()
	return w.agent.assignments[len(w.agent.assignments)-1]
}

func TestSessionResumesWithCompleteState(t *testing.T) {
	w := newWorld(t)
	first := receive(t, w.sessions, "session")
	if report := receive(t, w.reports, "complete report"); !report.Complete || report.Info == nil {
		t.Fatalf("first report: %+v", report)
	}
	one := &nodes.Assignment{Node: "n1", Pods: []*nodes.Pod{{UID: "a", Template: &nodes.Template{Hash: "h"}}}}
	two := &nodes.Assignment{Node: "n1", Pods: append(one.Pods, &nodes.Pod{UID: "b", Template: one.Pods[0].Template})}
	for _, a := range []*nodes.Assignment{one, two} {
		if err := first.Send(Update{Assignment: a}); err != nil {
			t.Fatal(err)
		}
		if got := w.assigned(); len(got.Pods) != len(a.Pods) {
			t.Fatalf("agent has %d pods, want %d", len(got.Pods), len(a.Pods))
		}
	}
	w.cut()
	second := receive(t, w.sessions, "session after the cut")
	if report := receive(t, w.reports, "complete report"); !report.Complete {
		t.Fatalf("first report after the cut: %+v", report)
	}
	if err := second.Send(Update{Assignment: two}); err != nil {
		t.Fatal(err)
	}
	got := w.assigned()
	if len(got.Pods) != 2 || got.Pods[1].Template == nil || got.Pods[0].Template != got.Pods[1].Template {
		t.Fatalf("after the cut the agent has %+v", got.Pods)
	}
}

func TestReportsMergeWhileThereIsNoSession(t *testing.T) {
	p := newPending()
	for i := range 3 * maxPendingEvents {
		p.add(nodes.Report{
			Routes:   uint64(i),
			Statuses: []nodes.PodStatus{{UID: nodes.UID(fmt.Sprint(i % 7)), Message: fmt.Sprint(i)}},
			Events:   []nodes.Event{{Message: fmt.Sprint(i)}},
		})
	}
	p.add(nodes.Report{Gone: []nodes.UID{"3"}})
	p.add(nodes.Report{Statuses: []nodes.PodStatus{{UID: "3"}}})
	r, ok := p.take("n1")
	last := fmt.Sprint(3*maxPendingEvents - 1)
	if !ok || len(r.Statuses) != 6 || len(r.Gone) != 1 || len(r.Events) != maxPendingEvents || r.Events[maxPendingEvents-1].Message != last {
		t.Fatalf("merged: %v, %d statuses, %d gone, %d events", ok, len(r.Statuses), len(r.Gone), len(r.Events))
	}
	for _, s := range r.Statuses {
		if s.UID == "3" {
			t.Error("a pod that is gone has a status")
		}
	}
	if _, ok := p.take("n1"); ok {
		t.Error("taken twice")
	}
}

// TestVolumesOfOneNameAreReportedApart: what is said of one that goes does not
// hide that its successor is ready.
func TestVolumesOfOneNameAreReportedApart(t *testing.T) {
	p := newPending()
	fresh := nodes.VolumeStatus{Name: "v", UID: "2", Phase: nodes.VolumeReady}
	old := nodes.VolumeStatus{Name: "v", UID: "1", Phase: nodes.VolumeFailed}
	p.add(nodes.Report{Volumes: []nodes.VolumeStatus{fresh}})
	p.add(nodes.Report{Volumes: []nodes.VolumeStatus{old}})
	r, _ := p.take("n1")
	if diff := cmp.Diff([]nodes.VolumeStatus{old, fresh}, r.Volumes); diff != "" {
		t.Error(diff)
	}
}

func TestSendAfterReconnectKeepsEndsAndEvents(t *testing.T) {
	p := newPending()
	p.add(nodes.Report{Statuses: []nodes.PodStatus{{UID: "a"}}, Gone: []nodes.UID{"b"}, Events: []nodes.Event{{Reason: "Killing"}}})
	p.forgetState()
	r, ok := p.take("n1")
	if !ok || len(r.Statuses) != 0 || len(r.Gone) != 1 || len(r.Events) != 1 {
		t.Fatalf("after a new session: %+v", r)
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	session := receive(t, w.sessions, "session")
	long := strings.Repeat("0123456789abcdef", 20_000)
	w.agent.logs = func(_ context.Context, q LogQuery, out io.Writer) error {
		if q.Tail != -1 || q.Pod != "a" {
			return fmt.Errorf("query %+v", q)
		}
		_, err := io.WriteString(out, long)
		return err
	}
	reader, err := session.Logs(t.Context(), LogQuery{Pod: "a", Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(reader)
	if err != nil || string(got) != long {
		t.Fatalf("read %d of %d bytes: %v", len(got), len(long), err)
	}
	if reader, err = session.Logs(t.Context(), LogQuery{Pod: "other"}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(reader); err == nil || !strings.Contains(err.Error(), "query") {
		t.Fatalf("the agent's error arrived as %v", err)
	}
}

func TestLogEndsWhenItsReaderLeaves(t *testing.T) {
	w := newWorld(t)
	session := receive(t, w.sessions, "session")
	ended := make(chan error, 1)
	w.agent.logs = func(ctx context.Context, _ LogQuery, out io.Writer) error {
		_, _ = io.WriteString(out, "line\n")
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	reader, err := session.Logs(t.Context(), LogQuery{Pod: "a", Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 5)
	if _, err := io.ReadFull(reader, buffer); err != nil || !bytes.Equal(buffer, []byte("line\n")) {
		t.Fatalf("read %q: %v", buffer, err)
	}
	reader.Close()
	if err := receive(t, ended, "end of the log"); !errors.Is(err, context.Canceled) {
		t.Fatalf("log ended with %v", err)
	}
}

func TestVersionsThatDoNotMeet(t *testing.T) {
	w := newWorld(t)
	conn, err := grpc.NewClient("passthrough:///x",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return w.dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, c := range []struct {
		low, high uint32
		want      string
	}{{MaxVersion + 1, MaxVersion + 3, "upgrade the server"}, {0, 0, "upgrade the agent"}} {
		stream, err := pb.NewTallymanClient(conn).Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		hello := &pb.Hello{MinVersion: c.low, MaxVersion: c.high, Node: "n2"}
		if err := stream.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: hello}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("versions %d to %d: %v, want %q", c.low, c.high, err, c.want)
		}
	}
}
