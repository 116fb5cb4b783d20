package sim

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/test/bufconn"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/observed"
	"github.com/tallyman-dev/tallyman/nodes/registry"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/sync/loop"
)

// plannerConfig is that of every simulated cluster. Route tables follow each other
// as slowly as with a thousand nodes.
var plannerConfig = planner.Config{SecretKey: []byte("0123456789abcdef"), RoutePace: 30 * time.Millisecond}

// silent is for logs that nobody reads.
var silent = slog.New(slog.DiscardHandler)

// server is one life of the server; of several servers, one term.
type server struct {
	// hands give to the nodes what the loop decides.
	hands    *hands
	record   *observed.Store
	registry *registry.Registry
	loop     *loop.Loop
	// listener is where agents come in.
	listener net.Listener
	// host and term are those of one of several servers; nil for a lone one.
	host *host
	term *term
	// cancel and ended are those of a lone one.
	cancel context.CancelFunc
	ended  chan error
}

func (w *world) recordDir() string { return filepath.Join(w.o.Dir, "server") }

// newServer wires a server on a record. The term is nil for a lone one.
func (w *world) newServer(record *observed.Store, t *term, listener net.Listener) (*server, error) {
	s := &server{record: record, listener: listener, term: t}
	forRegistry := registry.Options{Log: silent, Now: w.wall.now, Clock: w.clock.now}
	forLoop := loop.Options{
		Source: w.repo.follow(), Load: w.load, Record: record,
		Planner: plannerConfig, SourceName: w.source,
		SyncInfo: nodes.Sync{Repo: "embedded", Branch: "main", Path: "."}, Log: silent,
		// Before anything was in force there is nobody to wait for.
		Single: len(w.nodes) == 1 || w.witness.truth() == nil,
	}
	if t != nil {
		s.host = t.host
		forRegistry.Now, forRegistry.Clock = t.host.wall.now, t.host.clock.now
		forRegistry.Leads, forRegistry.Settle = t.leads, settleTime
		forLoop.Grace, forLoop.Planner.Several, forLoop.Single = takeoverGrace, true, false
	}
	forLoop.Now, forLoop.Clock = forRegistry.Now, forRegistry.Clock
	if b := w.o.Bug; b != nil && b.Freezes {
		forLoop.Clock = func() time.Duration { return 0 }
	}
	var err error
	if s.registry, err = registry.New(forRegistry); err != nil {
		return nil, err
	}
	s.hands = &hands{world: w, server: s, to: s.registry}
	forLoop.Executor, forLoop.Inputs = s.hands, s.registry.Inputs()
	forLoop.Next = func(state *planner.State, c planner.Change, now time.Time) (*planner.State, *planner.Plan) {
		if s.host != nil {
			s.host.held.pass(nil)
		}
		return w.witness.next(s, state, c, now)
	}
	s.loop, err = loop.New(forLoop)
	return s, err
}

// run serves until ctx ends.
func (s *server) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.record.Run(ctx) })
	group.Go(func() error { return s.registry.Serve(ctx, registry.Door{Listener: s.listener}) })
	group.Go(func() error { return s.loop.Run(ctx) })
	return group.Wait()
}

// serving is the server that leads, as agents find it; nil when there is none.
func (w *world) serving() *server {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.server
}

// disturb notes that the way from agents to routes is disturbed now.
func (w *world) disturb() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.troubled = time.Now()
}

// disturbed is when that way was last disturbed, calm how long ago that is.
func (w *world) disturbed() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.troubled
}

func (w *world) calm() time.Duration { return time.Since(w.disturbed()) }

// lead has agents find a server.
func (w *world) lead(s *server, listener *bufconn.Listener) {
	w.witness.newServer(s)
	w.mu.Lock()
	w.server, w.troubled = s, time.Now()
	w.mu.Unlock()
	for _, m := range w.nodes {
		m.line.to(listener)
	}
	if s.term != nil {
		w.note("server %s leads, term %d", s.host.name, s.term.revision)
	}
}

// leave has agents find a server no more, unless another one leads.
func (w *world) leave(s *server) {
	w.mu.Lock()
	leads := w.server == s
	if leads {
		w.server, w.troubled = nil, time.Now()
	}
	w.mu.Unlock()
	if !leads {
		return
	}
	w.witness.deafen()
	for _, m := range w.nodes {
		m.line.to(nil)
	}
	if s.term != nil {
		w.note("server %s leads no more, term %d", s.host.name, s.term.revision)
	}
}

// startServer begins a new life on the record that is there, of one server or of
// all that are several.
func (w *world) startServer() error {
	if w.store != nil {
		for _, h := range w.hosts {
			h.start()
		}
		return nil
	}
	record, err := observed.Open(observed.Options{Dir: w.recordDir(), Log: silent})
	if err != nil {
		return err
	}
	listener := bufconn.Listen(1 << 20)
	s, err := w.newServer(record, nil, listener)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.ended = cancel, make(chan error, 1)
	w.lead(s, listener)
	go func() { s.ended <- s.run(ctx) }()
	w.note("server starts, following %q", w.source)
	return nil
}

// killServer ends the server as kill -9 does: what it had not stored is lost. Of
// several it is the one that leads.
func (w *world) killServer() {
	s := w.serving()
	switch {
	case s == nil:
		return
	case s.host != nil:
		s.host.kill()
		return
	}
	synctest.Wait()
	stored, err := os.ReadFile(filepath.Join(w.recordDir(), "observed.db"))
	if err != nil {
		w.witness.report(fmt.Errorf("simulator: %w", err))
	}
	w.leave(s)
	s.cancel()
	if err := <-s.ended; err != nil {
		w.witness.report(fmt.Errorf("the server ended: %w", err))
	}
	if err := s.record.Close(); err != nil {
		w.witness.report(fmt.Errorf("close the record: %w", err))
	}
	if err := os.WriteFile(filepath.Join(w.recordDir(), "observed.db"), stored, 0o600); err != nil {
		w.witness.report(fmt.Errorf("simulator: %w", err))
	}
	if w.backup == nil {
		w.backup = stored
	}
	w.note("server killed")
}

// bringBack has a lone server start from the oldest copy of its record, once the
// nodes have kept what was decided since. Nothing may come of it.
func (w *world) bringBack() error {
	if w.store != nil || w.backup == nil {
		return nil
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	if !w.connected() || !w.witness.toldAll() {
		return nil
	}
	w.killServer()
	w.note("an old copy of the record is brought back")
	if err := os.WriteFile(filepath.Join(w.recordDir(), "observed.db"), w.backup, 0o600); err != nil {
		return err
	}
	w.result.Faults++
	w.pause()
	return w.startServer()
}

// loseRecord removes the server's folder.
func (w *world) loseRecord() error {
	w.note("record lost")
	return os.RemoveAll(w.recordDir())
}
