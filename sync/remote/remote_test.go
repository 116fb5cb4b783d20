package remote_test

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/sync/remote"
)

// TestMain lets the test binary stand in for tally: the hooks and git's
// credential helper run it.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "hook" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		os.Exit(remote.RunHook(ctx, os.Args[2], remote.HookOptions{
			Socket: os.Args[4], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Environ: os.Environ(),
		}))
	}
	if len(os.Args) > 2 && os.Args[1] == "git-credential" {
		err := remote.CredentialHelper(os.Args[len(os.Args)-1], os.Stdin, os.Stdout, remote.CredentialOptions{
			TokenFile: os.Args[2], Hosts: []string{os.Args[3]},
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Under -race each hook would otherwise end a second late.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

const token = "secret token"

// gate is a Gate whose answers the test decides.
type gate struct {
	check  func(ctx context.Context, p remote.Push, w io.Writer) error
	follow func(ctx context.Context, sha string, w io.Writer) error
}

func (g *gate) Check(ctx context.Context, p remote.Push, w io.Writer) error {
	if g.check == nil {
		return nil
	}
	return g.check(ctx, p, w)
}

func (g *gate) Follow(ctx context.Context, sha string, w io.Writer) error {
	if g.follow == nil {
		_, err := fmt.Fprintf(w, "converged at %s\n", sha[:7])
		return err
	}
	return g.follow(ctx, sha, w)
}

// world is a remote that is being served, and a clone of it.
type world struct {
	t      testing.TB
	dir    string
	bare   string
	clone  string
	url    string
	socket *http.Server
	remote *remote.Remote
}

func newWorld(t testing.TB, g remote.Gate) *world {
	t.Helper()
	// A unix socket's path is short.
	dir, err := os.MkdirTemp("/tmp", "tt-remote-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{t: t, dir: dir, bare: filepath.Join(dir, "repo.git"), clone: filepath.Join(dir, "clone")}
	w.open(g)
	listener, err := net.Listen("unix", w.socketPath())
	if err != nil {
		t.Fatal(err)
	}
	w.socket = &http.Server{Handler: w.remote.HookHandler()}
	go func() { _ = w.socket.Serve(listener) }()
	t.Cleanup(func() { _ = w.socket.Close() })
	web := httptest.NewServer(basic(w.remote.Handler()))
	t.Cleanup(web.Close)
	w.url = web.URL + "/repo.git"
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.git("", "clone", "--quiet", w.url, w.clone)
	return w
}

func (w *world) socketPath() string { return filepath.Join(w.dir, "s") }

// open starts the remote, as a start of tally does.
func (w *world) open(g remote.Gate) {
	w.t.Helper()
	opened, err := remote.New(remote.Options{
		Dir: w.bare, Branch: "main", Socket: w.socketPath(), Executable: os.Args[0], Group: "no-such-group",
		Gate: g, Log: slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.remote = opened
}

// basic stands in for the access check of whoever mounts the handler.
func basic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if _, password, _ := q.BasicAuth(); subtle.ConstantTimeCompare([]byte(password), []byte(token)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="tally"`)
			http.Error(w, "token missing", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, q)
	})
}

// command prepares git in dir, with nothing of this machine's configuration
// and our credential helper.
func (w *world) command(dir string, arguments ...string) *exec.Cmd {
	host := strings.TrimSuffix(strings.TrimPrefix(w.url, "http://"), "/repo.git")
	helper := fmt.Sprintf("!'%s' git-credential '%s' %s", os.Args[0], filepath.Join(w.dir, "token"), host)
	command := exec.Command("git", append([]string{"-c", "credential.helper=" + helper}, arguments...)...)
	command.Dir = dir
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GORACE=" + os.Getenv("GORACE"),
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com",
	}
	return command
}

// try runs git and returns what it said.
func (w *world) try(dir string, arguments ...string) (string, error) {
	output, err := w.command(dir, arguments...).CombinedOutput()
	return string(output), err
}

func (w *world) git(dir string, arguments ...string) string {
	w.t.Helper()
	output, err := w.try(dir, arguments...)
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(arguments, " "), err, output)
	}
	return strings.TrimSpace(output)
}

// commit changes a file of the clone and returns the new commit.
func (w *world) commit(content string) string {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.clone, "web.yaml"), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.git(w.clone, "add", ".")
	w.git(w.clone, "commit", "--quiet", "-m", content)
	return w.git(w.clone, "rev-parse", "HEAD")
}

// head is where a branch of the remote points; empty if it is not there.
func (w *world) head(branch string) string {
	output, err := w.try(w.bare, "rev-parse", "--verify", "--quiet", "refs/heads/"+branch)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(output)
}

func (w *world) wantHead(branch, sha string) {
	w.t.Helper()
	if got := w.head(branch); got != sha {
		w.t.Errorf("%s points at %q, want %q", branch, got, sha)
	}
}

func wantLine(t *testing.T, output, line string) {
	t.Helper()
	if !strings.Contains(output, "remote: "+line) {
		t.Errorf("no line %q in:\n%s", "remote: "+line, output)
	}
}

// The check sees the commit before the branch moves, reads it from the
// quarantine, and everything that is said reaches the pusher.
func TestPushIsCheckedAndWatched(t *testing.T) {
	for _, way := range []string{"http", "path"} {
		for _, size := range []int{10, 3 << 20} { // chunked and kept as a pack from 1 MiB on
			t.Run(fmt.Sprintf("%s/%d", way, size), func(t *testing.T) {
				var w *world
				var seen remote.Push
				var blob string
				g := &gate{check: func(_ context.Context, p remote.Push, out io.Writer) error {
					seen = p
					command := w.command(w.bare, "cat-file", "blob", p.New+":web.yaml")
					command.Env = append(command.Env, "GIT_ALTERNATE_OBJECT_DIRECTORIES="+strings.Join(p.ObjectDirs, ":"))
					output, err := command.Output()
					blob = string(output)
					_, _ = fmt.Fprintln(out, "plan: create 1")
					return err
				}}
				w = newWorld(t, g)
				content := incompressible(size)
				w.commit(content[:min(size, 10)])
				if err := os.WriteFile(filepath.Join(w.clone, "web.yaml"), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				w.git(w.clone, "commit", "--quiet", "--allow-empty", "-am", "large")
				sha := w.git(w.clone, "rev-parse", "HEAD")

				target := map[string]string{"http": w.url, "path": w.bare}[way]
				output := w.git(w.clone, "push", "-o", "tally.wait=true", target, "HEAD:main")

				w.wantHead("main", sha)
				wantLine(t, output, "plan: create 1")
				wantLine(t, output, "converged at "+sha[:7])
				if seen.New != sha || seen.Old != "" || seen.Branch != "main" || strings.Join(seen.Options, " ") != "tally.wait=true" {
					t.Errorf("the gate was asked about %+v", seen)
				}
				if blob != content {
					t.Errorf("the check read %d bytes from the quarantine, want %d", len(blob), len(content))
				}
			})
		}
	}
}

// incompressible makes text that deflate cannot shrink by much.
func incompressible(size int) string {
	random := rand.NewChaCha8([32]byte{1})
	b := make([]byte, size)
	_, _ = random.Read(b)
	for i := range b {
		b[i] = ' ' + b[i]%94
	}
	return string(b)
}

func TestRefusedPushLeavesTheBranch(t *testing.T) {
	g := &gate{}
	w := newWorld(t, g)
	first := w.commit("first")
	w.git(w.clone, "push", w.url, "HEAD:main")
	w.commit("second")

	g.check = func(_ context.Context, p remote.Push, out io.Writer) error {
		if p.Old != first {
			t.Errorf("old is %q, want %q", p.Old, first)
		}
		_, _ = fmt.Fprintln(out, "web.yaml:3: spec.replicas: must be a number")
		return fmt.Errorf("1 problem: %w", remote.ErrRefused)
	}
	output, err := w.try(w.clone, "push", w.url, "HEAD:main")
	if err == nil {
		t.Errorf("a refused push succeeded:\n%s", output)
	}
	wantLine(t, output, "web.yaml:3: spec.replicas: must be a number")
	w.wantHead("main", first)

	g.check = func(context.Context, remote.Push, io.Writer) error { return errors.New("disk on fire") }
	output, err = w.try(w.clone, "push", w.url, "HEAD:main")
	if err == nil {
		t.Errorf("a push succeeded although its check failed:\n%s", output)
	}
	wantLine(t, output, "The push is refused: disk on fire")
	w.wantHead("main", first)

	g.check = func(context.Context, remote.Push, io.Writer) error { panic(http.ErrAbortHandler) }
	output, err = w.try(w.clone, "push", w.bare, "HEAD:main")
	if err == nil {
		t.Errorf("a push succeeded although the server died:\n%s", output)
	}
	wantLine(t, output, "The push cannot be checked and is refused")
	w.wantHead("main", first)
}

func TestRewritingAndDeletingAreRefused(t *testing.T) {
	checks := 0
	w := newWorld(t, &gate{check: func(context.Context, remote.Push, io.Writer) error { checks++; return nil }})
	w.commit("first")
	second := w.commit("second")
	w.git(w.clone, "push", w.url, "HEAD:main")
	w.git(w.clone, "reset", "--quiet", "--hard", "HEAD~1")
	w.commit("another second")

	for _, test := range []struct{ refspec, says string }{
		{"+HEAD:main", "The push is refused: main would be rewritten"},
		{":main", "The push is refused: main is the branch that is deployed and cannot be deleted"},
	} {
		output, err := w.try(w.clone, "push", w.url, test.refspec)
		if err == nil {
			t.Errorf("push %s succeeded:\n%s", test.refspec, output)
		}
		wantLine(t, output, test.says)
		w.wantHead("main", second)
	}
	if checks != 1 {
		t.Errorf("the gate was asked %d times, want once", checks)
	}
}

func TestOtherBranchesAreFree(t *testing.T) {
	w := newWorld(t, &gate{check: func(context.Context, remote.Push, io.Writer) error {
		t.Error("the gate was asked about another branch")
		return nil
	}})
	w.commit("first")
	second := w.commit("second")
	w.git(w.clone, "push", w.url, "HEAD:refs/heads/feature/main", "HEAD:refs/tags/main")
	w.wantHead("feature/main", second)
	w.git(w.clone, "push", w.url, "+HEAD~1:refs/heads/feature/main")
	w.git(w.clone, "push", w.url, ":feature/main")
	w.wantHead("feature/main", "")
}

func TestNoServerMeansNoPush(t *testing.T) {
	w := newWorld(t, &gate{})
	w.commit("first")
	if err := w.socket.Close(); err != nil {
		t.Fatal(err)
	}
	output, err := w.try(w.clone, "push", w.bare, "HEAD:main")
	if err == nil {
		t.Errorf("a push succeeded without a server:\n%s", output)
	}
	wantLine(t, output, "The push cannot be checked and is refused: no server answers at")
	w.wantHead("main", "")
	w.git(w.clone, "push", w.bare, "HEAD:other")
}

func TestPushWithoutWaiting(t *testing.T) {
	w := newWorld(t, &gate{follow: func(context.Context, string, io.Writer) error {
		t.Error("a push with tally.wait=false was watched")
		return nil
	}})
	sha := w.commit("first")
	w.git(w.clone, "push", "-o", "tally.wait=false", w.url, "HEAD:main")
	w.wantHead("main", sha)
}

// A push that is being watched holds up no other, and a watcher who goes away
// ends the watch and nothing else.
func TestWatchingHoldsNothingUp(t *testing.T) {
	for _, way := range []string{"http", "path"} {
		t.Run(way, func(t *testing.T) {
			watching, ended := make(chan string, 2), make(chan string, 2)
			w := newWorld(t, &gate{follow: func(ctx context.Context, sha string, out io.Writer) error {
				_, _ = fmt.Fprintln(out, "rolling out")
				watching <- sha
				<-ctx.Done()
				ended <- sha
				return ctx.Err()
			}})
			target := map[string]string{"http": w.url, "path": w.bare}[way]
			first := w.commit("first")
			one := w.start(target)
			receive(t, watching, first)
			one.waitFor("remote: rolling out") // shown while the watch goes on

			second := w.commit("second")
			two := w.start(target)
			receive(t, watching, second)
			w.wantHead("main", second)

			one.interrupt()
			receive(t, ended, first)
			two.interrupt()
			receive(t, ended, second)
			w.wantHead("main", second)
		})
	}
}

// Checks come one after the other, and the one that waits says so.
func TestChecksAreQueued(t *testing.T) {
	entered, leave := make(chan string, 2), make(chan struct{})
	w := newWorld(t, &gate{check: func(_ context.Context, p remote.Push, _ io.Writer) error {
		entered <- p.New
		<-leave
		return nil
	}})
	first := w.commit("first")
	one := w.start(w.bare)
	receive(t, entered, first)
	second := w.commit("second")
	two := w.start(w.url)
	two.waitFor("remote: waiting for the check of another push")
	select {
	case sha := <-entered:
		t.Errorf("the check of %s began while another was running", sha)
	default:
	}
	close(leave)
	receive(t, entered, second)
	one.wait()
	two.wait() // refused by git or accepted: the branch moved meanwhile
}

func receive(t *testing.T, from <-chan string, want string) {
	t.Helper()
	select {
	case got := <-from:
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing came, want %s", want)
	}
}

// push is a git push in the background, in a process group of its own as a
// shell would have it.
type push struct {
	t       testing.TB
	command *exec.Cmd
	mu      sync.Mutex
	output  bytes.Buffer
	done    chan struct{}
}

func (w *world) start(target string) *push {
	w.t.Helper()
	p := &push{t: w.t, command: w.command(w.clone, "push", target, "HEAD:main"), done: make(chan struct{})}
	p.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.command.Stdout, p.command.Stderr = p, p
	if err := p.command.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.command.Wait()
	}()
	w.t.Cleanup(func() {
		_ = syscall.Kill(-p.command.Process.Pid, syscall.SIGKILL)
		<-p.done
	})
	return p
}

func (p *push) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

// interrupt is ctrl-C.
func (p *push) interrupt() {
	p.t.Helper()
	if err := syscall.Kill(-p.command.Process.Pid, syscall.SIGINT); err != nil {
		p.t.Fatal(err)
	}
	p.wait()
}

func (p *push) wait() {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.t.Fatal("git push did not end")
	}
}

func (p *push) waitFor(text string) {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		output := p.output.String()
		p.mu.Unlock()
		if strings.Contains(output, text) {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%q did not appear in:\n%s", text, output)
		}
	}
}
