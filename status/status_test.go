package status

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/statustest"
)

// newServer shows o.
func newServer(t testing.TB, o *nodes.Overview) (*Server, *statustest.Cluster) {
	t.Helper()
	cluster := statustest.New(o)
	pod := desired.Key{Kind: "Pod", Namespace: "shop", Name: "payments-5d9c8b7f6-a0000"}
	cluster.AddEvent(nodes.Event{Object: pod, Warning: true, Reason: "Failed", Message: "can't pull the image: not found", Source: "agent", First: statustest.Now, Last: statustest.Now, Count: 4})
	s, err := New(Options{
		Cluster: cluster, Gatherer: prometheus.NewRegistry(), Version: "0.1.0", Ready: func() error { return nil }, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Logs: func(_ context.Context, namespace, pod, container string, o LogOptions) (io.ReadCloser, error) {
			if pod == "none" {
				return nil, fmt.Errorf("log of %s/%s: %w", namespace, pod, fs.ErrNotExist)
			}
			return statustest.Log("listening on :8080", fmt.Sprintf("container=%s tail=%d follow=%v previous=%v", container, o.Tail, o.Follow, o.Previous), "<script>alert(1)</script> \x1b[31mred\x1b[0m"), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, cluster
}

func get(t testing.TB, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w
}

// paths are pages of every sort.
var paths = []string{
	"/", "/workloads", "/services", "/storage", "/objects", "/objects?kind=ConfigMap", "/history",
	"/object/Deployment.apps/shop/payments", "/object/ReplicaSet.apps/shop/payments-5d9c8b7f6", "/object/Pod/shop/payments-5d9c8b7f6-a0000",
	"/object/Service/shop/web", "/object/Namespace/-/shop", "/revision/8d4f2e0aa0000000000000000000000000000000",
	"/logs/shop/payments-5d9c8b7f6-a0000?container=app",
}

// statefulPaths are the pages that show statustest.Stateful.
var statefulPaths = []string{
	"/", "/workloads", "/storage", "/object/PersistentVolumeClaim/shop/uploads", "/object/PersistentVolume/-/pvc-0f9e8d7c-6b5a-4948-b7a6-958473625140",
	"/object/Job.batch/shop/import", "/object/CronJob.batch/shop/nightly-report", "/object/HorizontalPodAutoscaler.autoscaling/shop/web",
	"/object/StatefulSet.apps/shop/postgres",
}

func TestPagesAreThere(t *testing.T) {
	s, _ := newServer(t, statustest.Troubled())
	full, _ := newServer(t, statustest.Stateful())
	for _, path := range statefulPaths {
		if w := get(t, full.Handler(), path); w.Code != 200 {
			t.Errorf("%s: status %d: %s", path, w.Code, w.Body)
		}
	}
	for _, path := range paths {
		w := get(t, s.Handler(), path)
		if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
			t.Errorf("%s: status %d, %s: %s", path, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
	}
}

func TestEverythingIsReadOnlyAndSecure(t *testing.T) {
	s, _ := newServer(t, statustest.Troubled())
	for _, path := range append([]string{"/metrics", "/healthz", "/api/v1/overview", "/static/page.css", "/nowhere"}, paths...) {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "X"} {
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, httptest.NewRequest(method, path, nil))
			if w.Code != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: status %d", method, path, w.Code)
			}
		}
		h := get(t, s.Handler(), path).Header()
		if csp := h.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: headers %v", path, h)
		}
	}
}

func TestNoPageHasAFormAButtonOrAnythingInline(t *testing.T) {
	s, _ := newServer(t, statustest.Troubled())
	for _, path := range paths {
		body := strings.ToLower(get(t, s.Handler(), path).Body.String())
		for _, bad := range []string{"<form", "<button", "<input", "<style", " style=", " onclick", "javascript:", "<script>", "http://", "https://"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s holds %s", path, bad)
			}
		}
	}
}

