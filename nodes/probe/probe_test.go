package probe

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	healthserver "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestThresholds(t *testing.T) {
	for _, c := range []struct {
		name             string
		success, failure int32
		known            State
		runs             string // + and -
		want             string // state after each: ? unknown, S, F
	}{
		{"defaults", 0, 0, Unknown, "--- +", "??F S"},
		{"needs two", 2, 2, Unknown, "+-++--", "???SSF"},
		{"a success between starts over", 1, 3, Unknown, "--+--", "??SSS"},
		{"adopted stays", 1, 2, Success, "-+--", "SSSF"},
	} {
		k := newCounter(&corev1.Probe{SuccessThreshold: c.success, FailureThreshold: c.failure}, c.known)
		var got strings.Builder
		for _, r := range c.runs {
			if r == ' ' {
				got.WriteByte(' ')
				continue
			}
			k.add(r == '+')
			got.WriteByte("?SF"[k.state])
		}
		if got.String() != c.want {
			t.Errorf("%s: %s, want %s", c.name, got.String(), c.want)
		}
	}
}

// The beat may move a run a little, once; afterwards the period is the period.
func TestRegularRunsFallOnACommonBeat(t *testing.T) {
	p := &Prober{origin: time.Unix(1000, 0)}
	for _, period := range []time.Duration{time.Second, 2 * time.Second, 10 * time.Second, time.Minute} {
		for offset := time.Duration(0); offset < period; offset += period / 7 {
			now := p.origin.Add(offset)
			first := p.beat(now, period)
			if moved := first.Sub(now) - period; moved.Abs() > period/8 {
				t.Errorf("period %s: the first run is moved by %s", period, moved)
			}
			// A run ends a little after its instant.
			if next := p.beat(first.Add(5*time.Millisecond), period); next.Sub(first) != period {
				t.Errorf("period %s: the next run comes after %s", period, next.Sub(first))
			}
		}
	}
}

// script answers probes by what it is told.
type script struct {
	mu   sync.Mutex
	at   []time.Duration
	ok   func(since time.Duration) bool
	from time.Time
}

func (s *script) check(context.Context, Target, Exec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := time.Since(s.from)
	s.at = append(s.at, since)
	if s.ok(since) {
		return nil
	}
	return errors.New("no")
}

func runProbe(t *testing.T, s *script, target Target, d time.Duration) []Result {
	var mu sync.Mutex
	var results []Result
	p, err := New(Options{
		Exec: func(context.Context, string, []string, io.Writer) (int, error) { return 0, nil },
		Notify: func(r Result) {
			mu.Lock()
			defer mu.Unlock()
			results = append(results, r)
		},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.check = s.check
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.Run(ctx) }()
	s.from = time.Now()
	target.Started = s.from
	p.Add(target)
	p.Add(target) // twice is once
	time.Sleep(d)
	stop()
	<-ended
	mu.Lock()
	defer mu.Unlock()
	return results
}

func TestReadinessIsEagerUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := Key{"c", Readiness}
		s := &script{ok: func(d time.Duration) bool { return d > 50*time.Millisecond && d < 15*time.Second }}
		got := runProbe(t, s, Target{Key: key, Probe: &corev1.Probe{PeriodSeconds: 10, FailureThreshold: 1}}, 25*time.Second)
		want := []Result{
			{Key: key, State: Failure, Failed: true, Message: "Readiness probe failed: no"},
			{Key: key, State: Success},
			{Key: key, State: Failure, Failed: true, Message: "Readiness probe failed: no"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		at := []time.Duration{0, 5 * time.Millisecond, 12500 * time.Microsecond, 23750 * time.Microsecond, 40625 * time.Microsecond, 65937500 * time.Nanosecond, 10 * time.Second, 20 * time.Second}
		if diff := cmp.Diff(at, s.at); diff != "" {
			t.Error("probed at", diff)
		}
	})
}

func TestLivenessKeepsItsPeriodAndThreshold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{ok: func(time.Duration) bool { return false }}
		got := runProbe(t, s, Target{Key: Key{"c", Liveness}, Known: Success, Probe: &corev1.Probe{InitialDelaySeconds: 5, PeriodSeconds: 2, FailureThreshold: 2}}, 8*time.Second)
		if diff := cmp.Diff([]time.Duration{5 * time.Second, 7 * time.Second}, s.at); diff != "" {
			t.Error("probed at", diff)
		}
		if len(got) != 2 || got[0].State != Success || got[1].State != Failure {
			t.Errorf("results %+v", got)
		}
	})
}

func TestRemovedProbeIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := 0
		p, err := New(Options{
			Exec:   func(context.Context, string, []string, io.Writer) (int, error) { return 0, nil },
			Notify: func(Result) { told++ }, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		p.check = func(ctx context.Context, _ Target, _ Exec) error { <-ctx.Done(); return ctx.Err() }
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = p.Run(ctx) }()
		p.Add(Target{Key: Key{"c", Readiness}, Probe: &corev1.Probe{TimeoutSeconds: 5}, Started: time.Now()})
		synctest.Wait()
		p.Remove("c", "")
		time.Sleep(time.Minute)
		stop()
		<-ended
		if told != 0 {
			t.Errorf("told %d results", told)
		}
	})
}

