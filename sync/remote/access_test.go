package remote_test

import (
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/sync/remote"
)

func TestOnlyTheSmartProtocolIsServed(t *testing.T) {
	w := newWorld(t, &gate{})
	w.commit("first")
	w.git(w.clone, "push", w.bare, "HEAD:main")
	for _, test := range []struct {
		method, target, contentType string
		status                      int
	}{
		{"GET", "/repo.git/info/refs?service=git-upload-pack", "", 200},
		{"GET", "/repo.git/info/refs?service=git-receive-pack", "", 200},
		{"GET", "/repo.git/info/refs", "", 404}, // the dumb protocol
		{"GET", "/repo.git/info/refs?service=git-upload-archive", "", 404},
		{"GET", "/repo.git/HEAD", "", 404},
		{"GET", "/repo.git/config", "", 404},
		{"GET", "/repo.git/objects/info/packs", "", 404},
		{"GET", "/repo.git/../token", "", 404},
		{"GET", "/repo.git/%2e%2e/repo.git/info/refs?service=git-upload-pack", "", 404},
		{"GET", "/repo.git%2finfo/refs?service=git-upload-pack", "", 404},
		{"GET", "/other.git/info/refs?service=git-upload-pack", "", 404},
		{"GET", "/repo.gitother/info/refs?service=git-upload-pack", "", 404},
		{"POST", "/repo.git/info/refs?service=git-upload-pack", "", 404},
		{"GET", "/repo.git/git-upload-pack", "", 404},
		{"POST", "/repo.git/git-upload-pack", "text/plain", 404},
		{"POST", "/repo.git/git-receive-pack", "application/x-www-form-urlencoded", 404},
	} {
		request := httptest.NewRequest(test.method, test.target, nil)
		request.Header.Set("Content-Type", test.contentType)
		recorder := httptest.NewRecorder()
		w.remote.Handler().ServeHTTP(recorder, request)
		if recorder.Code != test.status {
			t.Errorf("%s %s gives %d, want %d", test.method, test.target, recorder.Code, test.status)
		}
	}
}

func TestHookSocketTrustsNoInput(t *testing.T) {
	w := newWorld(t, &gate{})
	const one = "1111111111111111111111111111111111111111"
	for name, test := range map[string]struct {
		method, path, body string
		status             int
	}{
		"another branch":      {"POST", "/pre-receive", `{"old":"` + one + `","new":"` + one + `","ref":"refs/heads/x"}`, 400},
		"no ids":              {"POST", "/pre-receive", `{"old":"--help","new":"` + one + `","ref":"refs/heads/main"}`, 400},
		"a foreign directory": {"POST", "/pre-receive", `{"old":"` + one + `","new":"` + one + `","ref":"refs/heads/main","object_dir":"/etc"}`, 400},
		"no JSON":             {"POST", "/post-receive", `x`, 400},
		"GET":                 {"GET", "/pre-receive", ``, 405},
		"another path":        {"POST", "/", ``, 404},
	} {
		recorder := httptest.NewRecorder()
		w.remote.HookHandler().ServeHTTP(recorder, httptest.NewRequest(test.method, test.path, strings.NewReader(test.body)))
		if recorder.Code != test.status {
			t.Errorf("%s gives %d, want %d", name, recorder.Code, test.status)
		}
	}
}

func TestCredentialHelper(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := remote.CredentialOptions{TokenFile: file, Hosts: []string{"127.0.0.1:7480", "tally.example.com"}}
	const ours = "username=tally\npassword=secret\n"
	for _, test := range []struct{ name, op, in, out string }{
		{"ours", "get", "protocol=http\nhost=127.0.0.1:7480\n\n", ours},
		{"ours, with path and more", "get", "capability[]=authtype\nprotocol=http\nhost=127.0.0.1:7480\npath=repo.git\nusername=tally\n", ours},
		{"https elsewhere", "get", "protocol=https\nhost=tally.example.com\n", ours},
		{"in the clear elsewhere", "get", "protocol=http\nhost=tally.example.com\n", ""},
		{"another port", "get", "protocol=http\nhost=127.0.0.1:7481\n", ""},
		{"another host", "get", "protocol=https\nhost=example.com\n", ""},
		{"another user", "get", "protocol=http\nhost=127.0.0.1:7480\nusername=ada\n", ""},
		{"another protocol", "get", "protocol=ssh\nhost=127.0.0.1:7480\n", ""},
		{"store", "store", "protocol=http\nhost=127.0.0.1:7480\nusername=tally\npassword=x\n", ""},
		{"erase", "erase", "protocol=http\nhost=127.0.0.1:7480\n", ""},
	} {
		var out strings.Builder
		if err := remote.CredentialHelper(test.op, strings.NewReader(test.in), &out, o); err != nil || out.String() != test.out {
			t.Errorf("%s: %q, %v", test.name, out.String(), err)
		}
	}
	o.TokenFile = filepath.Join(t.TempDir(), "missing")
	if err := remote.CredentialHelper("get", strings.NewReader("protocol=http\nhost=127.0.0.1:7480\n"), io.Discard, o); err == nil {
		t.Error("a missing token is no error")
	}
}

// Without the token git gets nothing, and no hook runs.
func TestMissingToken(t *testing.T) {
	w := newWorld(t, &gate{})
	w.commit("first")
	if err := os.WriteFile(filepath.Join(w.dir, "token"), []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := w.try(w.clone, "push", w.url, "HEAD:main"); err == nil {
		t.Errorf("a push with the wrong token succeeded:\n%s", output)
	}
	w.wantHead("main", "")
}

// A start finds the repository as the last one left it, whatever that was.
func TestStartingAgain(t *testing.T) {
	w := newWorld(t, &gate{})
	sha := w.commit("first")
	w.git(w.clone, "push", w.bare, "HEAD:main")

	hook := filepath.Join(w.bare, "hooks", "pre-receive")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	lock := filepath.Join(w.bare, "refs", "heads", "main.lock")
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(lock, old, old); err != nil {
		t.Fatal(err)
	}
	w.open(&gate{})
	w.wantHead("main", sha)
	if content, err := os.ReadFile(hook); err != nil || !strings.Contains(string(content), "hook pre-receive") {
		t.Errorf("the hook was not written anew: %q, %v", content, err)
	}
	second := w.commit("second")
	w.git(w.clone, "push", w.bare, "HEAD:main")
	w.wantHead("main", second)
	if includes := w.git(w.bare, "config", "--get-all", "include.path"); includes != "tallyman.config" {
		t.Errorf("the configuration includes %q", includes)
	}
}

// A machine-wide hooks directory does not switch the check off.
func TestForeignHooksPath(t *testing.T) {
	w := newWorld(t, &gate{})
	w.commit("first")
	if err := os.WriteFile(filepath.Join(w.dir, ".gitconfig"), []byte("[core]\n\thooksPath = "+t.TempDir()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.socket.Close(); err != nil {
		t.Fatal(err)
	}
	if output, err := w.try(w.clone, "push", w.bare, "HEAD:main"); err == nil {
		t.Errorf("a push went unchecked:\n%s", output)
	}
	w.wantHead("main", "")
}

func TestNewRefusesWhatIsMissing(t *testing.T) {
	if _, err := remote.New(remote.Options{}); err == nil {
		t.Error("made a remote from nothing")
	}
	o := remote.Options{Dir: t.TempDir(), Branch: "main", Socket: "/s", Executable: "/tally"}
	if _, err := remote.New(o); err == nil {
		t.Error("made a remote without a gate")
	}
}
