package main

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// passed is a listener of connections that another one has taken.
type passed struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	ended chan struct{}
}

func newPassed(addr net.Addr) *passed {
	return &passed{addr: addr, conns: make(chan net.Conn), ended: make(chan struct{})}
}

// secured hides from net/http that it is TLS: the server would close what
// negotiated a protocol that it has no name for.
type secured struct{ net.Conn }

// take gives the listener a connection, which it owns then.
func (p *passed) take(c *tls.Conn) {
	select {
	case p.conns <- secured{c}:
	case <-p.ended:
		c.Close()
	}
}

// Accept implements net.Listener.
func (p *passed) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *passed) Close() error {
	p.once.Do(func() { close(p.ended) })
	return nil
}

// Addr implements net.Listener.
func (p *passed) Addr() net.Addr { return p.addr }

// peerHandler is what the cluster's other servers get: they have asked whoever
// asked them for the token.
func (s *server) peerHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", s.status.SocketHandler())
	s.addWebhook(mux)
	return mux
}
