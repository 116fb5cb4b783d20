package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
	"github.com/tallyman-dev/tallyman/nodes/trust"
	"github.com/tallyman-dev/tallyman/nodes/trust/trusttest"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// town is a registry with a public door, over real sockets.
type town struct {
	*testing.T
	*Registry
	authority *trust.Authority
	// addr is that of the public door, private the socket of the node home.
	addr, private string
	// ahead is how far the authority's clock is before the machine's.
	ahead atomic.Int64
	// later is how much longer the registry has lived than it really has.
	later atomic.Int64

	mu sync.Mutex
	// owners stand for the loop's decisions.
	owners map[string]string
	// heard is the newest complete report of each node.
	heard map[string]*nodes.Report
	// noticed is what the registry says itself.
	noticed []nodes.Event
}

// Admit implements Members as simply as can be.
func (w *town) Admit(_ context.Context, a nodes.Admission) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if owner := w.owners[a.Name]; owner != "" && owner != a.Identity && !a.Replace {
		return &nodes.TakenError{Member: nodes.Member{Name: a.Name, From: "192.0.2.1"}}
	}
	w.owners[a.Name] = a.Identity
	w.Member(a.Member)
	return nil
}

func authority(t *testing.T, secret byte, now func() time.Time) *trust.Authority {
	t.Helper()
	a, err := trust.New(bytes.Repeat([]byte{secret}, 32), now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newTown(t *testing.T) *town {
	w := &town{T: t, owners: map[string]string{}, heard: map[string]*nodes.Report{}}
	now := func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }
	w.authority = authority(t, 1, now)
	signs := func(p *nodes.Pod, q nodes.TokenRequest) (nodes.Token, error) {
		return nodes.Token{Value: "token of " + p.Name}, nil
	}
	bound := func(node string, p *nodes.Pod) bool { return string(p.Seal) == "for "+node }
	r, err := New(Options{
		Log: slog.New(slog.DiscardHandler), Authority: w.authority, Members: w, Token: signs, Bound: bound,
		Clock: func() time.Duration { return boottime.Now() + time.Duration(w.later.Load()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Registry = r
	public, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.private = filepath.Join(t.TempDir(), "agents.sock")
	private, err := net.Listen("unix", w.private)
	if err != nil {
		t.Fatal(err)
	}
	w.addr = public.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- r.Serve(ctx, Door{Listener: public, Public: true}, Door{Listener: private, Node: "home"})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	go func() { // somebody takes what nodes say
		for {
			select {
			case <-ctx.Done():
				return
			case in := <-r.Inputs():
				w.mu.Lock()
				w.noticed = append(w.noticed, in.Events...)
				w.mu.Unlock()
				if in.Report != nil && in.Report.Complete {
					w.mu.Lock()
					w.heard[in.Report.Node] = in.Report
					w.mu.Unlock()
				}
			}
		}
	}()
	return w
}

func (w *town) machine() *trust.Node {
	w.Helper()
	n, err := trust.OpenNode(filepath.Join(w.TempDir(), "tls"))
	if err != nil {
		w.Fatal(err)
	}
	return n
}

func (w *town) token(t trust.Token) string {
	w.Helper()
	t.Expires = time.Now().Add(time.Hour)
	text, err := w.authority.NewToken(t)
	if err != nil {
		w.Fatal(err)
	}
	return text
}

// buy joins with a token, as tally agent does.
func (w *town) buy(n *trust.Node, name, token string) error {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	request, err := n.Request(name)
	if err != nil {
		w.Fatal(err)
	}
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		w.Fatal(err)
	}
	secured := tls.Client(conn, trust.JoinTLS(w.authority.Hash()))
	if err := secured.HandshakeContext(ctx); err != nil {
		w.Fatal(err)
	}
	chain, err := wire.Join(ctx, secured, token, name, request)
	if err != nil {
		return err
	}
	return n.Keep(chain, w.authority.Hash())
}

// citizen is a machine that has joined.
func (w *town) citizen(name string) *trust.Node {
	w.Helper()
	n := w.machine()
	if err := w.buy(n, name, w.token(trust.Token{})); err != nil {
		w.Fatal(err)
	}
	return n
}

// made gives node a a certificate that was made a while ago.
func (w *town) made(ago time.Duration) *trust.Node {
	w.Helper()
	w.ahead.Store(-int64(ago))
	defer w.ahead.Store(0)
	n := w.machine()
	trusttest.Join[trust.Hash](w, n, w.authority, "a")
	return n
}

func (w *town) tls(n *trust.Node) credentials.TransportCredentials {
	w.Helper()
	config, err := n.TLS()
	if err != nil {
		w.Fatal(err)
	}
	return credentials.NewTLS(config)
}

// service speaks the protocol by hand, to say what no agent would.
func (w *town) service(c credentials.TransportCredentials) pb.TallymanClient {
	w.Helper()
	client, err := grpc.NewClient("passthrough:///"+w.addr, grpc.WithTransportCredentials(c))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { client.Close() })
	return pb.NewTallymanClient(client)
}

// session opens one by hand and returns how it ended, or the stream when the
// server sends something after the welcome.
func (w *town) session(c credentials.TransportCredentials, name string, report *pb.Report) (pb.Tallyman_SessionClient, error) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	w.Cleanup(cancel)
	stream, err := w.service(c).Session(ctx)
	if err != nil {
		return nil, err
	}
	hello := &pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: &pb.Hello{MinVersion: 1, MaxVersion: 1, Node: name}}}
	if stream.Send(hello) == nil {
		report.Complete, report.Info = true, &pb.Node{Name: name, Labels: map[string]string{
			"disk": "ssd", "kubernetes.io/hostname": "another", "node-restriction.kubernetes.io/pci": "yes", "x.node-restriction.kubernetes.io/pci": "yes",
		}}
		_ = stream.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Report{Report: report}}) // Recv tells why not
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if m.GetWelcome() == nil {
			return stream, nil
		}
	}
}

