package sim

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/test/bufconn"
)

var errNoRoute = errors.New("no route to host")

// line is one machine's way to the server: it takes its time, and it can be
// cut or go silent.
type line struct {
	mu sync.Mutex
	// guarded by mu
	listener *bufconn.Listener // of the server; nil while it is down
	silent   bool
	opened   chan struct{} // closed when the line is not silent any more
	latency  time.Duration
	conns    []*conn
}

func newLine() *line {
	opened := make(chan struct{})
	close(opened)
	return &line{opened: opened, latency: time.Millisecond}
}

// dial opens a connection, or fails as a network does.
func (l *line) dial(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	listener, silent := l.listener, l.silent
	l.mu.Unlock()
	if listener == nil || silent {
		return nil, errNoRoute
	}
	plain, err := listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	w := &conn{Conn: plain, line: l, closed: make(chan struct{})}
	l.mu.Lock()
	l.conns = append(l.conns, w)
	l.mu.Unlock()
	return w, nil
}

// to says where the server is; nil cuts every connection.
func (l *line) to(listener *bufconn.Listener) {
	l.mu.Lock()
	l.listener = listener
	l.mu.Unlock()
	if listener == nil {
		l.cut()
	}
}

// cut ends all connections.
func (l *line) cut() {
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// silence lets nothing through, and tells nobody.
func (l *line) silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.silent {
		l.silent, l.opened = true, make(chan struct{})
	}
}

// speak ends a silence.
func (l *line) speak() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.silent {
		l.silent = false
		close(l.opened)
	}
}

func (l *line) isSilent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.silent
}

func (l *line) slow(latency time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latency = latency
}

func (l *line) now() (opened chan struct{}, latency time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opened, l.latency
}

// conn is one connection over a line. Both directions pass the same gate.
type conn struct {
	net.Conn
	line   *line
	once   sync.Once
	closed chan struct{}
}

func (w *conn) pass() error {
	opened, latency := w.line.now()
	timer := time.NewTimer(latency)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.closed:
		return net.ErrClosed
	}
	select {
	case <-opened:
		return nil
	case <-w.closed:
		return net.ErrClosed
	}
}

func (w *conn) Write(p []byte) (int, error) {
	if err := w.pass(); err != nil {
		return 0, err
	}
	return w.Conn.Write(p)
}

func (w *conn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		return n, err
	}
	return n, w.pass()
}

func (w *conn) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Conn.Close()
}
