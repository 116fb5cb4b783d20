package gitrepo_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/sync/gitrepo"
)

func TestWebhook(t *testing.T) {
	const body = `{"ref":"refs/heads/main"}`
	sign := func(secret, body string) string {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte(body))
		return hex.EncodeToString(mac.Sum(nil))
	}
	good := sign("secret", body)
	for _, test := range []struct {
		name   string
		header map[string]string
		status int
		pokes  int
	}{
		{"GitHub", map[string]string{"X-Hub-Signature-256": "sha256=" + good, "X-GitHub-Event": "push"}, 204, 1},
		{"GitHub's ping", map[string]string{"X-Hub-Signature-256": "sha256=" + good, "X-GitHub-Event": "ping"}, 204, 0},
		{"GitHub, wrong secret", map[string]string{"X-Hub-Signature-256": "sha256=" + sign("other", body), "X-GitHub-Event": "push"}, 401, 0},
		{"GitHub, other body", map[string]string{"X-Hub-Signature-256": "sha256=" + sign("secret", "{}"), "X-GitHub-Event": "push"}, 401, 0},
		{"GitHub, not hexadecimal", map[string]string{"X-Hub-Signature-256": "sha256=?", "X-GitHub-Event": "push"}, 401, 0},
		{"GitLab", map[string]string{"X-Gitlab-Token": "secret", "X-Gitlab-Event": "Push Hook"}, 204, 1},
		{"GitLab's tag", map[string]string{"X-Gitlab-Token": "secret", "X-Gitlab-Event": "Tag Push Hook"}, 204, 0},
		{"GitLab, wrong token", map[string]string{"X-Gitlab-Token": "secre", "X-Gitlab-Event": "Push Hook"}, 401, 0},
		{"Gitea", map[string]string{"X-Gitea-Signature": good, "X-Gitea-Event": "push"}, 204, 1},
		{"Gitea also says it as GitHub", map[string]string{"X-Hub-Signature-256": "sha256=" + good, "X-Gitea-Event": "issues", "X-GitHub-Event": "issues"}, 204, 0},
		{"generic", map[string]string{"X-Signature-256": "sha256=" + good}, 204, 1},
		{"a wrong signature is not made good by a token", map[string]string{"X-Signature-256": "sha256=00", "X-Gitlab-Token": "secret"}, 401, 0},
		{"nothing", nil, 401, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			pokes := 0
			request := httptest.NewRequest(http.MethodPost, "/webhook", bytes.NewReader([]byte(body)))
			for name, value := range test.header {
				request.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			gitrepo.Webhook([]byte("secret"), func() { pokes++ }).ServeHTTP(w, request)
			if w.Code != test.status || pokes != test.pokes {
				t.Errorf("status %d and %d pokes, want %d and %d", w.Code, pokes, test.status, test.pokes)
			}
		})
	}
}

func TestWebhookRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		secret, method string
		size, status   int
	}{
		"GET":       {"secret", http.MethodGet, 0, http.StatusMethodNotAllowed},
		"too large": {"secret", http.MethodPost, 26 << 20, http.StatusRequestEntityTooLarge},
		"no secret": {"", http.MethodPost, 0, http.StatusUnauthorized},
	} {
		request := httptest.NewRequest(test.method, "/webhook", bytes.NewReader(make([]byte, test.size)))
		request.Header.Set("X-Gitlab-Token", test.secret)
		w := httptest.NewRecorder()
		gitrepo.Webhook([]byte(test.secret), func() { t.Errorf("%s: poked", name) }).ServeHTTP(w, request)
		if w.Code != test.status {
			t.Errorf("%s: status %d, want %d", name, w.Code, test.status)
		}
	}
}

// countedBody gives zeroes and counts what was read of it.
type countedBody struct{ left, read int }

func (b *countedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), b.left)
	clear(p[:n])
	b.left, b.read = b.left-n, b.read+n
	return n, nil
}

// connection is a response writer with a read deadline, as a server has it.
type connection struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (c *connection) SetReadDeadline(at time.Time) error {
	c.deadline = at
	return nil
}

// TestWebhookKeepsNothingOfStrangers: who proves nothing costs no memory, and
// holds a connection for a bounded time.
func TestWebhookKeepsNothingOfStrangers(t *testing.T) {
	const size = 20 << 20
	for name, test := range map[string]struct {
		header, value string
		read          int
	}{
		"nothing":         {},
		"a wrong token":   {"X-Gitlab-Token", "guess", 0},
		"no signature":    {"X-Hub-Signature-256", "sha256=zz", 0},
		"wrong signature": {"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(make([]byte, sha256.Size)), size},
	} {
		t.Run(name, func(t *testing.T) {
			body := &countedBody{left: size}
			request := httptest.NewRequest(http.MethodPost, "/webhook", body)
			if test.header != "" {
				request.Header.Set(test.header, test.value)
			}
			w := &connection{ResponseRecorder: httptest.NewRecorder()}
			handler := gitrepo.Webhook([]byte("secret"), func() { t.Error("poked") })
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			handler.ServeHTTP(w, request)
			runtime.ReadMemStats(&after)
			if w.Code != http.StatusUnauthorized || body.read != test.read {
				t.Errorf("status %d after %d bytes, want 401 after %d", w.Code, body.read, test.read)
			}
			if kept := after.TotalAlloc - before.TotalAlloc; kept > 1<<20 {
				t.Errorf("%d bytes allocated for a body of %d", kept, size)
			}
			if w.deadline.IsZero() {
				t.Error("the connection may be held for ever")
			}
		})
	}
}
