package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// severalRetry is the longest pause between two dials where there are several
	// servers: a new leader is to have its agents within seconds.
	severalRetry = time.Second
	// severalGreeting is how long a server may take to its welcome at first, where
	// another one may answer: one that is stopped still takes connections.
	severalGreeting = time.Second
	// nextDial is how long one server may take to answer before the next is tried, too.
	nextDial = 300 * time.Millisecond
)

// servers are those of a cluster, as an agent dials them.
type servers struct {
	addresses []string

	mu sync.Mutex
	// guarded by mu: who leads, as a standby said, and who is dialled first otherwise
	leader string
	next   int
}

// elsewhere notes who leads; empty when nobody knows.
func (s *servers) elsewhere(leader string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leader = leader
}

// order is how to dial: what a standby said counts once, for it may be old.
func (s *servers) order() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var order []string
	if s.leader != "" {
		order = append(order, s.leader)
		s.leader = ""
	}
	for i := range s.addresses {
		order = append(order, s.addresses[(s.next+i)%len(s.addresses)])
	}
	s.next = (s.next + 1) % len(s.addresses)
	return order
}

// dial connects to the first server that answers. One that does not refuse and
// does not answer either, as a machine without power, does not hold up the next.
func (s *servers) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type outcome struct {
		conn net.Conn
		err  error
	}
	order := s.order()
	outcomes := make(chan outcome, len(order))
	started, ended := 0, 0
	start := func() {
		address := order[started]
		started++
		go func() {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "tcp", address)
			outcomes <- outcome{conn, err}
		}()
	}
	defer func() {
		go func(rest int) { // what connects too late is not needed
			for range rest {
				if o := <-outcomes; o.conn != nil {
					o.conn.Close()
				}
			}
		}(started - ended)
	}()
	var failures error
	for start(); ended < len(order); {
		timer := time.NewTimer(nextDial)
		select {
		case o := <-outcomes:
			ended++
			if o.err == nil {
				timer.Stop()
				return o.conn, nil
			}
			failures = errors.Join(failures, o.err)
		case <-timer.C:
		}
		timer.Stop()
		if started < len(order) {
			start()
		}
	}
	return nil, failures
}
