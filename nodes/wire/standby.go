package wire

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

const (
	// leaderKey is where a standby's refusal names the leader, in the trailer.
	leaderKey = "tallyman-leader"
	// standbyKey marks the refusal as a standby's.
	standbyKey = "tallyman-standby"
)

// StandbyError is returned when the server that was asked does not lead.
type StandbyError struct {
	// Leader is host:port of the server that does; empty when nobody knows.
	Leader string
}

func (e *StandbyError) Error() string {
	if e.Leader == "" {
		return "this server is a standby, and no server leads now"
	}
	return "this server is a standby; the leader is " + e.Leader
}

// StandbyOptions of a server that does not lead.
type StandbyOptions struct {
	// Credentials secure the listener.
	Credentials credentials.TransportCredentials
	// Leader is host:port of the server that leads, empty while none does.
	Leader func() string
}

// ServeStandby refuses every agent on l, and says where the leader is, until
// ctx ends; then it returns nil. It closes l.
func ServeStandby(ctx context.Context, l net.Listener, o StandbyOptions) error {
	if o.Credentials == nil || o.Leader == nil {
		return errors.New("wire standby: no credentials or no leader")
	}
	refuse := func() (metadata.MD, error) {
		e := &StandbyError{o.Leader()}
		return metadata.Pairs(standbyKey, "true", leaderKey, e.Leader), status.Error(codes.Unavailable, e.Error())
	}
	server := grpc.NewServer(
		grpc.Creds(o.Credentials),
		grpc.UnaryInterceptor(func(ctx context.Context, _ any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
			trailer, err := refuse()
			_ = grpc.SetTrailer(ctx, trailer) // fails only where there is no call
			return nil, err
		}),
		grpc.StreamInterceptor(func(_ any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, _ grpc.StreamHandler) error {
			trailer, err := refuse()
			stream.SetTrailer(trailer)
			return err
		}),
	)
	pb.RegisterTallymanServer(server, pb.UnimplementedTallymanServer{})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	err := server.Serve(l)
	if ctx.Err() != nil {
		server.Stop()
		return nil
	}
	return fmt.Errorf("answer agents on %s as a standby: %w", l.Addr(), err)
}

// standby turns what ended a call into a *StandbyError where it is a standby's
// refusal.
func standby(trailer metadata.MD, err error) error {
	if err == nil || len(trailer.Get(standbyKey)) == 0 {
		return err
	}
	e := &StandbyError{}
	if leader := trailer.Get(leaderKey); len(leader) > 0 {
		e.Leader = leader[0]
	}
	return e
}
