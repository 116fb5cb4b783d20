package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

// writeBuffer is what one connection gathers before it writes, in bytes: a TLS
// record's worth. While a node does not read, its buffer is kept.
const writeBuffer = 16 << 10

// ErrNoSession is returned when the node's session has ended.
var ErrNoSession = errors.New("no session with the node")

// ServerOptions of the server's end of the protocol.
type ServerOptions struct {
	// Version of the program.
	Version string
	// Accept lives as long as a session: it is called in a goroutine of its own
	// once the agent's hello is in, and the session ends when it returns.
	Accept func(ctx context.Context, s *Session) error
	// Credentials secure the listener; nil where it is private already.
	Credentials credentials.TransportCredentials
	// Identify says who is calling; an error refuses every call but Join and is
	// told to the caller. Nil lets anybody speak for any node.
	Identify func(ctx context.Context, p Peer) (Caller, error)
	// Join gives a machine its first certificate, Renew the next one: the chain
	// in DER, the node's own first. Nil refuses all.
	Join  func(ctx context.Context, r JoinRequest) ([][]byte, error)
	Renew func(ctx context.Context, c Caller, request []byte) ([][]byte, error)
	// Token signs a token for a pod that is bound to the asking node; nil
	// refuses all.
	Token func(ctx context.Context, node string, r nodes.TokenRequest) (nodes.Token, error)
	// Heartbeat is how often an agent that joins now is to be heard; nil asks for
	// no heartbeats.
	Heartbeat func() time.Duration
	Log       *slog.Logger
}

// Server is the server's end of the protocol.
type Server struct {
	o     ServerOptions
	logs  *logWaiters
	diffs *tableDiffs
}

// NewServer makes a server; Serve makes it work.
func NewServer(o ServerOptions) (*Server, error) {
	if o.Accept == nil {
		return nil, errors.New("wire server: nobody accepts sessions")
	}
	if o.Log == nil {
		return nil, errors.New("wire server: no logger")
	}
	if o.Credentials == nil {
		o.Credentials = insecure.NewCredentials()
	}
	return &Server{o: o, logs: newLogWaiters(), diffs: newTableDiffs()}, nil
}

// Serve answers agents on l until ctx ends, ends all sessions then and returns
// nil. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := grpc.NewServer(
		grpc.Creds(s.o.Credentials),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.ForceServerCodecV2(newExact()),
		// TLS keeps a record itself; a buffer for each of thousands of connections besides would be a sixth of the server's memory.
		grpc.ReadBufferSize(0),
		grpc.WriteBufferSize(writeBuffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.identifyUnary), grpc.StreamInterceptor(s.identifyStream),
	)
	pb.RegisterTallymanServer(server, &service{server: s})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	err := server.Serve(l)
	if ctx.Err() != nil {
		server.Stop() // returns once every session has ended
		return nil
	}
	return fmt.Errorf("serve agents on %s: %w", l.Addr(), err)
}

// service keeps the generated methods off Server.
type service struct {
	pb.UnimplementedTallymanServer
	server *Server
}

// Session implements pb.TallymanServer.
func (s *service) Session(stream pb.Tallyman_SessionServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	version, err := negotiate(hello)
	if err != nil {
		return err
	}
	caller, err := speaksFor(stream.Context(), hello.GetNode())
	if err != nil {
		return err
	}
	welcome := &pb.Welcome{Version: version, Server: s.server.o.Version}
	if s.server.o.Heartbeat != nil {
		welcome.Heartbeat = int64(s.server.o.Heartbeat())
	}
	err = stream.Send(&pb.ServerMessage{Message: &pb.ServerMessage_Welcome{Welcome: welcome}})
	if err != nil {
		return err
	}
	session := &Session{
		node: hello.GetNode(), version: hello.GetVersion(), caller: caller, stream: stream, logs: s.server.logs,
		welcome: welcome, state: newSender(s.server.diffs), reports: reportReader{node: hello.GetNode()}, sending: make(chan struct{}, 1),
	}
	if err := s.server.o.Accept(stream.Context(), session); err != nil {
		return status.Error(codes.Aborted, err.Error())
	}
	return nil
}

// Token implements pb.TallymanServer.
func (s *service) Token(ctx context.Context, r *pb.TokenRequest) (*pb.TokenAnswer, error) {
	if s.server.o.Token == nil {
		return nil, status.Error(codes.Unimplemented, "this server signs no tokens")
	}
	if _, err := speaksFor(ctx, r.GetNode()); err != nil {
		return nil, err
	}
	t, err := s.server.o.Token(ctx, r.GetNode(), nodes.TokenRequest{
		Pod: nodes.UID(r.GetPod()), Audience: r.GetAudience(), Expiry: time.Duration(r.GetExpiry()),
	})
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	return &pb.TokenAnswer{Token: t.Value, Issued: encodeTime(t.Issued), Expires: encodeTime(t.Expires)}, nil
}

