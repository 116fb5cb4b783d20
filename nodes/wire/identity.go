package wire

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// Peer is the other end of a connection.
type Peer struct {
	// Addr may be nil.
	Addr net.Addr
	// Chain is what it showed in the handshake, which proves that it has the key of
	// the first; nobody has looked at what that says. Empty without TLS.
	Chain []*x509.Certificate
}

// Caller is whom the server takes a peer for.
type Caller struct {
	// Node is the only one that it may speak for; empty for any.
	Node string
	// Identity is the one that its certificate shows; empty without one.
	Identity string
	// From is its address, without the port.
	From string
	// Expires ends its session; never, when zero.
	Expires time.Time
	// Local tells that it is on the server's own machine.
	Local bool
}

// JoinRequest asks for a node's first certificate.
type JoinRequest struct {
	Token, Node string
	// Request is a PKCS #10 request in DER.
	Request []byte
	// From is the address of the machine, without the port.
	From string
}

type callerKey struct{}

// callerOf is whom the interceptors took the call's peer for.
func callerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// speaksFor returns the caller if it may speak for a node.
func speaksFor(ctx context.Context, node string) (Caller, error) {
	c := callerOf(ctx)
	if c.Node != "" && c.Node != node {
		return Caller{}, status.Errorf(codes.PermissionDenied, "this is node %s, which can't speak for node %s", c.Node, node)
	}
	return c, nil
}

// peerOf is the other end of a call's connection.
func peerOf(ctx context.Context) Peer {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}
	}
	out := Peer{Addr: p.Addr}
	if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
		out.Chain = info.State.PeerCertificates
	}
	return out
}

// Host is the peer's address without the port; empty where it has none.
func (p Peer) Host() string {
	if p.Addr == nil {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return ""
	}
	return host
}

// identify finds out who calls before any method but Join runs.
func (s *Server) identify(ctx context.Context, method string) (context.Context, error) {
	if s.o.Identify == nil || method == pb.Tallyman_Join_FullMethodName {
		return ctx, nil
	}
	c, err := s.o.Identify(ctx, peerOf(ctx))
	if err != nil {
		return nil, refusal(err)
	}
	return context.WithValue(ctx, callerKey{}, c), nil
}

// refusal is an error as the caller is told: what may pass by itself can be
// tried again, the rest is for people.
func refusal(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.Error(codes.PermissionDenied, err.Error())
}

func (s *Server) identifyUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, err := s.identify(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handle(ctx, request)
}

func (s *Server) identifyStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, err := s.identify(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handle(server, identified{stream, ctx})
}

// identified is a stream whose context tells the caller.
type identified struct {
	grpc.ServerStream
	ctx context.Context
}

func (i identified) Context() context.Context { return i.ctx }

// Join implements pb.TallymanServer.
func (s *service) Join(ctx context.Context, r *pb.JoinRequest) (*pb.Certificate, error) {
	if s.server.o.Join == nil {
		return nil, status.Error(codes.Unimplemented, "this server takes in no machines here")
	}
	chain, err := s.server.o.Join(ctx, JoinRequest{Token: r.GetToken(), Node: r.GetNode(), Request: r.GetRequest(), From: peerOf(ctx).Host()})
	if err != nil {
		return nil, refusal(err)
	}
	return &pb.Certificate{Chain: chain}, nil
}

// Renew implements pb.TallymanServer.
func (s *service) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.Certificate, error) {
	if s.server.o.Renew == nil {
		return nil, status.Error(codes.Unimplemented, "this server gives no certificates here")
	}
	chain, err := s.server.o.Renew(ctx, callerOf(ctx), r.GetRequest())
	if err != nil {
		return nil, refusal(err)
	}
	return &pb.Certificate{Chain: chain}, nil
}
