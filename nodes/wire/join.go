package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// RefusedError is returned when the server does not take a machine in; asking
// again changes nothing.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the server refuses: " + e.Reason }

// Join asks a server for a node's first certificate over a connection that is
// secured already, and closes it. It returns the chain in DER, the node's own
// first; a *RefusedError, or a *StandbyError where another server leads.
func Join(ctx context.Context, conn net.Conn, token, node string, request []byte) ([][]byte, error) {
	defer conn.Close()
	var used atomic.Bool
	client, err := grpc.NewClient(
		"passthrough:///server",
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errors.New("the server closed the connection")
			}
			return conn, nil
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // conn is secured
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	defer client.Close()
	var trailer metadata.MD
	answer, err := pb.NewTallymanClient(client).Join(ctx, &pb.JoinRequest{Token: token, Node: node, Request: request}, grpc.Trailer(&trailer))
	switch status.Code(err) {
	case codes.OK:
		return answer.GetChain(), nil
	case codes.PermissionDenied, codes.Unimplemented, codes.InvalidArgument:
		return nil, &RefusedError{status.Convert(err).Message()}
	}
	return nil, fmt.Errorf("join: %w", standby(trailer, errors.New(status.Convert(err).Message())))
}
