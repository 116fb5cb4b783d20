//go:build e2e

package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

// way is one way to the pods of a service.
type way struct {
	name string
	ask  func(ctx context.Context) error
}

// ways from and to a machine, which must not be the one that breaks: by cluster
// address, by node port from outside the cluster, by name, and from a pod.
func (w *world) ways(at *cluster.Machine) []way {
	w.t.Helper()
	service := w.service("web")
	asker := w.askerOn(at)
	client := &http.Client{Transport: &http.Transport{DialContext: at.Dial, DisableKeepAlives: true}}
	outside := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return []way{
		{"cluster address on " + at.Name, func(ctx context.Context) error { return get(ctx, client, "http://"+service) }},
		{"node port of " + at.Name, func(ctx context.Context) error { return get(ctx, outside, "http://"+at.Address+":30080/") }},
		{"name, from a pod on " + at.Name, func(ctx context.Context) error {
			return get(ctx, client, "http://"+asker+":8080/fetch?"+url.Values{"url": {"http://web/"}}.Encode())
		}},
	}
}

func (w *world) service(name string) string {
	w.t.Helper()
	o, err := w.server.Overview()
	if err != nil {
		w.t.Fatal(err)
	}
	i := slices.IndexFunc(o.Services, func(s nodes.ServiceOverview) bool { return s.Key.Name == name })
	if i < 0 {
		w.t.Fatalf("no service %s", name)
	}
	return o.Services[i].ClusterIPs[0]
}

// askerOn is the address of the pod on a machine that asks others.
func (w *world) askerOn(m *cluster.Machine) string {
	w.t.Helper()
	for _, p := range w.pods("asker") {
		if p.Pod.Node == m.Name {
			return p.Pod.Status.IP
		}
	}
	w.t.Fatalf("no asker on %s", m.Name)
	return ""
}

func get(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || !strings.Contains(string(body), "web-")) {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return err
}

// askTimeout is when a request counts as failed. It is long: a busy machine
// answers late, a packet that leads nowhere is never answered.
const askTimeout = 5 * time.Second

// failure of one request.
type failure struct {
	begun, ended time.Time
	err          error
}

// tally of the requests on one way.
type tally struct {
	way
	asked    int
	failures []failure
}

// traffic asks on all ways again and again.
type traffic struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	ways   []*tally // guarded by mu
}

// begin starts traffic until end is called, or the test ends.
func (w *world) begin(ways []way) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	all := &traffic{cancel: cancel}
	for _, way := range ways {
		one := &tally{way: way}
		all.ways = append(all.ways, one)
		all.done.Go(func() { all.run(ctx, one) })
	}
	w.t.Cleanup(func() { cancel(); all.done.Wait() })
	return all
}

// pause between two requests on a way.
const pause = 50 * time.Millisecond

// run asks without waiting for the answer before, as different clients would,
// with so many of them at most.
func (all *traffic) run(ctx context.Context, one *tally) {
	slots := make(chan struct{}, 256)
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		select {
		case slots <- struct{}{}:
		default:
			continue // all clients wait
		}
		all.done.Go(func() {
			defer func() { <-slots }()
			begun := time.Now()
			err := one.ask(ctx)
			if ctx.Err() != nil {
				return
			}
			all.mu.Lock()
			defer all.mu.Unlock()
			one.asked++
			if err != nil {
				one.failures = append(one.failures, failure{begun, time.Now(), err})
			}
		})
	}
}

// count is what was asked and what failed on each way up to an instant.
type count struct {
	of            *traffic
	asked, failed []int
}

func (all *traffic) count() count {
	all.mu.Lock()
	defer all.mu.Unlock()
	c := count{of: all}
	for _, one := range all.ways {
		c.asked, c.failed = append(c.asked, one.asked), append(c.failed, len(one.failures))
	}
	return c
}

// mostAnswered fails the test unless, on every way, there were answers since the
// count, and to four of five requests at least.
func (c count) mostAnswered(t testing.TB) {
	t.Helper()
	now := c.of.count()
	for i, one := range c.of.ways {
		asked, failed := now.asked[i]-c.asked[i], now.failed[i]-c.failed[i]
		if failed >= asked || failed*5 > asked {
			t.Errorf("%s: %d of %d requests failed meanwhile", one.name, failed, asked)
		}
	}
}

// end stops the traffic and tells what failed since an instant.
func (all *traffic) end(t testing.TB, what string, since time.Time) (failed int) {
	t.Helper()
	all.cancel()
	all.done.Wait()
	for _, one := range all.ways {
		failed += len(one.failures)
		if len(one.failures) == 0 {
			t.Logf("%s: %s: %d requests, none failed", what, one.name, one.asked)
			continue
		}
		slices.SortFunc(one.failures, func(a, b failure) int { return a.begun.Compare(b.begun) })
		first, last := one.failures[0], one.failures[len(one.failures)-1]
		t.Logf("%s: %s: %d of %d requests failed, asked between %s and %s after it: %v", what, one.name, len(one.failures), one.asked,
			first.begun.Sub(since).Round(time.Millisecond), last.begun.Sub(since).Round(time.Millisecond), short(first.err))
	}
	return failed
}

func short(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		return failed.Err
	}
	return err
}

// settled waits until a number of requests in a row were answered on every way.
func (all *traffic) settled(w *world) {
	w.t.Helper()
	const enough = 20
	begun := time.Now()
	asked, failed := make([]int, len(all.ways)), make([]int, len(all.ways))
	all.mu.Lock()
	for i, one := range all.ways {
		asked[i], failed[i] = one.asked, len(one.failures)
	}
	all.mu.Unlock()
	w.Eventually(patience, "requests are answered again", func() error {
		all.mu.Lock()
		defer all.mu.Unlock()
		for i, one := range all.ways {
			if len(one.failures) != failed[i] {
				asked[i], failed[i] = one.asked, len(one.failures)
			}
			if one.asked-asked[i] < enough {
				return fmt.Errorf("%s: %d in a row", one.name, one.asked-asked[i])
			}
		}
		return nil
	})
	w.t.Logf("settled after another %s", time.Since(begun).Round(time.Millisecond))
}
