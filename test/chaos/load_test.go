//go:build e2e

package chaos

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load asks a service from several clients until it is stopped.
type load struct {
	asked, failed atomic.Int64
	answered      sync.Map // version or pod → true

	mu       sync.Mutex
	failures []string
	wait     sync.WaitGroup
	stop     context.CancelFunc
}

// pause between two requests of one client: eight clients make some four
// hundred requests a second.
const pause = 15 * time.Millisecond

// startLoad begins with so many clients; kept ones keep their connections.
func startLoad(address string, clients int, kept bool) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel}
	for range clients {
		l.wait.Go(func() { l.run(ctx, address, kept) })
	}
	return l
}

func (l *load) run(ctx context.Context, address string, kept bool) {
	transport := &http.Transport{DisableKeepAlives: !kept, MaxIdleConnsPerHost: 1, DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext}
	defer transport.CloseIdleConnections()
	one := &http.Client{Timeout: 5 * time.Second, Transport: transport}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			l.ask(one, address)
		}
	}
}

// ask makes one request, with a body that cannot be sent twice: net/http would
// try any other one again behind our back when a kept connection breaks.
func (l *load) ask(one *http.Client, address string) {
	l.asked.Add(1)
	began := time.Now()
	request, err := http.NewRequest(http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		l.fail(began, err)
		return
	}
	request.Body, request.ContentLength = io.NopCloser(strings.NewReader("x")), 1 // not repeatable: no GetBody
	answer, err := one.Do(request)
	if err != nil {
		l.fail(began, err)
		return
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	if err != nil {
		l.fail(began, err)
		return
	}
	l.answered.Store(string(body), true)
}

func (l *load) fail(began time.Time, err error) {
	l.failed.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) < 20 {
		l.failures = append(l.failures, fmt.Sprintf("%s after %s: %v", began.Format("15:04:05.000"), time.Since(began).Round(time.Millisecond), err))
	}
}

// check ends the load and holds that nothing failed.
func (l *load) check(t *testing.T, what string, least int64) {
	t.Helper()
	l.stop()
	l.wait.Wait()
	t.Logf("%s: %d requests, %d failed", what, l.asked.Load(), l.failed.Load())
	if l.asked.Load() < least {
		t.Errorf("%s: only %d requests, want at least %d: this was no load", what, l.asked.Load(), least)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed.Load() > 0 {
		t.Errorf("%s: %d requests failed:\n%s", what, l.failed.Load(), strings.Join(l.failures, "\n"))
	}
}

// TestRolloutsUnderLoad changes a deployment in every way while clients ask
// its service. No request may fail.
func TestRolloutsUnderLoad(t *testing.T) {
	c := newCluster(t)
	c.clone.Write("config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {GREETING: first}\n")
	web := deployment{
		name: "web", replicas: 3, image: c.images[0],
		more: "        envFrom: [{configMapRef: {name: web}}]\n",
	}
	c.put(web)
	c.clone.Apply("begin")
	address := c.address("web")
	fresh, kept := startLoad(address, 6, false), startLoad(address, 4, true)

	for round := range 2 {
		web.image = c.images[(round+1)%2]
		c.put(web)
		c.clone.Apply("another image")
		web.replicas = 6
		c.put(web)
		c.clone.Apply("more replicas")
		c.clone.Write("config.yaml", fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {GREETING: round %d}\n", round))
		c.clone.Apply("another configuration")
		web.replicas = 1
		c.put(web)
		c.clone.Apply("one replica")
		web.change = fmt.Sprint("alone ", round)
		c.put(web)
		c.clone.Apply("roll the only one")
		web.replicas = 3
		c.put(web)
		c.clone.Apply("three replicas")
	}
	c.clone.Git("revert", "--no-edit", "HEAD~1")
	c.clone.Apply("roll back")
	fresh.check(t, "a new connection each", 1000)
	kept.check(t, "kept connections", 500)
}

// TestARouteFollowsReadiness flips readiness: the pod leaves the routes and
// comes back, and is never restarted for it.
func TestARouteFollowsReadiness(t *testing.T) {
	c := newCluster(t)
	c.put(deployment{name: "web", replicas: 2, image: c.images[0]})
	c.clone.Apply("begin")
	pods := c.pods("web")
	before := c.processes(pods)
	address := c.address("web")
	for _, p := range pods {
		own := net.JoinHostPort(p.Pod.IP, "8080")
		traffic := startLoad(address, 2, false)
		for _, to := range []string{"/unready", "/ready", "/unready", "/ready"} {
			if _, err := ask(http.MethodPost, own, to); err != nil {
				t.Fatal(err)
			}
			c.Eventually(patience, p.Key.Name+" is told "+to, func() error {
				endpoints := c.serviceOf("web").Ports[0].Endpoints
				if slices.Contains(endpoints, own) != (to == "/ready") {
					return fmt.Errorf("endpoints are %v", endpoints)
				}
				return nil
			})
			c.Eventually(patience, p.Key.Name+" gets requests as it should after "+to, func() error {
				return c.answers(address, p.Key.Name, to == "/ready")
			})
		}
		traffic.check(t, "while "+p.Key.Name+" flips", 10)
	}
	c.checkUnmoved(before, "after readiness flipped")

	// With nobody ready clients are refused at once, and served again afterwards.
	for _, p := range pods {
		if _, err := ask(http.MethodPost, net.JoinHostPort(p.Pod.IP, "8080"), "/unready"); err != nil {
			t.Fatal(err)
		}
	}
	c.Eventually(patience, "a service without ready pods refuses", func() error {
		if _, err := get(address, "/"); err == nil || !strings.Contains(err.Error(), "refused") {
			return fmt.Errorf("got %v", err)
		}
		return nil
	})
	if _, err := ask(http.MethodPost, net.JoinHostPort(pods[0].Pod.IP, "8080"), "/ready"); err != nil {
		t.Fatal(err)
	}
	c.Eventually(patience, "the first ready pod is reached", func() error { return c.answers(address, pods[0].Key.Name, true) })
}

// answers asks often enough to be sure whether a pod is behind a service of two.
func (c *cluster) answers(address, pod string, want bool) error {
	found := false
	for range 30 {
		answer, err := get(address, "/")
		if err != nil {
			return err
		}
		found = found || strings.HasPrefix(answer, pod+" ")
	}
	if found != want {
		return fmt.Errorf("it answered: %v", found)
	}
	return nil
}
