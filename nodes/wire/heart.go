package wire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

const (
	// greetTimeout is how long a server may take from the dialling to its welcome.
	greetTimeout = 10 * time.Second
	// missedAnswers is how many heartbeats may stay without any word from the
	// server before it is dialled anew. One less than the server waits for the
	// agent: both give up together, and a new session is there in time.
	missedAnswers = 3
)

var errNoAnswer = errors.New("the server does not answer")

// heart is the agent's sense of whether the server lives: it asks in the
// rhythm that the server has set, and ends the session when no word comes.
type heart struct {
	clock    func() time.Duration
	greeting time.Duration
	// silence ends the session when it fires; every message from the server sets it back.
	silence *time.Timer
	paced   chan struct{}

	mu sync.Mutex
	// guarded by mu
	interval time.Duration
	number   uint64
	sent     map[uint64]time.Duration // when those without an answer were sent
}

// newHeart makes one that waits for the welcome as long as greeting.
func newHeart(clock func() time.Duration, greeting time.Duration, end func(error)) *heart {
	h := &heart{clock: clock, greeting: greeting, paced: make(chan struct{}, 1), sent: map[uint64]time.Duration{}}
	h.silence = time.AfterFunc(greeting, func() { end(fmt.Errorf("%w for %s", errNoAnswer, h.patience())) })
	return h
}

// patience is how long the server may say nothing.
func (h *heart) patience() time.Duration {
	if interval := h.every(); interval > 0 {
		return missedAnswers * interval
	}
	return h.greeting
}

func (h *heart) every() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.interval
}

// pace takes over the rhythm; 0 asks for no heartbeats, and nothing is
// concluded from silence then.
func (h *heart) pace(interval time.Duration) {
	h.mu.Lock()
	h.interval = max(interval, 0)
	h.mu.Unlock()
	select {
	case h.paced <- struct{}{}:
	default:
	}
	h.heard()
}

// heard notes a message from the server.
func (h *heart) heard() {
	if h.every() == 0 {
		h.silence.Stop()
		return
	}
	h.silence.Reset(h.patience())
}

// next makes the next heartbeat. It counts as sent from now on: a lease that it
// brings must not begin later than that.
func (h *heart) next() *pb.Heartbeat {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.number++
	h.sent[h.number] = h.clock()
	return &pb.Heartbeat{Number: h.number}
}

// answered gives when the heartbeat was sent; false for one that never was or
// that was answered before.
func (h *heart) answered(number uint64) (time.Duration, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sent, found := h.sent[number]
	for n := range h.sent {
		if n <= number {
			delete(h.sent, n)
		}
	}
	return sent, found
}

// beat sends heartbeats until ctx ends; next is how long to wait after one.
func (h *heart) beat(ctx context.Context, next func(interval time.Duration) time.Duration, send func(*pb.AgentMessage) error) error {
	timer := time.NewTimer(greetTimeout)
	timer.Stop() // the first is sent when the rhythm is known
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.paced:
		case <-timer.C:
		}
		interval := h.every()
		if interval == 0 {
			continue
		}
		if err := send(&pb.AgentMessage{Message: &pb.AgentMessage_Heartbeat{Heartbeat: h.next()}}); err != nil {
			return err
		}
		timer.Reset(min(next(interval), interval))
	}
}
