//go:build e2e

package network

import (
	"fmt"
	"net"
	"testing"
	"time"
)

func TestWaitingConnectionsAreCounted(t *testing.T) {
	n := open(t, options(t))
	a := add(t, n, Sandbox{UID: "a", Hostname: "pod-a"})
	var listener net.Listener
	in(t, a, func() (err error) {
		listener, err = net.Listen("tcp", ":8080") // IPv6 and IPv4
		return err
	})
	defer listener.Close()
	expectQueued := func(want int) {
		t.Helper()
		got, err := n.Queued("a")
		for deadline := time.Now().Add(5 * time.Second); got != want && err == nil && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
			got, err = n.Queued("a")
		}
		if err != nil || got != want {
			t.Fatalf("%d connections wait (%v), want %d", got, err, want)
		}
	}
	expectQueued(0)
	for i := range 3 {
		c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:8080", a.IP), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		expectQueued(i + 1)
	}
	c, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	expectQueued(2)
	if got, err := n.Queued("no such pod"); got != 0 || err != nil {
		t.Errorf("a pod without a network: %d, %v", got, err)
	}
}
