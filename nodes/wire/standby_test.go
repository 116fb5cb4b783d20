package wire

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
)

// TestStandbySendsAgentsToTheLeader has an agent that begins at a standby which
// does not know of a leader at first.
func TestStandbySendsAgentsToTheLeader(t *testing.T) {
	listeners := map[string]*bufconn.Listener{"standby:1": bufconn.Listen(1 << 16), "leader:1": bufconn.Listen(1 << 16)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })

	var mu sync.Mutex
	next, asked := "standby:1", 0
	running.Go(func() {
		err := ServeStandby(ctx, listeners["standby:1"], StandbyOptions{Credentials: insecure.NewCredentials(), Leader: func() string {
			mu.Lock()
			defer mu.Unlock()
			if asked++; asked < 3 {
				return ""
			}
			return "leader:1"
		}})
		if err != nil {
			t.Errorf("standby: %v", err)
		}
	})
	sessions := make(chan *Session, 10)
	server, err := NewServer(ServerOptions{Log: slog.New(slog.DiscardHandler), Accept: func(ctx context.Context, s *Session) error {
		sessions <- s
		<-ctx.Done()
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		if err := server.Serve(ctx, listeners["leader:1"]); err != nil {
			t.Errorf("leader: %v", err)
		}
	})
	client, err := NewClient(ClientOptions{
		Node: "n1", Handler: newAgent(), Log: slog.New(slog.DiscardHandler), MaxRetry: 100 * time.Millisecond,
		Dial: func(ctx context.Context) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			return listeners[next].DialContext(ctx)
		},
		Elsewhere: func(leader string) {
			mu.Lock()
			defer mu.Unlock()
			if leader != "" {
				next = leader
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		if err := client.Run(ctx); err != nil {
			t.Errorf("client: %v", err)
		}
	})
	if s := receive(t, sessions, "session with the leader"); s.Node() != "n1" {
		t.Errorf("session of %s", s.Node())
	}
	if asked != 3 {
		t.Errorf("the standby was asked %d times", asked)
	}
}

func TestStandbyErrorNeedsAStandby(t *testing.T) {
	if err := standby(nil, io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	if err := standby(map[string][]string{standbyKey: {"true"}}, io.EOF); errors.Is(err, io.EOF) || !errors.As(err, new(*StandbyError)) {
		t.Errorf("%v", err)
	}
}
