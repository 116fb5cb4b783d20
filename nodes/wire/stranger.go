package wire

import (
	"crypto/x509"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	// strangerBytes and strangerTime are how much a stranger may say, and how long
	// its connection lasts: to join takes some hundred bytes, and waits for the record.
	strangerBytes = 64 << 10
	strangerTime  = time.Minute
)

var errStranger = errors.New("more was said than joining takes, without a certificate of the cluster")

// Bounded holds connections to a listener short whose other end shows no
// certificate that is known. Whoever reaches the listener could else have the
// server keep messages as large as those of nodes, before anybody looks who
// calls.
func Bounded(c credentials.TransportCredentials, known func(chain []*x509.Certificate) bool) credentials.TransportCredentials {
	return &bounded{c, known}
}

type bounded struct {
	credentials.TransportCredentials
	known func(chain []*x509.Certificate) bool
}

// Clone implements credentials.TransportCredentials.
func (b *bounded) Clone() credentials.TransportCredentials {
	return &bounded{b.TransportCredentials.Clone(), b.known}
}

// ServerHandshake implements credentials.TransportCredentials.
func (b *bounded) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := b.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	if secured, ok := info.(credentials.TLSInfo); ok && b.known(secured.State.PeerCertificates) {
		return conn, info, nil
	}
	return &stranger{Conn: conn, left: strangerBytes, over: time.AfterFunc(strangerTime, func() { conn.Close() })}, info, nil
}

// stranger is a connection that ends soon.
type stranger struct {
	net.Conn
	// left belongs to the one goroutine that reads.
	left int
	over *time.Timer
}

// Read implements net.Conn.
func (s *stranger) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, errStranger
	}
	n, err := s.Conn.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

// Close implements net.Conn.
func (s *stranger) Close() error {
	s.over.Stop()
	return s.Conn.Close()
}
