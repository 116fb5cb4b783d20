package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

const (
	// MinVersion and MaxVersion are the protocol versions that this program speaks.
	MinVersion, MaxVersion = 1, 1

	// keepaliveTime is how long a connection may be quiet before it is asked
	// whether it lives, keepaliveTimeout how long the answer may take.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second

	firstRetry, lastRetry = 50 * time.Millisecond, 3 * time.Second
	// logChunk is the largest piece of a log in one message.
	logChunk = 32 << 10
)

// ClientOptions of an agent's connection to its server.
type ClientOptions struct {
	// Dial opens a connection to the server. It is called for every session, and
	// may try another address each time.
	Dial func(ctx context.Context) (net.Conn, error)
	// Credentials secure it; nil where Dial's connection is private already,
	// inside one process or over a socket with permissions.
	Credentials credentials.TransportCredentials
	// Node is the node's name, Version that of the program.
	Node, Version string
	Handler       Handler
	// Elsewhere, when set, is told what a server says that does not lead: host:port
	// of the one that does, or empty when it does not know. Dial may go there next.
	Elsewhere func(leader string)
	// Greeting is how long a server may take from the dialling to its welcome,
	// before it is dialled anew and given twice that; default, and the longest, 10 s.
	Greeting time.Duration
	// MaxRetry is the longest pause between two dials; default 3 s.
	MaxRetry time.Duration
	// Clock counts what Handler.Lease is told; default boottime.Now.
	Clock func() time.Duration
	// Beat is how long to wait for the next heartbeat after one, at most interval;
	// default interval.
	Beat func(interval time.Duration) time.Duration
	// Tables, when set, are shared with the other clients of this process that
	// have the same server.
	Tables *Tables
	Log    *slog.Logger
}

// Client is the agent's end of the protocol.
type Client struct {
	o       ClientOptions
	pending *pending

	mu      sync.Mutex // guards service
	service pb.TallymanClient
}

// NewClient makes a client; Run makes it work.
func NewClient(o ClientOptions) (*Client, error) {
	switch {
	case o.Dial == nil:
		return nil, errors.New("wire client: no way to dial")
	case o.Handler == nil:
		return nil, errors.New("wire client: no handler")
	case o.Log == nil:
		return nil, errors.New("wire client: no logger")
	case o.Node == "":
		return nil, errors.New("wire client: no node name")
	}
	if o.Credentials == nil {
		o.Credentials = insecure.NewCredentials()
	}
	if o.Clock == nil {
		o.Clock = boottime.Now
	}
	if o.Beat == nil {
		o.Beat = func(interval time.Duration) time.Duration { return interval }
	}
	if o.Greeting <= 0 {
		o.Greeting = greetTimeout
	}
	if o.MaxRetry <= 0 {
		o.MaxRetry = lastRetry
	}
	return &Client{o: o, pending: newPending()}, nil
}

// Send reports to the server as soon as a session allows. It never blocks:
// reports that wait are merged by pod, and of waiting events the newest 1,000
// are kept.
func (c *Client) Send(r nodes.Report) { c.pending.add(r) }

