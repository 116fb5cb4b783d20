package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// serveTCP answers on one port whatever the client speaks: HTTP, HTTP/2 without
// and with TLS, gRPC, or nothing.
func serveTCP(port int) error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return err
	}
	return serve(l)
}

func serve(l net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Handler: handler(), Protocols: protocols, ReadHeaderTimeout: time.Minute}
	return server.Serve(&sniffer{Listener: l})
}

// handler is happy with every request.
func handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			healthy(w)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
}

// serving is the answer to gRPC's health check: a message of two bytes, not
// compressed, whose field 1, the status, is 1, SERVING. To have it said by the
// gRPC library would make the program twice as slow to start.
const serving = "\x00\x00\x00\x00\x02\x08\x01"

func healthy(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	_, _ = io.WriteString(w, serving)
	w.Header().Set("Grpc-Status", "0")
}

// sniffer speaks TLS to those who begin with it.
type sniffer struct{ net.Listener }

func (s *sniffer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &sniffed{Conn: c}, nil
}

// sniffed decides with the first byte that comes: to wait for it in Accept
// would keep others waiting.
type sniffed struct {
	net.Conn
	once  sync.Once
	inner net.Conn
}

func (s *sniffed) begin() {
	s.once.Do(func() {
		r := bufio.NewReader(s.Conn)
		plain := buffered{s.Conn, r}
		s.inner = plain
		if b, err := r.Peek(1); err == nil && b[0] == 0x16 {
			if config, err := certificate(); err == nil {
				s.inner = tls.Server(plain, config)
			}
		}
	})
}

func (s *sniffed) Read(b []byte) (int, error)  { s.begin(); return s.inner.Read(b) }
func (s *sniffed) Write(b []byte) (int, error) { s.begin(); return s.inner.Write(b) }

type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// certificate is signed by itself: probes over HTTPS look at none.
var certificate = sync.OnceValues(func() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "stub"},
		NotAfter: time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"http/1.1"},
	}, nil
})

// serveUDP sends every packet back.
func serveUDP(port int) error {
	c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return err
	}
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDP(b)
		if err != nil {
			return err
		}
		if _, err := c.WriteToUDP(b[:n], from); err != nil {
			return err
		}
	}
}
