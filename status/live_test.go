package status

import (
	"bufio"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/statustest"
)

// listener reads a stream of events.
type listener struct {
	*bufio.Scanner
	id string
}

func listenTo(t *testing.T, server *httptest.Server, path string) *listener {
	t.Helper()
	r, err := http.Get(server.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Body.Close() })
	if got := r.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("content type %q", got)
	}
	s := bufio.NewScanner(r.Body)
	s.Buffer(nil, 4<<20)
	return &listener{Scanner: s}
}

// next gives the data of the next event.
func (l *listener) next(t *testing.T) string {
	t.Helper()
	for l.Scan() {
		if id, found := strings.CutPrefix(l.Text(), "id: "); found {
			l.id = id
		}
		if data, found := strings.CutPrefix(l.Text(), "data: "); found {
			return data
		}
	}
	t.Fatalf("the stream ended: %v", l.Err())
	return ""
}

func (l *listener) update(t *testing.T) update {
	t.Helper()
	var u update
	if err := json.Unmarshal([]byte(l.next(t)), &u); err != nil {
		t.Fatal(err)
	}
	return u
}

func serve(t *testing.T, o *nodes.Overview) (*Server, *statustest.Cluster, *httptest.Server) {
	t.Helper()
	s, cluster := newServer(t, o)
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	return s, cluster, server
}

func TestLiveSendsOnlyWhatChanged(t *testing.T) {
	s, cluster, server := serve(t, statustest.Healthy())
	l := listenTo(t, server, "/live/?since="+s.renderings.id(cluster.Overview()))
	waitWatchers(t, cluster, 1)
	next := statustest.Healthy()
	next.Serial++
	next.Sync.State, next.Sync.Message = "fetching", "asking again"
	cluster.Set(next)
	u := l.update(t)
	if diff := cmp.Diff([]string{"revision"}, slices.Sorted(maps.Keys(u.Fragments))); diff != "" {
		t.Errorf("fragments (-want +got):\n%s", diff)
	}
	if want := s.renderings.id(next); l.id != want {
		t.Errorf("id %q, want %q", l.id, want)
	}
}

func TestLiveCatchesUpAfterAGap(t *testing.T) {
	_, _, server := serve(t, statustest.Troubled())
	u := listenTo(t, server, "/live/?since=another-7").update(t)
	if len(u.Fragments) != len(u.Order) || u.Title != "✕ 1 object degraded · Tallyman" || u.Level != "degraded" {
		t.Errorf("%d of %d fragments, title %q, level %q", len(u.Fragments), len(u.Order), u.Title, u.Level)
	}
}

func TestEveryPageIsLive(t *testing.T) {
	_, _, server := serve(t, statustest.Troubled())
	for _, path := range paths {
		if strings.HasPrefix(path, "/logs") {
			continue
		}
		if u := listenTo(t, server, "/live"+path).update(t); len(u.Fragments) < 2 {
			t.Errorf("%s: %d fragments", path, len(u.Fragments))
		}
	}
}

func TestWhoLeavesIsForgotten(t *testing.T) {
	_, cluster, server := serve(t, statustest.Healthy())
	for range 5 {
		listenTo(t, server, "/live/")
		listenTo(t, server, "/api/v1/watch")
	}
	waitWatchers(t, cluster, 10)
	server.CloseClientConnections()
	waitWatchers(t, cluster, 0)
}

func TestOneRenderingServesAll(t *testing.T) {
	s, _ := newServer(t, statustest.Healthy())
	o, times := statustest.Healthy(), 0
	render := func() (*update, error) { times++; return &update{}, nil }
	for range 3 {
		if _, err := s.renderings.get("/", o, render); err != nil {
			t.Fatal(err)
		}
	}
	if times != 1 {
		t.Errorf("rendered %d times", times)
	}
	for i := range 10 * maxRenderings {
		_, _ = s.renderings.get(strings.Repeat("x", i), o, render)
	}
	if n := len(s.renderings.byURI); n > maxRenderings {
		t.Errorf("%d renderings are kept", n)
	}
}

func waitWatchers(t *testing.T, cluster *statustest.Cluster, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); cluster.Watchers() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d watchers, want %d", cluster.Watchers(), n)
		}
	}
}