func (w *town) refused(what string, err error, words ...string) {
	w.Helper()
	for _, word := range words {
		if err == nil || !strings.Contains(status.Convert(err).Message(), word) {
			w.Errorf("%s: %v, want %q", what, err, word)
		}
	}
}

// told waits until a node's page tells of a refusal.
func (w *town) told(name, word string) {
	w.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		w.mu.Lock()
		found := slices.ContainsFunc(w.noticed, func(e nodes.Event) bool {
			return e.Object.Kind == "Node" && e.Object.Name == name && e.Reason == "Refused" && e.Warning && strings.Contains(e.Message, word)
		})
		w.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("node %s: nobody is told of %q: %+v", name, word, w.noticed)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// assign lets sessions of a node get something.
func (w *town) assign(name string, pods ...*nodes.Pod) {
	for _, p := range pods {
		p.Node = name
		if p.Template == nil {
			p.Template = &nodes.Template{Hash: "h"}
		}
	}
	w.Assign(nodes.Assignment{Node: name, Pods: pods})
}

func TestAMachineJoinsAndIsKnown(t *testing.T) {
	w := newTown(t)
	w.assign("a")
	n := w.citizen("a")
	if _, err := w.session(w.tls(n), "a", &pb.Report{}); err != nil {
		t.Error(err)
	}
	// It asks again with the same key: the answer was lost.
	if err := w.buy(n, "a", w.token(trust.Token{Node: "a"})); err != nil {
		t.Error(err)
	}
	service := w.service(w.tls(n))
	request, err := n.Request("a")
	if err != nil {
		t.Fatal(err)
	}
	answer, err := service.Renew(t.Context(), &pb.RenewRequest{Request: request})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Keep(answer.GetChain(), trust.Hash{}); err != nil {
		t.Error(err)
	}
	if _, err := w.session(w.tls(n), "a", &pb.Report{}); err != nil {
		t.Error(err)
	}
}

func TestNobodyJoinsWithoutAGoodToken(t *testing.T) {
	w := newTown(t)
	other := authority(t, 2, time.Now)
	foreign, err := other.NewToken(trust.Token{Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	late := w.token(trust.Token{})
	var refused *wire.RefusedError
	for _, c := range []struct {
		name, token, want string
		ahead             time.Duration
	}{
		{"a", "", "no join token", 0},
		{"a", foreign, "of another cluster", 0},
		{"a", late, "expired on", 2 * time.Hour},
		{"a", w.token(trust.Token{Node: "b"}), "for node b", 0},
		{"A b", w.token(trust.Token{}), "cannot be a node's name", 0},
		{"home", w.token(trust.Token{}), "the server's own machine", 0},
		{"home", w.token(trust.Token{Node: "home", Replace: true}), "the server's own machine", 0},
	} {
		w.ahead.Store(int64(c.ahead))
		if err := w.buy(w.machine(), c.name, c.token); !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %q: %v, want %q", c.name, c.token, err, c.want)
		}
	}
	w.told("home", "the server's own machine")
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.noticed {
		if e.Object.Name != "home" {
			t.Errorf("told of %s, which is no node: %s", e.Object.Name, e.Message)
		}
	}
}

// TestTheServersOwnMachineIsRevoked: its sessions have no address.
func TestTheServersOwnMachineIsRevoked(t *testing.T) {
	w := newTown(t)
	w.assign("home")
	w.addr = "unix:" + w.private
	if _, err := w.session(insecure.NewCredentials(), "home", &pb.Report{}); err != nil {
		t.Fatal(err)
	}
	w.Revoke([]string{"home"})
	w.told("home", "the server's own machine was refused as this node: node home is revoked in Git")
}

func TestASecondMachineOfOneName(t *testing.T) {
	w := newTown(t)
	w.assign("a")
	first, second := w.citizen("a"), w.machine()
	stream, err := w.session(w.tls(first), "a", &pb.Report{})
	if err != nil {
		t.Fatal(err)
	}
	w.refused("without leave", w.buy(second, "a", w.token(trust.Token{})), "already joined from 192.0.2.1", "--node-name", "--replace")
	w.told("a", "127.0.0.1 was refused as this node: node a is already joined from 192.0.2.1")
	if err := w.buy(second, "a", w.token(trust.Token{Node: "a", Replace: true})); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	w.refused("the session of the first", err, "already joined from")
	_, err = w.session(w.tls(first), "a", &pb.Report{})
	w.refused("another session of the first", err, "already joined from")
	request, _ := first.Request("a")
	_, err = w.service(w.tls(first)).Renew(t.Context(), &pb.RenewRequest{Request: request})
	w.refused("its renewal", err, "already joined from")
	_, err = w.session(w.tls(second), "a", &pb.Report{})
	w.refused("the second, while the first may run fenced pods", err, "whose lease may hold for")
	w.later.Store(int64(time.Minute))
	if _, err := w.session(w.tls(second), "a", &pb.Report{}); err != nil {
		t.Errorf("the second: %v", err)
	}
}

// TestASecondMachineWaitsAcrossARestart: the server that knew how long the first
// one's lease holds is gone.
func TestASecondMachineWaitsAcrossARestart(t *testing.T) {
	for _, c := range []struct {
		ago      time.Duration
		succeeds bool
		wait     bool
	}{{0, true, true}, {time.Hour, true, false}, {0, false, false}} {
		w := newTown(t)
		w.assign("a")
		second := w.citizen("a")
		w.Member(nodes.Member{Name: "a", Identity: w.owners["a"], Joined: time.Now().Add(-c.ago), Succeeds: c.succeeds})
		_, err := w.session(w.tls(second), "a", &pb.Report{})
		if !c.wait {
			if err != nil {
				t.Errorf("%+v: %v", c, err)
			}
			continue
		}
		w.refused("at once", err, "whose lease may hold for")
		w.later.Store(int64(time.Minute))
		if _, err := w.session(w.tls(second), "a", &pb.Report{}); err != nil {
			t.Errorf("%+v, a minute later: %v", c, err)
		}
	}
}

// TestTheFirstCertificateCountsWhenNobodyRemembers: the record is lost.
func TestTheFirstCertificateCountsWhenNobodyRemembers(t *testing.T) {
	w := newTown(t)
	first, second := w.citizen("a"), w.machine()
	if err := w.buy(second, "a", w.token(trust.Token{Node: "a", Replace: true})); err != nil {
		t.Fatal(err)
	}
	again := newTown(t)
	again.assign("a")
	if _, err := again.session(again.tls(second), "a", &pb.Report{}); err != nil {
		t.Error(err)
	}
	_, err := again.session(again.tls(first), "a", &pb.Report{})
	again.refused("the replaced machine", err, "already joined")
}

func TestRevokedNodesAreShutOut(t *testing.T) {
	w := newTown(t)
	w.assign("a")
	n := w.citizen("a")
	stream, err := w.session(w.tls(n), "a", &pb.Report{})
	if err != nil {
		t.Fatal(err)
	}
	w.Revoke([]string{"a"})
	for err == nil {
		_, err = stream.Recv()
	}
	w.refused("its session", err, "revoked in Git")
	w.told("a", "revoked in Git")
	_, err = w.session(w.tls(n), "a", &pb.Report{})
	w.refused("another one", err, "revoked in Git")
	request, _ := n.Request("a")
	_, err = w.service(w.tls(n)).Renew(t.Context(), &pb.RenewRequest{Request: request})
	w.refused("renewal", err, "revoked in Git")
	w.refused("joining", w.buy(w.machine(), "a", w.token(trust.Token{Node: "a", Replace: true})), "revoked in Git")
	w.Revoke(nil)
	if _, err := w.session(w.tls(n), "a", &pb.Report{}); err != nil {
		t.Errorf("taken back: %v", err)
	}
}

// TestNodesSpeakForThemselves: each call, with a valid certificate, about
// another node.
func TestNodesSpeakForThemselves(t *testing.T) {
	w := newTown(t)
	victim, own := &nodes.Pod{UID: "1", Namespace: "default", Name: "victim"}, &nodes.Pod{UID: "2", Namespace: "default", Name: "own"}
	victim.Template, own.Template = asking("vault", 600), asking("vault", 600)
	w.assign("a", victim)
	w.assign("b", own)
	w.assign("home")
	b := w.tls(w.citizen("b"))
	w.citizen("a")
	for _, name := range []string{"a", "home", "stranger"} {
		_, err := w.session(b, name, &pb.Report{})
		w.refused("a session as "+name, err, "can't speak for node "+name)
	}
	service := w.service(b)
	for what, q := range map[string]*pb.TokenRequest{
		"a token as another": tokenRequest("a", "1", "vault", 600), "a token for another's pod": tokenRequest("b", "1", "vault", 600),
		"a token for no pod": tokenRequest("b", "x", "vault", 600),
	} {
		if answer, err := service.Token(t.Context(), q); err == nil {
			t.Errorf("%s: %q", what, answer.GetToken())
		}
	}
	if answer, err := service.Token(t.Context(), tokenRequest("b", "2", "vault", 600)); err != nil || answer.GetToken() != "token of own" {
		t.Errorf("its own token: %v, %v", answer, err)
	}
	stranger, _ := w.machine().Request("b")
	_, err := service.Renew(t.Context(), &pb.RenewRequest{Request: stranger})
	w.refused("a certificate for another key", err, "for the key that it has")
	stream, err := w.session(b, "b", &pb.Report{})
	if err != nil {
		t.Fatal(err)
	}
	describes := &pb.AgentMessage{Message: &pb.AgentMessage_Report{Report: &pb.Report{Info: &pb.Node{Name: "a"}}}}
	if err := stream.Send(describes); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	w.refused("a description of another", err, "can't describe node a")
}

// TestLogsComeFromTheirNode, though another has learned the id.
func TestLogsComeFromTheirNode(t *testing.T) {
	w := newTown(t)
	w.assign("a")
	a, b := w.tls(w.citizen("a")), w.tls(w.citizen("b"))
	stream, err := w.session(a, "a", &pb.Report{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		if log, err := w.Logs(ctx, "a", wire.LogQuery{Pod: "p"}); err == nil {
			log.Close()
			t.Error("somebody answered")
		}
	}()
	id := ""
	for id == "" {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		id = m.GetOpenLog().GetId()
	}
	forged, err := w.service(b).Log(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := forged.Send(&pb.LogChunk{Id: id}); err != nil {
		t.Fatal(err)
	}
	err = forged.RecvMsg(&pb.LogEnd{})
	w.refused("another's log", err, "nobody waits for this log")
	cancel()
}

// TestStrangersGetNothing: foreign authorities, expired certificates, none, TLS
// 1.2, no TLS.
func TestStrangersGetNothing(t *testing.T) {
	w := newTown(t)
	w.assign("a")
	n := w.citizen("a")
	config, err := n.TLS()
	if err != nil {
		t.Fatal(err)
	}
	other := authority(t, 2, time.Now)
	foreigner := w.machine()
	trusttest.Join[trust.Hash](t, foreigner, other, "a")
	request, err := foreigner.Request("a")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := foreigner.TLS()
	if err != nil {
		t.Fatal(err)
	}
	foreign.RootCAs = config.RootCAs // it would talk to our server all the same
	naked := config.Clone()
	naked.GetClientCertificate = nil
	old := config.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for what, c := range map[string]struct {
		credentials credentials.TransportCredentials
		want        string
	}{
		"a foreign authority": {credentials.NewTLS(foreign), "not of this cluster"},
		"no certificate":      {credentials.NewTLS(naked), "no certificate was shown"},
		"an expired one":      {w.tls(w.made(91 * 24 * time.Hour)), "expired on"},
		"TLS 1.2":             {credentials.NewTLS(old), "protocol version"},
		"no TLS":              {insecure.NewCredentials(), ""},
	} {
		_, err := w.session(c.credentials, "a", &pb.Report{})
		w.refused(what, err, c.want)
		if err == nil {
			t.Errorf("%s: let in", what)
		}
		service := w.service(c.credentials)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := service.Token(ctx, &pb.TokenRequest{Node: "a", Pod: "1"}); err == nil {
			t.Errorf("%s: a token", what)
		}
		if _, err := service.Renew(ctx, &pb.RenewRequest{Request: request}); err == nil {
			t.Errorf("%s: a certificate", what)
		}
		cancel()
	}
}

// TestStrangersSayLittle: a server that hears them out needs memory for it.
func TestStrangersSayLittle(t *testing.T) {
	w := newTown(t)
	n := w.citizen("a")
	config, err := n.TLS()
	if err != nil {
		t.Fatal(err)
	}
	naked := config.Clone()
	naked.GetClientCertificate = nil
	for what, c := range map[string]struct {
		credentials credentials.TransportCredentials
		size        int
		want        codes.Code
	}{
		"a stranger":           {credentials.NewTLS(naked), 1000, codes.PermissionDenied},
		"a talkative stranger": {credentials.NewTLS(naked), 1 << 20, codes.Unavailable},
		"a talkative node":     {w.tls(n), 1 << 20, codes.PermissionDenied},
		"an expired one":       {w.tls(w.made(91 * 24 * time.Hour)), 1 << 20, codes.Unavailable},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		_, err := w.service(c.credentials).Join(ctx, &pb.JoinRequest{Node: "b", Token: strings.Repeat("x", c.size)})
		if cancel(); status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
}

// TestSessionsEndWithTheirCertificate.
func TestSessionsEndWithTheirCertificate(t *testing.T) {
	w := newTown(t)
	w.assign("a")
	n := w.made(90*24*time.Hour - 3*time.Second) // it ends in three seconds
	stream, err := w.session(w.tls(n), "a", &pb.Report{})
	for err == nil {
		_, err = stream.Recv()
	}
	w.refused("the session", err, "expired")
}

// TestWhatNodesSayOfOthersIsNotTaken: events, and ledgers that nobody sealed. The
// server's own machine may have a ledger of an earlier version.
func TestWhatNodesSayOfOthersIsNotTaken(t *testing.T) {
	w := newTown(t)
	own := func() *nodes.Pod { return &nodes.Pod{UID: "2", Namespace: "default", Name: "own"} }
	w.assign("b", own())
	w.assign("home", own())
	seal := func(a *trust.Authority, key string) *pb.Decision {
		d, err := a.Seal(nodes.Decision{Kind: "service", Key: key, Value: json.RawMessage("1")})
		if err != nil {
			t.Fatal(err)
		}
		return &pb.Decision{Kind: d.Kind, Key: d.Key, Value: d.Value}
	}
	misplaced := seal(w.authority, "misplaced")
	misplaced.Key = seal(w.authority, "good").GetKey()
	event := func(kind, namespace, name string) *pb.Event {
		return &pb.Event{Object: &pb.Key{Kind: kind, Namespace: namespace, Name: name}}
	}
	report := func(name string) *pb.Report {
		claim := &pb.Key{Kind: "PersistentVolumeClaim", Namespace: "default", Name: "claim"}
		return &pb.Report{
			Held: []*pb.Pod{
				{Uid: "3", Namespace: "default", Name: "held", Seal: []byte("for " + name)}, {Uid: "4", Namespace: "default", Name: "claimed", Seal: []byte("x")},
			},
			Volumes: []*pb.VolumeStatus{{Name: "v", Held: &pb.Volume{Name: "v", Claim: claim}}},
			Ledger: []*pb.Decision{
				seal(w.authority, "good"), misplaced, seal(authority(t, 2, time.Now), "foreign"), {Kind: "service", Key: "plain", Value: []byte("1")},
			},
			Events: []*pb.Event{
				event("Pod", "default", "own"), event("Pod", "default", "other"), event("Secret", "default", "s"), event("Node", "", name), event("Node", "", "a"),
				event("Pod", "default", "held"), event("Pod", "default", "claimed"),
				{Object: claim},
			},
		}
	}
	for _, c := range []struct{ name, target, want string }{
		{"b", w.addr, "service/good Pod/own Node/b Pod/held "},
		{"home", "unix:" + w.private, "service/good service/plain Pod/own Node/home Pod/held Pod/claimed PersistentVolumeClaim/claim "},
	} {
		creds := insecure.NewCredentials()
		if c.name == "b" {
			creds = w.tls(w.citizen("b"))
		}
		w.addr = c.target
		if _, err := w.session(creds, c.name, report(c.name)); err != nil {
			t.Fatal(err)
		}
		heard := w.hear(c.name)
		got := ""
		for _, d := range heard.Ledger {
			got += d.Kind + "/" + d.Key + " "
		}
		for _, e := range heard.Events {
			got += e.Object.Kind + "/" + e.Object.Name + " "
		}
		if got != c.want || heard.Local != (c.name == "home") || len(heard.Info.Labels) != 1 {
			t.Errorf("of %s is taken %q and the labels %v, want %q and its disk", c.name, got, heard.Info.Labels, c.want)
		}
	}
	_, err := w.session(insecure.NewCredentials(), "b", &pb.Report{})
	w.refused("another's session at the private door", err, "can't speak for node b")
}

// hear waits for a node's complete report.
func (w *town) hear(name string) *nodes.Report {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		w.mu.Lock()
		r := w.heard[name]
		w.mu.Unlock()
		if r != nil {
			return r
		}
	}
	w.Fatalf("node %s said nothing", name)
	return nil
}

// TestTheLedgerLeavesSealed.
func TestTheLedgerLeavesSealed(t *testing.T) {
	w := newTown(t)
	w.Ledger([]nodes.Decision{{Kind: "service", Key: "default/web", Value: json.RawMessage(`"10.96.0.9"`)}})
	stream, err := w.session(w.tls(w.citizen("a")), "a", &pb.Report{})
	if err != nil {
		t.Fatal(err)
	}
	w.Ledger([]nodes.Decision{{Kind: "service", Key: "default/db", Value: json.RawMessage(`"10.96.0.10"`)}})
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range m.GetLedger().GetDecisions() {
			opened, err := w.authority.Open(nodes.Decision{Kind: d.GetKind(), Key: d.GetKey(), Value: d.GetValue()})
			if err != nil || opened.Key != "default/db" || bytes.Contains(d.GetValue(), []byte("10.96")) {
				t.Errorf("the node keeps %s, %v", d, err)
			}
			return
		}
	}
}

// TestRemovedNodes are forgotten, and their certificates are good for nothing.
func TestRemovedNodes(t *testing.T) {
	w := newTown(t)
	w.assign("a")
	first := w.citizen("a")
	stream, err := w.session(w.tls(first), "a", &pb.Report{})
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	m := nodes.Member{Name: "a", Identity: w.owners["a"], Removed: true}
	delete(w.owners, "a")
	w.mu.Unlock()
	w.Member(m)
	for err == nil {
		_, err = stream.Recv()
	}
	w.refused("its session", err, "was removed from the cluster", "tally reset", "tally token create")
	if left := w.Nodes(); len(left) > 0 {
		t.Errorf("the registry still has %v", left)
	}
	_, err = w.session(w.tls(first), "a", &pb.Report{})
	w.refused("another one", err, "was removed from the cluster")
	request, _ := first.Request("a")
	_, err = w.service(w.tls(first)).Renew(t.Context(), &pb.RenewRequest{Request: request})
	w.refused("renewal", err, "was removed from the cluster")
	second := w.machine()
	if err := w.buy(second, "a", w.token(trust.Token{})); err != nil {
		t.Fatal(err)
	}
	w.later.Store(int64(time.Minute))
	w.assign("a")
	if _, err := w.session(w.tls(second), "a", &pb.Report{}); err != nil {
		t.Errorf("a new node of that name: %v", err)
	}
}
