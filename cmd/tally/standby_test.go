package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes/trust"
)

// newTestStandby is a standby of a cluster, and where its leader would listen.
func newTestStandby(t *testing.T) (*standby, *candidate) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("git", "init", "--quiet", "--bare", filepath.Join(dir, "remote.git")).CombinedOutput(); err != nil {
		t.Fatalf("git init: %v: %s", err, out)
	}
	c := &candidate{
		instance: instance{dataDir: dir, runDir: dir}, log: slog.New(slog.DiscardHandler), key: make(clusterKey, keySize),
		o: serverOptions{repo: filepath.Join(dir, "remote.git"), branch: "main", path: ".", http: "127.0.0.1:7480", listen: "127.0.0.1:0"},
	}
	s, err := c.newStandby()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.peers.CloseIdleConnections)
	return s, c
}

// lead listens as the leader does and answers its peers with what they asked for.
func lead(t *testing.T, c *candidate, s *standby) {
	t.Helper()
	config := s.authority.ServerTLS()
	config.NextProtos = append(config.NextProtos, trust.PeerProtocol)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	peers := newPassed(listener.Addr())
	go func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, config)
			if err := conn.HandshakeContext(context.Background()); err != nil || s.authority.CheckServer(conn.ConnectionState().PeerCertificates) != nil {
				t.Errorf("a peer that is none: %v", err)
			}
			peers.take(conn)
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		ended <- serveHTTP(ctx, peers, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s %q %q", r.Method, r.URL, r.Header.Get("Authorization"), r.Header.Get("Cookie"))
		}))
	}()
	t.Cleanup(func() {
		listener.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	c.leads.Store(&leader{Name: "first", Address: listener.Addr().String()})
}

func request(h http.Handler, method, path, token string) (int, string) {
	r := httptest.NewRequest(method, "http://127.0.0.1:7480"+path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	text, _ := io.ReadAll(w.Body)
	return w.Code, strings.TrimSpace(string(text))
}

func TestStandbyShowsWhatTheLeaderDoes(t *testing.T) {
	s, c := newTestStandby(t)
	outward, local, token := s.outwardHandler(), s.localHandler(), s.access.Token()
	if code, text := request(outward, "GET", "/api/overview", token); code != http.StatusServiceUnavailable || !strings.HasPrefix(text, "No server leads") {
		t.Errorf("without a leader: %d %s", code, text)
	}
	lead(t, c, s)
	for _, test := range []struct {
		to                  http.Handler
		method, path, token string
		code                int
		want                string
	}{
		{outward, "GET", "/api/overview?x=1", token, 200, `GET /api/overview?x=1 "" ""`},
		{outward, "GET", "/api/overview", "", 401, ""},
		{outward, "GET", "/healthz", "", 200, "ok"},
		{outward, "GET", "/readyz", "", 200, `GET /readyz "" ""`},
		{outward, "POST", "/api/overview", token, 405, ""},
		{outward, "POST", "/webhook/github", "", 200, `POST /webhook/github "" ""`},
		{local, "GET", "/api/overview", "", 200, `GET /api/overview "" ""`},
		{local, "POST", "/pre-receive", "", 405, ""},
	} {
		code, text := request(test.to, test.method, test.path, test.token)
		if code != test.code || test.want != "" && text != test.want {
			t.Errorf("%s %s: %d %s, want %d %s", test.method, test.path, code, text, test.code, test.want)
		}
	}
	c.leads.Store(&leader{Name: "gone", Address: "127.0.0.1:1"})
	s.peers.CloseIdleConnections()
	if code, text := request(local, "GET", "/api/overview", ""); code != http.StatusServiceUnavailable || !strings.Contains(text, "the leader gone does not answer at 127.0.0.1:1") {
		t.Errorf("with a dead leader: %d %s", code, text)
	}
}