// Run keeps a session with the server until ctx ends, and dials again, ever
// less often, while there is none. It returns nil.
func (c *Client) Run(ctx context.Context) error {
	retry, greeting := firstRetry, c.o.Greeting
	silent, leader := "", ""
	for ctx.Err() == nil {
		began := time.Now()
		connected, err := c.session(ctx, greeting)
		if ctx.Err() != nil {
			return nil
		}
		if connected && time.Since(began) > c.o.MaxRetry { // a session that is refused again and again is no success
			retry, silent = firstRetry, ""
		}
		if connected {
			greeting = c.o.Greeting
		} else if errors.Is(err, errNoAnswer) { // it may be stopped, or have much to do
			greeting = min(greeting+greeting/2, greetTimeout) // slowly: another one may lead before long
		}
		var elsewhere *StandbyError
		if errors.As(err, &elsewhere) && c.o.Elsewhere != nil {
			if c.o.Elsewhere(elsewhere.Leader); elsewhere.Leader != "" && elsewhere.Leader != leader {
				retry = firstRetry
			}
			leader = elsewhere.Leader
		}
		reason := status.Convert(err).Message()
		level := slog.LevelWarn
		if reason == silent {
			level = slog.LevelDebug
		}
		silent = reason
		wait := retry/2 + rand.N(retry/2+1)
		c.o.Log.Log(ctx, level, "no session with the server", "reason", reason, "retry_in", wait)
		retry = min(2*retry, c.o.MaxRetry)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// session runs one session; connected tells that the server welcomed it.
// It waits for the welcome as long as greeting.
func (c *Client) session(ctx context.Context, greeting time.Duration) (connected bool, err error) {
	conn, err := grpc.NewClient(
		"passthrough:///server",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.o.Dial(ctx) }),
		grpc.WithTransportCredentials(c.o.Credentials),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return false, fmt.Errorf("connect to server: %w", err)
	}
	defer conn.Close()
	service := pb.NewTallymanClient(conn)
	c.serve(service)
	defer c.serve(nil)
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	heart := newHeart(c.o.Clock, greeting, end)
	defer heart.silence.Stop()
	connected, err = c.converse(ctx, service, heart)
	if cause := context.Cause(ctx); errors.Is(cause, errNoAnswer) {
		return connected, cause
	}
	return connected, err
}

// converse runs one stream to its end.
func (c *Client) converse(ctx context.Context, service pb.TallymanClient, heart *heart) (connected bool, err error) {
	group, ctx := errgroup.WithContext(ctx) // the first part that fails ends the stream and the other parts
	stream, err := service.Session(ctx)
	if err != nil {
		return false, err
	}
	if err := c.greet(stream, heart); err != nil {
		return false, err
	}
	var sending sync.Mutex
	send := func(m *pb.AgentMessage) error {
		sending.Lock()
		defer sending.Unlock()
		return stream.Send(m)
	}
	group.Go(func() error { return unlessEnded(c.send(ctx, send)) })
	group.Go(func() error { return unlessEnded(heart.beat(ctx, c.o.Beat, send)) })
	group.Go(func() error { return c.receive(ctx, stream, service, group, heart) })
	return true, group.Wait()
}

// unlessEnded drops what sending says of a stream that has ended: receiving
// learns why.
func unlessEnded(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (c *Client) serve(s pb.TallymanClient) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.service = s
}

// Token asks the server for a token; ErrNoSession while there is no server.
func (c *Client) Token(ctx context.Context, r nodes.TokenRequest) (nodes.Token, error) {
	c.mu.Lock()
	service := c.service
	c.mu.Unlock()
	if service == nil {
		return nodes.Token{}, ErrNoSession
	}
	answer, err := service.Token(ctx, &pb.TokenRequest{Node: c.o.Node, Pod: string(r.Pod), Audience: r.Audience, Expiry: int64(r.Expiry)})
	if err != nil {
		return nodes.Token{}, fmt.Errorf("ask the server for a token: %s", status.Convert(err).Message())
	}
	return nodes.Token{Value: answer.GetToken(), Issued: decodeTime(answer.GetIssued()), Expires: decodeTime(answer.GetExpires())}, nil
}

// Renew asks the server for the node's next certificate and returns the chain;
// ErrNoSession while there is no server.
func (c *Client) Renew(ctx context.Context, request []byte) ([][]byte, error) {
	c.mu.Lock()
	service := c.service
	c.mu.Unlock()
	if service == nil {
		return nil, ErrNoSession
	}
	answer, err := service.Renew(ctx, &pb.RenewRequest{Request: request})
	if err != nil {
		return nil, fmt.Errorf("ask the server for the next certificate: %s", status.Convert(err).Message())
	}
	return answer.GetChain(), nil
}

func (c *Client) greet(stream pb.Tallyman_SessionClient, heart *heart) error {
	err := stream.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: &pb.Hello{
		MinVersion: MinVersion, MaxVersion: MaxVersion, Node: c.o.Node, Version: c.o.Version,
	}}})
	if err != nil && !errors.Is(err, io.EOF) { // io.EOF: Recv tells why
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return standby(stream.Trailer(), err)
	}
	welcome := first.GetWelcome()
	if welcome == nil {
		return errors.New("the server did not begin with a welcome")
	}
	heart.pace(time.Duration(welcome.GetHeartbeat()))
	c.o.Log.Info("session with the server", "protocol", welcome.GetVersion(), "server_version", welcome.GetServer())
	return nil
}

