package sim

import (
	"context"
	"fmt"
	"log/slog"
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

// plannerConfig is that of every simulated cluster.
var plannerConfig = planner.Config{SecretKey: []byte("0123456789abcdef")}

// server is one life of the server.
type server struct {
	// hands give to the nodes what the loop decides.
	hands    *hands
	record   *observed.Store
	registry *registry.Registry
	loop     *loop.Loop
	cancel   context.CancelFunc
	ended    chan error
}

func (w *world) recordDir() string { return filepath.Join(w.o.Dir, "server") }

// startServer begins a new life on the record that is there.
func (w *world) startServer() error {
	log := slog.New(slog.DiscardHandler)
	record, err := observed.Open(observed.Options{Dir: w.recordDir(), Log: log})
	if err != nil {
		return err
	}
	r, err := registry.New(registry.Options{Log: log, Clock: w.clock.now})
	if err != nil {
		return err
	}
	w.witness.newServer()
	h := &hands{world: w, to: r}
	l, err := loop.New(loop.Options{
		Source: w.repo, Load: w.load, Record: record, Executor: h, Inputs: r.Inputs(),
		Planner: plannerConfig, Next: w.witness.next, SourceName: w.source,
		SyncInfo: nodes.Sync{Repo: "embedded", Branch: "main", Path: "."}, Log: log,
		// Before anything was in force there is nobody to wait for.
		Single: len(w.nodes) == 1 || w.witness.truth() == nil,
	})
	if err != nil {
		return err
	}
	w.repo.follow()
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	listener := bufconn.Listen(1 << 20)
	group.Go(func() error { return record.Run(ctx) })
	group.Go(func() error { return r.Serve(ctx, registry.Door{Listener: listener}) })
	group.Go(func() error { return l.Run(ctx) })
	s := &server{hands: h, record: record, registry: r, loop: l, cancel: cancel, ended: make(chan error, 1)}
	go func() { s.ended <- group.Wait() }()
	w.server, w.troubled = s, time.Now()
	for _, m := range w.nodes {
		m.line.to(listener)
	}
	w.note("server starts, following %q", w.source)
	return nil
}

// killServer ends the server as kill -9 does: what it had not stored is lost.
func (w *world) killServer() {
	s := w.server
	if s == nil {
		return
	}
	w.server, w.troubled = nil, time.Now()
	synctest.Wait()
	stored, err := os.ReadFile(filepath.Join(w.recordDir(), "observed.db"))
	if err != nil {
		w.witness.report(fmt.Errorf("simulator: %w", err))
	}
	w.witness.deafen()
	for _, m := range w.nodes {
		m.line.to(nil)
	}
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
	w.note("server killed")
}

// loseRecord removes the server's folder.
func (w *world) loseRecord() error {
	w.note("record lost")
	return os.RemoveAll(w.recordDir())
}
