package access

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newControl(t *testing.T, o Options) *Control {
	t.Helper()
	if o.Path == "" {
		o.Path = filepath.Join(t.TempDir(), "token")
	}
	o.Log = slog.New(slog.DiscardHandler)
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var inside = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "inside") })

func TestWhoPasses(t *testing.T) {
	c := newControl(t, Options{Hosts: []string{"Tally.example."}})
	cookie := c.cookie.Name + "=" + c.cookie.Value
	bearer := "Bearer " + c.Token()
	tests := []struct {
		name         string
		method, path string
		host, origin string
		auth, cookie string
		want         int
	}{
		{name: "nothing shown", want: 401},
		{name: "bearer", auth: bearer, want: 200},
		{name: "bearer in lower case", auth: "bearer " + c.Token(), want: 200},
		{name: "wrong bearer", auth: bearer + "x", want: 401},
		{name: "empty bearer", auth: "Bearer ", want: 401},
		{name: "the cookie's value is not the token", auth: "Bearer " + c.cookie.Value, want: 401},
		{name: "wrong bearer with the right cookie", auth: bearer + "x", cookie: cookie, want: 401},
		{name: "cookie", cookie: cookie, want: 200},
		{name: "wrong cookie", cookie: cookie + "x", want: 401},
		{name: "the token as cookie", cookie: c.cookie.Name + "=" + c.Token(), want: 401},
		{name: "cookie does not write", method: "POST", cookie: cookie, want: 401},
		{name: "bearer writes", method: "POST", auth: bearer, want: 200},
		{name: "cookie does not open the repository", path: "/repo.git/info/refs", cookie: cookie, want: 401},
		{name: "nor the repository itself", path: "/repo.git", cookie: cookie, want: 401},
		{name: "bearer opens the repository", path: "/repo.git/info/refs", auth: bearer, want: 200},
		{name: "a path that only begins alike", path: "/repo.github", cookie: cookie, want: 200},
		{name: "known host in any case", host: "TALLY.example:7480", auth: bearer, want: 200},
		{name: "localhost", host: "localhost:7480", auth: bearer, want: 200},
		{name: "loopback of the other family", host: "[::1]:7480", auth: bearer, want: 200},
		{name: "rebound name", host: "evil.example:7480", auth: bearer, want: 421},
		{name: "name that begins like loopback", host: "127.0.0.1.evil.example", auth: bearer, want: 421},
		{name: "no host", host: " ", auth: bearer, want: 421},
		{name: "own origin", origin: "http://127.0.0.1:7480", auth: bearer, want: 200},
		{name: "other port's origin", origin: "http://127.0.0.1:9999", auth: bearer, want: 403},
		{name: "null origin", origin: "null", auth: bearer, want: 403},
		{name: "origin of another scheme", origin: "file://127.0.0.1:7480", auth: bearer, want: 403},
		{name: "health", path: "/healthz", host: "10.0.0.1", want: 200},
		{name: "readiness", path: "/readyz", want: 200},
		{name: "webhook without provider", path: "/webhook", method: "POST", host: "hooks.example", want: 200},
		{name: "webhook that only reads", path: "/webhook/github", want: 401},
		{name: "webhook too deep", path: "/webhook/github/x", method: "POST", want: 401},
		{name: "webhook", path: "/webhook/github", method: "POST", host: "hooks.example", want: 200},
		{name: "webhook that climbs", path: "/webhook/../repo.git/info/refs", want: 401},
		{name: "metrics are not open", path: "/metrics", want: 401},
		{name: "below health is not open", path: "/healthz/x", want: 401},
		{name: "token in the address", path: "/?token=" + c.Token(), want: 303},
		{name: "wrong token in the address", path: "/?token=x", want: 401},
		{name: "empty token in the address", path: "/?token=", want: 401},
		{name: "token in the address of another page", path: "/metrics?token=" + c.Token(), want: 401},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.path == "" {
				test.path = "/"
			}
			r := httptest.NewRequest(test.method, "http://127.0.0.1:7480"+test.path, nil)
			if test.host != "" {
				r.Host = test.host
			}
			for name, value := range map[string]string{"Origin": test.origin, "Authorization": test.auth, "Cookie": test.cookie} {
				if value != "" {
					r.Header.Set(name, value)
				}
			}
			w := httptest.NewRecorder()
			c.Wrap(inside).ServeHTTP(w, r)
			if w.Code != test.want {
				t.Errorf("status %d, want %d: %s", w.Code, test.want, w.Body)
			}
			if w.Code != 200 && strings.Contains(w.Body.String(), c.Token()) {
				t.Error("the refusal tells the token")
			}
		})
	}
}