// hostile is an overview in which every text tries to break out.
func hostile() *nodes.Overview {
	const bad = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[2J\u202e\u2066{{.}}"
	o := statustest.Troubled()
	for _, r := range []*desired.Revision{o.InForce, &o.Rejected.Revision, &o.History[0].Revision} {
		r.Author, r.Message, r.Signer, r.Email = bad, bad, bad, bad
	}
	o.Sync.Message, o.Sync.Repo, o.Sync.Branch, o.Nodes[0].Name, o.Nodes[0].Runtime = bad, bad, bad, bad, bad
	o.Held = &nodes.Hold{Revision: o.Rejected.Revision, Why: bad, Confirm: bad, Deletes: []desired.Key{{Kind: bad, Namespace: bad, Name: bad}}}
	for i := range o.Rejected.Problems {
		p := &o.Rejected.Problems[i]
		p.File, p.Field, p.Message, p.Hint, p.Code = bad, bad, bad, bad, bad
	}
	o.Problems = o.Rejected.Problems
	o.Plan.Difference, o.Plan.Actions = []string{bad}, []string{bad}
	o.Plan.Waiting[0].Reason, o.History[0].Message = bad, bad
	for i := range o.Objects {
		object := &o.Objects[i]
		object.Reason, object.From.File, object.Template = bad, bad, bad
		if object.Pod != nil {
			p := *object.Pod
			p.Node, p.IP, p.Status.Reason, p.Status.Message, p.UID = bad, bad, bad, bad, bad
			p.Status.Containers = []nodes.ContainerStatus{{Name: bad, State: nodes.Waiting, Reason: bad, Message: bad, Image: bad, Last: &nodes.Termination{Reason: bad, Message: bad}}}
			object.Pod = &p
		}
	}
	for _, object := range statustest.Stateful().Objects {
		if object.Storage != nil {
			s := *object.Storage
			s.Phase, s.Volume, s.Class, s.Capacity, s.Node, s.Unenforced, s.Pods = bad, bad, bad, bad, bad, bad, []string{bad}
			object.Storage = &s
		}
		if object.Autoscaler != nil {
			a := *object.Autoscaler
			a.Problem, a.Limits, a.Metrics = bad, []string{bad}, []nodes.MetricOverview{{Name: bad, Current: bad, Target: bad}}
			object.Autoscaler = &a
		}
		if object.Job != nil || object.CronJob != nil || object.Storage != nil || object.Autoscaler != nil {
			object.Reason = bad
			o.Objects = append(o.Objects, object)
		}
	}
	o.Objects = append(o.Objects, nodes.ObjectHealth{Key: desired.Key{Group: bad, Kind: bad, Namespace: bad, Name: bad}, Health: nodes.Degraded, Reason: bad})
	o.Services[0].Key.Name, o.Services[0].Type, o.Services[0].External, o.Services[0].ClusterIPs = bad, bad, bad, []string{bad}
	return o
}

func TestNothingBreaksOut(t *testing.T) {
	s, cluster := newServer(t, hostile())
	cluster.AddEvent(nodes.Event{Object: desired.Key{Kind: "Pod", Namespace: "shop", Name: "payments-5d9c8b7f6-a0000"}, Reason: "<script>", Message: "<script>alert(3)</script>\x1b"})
	pages := append([]string{"/nowhere/%3Cscript%3Ealert(4)", "/object/%3Cscript%3E/%22%3E/%00", "/revision/%3Cscript%3E", "/objects?kind=%3Cscript%3E", "/logs/%3Cscript%3E/none"}, paths...)
	for _, path := range pages {
		body := get(t, s.Handler(), path).Body.String()
		if n := strings.Count(body, "<script"); n != 1 {
			t.Errorf("%s holds %d scripts, want only its own", path, n)
		}
		for _, bad := range []string{"<img", "\x00", "\x1b", "\u202e", "\u2066", "ZgotmplZ"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s: %q got through", path, bad)
			}
		}
	}
}

