package wire

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
)

// handshakeTimeout bounds the handshake of one connection.
const handshakeTimeout = 20 * time.Second

// grpcProtocol is what agents negotiate.
const grpcProtocol = "h2"

// Aside secures a listener for agents, and gives connections whose other end
// negotiated protocol to take, which owns them then. Nobody has looked at the
// certificates of either.
func Aside(config *tls.Config, protocol string, take func(*tls.Conn)) credentials.TransportCredentials {
	config = config.Clone()
	config.NextProtos = []string{grpcProtocol, protocol}
	return &aside{TransportCredentials: credentials.NewTLS(config), config: config, protocol: protocol, take: take}
}

type aside struct {
	credentials.TransportCredentials
	config   *tls.Config
	protocol string
	take     func(*tls.Conn)
}

// Clone implements credentials.TransportCredentials.
func (a *aside) Clone() credentials.TransportCredentials {
	clone := *a
	clone.TransportCredentials = a.TransportCredentials.Clone()
	return &clone
}

// ServerHandshake implements credentials.TransportCredentials.
func (a *aside) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn := tls.Server(raw, a.config)
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, nil, err
	}
	state := conn.ConnectionState()
	switch protocol := state.NegotiatedProtocol; protocol {
	case a.protocol:
		if err := conn.SetDeadline(time.Time{}); err != nil {
			conn.Close()
			return nil, nil, err
		}
		a.take(conn)
		return nil, nil, credentials.ErrConnDispatched
	case grpcProtocol:
		return conn, credentials.TLSInfo{State: state, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
	default:
		conn.Close()
		return nil, nil, fmt.Errorf("the other end speaks %q, not one of %q", protocol, slices.Clone(a.config.NextProtos))
	}
}
