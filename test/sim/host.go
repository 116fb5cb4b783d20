package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tallyman-dev/tallyman/nodes/observed"
)

const (
	// settleTime and takeoverGrace are what cmd/tally gives servers that are several.
	settleTime    = 3 * time.Second
	takeoverGrace = 7 * time.Second
)

// host is the machine of one of several servers: a candidate that leads when it
// is elected, until it is deposed. It can be stopped, or cut off from the store.
type host struct {
	world *world
	name  string
	clock *boottime
	wall  wallClock
	pace  *pace
	// held is shut while the machine stands still.
	held *gate
	// cut tells that no request reaches the store, mute that no answer comes back.
	cut, mute atomic.Bool
	// life ends when the process does; nil while there is none.
	life *life
}

// life is one of a host's processes.
type life struct {
	cancel context.CancelFunc
	ended  chan error
	// dead is set first: what it still does reaches nobody.
	dead atomic.Bool
}

func newHost(w *world, index int) *host {
	h := &host{world: w, name: fmt.Sprintf("s%d", index+1), clock: newBoottime(w.fleet.drift()), held: newGate()}
	if b := w.o.Bug; b != nil && b.Hastes {
		h.clock = newBoottime(100_000)
	}
	h.pace = &pace{rng: rand.New(rand.NewPCG(w.o.Seed, 1<<20+uint64(index))), held: h.held}
	return h
}

// start begins a process.
func (h *host) start() {
	if h.life != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &life{cancel: cancel, ended: make(chan error, 1)}
	h.life = l
	h.world.note("server %s starts", h.name)
	go func() { l.ended <- h.run(ctx, l) }()
}

// kill ends the process as kill -9 does.
func (h *host) kill() {
	l := h.life
	if l == nil {
		return
	}
	synctest.Wait()
	h.life = nil
	l.dead.Store(true)
	h.world.note("server %s killed", h.name)
	if s := h.world.serving(); s != nil && s.host == h {
		h.world.leave(s)
	}
	h.held.set(false)
	l.cancel()
	if err := <-l.ended; err != nil {
		h.world.witness.report(fmt.Errorf("server %s ended: %w", h.name, err))
	}
}

// stop has the machine stand still, or go on.
func (h *host) stop(stopped bool) {
	h.world.note("server %s stands still: %v", h.name, stopped)
	h.held.set(stopped)
}

// ask sends a request to the store and brings its answer.
func (h *host) ask(ctx context.Context, request func() error) error {
	l := h.life
	if err := h.pace.take(ctx, 10*time.Millisecond); err != nil {
		return err
	}
	if h.cut.Load() || l == nil || l.dead.Load() {
		return errNoAnswer
	}
	err := request()
	if !h.held.pass(ctx.Done()) {
		return ctx.Err()
	}
	if h.mute.Load() {
		return errNoAnswer
	}
	return err
}

// run stands for election and leads, in turn.
func (h *host) run(ctx context.Context, l *life) error {
	for ctx.Err() == nil {
		t, err := h.campaign(ctx)
		if err != nil {
			return nil
		}
		if err := h.lead(ctx, l, t); err != nil && ctx.Err() == nil && !errors.Is(err, errDeposed) {
			return err
		}
	}
	return nil
}

// campaign waits until this server is elected, or ctx ends.
func (h *host) campaign(ctx context.Context) (*term, error) {
	for {
		t := &term{host: h}
		asked := h.clock.now()
		err := h.ask(ctx, func() (err error) {
			t.revision, err = h.world.store.campaign()
			t.fresh = h.world.store.empty()
			return err
		})
		if err == nil && t.revision != 0 {
			t.extend(asked)
			return t, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// lead serves until ctx ends or the term is over.
func (h *host) lead(ctx context.Context, l *life, t *term) error {
	defer func() {
		if !l.dead.Load() && !h.cut.Load() {
			h.world.store.resign(t.revision)
		}
	}()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return t.hold(ctx) })
	group.Go(func() error {
		record, err := observed.New(ctx, t, observed.Options{Log: silent, Apart: pieces})
		if err != nil {
			return err
		}
		listener := bufconn.Listen(1 << 20)
		s, err := h.world.newServer(record, t, heldListener{listener, h.held})
		if err != nil {
			return err
		}
		h.world.lead(s, listener)
		defer h.world.leave(s)
		if err := s.run(ctx); err != nil {
			return err
		}
		return ctx.Err()
	})
	return group.Wait()
}

// heldListener lets nothing in or out while its machine stands still.
type heldListener struct {
	net.Listener
	held *gate
}

func (l heldListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &heldConn{Conn: c, held: l.held, closed: make(chan struct{})}, nil
}

type heldConn struct {
	net.Conn
	held   *gate
	closed chan struct{}
	once   atomic.Bool
}

func (c *heldConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == nil && !c.held.pass(c.closed) {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *heldConn) Write(p []byte) (int, error) {
	if !c.held.pass(c.closed) {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *heldConn) Close() error {
	if !c.once.Swap(true) {
		close(c.closed)
	}
	return c.Conn.Close()
}