// send reports everything once, then what changed.
func (c *Client) send(ctx context.Context, send func(*pb.AgentMessage) error) error {
	// What is sent while the complete report is made stays: it may be newer.
	c.pending.forgetState()
	report, err := c.o.Handler.Hello(ctx)
	if err != nil {
		return fmt.Errorf("complete report: %w", err)
	}
	report.Complete = true
	for {
		if err := sendReport(send, report); err != nil {
			return err
		}
		var ok bool
		for report, ok = c.pending.take(c.o.Node); !ok; report, ok = c.pending.take(c.o.Node) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-c.pending.wake:
			}
		}
	}
}

func sendReport(send func(*pb.AgentMessage) error, r nodes.Report) error {
	messages, err := encodeReport(r, maxPart)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if err := send(m); err != nil {
			return err
		}
	}
	return nil
}

// receive hands on what the server sends, in order.
func (c *Client) receive(ctx context.Context, stream pb.Tallyman_SessionClient, service pb.TallymanClient, group *errgroup.Group, heart *heart) error {
	state := newReceiver()
	state.tables = c.o.Tables
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the server closed the session")
		}
		if err != nil {
			return err
		}
		heart.heard()
		switch m := message.GetMessage().(type) {
		case *pb.ServerMessage_OpenLog:
			group.Go(func() error { c.serveLog(ctx, service, m.OpenLog); return nil })
			continue
		case *pb.ServerMessage_Welcome:
			heart.pace(time.Duration(m.Welcome.GetHeartbeat()))
			continue
		case *pb.ServerMessage_Lease:
			if sent, asked := heart.answered(m.Lease.GetNumber()); asked && m.Lease.GetDuration() > 0 {
				c.o.Handler.Lease(sent, time.Duration(m.Lease.GetDuration()))
			}
			continue
		}
		if err := handOn(state, message, c.o.Handler); err != nil {
			return fmt.Errorf("state from the server: %w", err)
		}
	}
}

func handOn(state *receiver, message *pb.ServerMessage, handler Handler) error {
	switch m := message.GetMessage().(type) {
	case *pb.ServerMessage_Assignment:
		assignment, err := state.assignment(m.Assignment)
		if err != nil {
			return err
		}
		if assignment != nil {
			handler.Assign(assignment)
		}
	case *pb.ServerMessage_Routes:
		table, err := state.routes(m.Routes)
		if err != nil {
			return err
		}
		if table != nil {
			handler.Route(table)
		}
	case *pb.ServerMessage_Ledger:
		complete, decisions, ready, err := state.decisions(m.Ledger)
		if err != nil {
			return err
		}
		if ready {
			handler.Ledger(complete, decisions)
		}
	}
	return nil // what a newer server adds within a version may be ignored
}

// serveLog answers one query on a stream of its own.
func (c *Client) serveLog(ctx context.Context, service pb.TallymanClient, query *pb.OpenLog) {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	stream, err := service.Log(ctx)
	if err == nil {
		err = stream.Send(&pb.LogChunk{Id: query.GetId()})
	}
	if err != nil {
		c.o.Log.Warn("log not sent", "pod_uid", query.GetPod(), "reason", status.Convert(err).Message())
		return
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer leave()
		_ = stream.RecvMsg(&pb.LogEnd{}) // returns when the reader has left or has all
	}()
	end := &pb.LogChunk{}
	if err := c.o.Handler.Logs(ctx, decodeQuery(query), chunkWriter{stream}); err != nil {
		end.Error = text(err.Error())
	}
	if stream.Send(end) != nil || stream.CloseSend() != nil {
		leave()
	}
	<-ended
}

type chunkWriter struct{ stream pb.Tallyman_LogClient }

// Write sends p in pieces and waits while the reader does not keep up.
func (w chunkWriter) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		piece := p[sent:min(len(p), sent+logChunk)]
		if err := w.stream.Send(&pb.LogChunk{Data: piece}); err != nil {
			return sent, err
		}
		sent += len(piece)
	}
	return sent, nil
}
