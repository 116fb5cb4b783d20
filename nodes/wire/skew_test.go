package wire

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

var addFields = flag.Bool("add-fields", false, "add the fields of today to testdata/v1.txt, which a release does")

// protocolFile has every field of version 1 of the protocol as it was last released:
// what agents and servers of the minor version before may say and understand.
const protocolFile = "testdata/v1.txt"

// fieldsOf lists the fields of a file's messages with what must never change about them.
func fieldsOf(messages protoreflect.MessageDescriptors) (lines []string) {
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.IsMapEntry() {
			continue
		}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			kind := f.Kind().String()
			if f.Message() != nil && !f.IsMap() {
				kind = string(f.Message().Name())
			}
			if f.IsMap() {
				kind = "map of " + f.MapKey().Kind().String() + " to " + f.MapValue().Kind().String()
			} else if f.IsList() {
				kind = "repeated " + kind
			}
			lines = append(lines, fmt.Sprintf("%s.%s %d %s", m.Name(), f.Name(), f.Number(), kind))
		}
		lines = append(lines, fieldsOf(m.Messages())...)
	}
	return lines
}

func released(t *testing.T) []string {
	t.Helper()
	content, err := os.ReadFile(protocolFile)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(content)), "\n")
}

// TestFieldsOfTheProtocolStay: a field that was released keeps its number and
// its kind within a version of the protocol.
func TestFieldsOfTheProtocolStay(t *testing.T) {
	today := fieldsOf(pb.File_wire_proto.Messages())
	slices.Sort(today)
	if *addFields {
		if err := os.WriteFile(protocolFile, []byte(strings.Join(today, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range released(t) {
		if !slices.Contains(today, line) {
			t.Errorf("%s: %q is no more: other versions send it or wait for it", protocolFile, line)
		}
	}
}

// older takes out of a message what the version before did not know.
func older(known []string) func(protoreflect.Message) {
	has := map[string]bool{}
	for _, line := range known {
		name, _, _ := strings.Cut(line, " ")
		has[name] = true
	}
	return func(m protoreflect.Message) {
		m.SetUnknown(nil)
		m.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			if !has[string(m.Descriptor().Name())+"."+string(f.Name())] {
				m.Clear(f)
			}
			return true
		})
	}
}

// newer adds to a message a field that nobody knows today, and says that it
// speaks the next version of the protocol besides.
func newer(m protoreflect.Message) {
	m.SetUnknown(unknownField())
	if hello, ok := m.Interface().(*pb.Hello); ok {
		hello.MaxVersion++
	}
}

func unknownField() []byte {
	return protowire.AppendString(protowire.AppendTag(nil, 9999, protowire.BytesType), "of a later version")
}

// rewrite has change look at a message and all that are in it.
func rewrite(m protoreflect.Message, change func(protoreflect.Message)) {
	change(m)
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				rewrite(v.List().Get(i).Message(), change)
			}
		default:
			rewrite(v.Message(), change)
		}
		return true
	})
}

// relay stands between an agent and a server, and makes of what each says what
// one of another version would say.
type relay struct {
	pb.UnimplementedTallymanServer
	server pb.TallymanClient
	change func(protoreflect.Message)
	// strange has messages sent in between that are of no kind known today.
	strange bool
}

func (r *relay) Session(agent pb.Tallyman_SessionServer) error {
	server, err := r.server.Session(agent.Context())
	if err != nil {
		return err
	}
	go func() {
		for {
			m, err := agent.Recv()
			if err != nil {
				_ = server.CloseSend()
				return
			}
			rewrite(m.ProtoReflect(), r.change)
			if err := server.Send(m); err != nil {
				return
			}
			if r.strange {
				_ = server.Send(odd(&pb.AgentMessage{}))
			}
		}
	}()
	for {
		m, err := server.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		rewrite(m.ProtoReflect(), r.change)
		if err := agent.Send(m); err != nil {
			return err
		}
		if r.strange {
			_ = agent.Send(odd(&pb.ServerMessage{}))
		}
	}
}

func odd[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(unknownField())
	return m
}

// follower is an agent that remembers all that it is told.
type follower struct {
	nopHandler
	assigned chan *nodes.Assignment
	routed   chan *proxy.Table
	kept     chan []nodes.Decision
	leased   chan time.Duration
}

func (f *follower) Hello(context.Context) (nodes.Report, error) {
	return nodes.Report{Node: "n1", Complete: true, Info: &nodes.Node{Name: "n1"}, Statuses: []nodes.PodStatus{{UID: "old"}}}, nil
}
func (f *follower) Assign(a *nodes.Assignment)        { f.assigned <- a }
func (f *follower) Route(t *proxy.Table)              { f.routed <- t }
func (f *follower) Ledger(_ bool, d []nodes.Decision) { f.kept <- d }
func (f *follower) Lease(_, duration time.Duration)   { f.leased <- duration }

