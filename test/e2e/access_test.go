//go:build e2e

package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/tallyman-dev/tallyman/test/machine"
)

const root = "http://" + machine.PageAddress

// page gets a page or an API's answer with the token.
func (w *world) page(path string) (string, error) {
	return body(fresh.Do(w.request(path, "Authorization", "Bearer "+w.Token())))
}

// request for a path with headers, which hold names and values in turn.
func (w *world) request(path string, headers ...string) *http.Request {
	w.t.Helper()
	request, err := http.NewRequest(http.MethodGet, root+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			request.Host = headers[i+1]
		}
		request.Header.Set(headers[i], headers[i+1])
	}
	return request
}

// status is what a request is answered with, redirections not followed.
func status(t testing.TB, request *http.Request) *http.Response {
	t.Helper()
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response
}

func TestAccess(t *testing.T) {
	w := newWorld(t)
	w.clone.Write("pods.yaml", pod("spy", "hostNetwork: true\ncontainers: [{name: main, image: "+insideImage+", args: [serve, -listen, ':9090'], readinessProbe: {tcpSocket: {port: 9090}, periodSeconds: 1}}]"))
	w.clone.Apply("a pod on the host's network")
	token := w.Token()

	t.Run("over HTTP", func(t *testing.T) { overHTTP(w.in(t), token) })
	t.Run("a pod on the host's network", func(t *testing.T) { podOnHost(w.in(t)) })
	t.Run("another user", func(t *testing.T) { otherUser(w.in(t), token) })
	t.Run("secrets stay", func(t *testing.T) { secretsStay(w.in(t)) })
}

