//go:build e2e

package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
)

const (
	// pairs of runs, one through the service and one direct, in turns.
	pairs = 10
	// runFor is how long a run takes, with so many clients side by side.
	runFor  = time.Second
	clients = 16
)

// benchTraffic measures what the way through a service's address costs, beside
// the direct way to its pod.
func benchTraffic(t *testing.T, all *figures) {
	m := machine.New(t)
	image := m.PushImage(app, "app:1")
	m.Up()
	c := m.Clone()
	deployment(c, "web", image, 1, standard, "traffic")
	push(t, c, "one server")
	// Each way has a client address of its own, so that neither finds the ports of
	// the other's last connections taken.
	service := way{to: serviceAddr(t, m, "web"), from: clientAddr(t, 1)}
	pod := way{to: net.JoinHostPort(onePod(t, m, "web").Status.IP, "8080"), from: clientAddr(t, 2)}
	for _, kind := range []struct {
		name string
		bar  float64
		run  func(context.Context, way) (int, error)
	}{
		{"cluster-ip-kept-connections", 90, kept},
		{"cluster-ip-new-connections", 80, fresh},
	} {
		var ratios, through, direct []float64
		for i := range pairs + 1 {
			s, d := rate(t, service, kind.run), rate(t, pod, kind.run)
			if i == 0 {
				continue // both are warm now
			}
			through, direct, ratios = append(through, s), append(direct, d), append(ratios, 100*s/d)
		}
		t.Logf("%s: through the service %.0f/s, direct %.0f/s, pairs in %% %.0f", kind.name, medianOf(through), medianOf(direct), ratios)
		f := lower(kind.name, medianOf(ratios), "% of direct", kind.bar).beside(100)
		f.Better = "higher"
		all.add(t, f)
	}
}

// way is where requests go, and from which address.
type way struct{ to, from string }

// dial makes a connection.
func (w way) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(w.from)}}
	return d.DialContext(ctx, "tcp", w.to)
}

// clientAddr gives the machine another address, in the pods' range, so that
// its traffic to services is handled as a pod's is.
func clientAddr(t *testing.T, n int) string {
	t.Helper()
	addr := fmt.Sprintf("10.244.255.%d", n)
	command(t, "", "ip", "address", "add", addr+"/32", "dev", "lo")
	t.Cleanup(func() { command(t, "", "ip", "address", "delete", addr+"/32", "dev", "lo") })
	return addr
}

// rate is how many requests a second all clients make together.
func rate(t *testing.T, w way, run func(context.Context, way) (int, error)) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runFor)
	defer cancel()
	var total atomic.Int64
	failures := make(chan error, clients)
	begun := time.Now()
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			n, err := run(ctx, w)
			total.Add(int64(n))
			if err != nil {
				failures <- fmt.Errorf("after %d requests: %w", n, err)
			}
		})
	}
	all.Wait()
	took := time.Since(begun)
	select {
	case err := <-failures:
		t.Fatalf("%s: %v", w.to, err)
	default:
	}
	return float64(total.Load()) / took.Seconds()
}

// kept makes requests on one connection, one after the other.
func kept(ctx context.Context, w way) (n int, err error) {
	conn, err := w.dial(context.Background())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	for ; ctx.Err() == nil; n++ {
		if err := request(conn, answers, "GET /healthz HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
			return n, err
		}
	}
	return n, nil
}

// fresh makes every request on a connection of its own.
func fresh(ctx context.Context, w way) (n int, err error) {
	for ; ctx.Err() == nil; n++ {
		conn, err := w.dial(context.Background())
		if err != nil {
			return n, err
		}
		err = request(conn, bufio.NewReader(conn), "GET /healthz HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
		conn.Close()
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func request(conn net.Conn, answers *bufio.Reader, text string) error {
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	answer, err := http.ReadResponse(answers, nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("answer %s", answer.Status)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}
