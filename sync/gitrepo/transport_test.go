package gitrepo_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/tallyman-dev/tallyman/sync/gitrepo"
)

// forge serves a bare repository over https with basic authentication.
type forge struct {
	*httptest.Server
	down    atomic.Bool
	fetches atomic.Int64 // requests for packs
	caFile  string
}

func newForge(t *testing.T, bare, password string) *forge {
	t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	f := &forge{caFile: filepath.Join(t.TempDir(), "ca.pem")}
	backend := &cgi.Handler{
		Path: git, Args: []string{"http-backend"}, Logger: log.New(io.Discard, "", 0),
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(bare), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x"},
	}
	f.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if f.down.Load() {
			http.Error(w, "maintenance", http.StatusServiceUnavailable)
			return
		}
		if _, got, _ := q.BasicAuth(); got != password {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		if strings.HasSuffix(q.URL.Path, "/git-upload-pack") {
			f.fetches.Add(1)
		}
		backend.ServeHTTP(w, q)
	}))
	t.Cleanup(f.Close)
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
	writeFile(t, f.caFile, string(certificate))
	return f
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHTTPS(t *testing.T) {
	c := newCheckout(t)
	f := newForge(t, c.bare, "token")
	o := gitrepo.Options{
		URL: f.URL + "/repo.git", Dir: filepath.Join(t.TempDir(), "mirror"), Interval: 30 * time.Millisecond,
		Credentials: gitrepo.Credentials{PasswordFile: writeFile(t, filepath.Join(t.TempDir(), "token"), "token\n"), CAFile: f.caFile},
	}
	r := follow(t, o)
	nextIs(t, r)(isError(gitrepo.ErrEmpty))
	first := c.push("a.yaml", "one")
	nextIs(t, r)(at(first))
	second := c.push("b.yaml", "two")
	head := nextIs(t, r)(at(second))
	if head.Previous != first || head.Rewritten {
		t.Errorf("after a push: %s", describe(head))
	}
	if got := readFile(t, r, second, "a.yaml") + readFile(t, r, second, "b.yaml"); got != "onetwo" {
		t.Errorf("read %q", got)
	}

	f.down.Store(true)
	head = next(t, r, "unreachable", func(h gitrepo.Head) bool { return h.Err != nil })
	if head.Revision.SHA != second || head.Next.Before(head.Fetched) {
		t.Errorf("while unreachable: %s", describe(head))
	}
	f.down.Store(false)
	r.Poke()
	nextIs(t, r)(at(second))

	c.git("commit", "--quiet", "--amend", "-m", "rewritten")
	c.git("push", "--quiet", "--force", "origin", "HEAD:main")
	third := c.git("rev-parse", "HEAD")
	head = nextIs(t, r)(at(third))
	if !head.Rewritten || head.Previous != second {
		t.Errorf("after a forced push: %s", describe(head))
	}

	// Another process finds the mirror and needs to fetch nothing.
	before := f.fetches.Load()
	again := follow(t, o)
	nextIs(t, again)(at(third))
	if got := readFile(t, again, third, "b.yaml"); got != "two" || f.fetches.Load() != before {
		t.Errorf("read %q with %d more fetches", got, f.fetches.Load()-before)
	}
}

func TestHTTPSWithTheWrongToken(t *testing.T) {
	c := newCheckout(t)
	c.push("a.yaml", "one")
	f := newForge(t, c.bare, "token")
	file := writeFile(t, filepath.Join(t.TempDir(), "token"), "wrong")
	o := gitrepo.Options{URL: f.URL + "/repo.git", Interval: never, Credentials: gitrepo.Credentials{PasswordFile: file, CAFile: f.caFile}}
	r := follow(t, o)
	head := nextIs(t, r)(isError(gitrepo.ErrAccess))
	if strings.Contains(head.Err.Error(), "wrong") && !strings.Contains(head.Err.Error(), "check the user") {
		t.Errorf("the error gives the token away: %v", head.Err)
	}
	writeFile(t, file, "token") // renewed: no restart is needed
	r.Poke()
	nextIs(t, r)(at(c.git("rev-parse", "HEAD")))
	o.Credentials.CAFile = ""
	next(t, follow(t, o), "refusing an unknown certificate", func(h gitrepo.Head) bool {
		return h.Err != nil && strings.Contains(h.Err.Error(), "certificate")
	})
}

// sshHost serves a bare repository over ssh to one key.
type sshHost struct {
	address string
	hostKey ssh.PublicKey
}

func newKey(t *testing.T, file string) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if file != "" {
		block, err := ssh.MarshalPrivateKey(private, "test")
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, string(pem.EncodeToMemory(block)))
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func newSSHHost(t *testing.T, client ssh.PublicKey) *sshHost {
	t.Helper()
	host := newKey(t, "")
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(client.Marshal()) {
			return nil, errors.New("not this key")
		}
		return nil, nil
	}}
	config.AddHostKey(host)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go serveSSH(connection, config)
		}
	}()
	return &sshHost{address: listener.Addr().String(), hostKey: host.PublicKey()}
}

func serveSSH(connection net.Conn, config *ssh.ServerConfig) {
	defer func() { _ = connection.Close() }()
	_, channels, requests, err := ssh.NewServerConn(connection, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go serveSession(channel, requests)
	}
}

