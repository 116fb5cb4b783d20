package keeper

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
)

// fenced is a keeper's fences over groups of imagined processes, in virtual time.
type fenced struct {
	*testing.T
	*fences
	began   time.Time
	stopped func()

	mu sync.Mutex
	// alive processes by group; stubborn is how many kills a process outlives.
	alive    map[string]int
	stubborn int
	prepared int
}

// ring is an alarm in virtual time.
type ring struct {
	clock func() time.Duration
	timer *time.Timer
}

func (r ring) set(at time.Duration) error { r.timer.Reset(max(at-r.clock(), 0)); return nil }
func (r ring) wait() error                { <-r.timer.C; return nil }

func newFenced(t *testing.T, dir string) *fenced {
	w := &fenced{T: t, began: time.Now(), alive: map[string]int{}}
	clock := func() time.Duration { return time.Since(w.began) + time.Minute }
	w.fences = &fences{
		log: slog.New(slog.DiscardHandler), file: filepath.Join(dir, "fences.json"), boot: "this",
		clock: clock, alarm: ring{clock, time.NewTimer(time.Hour)}, kill: w.end, held: map[nodes.UID]*HeldFence{},
		prepare: func() { w.prepared++ }, rest: func() { w.prepared-- },
	}
	return w
}

func (w *fenced) end(groups []string) (found int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range groups {
		found += w.alive[g]
		if w.stubborn == 0 {
			delete(w.alive, g)
		}
	}
	w.stubborn = max(w.stubborn-1, 0)
	return found, nil
}

func (w *fenced) start(pods ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range pods {
		w.alive["/tallyman/"+p]++
	}
}

func (w *fenced) running() (groups []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for g, n := range w.alive {
		if n > 0 {
			groups = append(groups, filepath.Base(g))
		}
	}
	slices.Sort(groups)
	return groups
}

func (w *fenced) begin() {
	done := make(chan error, 1)
	go func() { done <- w.run() }()
	w.stopped = func() {
		w.fences.end()
		if err := <-done; err != nil {
			w.Error(err)
		}
	}
}

func (w *fenced) fence(lease time.Duration, pods ...string) {
	w.Helper()
	var list []Fence
	for _, p := range pods {
		list = append(list, Fence{Pod: nodes.UID(p), Groups: []string{"/tallyman/" + p, "/tallyman/besteffort/" + p}})
	}
	if err := w.arm(w.clock()+lease, list); err != nil {
		w.Fatal(err)
	}
}

func (w *fenced) expect(what string, pods ...string) {
	w.Helper()
	synctest.Wait()
	if got := w.running(); !slices.Equal(got, pods) {
		w.Fatalf("%s: %v run, want %v", what, got, pods)
	}
}

func TestFencesKillAtTheirEndUnlessExtended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenced(t, t.TempDir())
		w.begin()
		w.start("a", "b", "c", "other")
		w.fence(6*time.Second, "a", "b", "c")
		for range 100 {
			time.Sleep(time.Second)
			w.fence(6*time.Second, "a", "b")
		}
		w.expect("extended", "a", "b", "other")
		w.fence(time.Second, "a") // never to sooner
		if err := w.drop([]nodes.UID{"b", "unknown"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6*time.Second - time.Millisecond)
		w.expect("just before the end", "a", "b", "other")
		time.Sleep(time.Millisecond)
		w.expect("at the end", "b", "other")
		held := w.list()
		if len(held) != 2 || held[0].Pod != "a" || held[0].Killed != held[0].Ends || held[1].Pod != "c" || held[1].Killed != held[1].Ends {
			t.Errorf("held %+v", held)
		}
		w.stopped()
	})
}

// TestWhatEntersAKilledPodIsKilled: an agent that was stopped between asking
// for the fence and starting the container goes on later.
func TestWhatEntersAKilledPodIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenced(t, t.TempDir())
		w.begin()
		w.stubborn = 3
		w.start("a")
		w.fence(time.Second, "a")
		time.Sleep(time.Second + 5*killAgain)
		w.expect("after some tries")
		for range 20 {
			time.Sleep(time.Second)
			w.start("a")
			time.Sleep(lookIdle)
			w.expect("entered late")
		}
		w.fence(time.Second, "a")
		w.start("a")
		time.Sleep(time.Second - time.Millisecond)
		w.expect("with a new lease", "a")
		w.stopped()
	})
}

func TestTheNextKeeperHoldsTheFences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		first := newFenced(t, dir)
		first.begin()
		first.fence(6*time.Second, "a")
		first.fence(time.Hour, "b")
		first.stopped()
		next := newFenced(t, dir)
		next.start("a", "b")
		time.Sleep(10 * time.Second) // nobody is there
		if err := next.restore(); err != nil {
			t.Fatal(err)
		}
		next.begin()
		next.expect("missed while no keeper was there", "b")
		next.stopped()

		rebooted := newFenced(t, dir)
		rebooted.boot = "another"
		if err := rebooted.restore(); err != nil || len(rebooted.list()) != 0 {
			t.Errorf("after a reboot %+v are held, %v", rebooted.list(), err)
		}
		if err := os.WriteFile(rebooted.file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := rebooted.restore(); err == nil {
			t.Error("damaged fences were taken for none")
		}
	})
}

func TestFencesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenced(t, t.TempDir())
		for name, c := range map[string]struct {
			ends  time.Duration
			fence Fence
		}{
			"over already":      {w.clock(), Fence{"a", []string{"/tallyman/a"}}},
			"no pod":            {w.clock() + time.Second, Fence{"", []string{"/tallyman/a"}}},
			"no group":          {w.clock() + time.Second, Fence{"a", nil}},
			"the whole machine": {w.clock() + time.Second, Fence{"a", []string{"/"}}},
			"all pods":          {w.clock() + time.Second, Fence{"a", []string{"/tallyman"}}},
			"a way out":         {w.clock() + time.Second, Fence{"a", []string{"/tallyman/../x"}}},
		} {
			if err := w.arm(c.ends, []Fence{c.fence}); err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		if len(w.list()) != 0 || w.prepared != 0 {
			t.Errorf("%d held, prepared %d times", len(w.list()), w.prepared)
		}
	})
}

func TestMemoryIsLockedWhileFencesAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenced(t, t.TempDir())
		w.fence(time.Second, "a")
		w.fence(time.Second, "a", "b")
		if w.prepared != 1 {
			t.Errorf("prepared %d times", w.prepared)
		}
		for _, pod := range []nodes.UID{"a", "b", "b"} {
			if err := w.drop([]nodes.UID{pod}); err != nil {
				t.Fatal(err)
			}
		}
		if w.prepared != 0 {
			t.Error("never let go")
		}
	})
}

func TestRehearsal(t *testing.T) {
	if err := (hardy{log: slog.New(slog.DiscardHandler), dir: t.TempDir()}).rehearse(); err != nil {
		t.Error(err)
	}
}

// TestAKeeperHoldsTheWatchdogItIsGiven, from the first fence to the last.
func TestAKeeperHoldsTheWatchdogItIsGiven(t *testing.T) {
	path, runDir := filepath.Join(t.TempDir(), "watchdog"), t.TempDir()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(path, os.O_RDWR, 0) // stays open for reading
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	next := func() byte {
		var one [1]byte
		if err := pipe.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := pipe.Read(one[:]); err != nil {
			t.Fatal(err)
		}
		return one[0]
	}
	c, err := Start(t.Context(), StartOptions{
		Command: []string{"/proc/self/exe", "run-keeper", runDir, "/sys/fs/cgroup", path}, RunDir: runDir, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop(context.Background()) })
	for range 2 {
		if err := c.Fence(t.Context(), boottime.Now()+time.Hour, []Fence{{Pod: "u1", Groups: []string{"/tallyman-test/u1"}}}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if got := next(); got != 0 {
				t.Fatalf("heard %q, want a sign of life", got)
			}
		}
		if err := c.Unfence(t.Context(), []nodes.UID{"u1"}); err != nil {
			t.Fatal(err)
		}
		for got := byte(0); got != 'V'; {
			got = next()
		}
	}
}

// TestTheWatchdogIsHeldWhileFencesAre, fed while nothing outlives its kill, and
// stopped with the last fence. A pipe stands in for it.
func TestTheWatchdogIsHeldWhileFencesAre(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchdog")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	heard := func() string {
		var text []byte
		buffer := make([]byte, 100)
		for {
			n, err := unix.Read(int(pipe.Fd()), buffer)
			text = append(text, buffer[:max(n, 0)]...)
			if n <= 0 || errors.Is(err, io.EOF) {
				return string(text)
			}
		}
	}
	w := &watchdog{path: path, log: slog.New(slog.DiscardHandler)}
	for _, step := range []struct {
		needed, alive, again bool
		want                 string
	}{
		{false, false, false, ""},
		{true, false, true, "\x00"},
		{true, false, true, "\x00"},
		{true, true, true, ""},
		{true, false, true, "\x00"},
		{false, false, false, "V"},
		{false, false, false, ""},
	} {
		if again := w.tend(step.needed, step.alive); again != step.again {
			t.Errorf("%+v: wants to be tended: %v", step, again)
		}
		if got := heard(); got != step.want {
			t.Errorf("%+v: heard %q", step, got)
		}
	}
	var none *watchdog
	if none.tend(true, false) {
		t.Error("a watchdog that is not there wants to be tended")
	}
	missing := &watchdog{path: filepath.Join(t.TempDir(), "none"), log: slog.New(slog.DiscardHandler)}
	if !missing.tend(true, false) || missing.fd != 0 {
		t.Error("one that can't be opened is not tried again")
	}
}