func target(t *testing.T, addr string, h corev1.ProbeHandler) Target {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	return Target{
		IP: ap.Addr(), Probe: &corev1.Probe{ProbeHandler: h},
		Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(ap.Port())}},
	}
}

func TestHTTP(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
		case r.URL.Path == "/here":
			w.WriteHeader(http.StatusEarlyHints)
			http.Redirect(w, r, "/", http.StatusFound)
		case r.Host != "shop.example" || r.Header.Get("X-Probe") != "yes" || r.URL.RawQuery != "q=1":
			http.Error(w, "<wrong>", http.StatusTeapot)
		}
	})
	headers := []corev1.HTTPHeader{{Name: "host", Value: "shop.example"}, {Name: "X-Probe", Value: "yes"}}
	for _, server := range []*httptest.Server{httptest.NewServer(handler), httptest.NewTLSServer(handler)} {
		defer server.Close()
		scheme := corev1.URIScheme(strings.ToUpper(strings.Split(server.URL, ":")[0]))
		addr := server.Listener.Addr().String()
		get := func(path string, headers []corev1.HTTPHeader) error {
			return Check(t.Context(), target(t, addr, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
				Path: path, Port: intstr.FromString("web"), Scheme: scheme, HTTPHeaders: headers,
			}}), nil)
		}
		if err := get("/ok?q=1", headers); err != nil {
			t.Errorf("%s: %v", scheme, err)
		}
		if err := get("/moved", nil); err != nil {
			t.Errorf("%s: redirect to another host: %v", scheme, err)
		}
		if err := get("/here", nil); err == nil || !strings.Contains(err.Error(), "statuscode: 418") {
			t.Errorf("%s: redirect on the same host: %v", scheme, err)
		}
		if err := get("/ok", nil); err == nil || !strings.Contains(err.Error(), "statuscode: 418: <wrong>") {
			t.Errorf("%s: %v", scheme, err)
		}
	}
}

// TestHTTPToWhatIsNoServer: whatever a container does, a probe ends.
func TestHTTPToWhatIsNoServer(t *testing.T) {
	for name, test := range map[string]struct {
		says    string
		forever bool
		want    string
	}{
		"hangs up":               {want: "EOF"},
		"says nothing":           {forever: true, want: "i/o timeout"},
		"another protocol":       {says: "220 mail.example ready\r\n", want: "malformed"},
		"interim answers":        {says: strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", maxInterim), forever: true, want: "too many interim answers"},
		"a header without end":   {says: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswer), forever: true, want: "EOF"},
		"a body that never ends": {says: "HTTP/1.1 200 OK\r\n\r\n", forever: true},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			served := make(chan struct{})
			go func() {
				defer close(served)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				io.WriteString(conn, test.says)
				if test.forever {
					io.Copy(io.Discard, conn)
				} else {
					conn.Read(make([]byte, 1<<10))
				}
			}()
			err = Check(ctx, target(t, l.Addr().String(), corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("web")}}), nil)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			<-served
		})
	}
}

func TestTCPAndUnknownPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := target(t, l.Addr().String(), corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("web")}})
	if err := Check(t.Context(), open, nil); err != nil {
		t.Error(err)
	}
	l.Close()
	if err := Check(t.Context(), open, nil); err == nil {
		t.Error("a closed port passed")
	}
	open.Probe.TCPSocket.Port = intstr.FromString("nope")
	if err := Check(t.Context(), open, nil); err == nil || !strings.Contains(err.Error(), `no port named "nope"`) {
		t.Error(err)
	}
}

func TestExec(t *testing.T) {
	exec := func(_ context.Context, id string, command []string, w io.Writer) (int, error) {
		io.WriteString(w, id+" says "+command[0])
		return strconv.Atoi(command[0])
	}
	probe := func(code string) error {
		return Check(t.Context(), Target{Key: Key{Container: "c1"}, Probe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{code}}}}}, exec)
	}
	if err := probe("0"); err != nil {
		t.Error(err)
	}
	if err := probe("3"); err == nil || err.Error() != "command exited with 3: c1 says 3" {
		t.Error(err)
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, state := grpc.NewServer(), healthserver.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	go server.Serve(l)
	defer server.Stop()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	probe := func() error {
		return Check(t.Context(), target(t, l.Addr().String(), corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(port), Service: new("db")}}), nil)
	}
	if err := probe(); err == nil {
		t.Error("an unknown service passed")
	}
	state.SetServingStatus("db", grpc_health_v1.HealthCheckResponse_SERVING)
	if err := probe(); err != nil {
		t.Error(err)
	}
	state.SetServingStatus("db", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	if err := probe(); err == nil || !strings.Contains(err.Error(), "NOT_SERVING") {
		t.Error(err)
	}
}