// negotiate picks the newest version that both sides speak.
func negotiate(hello *pb.Hello) (uint32, error) {
	if hello.GetNode() == "" {
		return 0, status.Error(codes.InvalidArgument, "a session begins with a hello that names the node")
	}
	low, high := max(hello.GetMinVersion(), MinVersion), min(hello.GetMaxVersion(), MaxVersion)
	if low <= high {
		return high, nil
	}
	older := "agent"
	if hello.GetMinVersion() > MaxVersion {
		older = "server"
	}
	return 0, status.Errorf(codes.FailedPrecondition,
		"the agent of node %s speaks protocol versions %d to %d, this server %d to %d: upgrade the %s",
		hello.GetNode(), hello.GetMinVersion(), hello.GetMaxVersion(), MinVersion, MaxVersion, older)
}

// Session is one agent's session as the server sees it. Receive belongs to one
// goroutine, Send and Logs to any.
type Session struct {
	node, version string
	caller        Caller
	stream        pb.Tallyman_SessionServer
	reports       reportReader
	logs          *logWaiters
	welcome       *pb.Welcome
	attend        func(beat uint64)

	// sending is held while a message goes out; it guards state.
	sending chan struct{}
	state   *sender
}

// Node is the name that the agent gave.
func (s *Session) Node() string { return s.node }

// Caller is whom the server took the agent for.
func (s *Session) Caller() Caller { return s.caller }

// Version is that of the agent's program.
func (s *Session) Version() string { return s.version }

// Attend has f called for every message that Receive finds, with the number of
// a heartbeat, which is to be answered with Lease, or 0. f must not block. Call
// it before Receive.
func (s *Session) Attend(f func(beat uint64)) { s.attend = f }

// Receive waits for the agent's next report; io.EOF when the agent has closed
// the session.
func (s *Session) Receive() (*nodes.Report, error) {
	for {
		message, err := s.stream.Recv()
		if err != nil {
			return nil, err
		}
		if s.attend != nil {
			s.attend(message.GetHeartbeat().GetNumber())
		}
		part := message.GetReport()
		if part == nil {
			continue // what a newer agent adds within a version may be ignored
		}
		report, err := s.reports.add(part)
		if err != nil || report != nil {
			return report, err
		}
	}
}

// Update is what a node is to know; nil parts are unchanged. The values are
// complete: the session sends only what the agent does not have yet.
type Update struct {
	Routes     *proxy.Table
	Assignment *nodes.Assignment
	// Ledger are decisions that changed, or all of them when LedgerComplete.
	Ledger         []nodes.Decision
	LedgerComplete bool
}

// Send brings the agent up to date and blocks while it does not keep up. After
// an error the session is of no use. Routes go before the assignment, so that
// a table without a pod arrives before the order to stop it.
func (s *Session) Send(u Update) error {
	if err := s.lock(s.stream.Context()); err != nil {
		return err
	}
	defer s.unlock()
	messages := s.state.ledger(u.LedgerComplete, u.Ledger)
	if u.Routes != nil {
		messages = append(messages, s.state.routes(u.Routes)...)
	}
	if u.Assignment != nil {
		more, err := s.state.assignment(u.Assignment)
		if err != nil {
			return fmt.Errorf("assignment of node %s: %w", s.node, err)
		}
		messages = append(messages, more...)
	}
	for _, m := range messages {
		if err := s.stream.Send(m); err != nil {
			return fmt.Errorf("send to node %s: %w", s.node, err)
		}
	}
	return nil
}

// Lease answers a heartbeat; see Handler.Lease. With duration 0 it grants
// nothing and only says that the server lives.
func (s *Session) Lease(beat uint64, duration time.Duration) error {
	return s.say(&pb.ServerMessage{Message: &pb.ServerMessage_Lease{Lease: &pb.Lease{Number: beat, Duration: int64(duration)}}})
}

// Pace tells the agent to send a heartbeat every interval from now on.
func (s *Session) Pace(interval time.Duration) error {
	welcome := &pb.Welcome{Version: s.welcome.GetVersion(), Server: s.welcome.GetServer(), Heartbeat: int64(interval)}
	return s.say(&pb.ServerMessage{Message: &pb.ServerMessage_Welcome{Welcome: welcome}})
}

func (s *Session) say(m *pb.ServerMessage) error {
	if err := s.lock(s.stream.Context()); err != nil {
		return err
	}
	defer s.unlock()
	if err := s.stream.Send(m); err != nil {
		return fmt.Errorf("send to node %s: %w", s.node, err)
	}
	return nil
}

// lock waits for its turn to send.
func (s *Session) lock(ctx context.Context) error {
	select {
	case s.sending <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stream.Context().Done():
		return fmt.Errorf("node %s: %w", s.node, ErrNoSession)
	}
}

func (s *Session) unlock() { <-s.sending }

// Logs asks the agent for a log and returns it once the agent has answered.
// The caller closes it; when ctx ends, so does the log.
func (s *Session) Logs(ctx context.Context, q LogQuery) (io.ReadCloser, error) {
	id, answer := s.logs.add(s.node)
	defer s.logs.remove(id, answer)
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	err := s.stream.Send(&pb.ServerMessage{Message: &pb.ServerMessage_OpenLog{OpenLog: encodeQuery(id, q)}})
	s.unlock()
	if err != nil {
		return nil, fmt.Errorf("ask node %s for a log: %w", s.node, err)
	}
	select {
	case reader := <-answer:
		context.AfterFunc(ctx, func() { reader.Close() })
		return reader, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.stream.Context().Done():
		return nil, fmt.Errorf("node %s: %w", s.node, ErrNoSession)
	}
}