// TestOtherVersionsWorkTogether puts a version before and after between agent
// and server, over TCP: everything that a session is for goes on.
func TestOtherVersionsWorkTogether(t *testing.T) {
	before := slices.DeleteFunc(released(t), func(line string) bool {
		// As if the version before had known nothing of these.
		return strings.HasPrefix(line, "Node.taints ") || strings.HasPrefix(line, "Node.wireguard ") || strings.HasPrefix(line, "Report.fenced ")
	})
	for name, r := range map[string]*relay{
		"before": {change: older(before)},
		"after":  {change: newer, strange: true},
	} {
		t.Run(name, func(t *testing.T) { across(t, r) })
	}
}

// across runs a session over a relay.
func across(t *testing.T, r *relay) {
	sessions, reports := make(chan *Session, 1), make(chan *nodes.Report, 100)
	server, err := NewServer(ServerOptions{
		Version: "v1.2.0", Log: slog.New(slog.DiscardHandler), Heartbeat: func() time.Duration { return 20 * time.Millisecond },
		Accept: func(ctx context.Context, s *Session) error {
			s.Attend(func(beat uint64) {
				if beat != 0 {
					go func() { _ = s.Lease(beat, time.Minute) }()
				}
			})
			sessions <- s
			for {
				report, err := s.Receive()
				if err != nil {
					return err
				}
				reports <- report
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	behind, front := listenTCP(t), listenTCP(t)
	running.Go(func() { _ = server.Serve(ctx, behind) })
	conn, err := grpc.NewClient(behind.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r.server = pb.NewTallymanClient(conn)
	between := grpc.NewServer()
	pb.RegisterTallymanServer(between, r)
	running.Go(func() { _ = between.Serve(front) })
	defer between.Stop()

	f := &follower{assigned: make(chan *nodes.Assignment, 10), routed: make(chan *proxy.Table, 10), kept: make(chan []nodes.Decision, 10), leased: make(chan time.Duration, 10000)}
	client, err := NewClient(ClientOptions{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", front.Addr().String())
		},
		Node: "n1", Version: "v1.1.0", Handler: f, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() { _ = client.Run(ctx) })

	session := receive(t, sessions, "session")
	if session.Version() != "v1.1.0" {
		t.Errorf("the agent's version is %q", session.Version())
	}
	if first := receive(t, reports, "complete report"); !first.Complete || len(first.Statuses) != 1 || first.Info == nil {
		t.Errorf("first report %+v", first)
	}
	for _, pods := range []int{1, 3, 2} { // the later ones are differences
		want := &nodes.Assignment{Node: "n1", Session: 7}
		template := &nodes.Template{Hash: "t1"}
		for i := range pods {
			want.Pods = append(want.Pods, &nodes.Pod{UID: nodes.UID(fmt.Sprint("u", i)), Name: fmt.Sprint("web-", i), Node: "n1", Template: template, TemplateHash: "t1"})
		}
		table := &proxy.Table{Generation: uint64(pods + 10), Domain: "cluster.local", Services: []*proxy.Service{{Namespace: "default", Name: fmt.Sprint("web", pods)}}}
		decision := nodes.Decision{Kind: "service", Key: fmt.Sprint("default/web", pods), Value: []byte(`{}`)}
		if err := session.Send(Update{Assignment: want, Routes: table, Ledger: []nodes.Decision{decision}}); err != nil {
			t.Fatal(err)
		}
		got := receive(t, f.assigned, "assignment")
		if len(got.Pods) != pods || got.Session != 7 || got.Pods[0].Template == nil {
			t.Errorf("assignment of %d pods: %+v", pods, got)
		}
		if routed := receive(t, f.routed, "routes"); routed.Generation != table.Generation || routed.Services[0].Name != table.Services[0].Name {
			t.Errorf("routes %+v", routed)
		}
		if diff := cmp.Diff([]nodes.Decision{decision}, receive(t, f.kept, "ledger")); diff != "" {
			t.Errorf("ledger:\n%s", diff)
		}
	}
	client.Send(nodes.Report{Node: "n1", Gone: []nodes.UID{"u2"}, Routes: 12})
	if report := receive(t, reports, "report"); !slices.Equal(report.Gone, []nodes.UID{"u2"}) || report.Routes != 12 {
		t.Errorf("report %+v", report)
	}
	if lease := receive(t, f.leased, "lease"); lease != time.Minute {
		t.Errorf("lease of %s", lease)
	}
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
