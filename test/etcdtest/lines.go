package etcdtest

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Lines are what one client has to the members: addresses of its own that lead
// there until they are cut.
type Lines struct {
	endpoints []string

	mu   sync.Mutex
	open *sync.Cond // cut has changed
	cut  bool
}

// Lines makes lines that end with the test.
func (c *Cluster) Lines(t *testing.T) *Lines {
	t.Helper()
	l := &Lines{}
	l.open = sync.NewCond(&l.mu)
	for _, m := range c.members {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close(); l.Mend() })
		l.endpoints = append(l.endpoints, listener.Addr().String())
		go l.accept(listener, m.client)
	}
	return l
}

// Address is what --store takes.
func (l *Lines) Address(prefix string) string {
	return "etcd://" + strings.Join(l.endpoints, ",") + "/" + prefix
}

// Cut loses nothing and delivers nothing from now on, in both directions, as
// a network does that will be back.
func (l *Lines) Cut() { l.set(true) }

// Mend delivers what was held up.
func (l *Lines) Mend() { l.set(false) }

func (l *Lines) set(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	l.open.Broadcast()
}

func (l *Lines) wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.cut {
		l.open.Wait()
	}
}

func (l *Lines) accept(listener net.Listener, to string) {
	for {
		near, err := listener.Accept()
		if err != nil {
			return
		}
		go l.join(near, to)
	}
}

func (l *Lines) join(near net.Conn, to string) {
	defer near.Close()
	l.wait()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		go func() {
			_, _ = io.Copy(&held{l, way[1]}, way[0])
			ended <- struct{}{}
		}()
	}
	<-ended
}

// held writes when the lines are not cut.
type held struct {
	lines *Lines
	to    net.Conn
}

func (h *held) Write(p []byte) (int, error) {
	h.lines.wait()
	return h.to.Write(p)
}
