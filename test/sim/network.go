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

// gate lets those pass who come while it is open, and has the others wait.
type gate struct {
	mu sync.Mutex
	// guarded by mu
	opened chan struct{} // closed while the gate is open
	shut   bool
}

func newGate() *gate {
	opened := make(chan struct{})
	close(opened)
	return &gate{opened: opened}
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case shut && !g.shut:
		g.opened = make(chan struct{})
	case !shut && g.shut:
		close(g.opened)
	}
	g.shut = shut
}

func (g *gate) isShut() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shut
}

// pass waits until the gate is open, or until done.
func (g *gate) pass(done <-chan struct{}) bool {
	for {
		g.mu.Lock()
		opened, shut := g.opened, g.shut
		g.mu.Unlock()
		if !shut {
			return true
		}
		select {
		case <-opened:
		case <-done:
			return false
		}
	}
}

// line is one machine's way to the server: it takes its time, and it can be
// cut, or go silent in one direction or both.
type line struct {
	// up lets through what the agent says, down what the server says, and held
	// both unless the agent is stopped.
	up, down, held *gate

	mu sync.Mutex
	// guarded by mu
	listener *bufconn.Listener // of the server; nil while it is down
	latency  time.Duration
	conns    []*conn
}

func newLine() *line {
	return &line{up: newGate(), down: newGate(), held: newGate(), latency: time.Millisecond}
}

// dial opens a connection, or fails as a network does.
func (l *line) dial(ctx context.Context) (net.Conn, error) {
	if !l.held.pass(ctx.Done()) {
		return nil, ctx.Err()
	}
	l.mu.Lock()
	listener := l.listener
	l.mu.Unlock()
	if listener == nil || l.isSilent() {
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
func (l *line) silence(up, down bool) {
	l.up.set(up)
	l.down.set(down)
}

// speak ends a silence.
func (l *line) speak() { l.silence(false, false) }

func (l *line) isSilent() bool { return l.up.isShut() || l.down.isShut() }

func (l *line) slow(latency time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latency = latency
}

func (l *line) takes() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.latency
}

// conn is one connection over a line.
type conn struct {
	net.Conn
	line   *line
	once   sync.Once
	closed chan struct{}
}

func (w *conn) pass(direction *gate) error {
	timer := time.NewTimer(w.line.takes())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.closed:
		return net.ErrClosed
	}
	if !direction.pass(w.closed) || !w.line.held.pass(w.closed) {
		return net.ErrClosed
	}
	return nil
}

func (w *conn) Write(p []byte) (int, error) {
	if err := w.pass(w.line.up); err != nil {
		return 0, err
	}
	return w.Conn.Write(p)
}

func (w *conn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		return n, err
	}
	return n, w.pass(w.line.down)
}

func (w *conn) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Conn.Close()
}