func overHTTP(w *world, token string) {
	paths := []string{"/", "/api/v1/overview", "/api/v1/watch", "/metrics", "/repo.git/info/refs?service=git-receive-pack"}
	for _, path := range paths {
		if got := status(w.t, w.request(path)).StatusCode; got != http.StatusUnauthorized {
			w.t.Errorf("%s without token: status %d, want 401", path, got)
		}
		if got := status(w.t, w.request(path, "Authorization", "Bearer "+token+"x")).StatusCode; got != http.StatusUnauthorized {
			w.t.Errorf("%s with a wrong token: status %d, want 401", path, got)
		}
		for _, headers := range [][]string{
			{"Authorization", "Bearer " + token, "Host", "evil.example"},
			{"Authorization", "Bearer " + token, "Origin", "http://evil.example"},
		} {
			if got := status(w.t, w.request(path, headers...)).StatusCode; got != http.StatusForbidden && got != http.StatusMisdirectedRequest {
				w.t.Errorf("%s with %s: status %d, want a refusal", path, headers[2:], got)
			}
		}
		if got := status(w.t, w.request(path, "Authorization", "Bearer "+token)).StatusCode; got != http.StatusOK && path != "/repo.git/info/refs?service=git-receive-pack" {
			w.t.Errorf("%s with the token: status %d, want 200", path, got)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if got := status(w.t, w.request(path)).StatusCode; got != http.StatusOK {
			w.t.Errorf("%s: status %d, want 200", path, got)
		}
	}
	entered := status(w.t, w.request("/?token="+token))
	if len(entered.Cookies()) != 1 || !entered.Cookies()[0].HttpOnly || entered.Cookies()[0].SameSite == http.SameSiteNoneMode {
		w.t.Fatalf("entering with the token: %s, cookies %v", entered.Status, entered.Cookies())
	}
	if strings.Contains(entered.Header.Get("Location"), token) {
		w.t.Errorf("the address keeps the token: %s", entered.Header.Get("Location"))
	}
	request := w.request("/")
	request.AddCookie(entered.Cookies()[0])
	if got := status(w.t, request).StatusCode; got != http.StatusOK {
		w.t.Errorf("with the cookie: status %d, want 200", got)
	}
	if got := status(w.t, w.request("/repo.git/../../key", "Authorization", "Bearer "+token)).StatusCode; got == http.StatusOK {
		w.t.Error("a path leads out of the repository")
	}
}

func podOnHost(w *world) {
	type answer struct {
		Status int
		Body   string
	}
	for _, path := range []string{"/", "/api/v1/overview", "/repo.git/info/refs?service=git-upload-pack"} {
		if got := ask[answer](w, "127.0.0.1:9090", "/fetch", "url", root+path); got.Status != http.StatusUnauthorized {
			w.t.Errorf("%s: status %d, want 401: %s", path, got.Status, got.Body)
		}
	}
}

// otherUser tries everything as a user who is neither root nor in the group tally.
func otherUser(w *world, token string) {
	for _, command := range []string{
		"cat '" + w.RunDir + "/token'",
		"ls '" + w.RunDir + "'", "ls '" + w.DataDir + "'",
		"git ls-remote '" + w.DataDir + "/repo.git'",
		"curl -sf --unix-socket '" + w.RunDir + "/tally.sock' http://localhost/api/v1/overview",
		"curl -sf --unix-socket '" + w.RunDir + "/agents.sock' http://localhost/",
		"curl -sf " + root + "/",
	} {
		if r := asNobody(command); r.Code == 0 || strings.Contains(r.Out, token) {
			w.t.Errorf("another user may do %q: %s%s", command, r.Out, r.Err)
		}
	}
	for _, line := range strings.Split(asNobody("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").Out, "\n") {
		if strings.Contains(line, token) {
			w.t.Errorf("a command line shows the token: %s", line)
		}
	}
}

// secretsStay looks for a Secret's value where it must not be.
func secretsStay(w *world) {
	const value = "rumpelstiltskin-42"
	w.clone.Write("secret.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {name: "+value+"}\n"+
		pod("reader", "volumes: [{name: s, secret: {secretName: s}}]\ncontainers: [{name: main, image: "+insideImage+", volumeMounts: [{name: s, mountPath: /s}]}]"))
	_, output := w.clone.Apply("a secret")
	if got := ask[string](w, w.ip("reader"), "/file", "path", "/s/name"); got != value {
		w.t.Errorf("the pod reads %q", got)
	}
	if strings.Contains(output, value) {
		w.t.Errorf("the push shows the secret: %s", output)
	}
	for _, path := range []string{"/", "/api/v1/overview", "/metrics"} {
		if page, err := w.page(path); err != nil || strings.Contains(page, value) {
			w.t.Errorf("%s shows the secret, or: %v", path, err)
		}
	}
	// On disk only the repository has it, which brought it in the clear, packed.
	found := shell("grep -rlF '" + value + "' '" + w.DataDir + "' '" + w.Dir + "/tally.log' '" + w.Containerd.Root + "/io.containerd.metadata.v1.bolt'")
	if found.Out != "" {
		w.t.Errorf("the secret is on disk in %s", found.Out)
	}
}

func TestOffLoopback(t *testing.T) {
	m := machine.New(t)
	r := m.TallyRaw("up", "--data-dir", m.DataDir, "--run-dir", m.RunDir, "--containerd", m.Containerd.Address, "--http", "0.0.0.0:7480")
	if r.Code != 2 || !strings.Contains(r.Err, "TLS") {
		t.Errorf("off loopback without TLS: exit code %d: %s", r.Code, r.Err)
	}
	// The certificate of a test server is for 127.0.0.1 and example.com.
	certificate, key, client := certificate(t)
	m.Start("--http", "0.0.0.0:7480", "--http-cert", certificate, "--http-key", key)
	m.Eventually(patience, "it serves TLS", func() error {
		_, err := body(client.Get("https://127.0.0.1:7480/readyz"))
		return err
	})
	request := httptest.NewRequest(http.MethodGet, "https://127.0.0.1:7480/api/v1/overview", nil)
	request.RequestURI = ""
	request.Header.Set("Authorization", "Bearer "+m.Token())
	if _, err := body(client.Do(request)); err != nil {
		t.Error(err)
	}
}
