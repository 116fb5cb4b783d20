package keeper

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
	"github.com/tallyman-dev/tallyman/proxy"
)

// TestMain lets the test binary be a keeper: the tests start real processes.
func TestMain(m *testing.M) {
	if len(os.Args) >= 3 && os.Args[1] == "run-keeper" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		o := Options{RunDir: os.Args[2], Log: log}
		if len(os.Args) > 3 {
			o.Cgroups = os.Args[3]
		}
		if len(os.Args) > 4 {
			o.Watchdog = os.Args[4]
		}
		if err := Run(context.Background(), o); err != nil {
			log.Error("keeper ended", "error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// eventually polls until ok returns nil.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// start gives a keeper in a run dir of its own, with a Client that keeps it alive.
// start starts a keeper and supervises it until the test ends.
func start(t *testing.T) *Client {
	t.Helper()
	c := startAlone(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run(ctx) }()
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		cancel()
		<-done
	})
	return c
}

// startAlone starts a keeper that nobody supervises: a client that does would
// put its own binary back in the place of a successor's.
func startAlone(t *testing.T) *Client {
	t.Helper()
	runDir := t.TempDir()
	c, err := Start(t.Context(), StartOptions{
		Command: []string{"/proc/self/exe", "run-keeper", runDir}, RunDir: runDir, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *Client) openTestLog(t *testing.T, id string, maxSize int64) (pipes Pipes, path string) {
	t.Helper()
	path = filepath.Join(filepath.Dir(c.runDir), "logs-"+filepath.Base(c.runDir), id+".log")
	pipes, err := c.OpenLog(t.Context(), Log{ID: id, Path: path, MaxSize: maxSize, MaxFiles: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return pipes, path
}

// container opens a pipe as containerd's shim does: for writing and, so that
// content stays when nobody reads, for reading.
func container(t *testing.T, pipe string) *os.File {
	t.Helper()
	f, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func text(t *testing.T, path string, o ReadOptions) string {
	t.Helper()
	var out bytes.Buffer
	if err := Read(t.Context(), path, o, &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestLogIsWrittenAndRead(t *testing.T) {
	c := start(t)
	pipes, path := c.openTestLog(t, "web", 0)
	if again, err := c.OpenLog(t.Context(), Log{ID: "web", Path: path, MaxFiles: 1000}); err != nil || again != pipes {
		t.Fatalf("opened again: %v, %v", again, err)
	}
	fmt.Fprint(container(t, pipes.Stdout), "hello\n")
	eventually(t, "stdout", func() error { return want(text(t, path, ReadOptions{}), "hello\n") })
	fmt.Fprint(container(t, pipes.Stderr), "oh\nno end")
	if err := c.CloseLog(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if got := text(t, path, ReadOptions{}); got != "hello\noh\nno end\n" {
		t.Errorf("log is %q", got)
	}
	if got := text(t, path, ReadOptions{Tail: 2}); got != "oh\nno end\n" {
		t.Errorf("tail is %q", got)
	}
	if _, err := os.Stat(pipes.Stdout); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pipe after CloseLog: %v", err)
	}
	if err := c.CloseLog(t.Context(), "web"); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

func want(got, want string) error {
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

func TestUnfinishedLineIsWrittenAsPart(t *testing.T) {
	c := start(t)
	pipes, path := c.openTestLog(t, "prompt", 0)
	w := container(t, pipes.Stdout)
	fmt.Fprint(w, "password: ")
	eventually(t, "the part", func() error { return want(text(t, path, ReadOptions{}), "password: ") })
	fmt.Fprint(w, "ok\n")
	eventually(t, "the rest", func() error { return want(text(t, path, ReadOptions{}), "password: ok\n") })
}

func TestBadRequests(t *testing.T) {
	c := start(t)
	for _, l := range []Log{{ID: "../up", Path: "/tmp/x"}, {ID: "ok", Path: "relative"}, {ID: "", Path: "/tmp/x"}} {
		if _, err := c.OpenLog(t.Context(), l); err == nil {
			t.Errorf("%+v was accepted", l)
		}
	}
	if err := c.CloseLog(t.Context(), "../../etc/passwd"); err == nil {
		t.Error("a path as id was accepted")
	}
}

// TestNoLineIsLost kills the keeper again and again under running writers, and
// rotates often.
func TestNoLineIsLost(t *testing.T) {
	const writers, lines, kills = 4, 20000, 6
	c := start(t)
	var group sync.WaitGroup
	paths := make([]string, writers)
	for i := range writers {
		pipes, path := c.openTestLog(t, "w"+strconv.Itoa(i), 200<<10)
		paths[i] = path
		f := container(t, pipes.Stdout)
		group.Go(func() {
			for n := range lines {
				fmt.Fprintf(f, "line %d %s\n", n, strings.Repeat("x", n%100))
			}
		})
	}
	for range kills {
		var h hello
		eventually(t, "keeper", func() (err error) { h, err = c.hello(t.Context()); return err })
		if err := syscall.Kill(h.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	group.Wait()
	for i, path := range paths {
		if err := c.CloseLog(t.Context(), "w"+strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		checkLines(t, text(t, path, ReadOptions{}), lines)
	}
}

// checkLines wants all lines in order; what a killed keeper had written and
// not yet taken may be there twice.
func checkLines(t *testing.T, log string, lines int) {
	t.Helper()
	next, repeated := 0, 0
	for line := range strings.Lines(log) {
		var n int
		if _, err := fmt.Sscanf(line, "line %d", &n); err != nil || line != fmt.Sprintf("line %d %s\n", n, strings.Repeat("x", n%100)) {
			t.Fatalf("spoilt line %q", line)
		}
		switch {
		case n == next:
			next++
		case n < next:
			repeated++
			next = n + 1
		default:
			t.Fatalf("line %d is followed by %d", next-1, n)
		}
	}
	if next != lines {
		t.Fatalf("log ends with line %d of %d", next, lines)
	}
	t.Logf("%d lines, gone back %d times", lines, repeated)
}

func TestFollowAcrossRotations(t *testing.T) {
	const lines = 5000
	c := start(t)
	pipes, path := c.openTestLog(t, "follow", 20<<10)
	f := container(t, pipes.Stdout)
	reader, writer := io.Pipe()
	over := make(chan struct{})
	go func() {
		writer.CloseWithError(Read(t.Context(), path, ReadOptions{Follow: true, Done: func() bool {
			select {
			case <-over:
				return true
			default:
				return false
			}
		}}, writer))
	}()
	go func() {
		for n := range lines {
			fmt.Fprintf(f, "%d\n", n)
		}
		if err := c.CloseLog(context.Background(), "follow"); err != nil {
			t.Error(err)
		}
		close(over)
	}()
	got := bufio.NewScanner(reader)
	for n := range lines {
		if !got.Scan() || got.Text() != strconv.Itoa(n) {
			t.Fatalf("line %d is %q (%v)", n, got.Text(), got.Err())
		}
	}
	if got.Scan() || got.Err() != nil {
		t.Fatalf("after the end: %q, %v", got.Text(), got.Err())
	}
}

func TestReplaceKeepsProcessAndPipes(t *testing.T) {
	c := startAlone(t)
	pipes, path := c.openTestLog(t, "web", 0)
	before, err := c.hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(pipes.Stdout, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "before\nunfinished")
	eventually(t, "a line", func() error {
		if got := text(t, path, ReadOptions{}); !strings.HasPrefix(got, "before\n") {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	f.Close() // the pipe now lives by the keeper's descriptor alone
	ends := boottime.Now() + time.Hour
	if err := c.Fence(t.Context(), ends, []Fence{{Pod: "u1", Groups: []string{"/tallyman-test/u1"}}}); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(t.TempDir(), "newer")
	copyFile(t, "/proc/self/exe", newer)
	successor, err := Start(t.Context(), StartOptions{
		Command: []string{newer, "run-keeper", c.runDir}, RunDir: c.runDir, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	after, err := successor.hello(t.Context())
	if err != nil || after.PID != before.PID || after.Binary == before.Binary {
		t.Fatalf("before %+v, after %+v, %v", before, after, err)
	}
	if held, err := successor.Fences(t.Context()); err != nil || len(held) != 1 || held[0].Pod != "u1" || held[0].Ends != ends {
		t.Errorf("fences %+v, %v", held, err)
	}
	if err := successor.Unfence(t.Context(), []nodes.UID{"u1"}); err != nil {
		t.Error(err)
	}
	if held, err := successor.Fences(t.Context()); err != nil || len(held) != 0 {
		t.Errorf("fences %+v, %v", held, err)
	}
	fmt.Fprint(container(t, pipes.Stdout), " and the end\n")
	eventually(t, "the rest", func() error { return want(text(t, path, ReadOptions{}), "before\nunfinished and the end\n") })
}

// TestReplacementLosesNoQuestion asks for a name all the while, each question
// once, on a port of its own.
func TestReplacementLosesNoQuestion(t *testing.T) {
	c := startAlone(t)
	listen := freePort(t)
	table := &proxy.Table{Generation: 7, Domain: "cluster.local", Services: []*proxy.Service{{
		Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.9")},
	}}}
	if err := c.SetDNS(t.Context(), DNS{Table: table, Node: "n1", Listen: []netip.AddrPort{listen}}); err != nil {
		t.Fatal(err)
	}
	ask := func() error {
		q := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		reply, _, err := (&dns.Client{Timeout: 30 * time.Second}).Exchange(q, listen.String())
		if err == nil && len(reply.Answer) != 1 {
			err = fmt.Errorf("answer is %v", reply)
		}
		return err
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for asked := 0; ; asked++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := ask(); err != nil {
					t.Errorf("question %d: %v", asked, err)
					return
				}
			}
		})
	}
	for range 3 {
		newer := filepath.Join(t.TempDir(), "newer")
		copyFile(t, "/proc/self/exe", newer)
		if _, err := Start(t.Context(), StartOptions{
			Command: []string{newer, "run-keeper", c.runDir}, RunDir: c.runDir, Log: slog.New(slog.DiscardHandler),
		}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	asking.Wait()
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, content, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestNamesResolveAfterKill(t *testing.T) {
	c := start(t)
	listen := freePort(t)
	table := &proxy.Table{Generation: 7, Domain: "cluster.local", Services: []*proxy.Service{{
		Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.9")},
		HealthCheckPort: freePort(t).Port(),
		Ports:           []proxy.Port{{Protocol: proxy.TCP, Port: 80, Endpoints: []proxy.Endpoint{{Addr: netip.MustParseAddr("10.244.0.2"), Port: 80, Node: "n1"}}}},
	}}}
	if err := c.SetDNS(t.Context(), DNS{Table: table, Node: "n1", Listen: []netip.AddrPort{listen}}); err != nil {
		t.Fatal(err)
	}
	balanced := func() error {
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", table.Services[0].HealthCheckPort))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	}
	eventually(t, "a load balancer's answer", balanced)
	resolves := func() error {
		q := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		reply, err := dns.Exchange(q, listen.String())
		if err != nil {
			return err
		}
		if len(reply.Answer) != 1 || !strings.HasSuffix(reply.Answer[0].String(), "10.96.0.9") {
			return fmt.Errorf("answer is %v", reply)
		}
		return nil
	}
	eventually(t, "the name", resolves)
	before, err := c.hello(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another keeper", func() error {
		after, err := c.hello(t.Context())
		if err == nil && after.PID == before.PID {
			err = errors.New("still the old one")
		}
		return err
	})
	eventually(t, "the name again", resolves)
	eventually(t, "a load balancer's answer, by the next keeper", balanced)
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestSecondKeeperIsRefused(t *testing.T) {
	c := start(t)
	err := Run(t.Context(), Options{RunDir: c.runDir, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "another keeper is alive") {
		t.Fatalf("got %v", err)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	c := start(t)
	info, err := os.Stat(socketPath(c.runDir))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(os.FileMode(0o600), info.Mode().Perm()); diff != "" {
		t.Error(diff)
	}
}
