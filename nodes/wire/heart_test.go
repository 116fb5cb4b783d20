package wire

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// lease is what a handler was told.
type lease struct{ sent, duration time.Duration }

type tenant struct {
	nopHandler
	leases chan lease
}

func (a *tenant) Hello(context.Context) (nodes.Report, error) {
	return nodes.Report{Node: "n1", Info: &nodes.Node{Name: "n1"}}, nil
}

func (a *tenant) Lease(sent, duration time.Duration) { a.leases <- lease{sent, duration} }

// beating runs a server that hands sessions and the numbers of heartbeats to
// the test, and one agent, in virtual time.
type beating struct {
	*testing.T
	agent    *tenant
	sessions chan *Session
	beats    chan uint64
	dials    int
	began    time.Time
}

func beat(t *testing.T, interval time.Duration, test func(b *beating)) {
	beatOver(t, interval, func(c net.Conn) net.Conn { return c }, test)
}

// beatOver does so over what wrap makes of connections.
func beatOver(t *testing.T, interval time.Duration, wrap func(net.Conn) net.Conn, test func(b *beating)) {
	synctest.Test(t, func(t *testing.T) {
		listener := bufconn.Listen(1 << 16)
		b := &beating{
			T: t, agent: &tenant{leases: make(chan lease, 100)}, sessions: make(chan *Session, 100),
			beats: make(chan uint64, 1000), began: time.Now(),
		}
		log := slog.New(slog.DiscardHandler)
		server, err := NewServer(ServerOptions{
			Version: "test", Accept: b.accept, Heartbeat: func() time.Duration { return interval }, Log: log,
		})
		if err != nil {
			t.Fatal(err)
		}
		client, err := NewClient(ClientOptions{
			Dial: func(ctx context.Context) (net.Conn, error) {
				b.dials++
				conn, err := listener.DialContext(ctx)
				if err != nil {
					return nil, err
				}
				return wrap(conn), nil
			},
			Node: "n1", Version: "test", Handler: b.agent, Log: log,
			Clock: func() time.Duration { return time.Since(b.began) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { _ = server.Serve(ctx, listener) })
		running.Go(func() { _ = client.Run(ctx) })
		test(b)
		cancel()
		running.Wait()
	})
}

func (b *beating) accept(ctx context.Context, s *Session) error {
	s.Attend(func(n uint64) {
		if n != 0 {
			b.beats <- n
		}
	})
	b.sessions <- s
	for {
		if _, err := s.Receive(); err != nil {
			return err
		}
	}
}

func TestHeartbeatsAskInTheServersRhythm(t *testing.T) {
	beat(t, time.Second, func(b *beating) {
		session := <-b.sessions
		for want := uint64(1); want <= 5; want++ {
			if got := <-b.beats; got != want || time.Since(b.began).Truncate(time.Second) != time.Duration(want-1)*time.Second {
				b.Errorf("heartbeat %d, want %d, after %s", got, want, time.Since(b.began))
			}
			if err := session.Lease(want, 0); err != nil {
				b.Fatal(err)
			}
		}
		if err := session.Pace(100 * time.Millisecond); err != nil {
			b.Fatal(err)
		}
		before := time.Now()
		for range 4 {
			if err := session.Lease(<-b.beats, 0); err != nil {
				b.Fatal(err)
			}
		}
		if took := time.Since(before); took > 500*time.Millisecond {
			b.Errorf("four heartbeats in the new rhythm took %s", took)
		}
	})
}

// TestALeaseCountsFromItsHeartbeat, however late the answer is; one that grants
// nothing, or answers nothing that was asked, is not handed on.
func TestALeaseCountsFromItsHeartbeat(t *testing.T) {
	beat(t, time.Second, func(b *beating) {
		session := <-b.sessions
		for range 2 {
			<-b.beats
		}
		time.Sleep(500 * time.Millisecond)
		for _, answer := range []struct {
			number   uint64
			duration time.Duration
		}{{1, 0}, {2, 6 * time.Second}, {2, time.Hour}, {7, time.Hour}} {
			if err := session.Lease(answer.number, answer.duration); err != nil {
				b.Fatal(err)
			}
		}
		synctest.Wait()
		if n := len(b.agent.leases); n != 1 {
			b.Fatalf("%d leases", n)
		}
		if got := <-b.agent.leases; got.sent.Truncate(time.Second) != time.Second || got.duration != 6*time.Second {
			b.Errorf("lease %+v", got)
		}
	})
}

func TestAServerThatDoesNotAnswerIsDialledAnew(t *testing.T) {
	beat(t, time.Second, func(b *beating) {
		session := <-b.sessions
		for range 60 { // any word will do
			time.Sleep(time.Second)
			if err := session.Pace(time.Second); err != nil {
				b.Fatal(err)
			}
		}
		if b.dials != 1 {
			b.Errorf("dialled %d times while the server spoke", b.dials)
		}
		<-b.sessions
		if silent := time.Since(b.began) - 60*time.Second; silent > (missedAnswers+1)*time.Second {
			b.Errorf("dialled after %s of silence", silent)
		}
	})
}

// deaf is a connection on which nothing ever arrives.
type deaf struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *deaf) Read([]byte) (int, error) {
	<-c.closed
	return 0, io.EOF
}

func (c *deaf) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func TestAServerThatNeverWelcomesIsDialledAnew(t *testing.T) {
	wrap := func(c net.Conn) net.Conn { return &deaf{Conn: c, closed: make(chan struct{})} }
	beatOver(t, time.Second, wrap, func(b *beating) {
		synctest.Wait()
		if b.dials != 1 {
			b.Fatalf("dialled %d times", b.dials)
		}
		time.Sleep(time.Minute)
		if b.dials < 3 {
			b.Errorf("dialled %d times", b.dials)
		}
	})
}

func TestHeartEndsWithAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reason error
		h := newHeart(func() time.Duration { return 0 }, greetTimeout, func(err error) { reason = err })
		h.pace(2 * time.Second)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !errors.Is(reason, errNoAnswer) || !strings.Contains(reason.Error(), "6s") {
			t.Errorf("ended with %v", reason)
		}
		h.pace(time.Second)
		if err := h.beat(t.Context(), func(d time.Duration) time.Duration { return d }, func(*pb.AgentMessage) error { return io.EOF }); !errors.Is(err, io.EOF) {
			t.Errorf("beats on a stream that has ended: %v", err)
		}
	})
}