// serveSession runs the one command that git asks for, as sshd does.
func serveSession(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer func() { _ = channel.Close() }()
	for request := range requests {
		if request.Type != "exec" {
			_ = request.Reply(request.Type == "env", nil)
			continue
		}
		var asked struct{ Command string }
		if err := ssh.Unmarshal(request.Payload, &asked); err != nil || !strings.HasPrefix(asked.Command, "git-") {
			_ = request.Reply(false, nil)
			return
		}
		_ = request.Reply(true, nil)
		command := exec.Command("sh", "-c", asked.Command)
		command.Stdin, command.Stdout, command.Stderr = channel, channel, channel.Stderr()
		status := uint32(0)
		command.WaitDelay = time.Second
		if err := command.Run(); err != nil {
			status = 1
		}
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
		return
	}
}

func TestSSH(t *testing.T) {
	c := newCheckout(t)
	first := c.push("a.yaml", "one")
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	host := newSSHHost(t, newKey(t, key).PublicKey())
	known := writeFile(t, filepath.Join(dir, "known"), knownhosts.Line([]string{host.address}, host.hostKey)+"\n")
	o := gitrepo.Options{
		URL: "ssh://git@" + host.address + c.bare, Interval: 30 * time.Millisecond,
		Credentials: gitrepo.Credentials{SSHKeyFile: key, KnownHostsFile: known},
	}
	r := follow(t, o)
	nextIs(t, r)(at(first))
	second := c.push("a.yaml", "two")
	nextIs(t, r)(at(second))
	if got := readFile(t, r, second, "a.yaml"); got != "two" {
		t.Errorf("a.yaml says %q", got)
	}

	o.Interval = never
	refused := func(what string, change func(*gitrepo.Credentials), says string) {
		t.Helper()
		o := o
		change(&o.Credentials)
		head := next(t, follow(t, o), what, func(h gitrepo.Head) bool { return h.Err != nil })
		if !strings.Contains(head.Err.Error(), says) {
			t.Errorf("%s: %v, want: %s", what, head.Err, says)
		}
	}
	other := newKey(t, filepath.Join(dir, "other"))
	refused("with another key", func(c *gitrepo.Credentials) { c.SSHKeyFile = filepath.Join(dir, "other") }, "unable to authenticate")
	refused("an unknown host", func(c *gitrepo.Credentials) {
		c.KnownHostsFile = writeFile(t, filepath.Join(dir, "unknown"), knownhosts.Line([]string{"example.com"}, other.PublicKey())+"\n")
	}, "ssh-keyscan")
	refused("a host whose key changed", func(c *gitrepo.Credentials) {
		c.KnownHostsFile = writeFile(t, filepath.Join(dir, "changed"), knownhosts.Line([]string{host.address}, other.PublicKey())+"\n")
	}, "not the known one")

	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	o.Dir, o.Log = t.TempDir(), logger(t)
	if _, err := gitrepo.Open(o); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that everybody can read: %v", err)
	}
}

func TestMirror(t *testing.T) {
	c := newCheckout(t)
	first := c.push("a.yaml", "one")
	spare := filepath.Join(t.TempDir(), "spare.git")
	runGit(t, "", "init", "--quiet", "--bare", "--initial-branch=main", spare)
	r := open(t, gitrepo.Options{URL: c.bare, MirrorTo: spare})
	push := func(sha string) {
		t.Helper()
		for range 2 { // the second time there is nothing to do
			if err := r.Mirror(t.Context(), sha); err != nil {
				t.Fatal(err)
			}
		}
		if got := runGit(t, spare, "rev-parse", "main"); got != sha {
			t.Errorf("the mirror is at %s, want %s", got, sha)
		}
		runGit(t, spare, "fsck", "--strict", "--no-dangling")
	}
	push(first)
	second := c.push("b.yaml", "two")
	push(second)
	c.git("commit", "--quiet", "--amend", "-m", "rewritten")
	c.git("push", "--quiet", "--force", "origin", "HEAD:main")
	push(c.git("rev-parse", "HEAD"))
	push(first)

	if err := os.RemoveAll(spare); err != nil {
		t.Fatal(err)
	}
	if err := r.Mirror(t.Context(), second); err == nil || !strings.Contains(err.Error(), spare) {
		t.Errorf("a mirror that is gone: %v", err)
	}
	if err := open(t, gitrepo.Options{URL: c.bare}).Mirror(t.Context(), second); err != nil {
		t.Errorf("without a mirror: %v", err)
	}
}

// A mirror directory that was filled from one repository serves another.
func TestMirrorDirectoryChangesHands(t *testing.T) {
	one, two := newCheckout(t), newCheckout(t)
	dir := filepath.Join(t.TempDir(), "mirror")
	for i, c := range []*checkout{one, two} {
		sha := c.push("a.yaml", fmt.Sprint(i))
		f := newForge(t, c.bare, "")
		r := follow(t, gitrepo.Options{URL: f.URL + "/repo.git", Dir: dir, Interval: never, Credentials: gitrepo.Credentials{CAFile: f.caFile}})
		if head := nextIs(t, r)(at(sha)); head.Previous != "" || head.Rewritten {
			t.Errorf("repository %d: %s", i, describe(head))
		}
	}
}