func TestUnknownPagesSaySo(t *testing.T) {
	s, _ := newServer(t, statustest.Troubled())
	for _, path := range []string{"/nowhere", "/object/Pod/shop/gone", "/revision/abc", "/logs/shop/none", "/api/v1/logs?pod=none", "/static/none"} {
		if w := get(t, s.Handler(), path); w.Code != http.StatusNotFound {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
	for _, path := range []string{"/api/v1/events", "/api/v1/logs", "/api/v1/logs?pod=x&tail=y", "/api/v1/logs?pod=x&follow=2", "/api/v1/logs?pod=x&since=then"} {
		if w := get(t, s.Handler(), path); w.Code != http.StatusBadRequest {
			t.Errorf("%s: status %d", path, w.Code)
		}
	}
}

func TestHealthAndReadiness(t *testing.T) {
	s, _ := newServer(t, statustest.Healthy())
	if w := get(t, s.Handler(), "/readyz"); w.Code != 200 {
		t.Errorf("ready: %d", w.Code)
	}
	s.ready = func() error { return errors.New("the secret reason") }
	if w := get(t, s.Handler(), "/readyz"); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("not ready: %d %s", w.Code, w.Body)
	}
	if w := get(t, s.Handler(), "/healthz"); w.Code != 200 {
		t.Errorf("healthy: %d", w.Code)
	}
}

func TestLongListsStayShort(t *testing.T) {
	s, _ := newServer(t, statustest.Large(500))
	const most = 400 << 10
	for _, path := range []string{"/", "/workloads", "/objects", "/workloads?page=4"} {
		w := get(t, s.Handler(), path)
		if w.Code != 200 || w.Body.Len() > most {
			t.Errorf("%s: status %d, %d bytes", path, w.Code, w.Body.Len())
		}
	}
	if body := get(t, s.Handler(), "/").Body.String(); !strings.Contains(body, `<a href="/workloads">all 503</a>`) {
		t.Error("the overview does not lead to all workloads")
	}
	if body := get(t, s.Handler(), "/workloads?page=2").Body.String(); !strings.Contains(body, "page=3") || !strings.Contains(body, "page=1") {
		t.Error("the second page does not lead on and back")
	}
	for _, page := range []string{"0", "-1", "99999", "x"} {
		if w := get(t, s.Handler(), "/workloads?page="+page); w.Code != 200 {
			t.Errorf("page %s: status %d", page, w.Code)
		}
	}
}

// BenchmarkIndex renders the overview of 500 workloads and 5,000 pods.
func BenchmarkIndex(b *testing.B) {
	s, _ := newServer(b, statustest.Large(500))
	for b.Loop() {
		get(b, s.Handler(), "/")
	}
}

var golden = flag.Bool("update", false, "write the golden files anew")

// fragments are the parts of an overview's page by name.
func fragments(t *testing.T, o *nodes.Overview) map[string]template.HTML {
	t.Helper()
	s, _ := newServer(t, o)
	u, err := s.pages.update(s.index(o, httptest.NewRequest("GET", "/", nil)))
	if err != nil {
		t.Fatal(err)
	}
	return u.Fragments
}

// TestFragments holds the HTML of the overview's parts.
func TestFragments(t *testing.T) {
	parts, stateful := fragments(t, statustest.Troubled()), fragments(t, statustest.Stateful())
	for _, id := range []string{"autoscalers", "storage"} {
		if parts[id] != "" {
			t.Errorf("%s of a cluster that has none: %s", id, parts[id])
		}
		parts[id] = stateful[id]
	}
	for id, content := range parts {
		path := filepath.Join("testdata", id+".html")
		if *golden {
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(content)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
}

func TestAgesReplaceInstants(t *testing.T) {
	got := withAges(when(statustest.Now.Add(-3*time.Minute)), statustest.Now)
	want := `<time datetime="2026-03-14T15:06:26Z" title="2026-03-14 15:06:26 UTC">3 min</time>`
	if string(got) != want {
		t.Errorf("got %s", got)
	}
	if got := withAges("&lt;time datetime=&#34;x&#34;&gt;", statustest.Now); got != "&lt;time datetime=&#34;x&#34;&gt;" {
		t.Errorf("escaped text became %s", got)
	}
}

func TestLogsAreShownWithoutColours(t *testing.T) {
	s, _ := newServer(t, statustest.Healthy())
	body := get(t, s.Handler(), "/logs/shop/web-6f7c9b8d4-a0000?tail=7&previous=true").Body.String()
	for _, want := range []string{"container=app tail=7 follow=false previous=true", "&lt;script&gt;alert(1)&lt;/script&gt; red\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("the log lacks %q:\n%s", want, body)
		}
	}
}

func TestLogsKeepTheirEnd(t *testing.T) {
	var lines strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&lines, "line %d\n", i)
	}
	got, err := lastBytes(strings.NewReader(lines.String()+"no newline"), 1000)
	if err != nil || len(got) > 1000 || !strings.HasSuffix(got, "line 2999\nno newline") || !strings.HasPrefix(got, "line ") {
		t.Errorf("kept %d bytes, error %v: %q", len(got), err, got)
	}
	if got, _ := lastBytes(strings.NewReader("a\xffb\n"), 10); got != "a\ufffdb\n" {
		t.Errorf("invalid text became %q", got)
	}
}