func TestBasicPasswordIsTheToken(t *testing.T) {
	c := newControl(t, Options{})
	for password, want := range map[string]int{c.Token(): 200, "": 401, c.Token() + "x": 401} {
		r := httptest.NewRequest("POST", "http://localhost/repo.git/git-receive-pack", nil)
		r.SetBasicAuth("anyone", password)
		w := httptest.NewRecorder()
		c.Wrap(inside).ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("password of %d characters: status %d, want %d", len(password), w.Code, want)
		}
	}
}

func TestRepositoryAsksGitForAPassword(t *testing.T) {
	c := newControl(t, Options{})
	for path, want := range map[string]string{"/repo.git/info/refs": "Basic", "/": "Bearer"} {
		w := httptest.NewRecorder()
		c.Wrap(inside).ServeHTTP(w, httptest.NewRequest("GET", "http://localhost"+path, nil))
		if got := w.Header().Get("WWW-Authenticate"); !strings.HasPrefix(got, want) {
			t.Errorf("%s: challenge %q", path, got)
		}
	}
}

func TestEnteringSetsACookieThatOpensThePage(t *testing.T) {
	c := newControl(t, Options{TLS: true})
	w := httptest.NewRecorder()
	c.Wrap(inside).ServeHTTP(w, httptest.NewRequest("GET", c.Link("https://localhost:7480/"), nil))
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/" {
		t.Fatalf("status %d to %q", w.Code, w.Header().Get("Location"))
	}
	cookie := w.Result().Cookies()[0]
	if !cookie.HttpOnly || !cookie.Secure || cookie.SameSite != http.SameSiteStrictMode {
		t.Errorf("cookie %v", cookie)
	}
	r := httptest.NewRequest("GET", "https://localhost:7480/", nil)
	r.AddCookie(cookie)
	w = httptest.NewRecorder()
	c.Wrap(inside).ServeHTTP(w, r)
	if w.Code != 200 {
		t.Errorf("with the cookie: status %d", w.Code)
	}
}

func TestPageTellsHowToGetIn(t *testing.T) {
	c := newControl(t, Options{})
	r := httptest.NewRequest("GET", "http://localhost:7480/", nil)
	r.Header.Set("Accept", "text/html,*/*")
	w := httptest.NewRecorder()
	c.Wrap(inside).ServeHTTP(w, r)
	if body := w.Body.String(); w.Code != 401 || !strings.Contains(body, c.path) || !strings.Contains(body, "localhost:7480/?token=") {
		t.Errorf("status %d: %s", w.Code, body)
	}
}

func TestFailedAttemptsAreBoundedAndTheRightTokenIsNot(t *testing.T) {
	c := newControl(t, Options{})
	try := func(token string) int {
		r := httptest.NewRequest("GET", "http://localhost/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		c.Wrap(inside).ServeHTTP(w, r)
		return w.Code
	}
	limited := false
	for range 10 * burst {
		limited = limited || try("wrong") == http.StatusTooManyRequests
	}
	if !limited {
		t.Error("failed attempts were never bounded")
	}
	if code := try(c.Token()); code != 200 {
		t.Errorf("the right token got %d", code)
	}
}

func TestLimiterRecovers(t *testing.T) {
	var l limiter
	now := time.Now()
	for range burst {
		if !l.allow(now) {
			t.Fatal("refused within the burst")
		}
	}
	if l.allow(now) {
		t.Error("allowed beyond the burst")
	}
	if !l.allow(now.Add(time.Second)) {
		t.Error("refused after a second")
	}
}

func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	first := newControl(t, Options{Path: path})
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v", info.Mode())
	}
	if len(first.Token()) != 43 {
		t.Errorf("token of %d characters", len(first.Token()))
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if second := newControl(t, Options{Path: path}); second.Token() != first.Token() {
		t.Error("a restart changed the token")
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o640 {
		t.Errorf("an open file stayed open: %v", info.Mode())
	}
}

func TestBadTokenFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	short, link := filepath.Join(dir, "short"), filepath.Join(dir, "link")
	if err := os.WriteFile(short, []byte("abc\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(short, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{short, link, filepath.Join(dir, "no", "dir")} {
		if _, err := Open(Options{Path: path, Log: slog.New(slog.DiscardHandler)}); err == nil {
			t.Errorf("%s was accepted", path)
		}
	}
}

func TestCheckListen(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:7480": true, "[::1]:7480": true, "localhost:7480": true,
		":7480": false, "0.0.0.0:7480": false, "192.0.2.1:7480": false, "tally.example:7480": false, "7480": false,
	} {
		if got := CheckListen(address, false) == nil; got != want {
			t.Errorf("%s without TLS: %v", address, got)
		}
	}
	if err := CheckListen(":7480", true); err != nil {
		t.Error(err)
	}
}
