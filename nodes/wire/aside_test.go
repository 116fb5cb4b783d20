package wire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
)

// selfSigned is a certificate for nobody in particular.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestTwoProtocolsShareADoor has an agent, another server and a stranger come to
// one listener.
func TestTwoProtocolsShareADoor(t *testing.T) {
	taken := make(chan *tls.Conn, 1)
	sessions := make(chan *Session, 1)
	server, err := NewServer(ServerOptions{
		Log:         slog.New(slog.DiscardHandler),
		Credentials: Aside(&tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, MinVersion: tls.VersionTLS13}, "other", func(c *tls.Conn) { taken <- c }),
		Accept: func(ctx context.Context, s *Session) error {
			sessions <- s
			<-ctx.Done()
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	running.Go(func() {
		if err := server.Serve(ctx, listener); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	config := func(protocol string) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}
	}

	agent, err := NewClient(ClientOptions{
		Node: "n1", Handler: newAgent(), Log: slog.New(slog.DiscardHandler), Credentials: credentials.NewTLS(config("h2")),
		Dial: func(context.Context) (net.Conn, error) { return net.Dial("tcp", listener.Addr().String()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		if err := agent.Run(ctx); err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	receive(t, sessions, "session")

	other, err := tls.Dial("tcp", listener.Addr().String(), config("other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	conn := receive(t, taken, "connection")
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if said, err := io.ReadAll(other); err != nil || string(said) != "hello" {
		t.Errorf("%q, %v", said, err)
	}
	if stranger, err := tls.Dial("tcp", listener.Addr().String(), config("strange")); err == nil {
		stranger.Close()
		t.Error("a stranger got in")
	}
}
