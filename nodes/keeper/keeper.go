// Package keeper is the small process on a node that goes on while the agent
// is away: it reads the containers' log pipes, serves the cluster's DNS, tells
// load balancers which services have endpoints here, and kills fenced pods
// whose lease was not renewed.
//
// Run is that process; Start and Client are how the agent finds it, starts it,
// keeps it alive and talks to it; Read reads the log files that it writes.
//
// It guarantees that
//   - no log line is lost while the agent, or for a moment the keeper, is away:
//     a line leaves its pipe only after it is in the log file, so a keeper that
//     is killed at the wrong instant writes a line twice rather than never;
//   - names resolve from the last table it was given, after its own restart too;
//   - a fenced pod is killed at the end of its lease, whatever agent, container
//     runtime and disk do;
//   - a newer binary takes over in place, in the same process, without a question
//     for a name being lost.
//
// It does not watch containers, and writes nothing but logs and its own state
// below the run dir, which is meant to be on tmpfs. See DESIGN.md.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
	"github.com/tallyman-dev/tallyman/proxy/dns"
	"github.com/tallyman-dev/tallyman/proxy/health"
)

// Options for Run.
type Options struct {
	// RunDir is the instance's run dir; the keeper's things are below RunDir/keeper. Required.
	RunDir string
	// Socket defaults to RunDir/keeper/keeper.sock.
	Socket string
	// Cgroups is where control groups are mounted; default /sys/fs/cgroup.
	Cgroups string
	// Watchdog is the machine's device to hold while pods are fenced, such as
	// /dev/watchdog; empty for none.
	Watchdog string
	// Log is required.
	Log *slog.Logger
}

const (
	// gcPercent and memoryLimit trade processor time, of which the keeper needs
	// little, for memory, of which it has a copy on every node.
	gcPercent   = 30
	memoryLimit = 48 << 20
	// shutdown bounds how long an ending keeper waits for its last answers.
	shutdown = 2 * time.Second
)

// dir is where all of the keeper's things are.
func dir(runDir string) string { return filepath.Join(runDir, "keeper") }

func socketPath(runDir string) string { return filepath.Join(dir(runDir), "keeper.sock") }

// server is the running keeper.
type server struct {
	log    *slog.Logger
	runDir string
	logs   *logs
	dns    *dns.Server
	health *health.Server
	fences *fences
	// end stops Run; next, if there is one, is then executed in its place.
	end  context.CancelFunc
	next atomic.Pointer[replacement]
	// halted gets the log pipes for the next one.
	halted chan []*os.File
}

// Run is the keeper's process, until ctx ends or it is told to stop. It
// returns an error at once when another keeper is alive in the same run dir.
func Run(ctx context.Context, o Options) error {
	if o.RunDir == "" {
		return errors.New("keeper: no run dir")
	}
	if o.Log == nil {
		return errors.New("keeper: no logger")
	}
	o.Socket = defaultTo(o.Socket, socketPath(o.RunDir))
	o.Cgroups = defaultTo(o.Cgroups, "/sys/fs/cgroup")
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	if err := os.MkdirAll(dir(o.RunDir), 0o700); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	lock, err := lockDir(dir(o.RunDir))
	if err != nil {
		return err
	}
	defer lock.Close()
	inherited := inheritedFiles()
	fences, err := newFences(o)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	if err := fences.restore(); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	return serve(ctx, o, inherited, fences)
}

func newFences(o Options) (*fences, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	alarm, err := newTimer()
	if err != nil {
		return nil, err
	}
	k, err := newKiller(o.Cgroups)
	if err != nil {
		return nil, err
	}
	h := hardy{log: o.Log, dir: dir(o.RunDir)}
	return &fences{
		log: o.Log, file: filepath.Join(dir(o.RunDir), "fences.json"), boot: strings.TrimSpace(string(boot)),
		clock: boottime.Now, alarm: alarm, kill: k.kill, watchdog: &watchdog{path: o.Watchdog, log: o.Log},
		prepare: h.prepare, rest: h.rest, held: map[nodes.UID]*HeldFence{},
	}, nil
}

func serve(ctx context.Context, o Options, inherited inheritance, fences *fences) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fencing := make(chan error, 1)
	go func() {
		defer close(fencing)
		fencing <- fences.run()
	}()
	names, err := dns.New(dns.Options{Log: o.Log, Inherited: inherited.names})
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	s := &server{log: o.Log, runDir: o.RunDir, logs: newLogs(dir(o.RunDir), o.Log), dns: names, health: health.New(o.Log), fences: fences, end: cancel, halted: make(chan []*os.File, 1)}
	if err := s.logs.restore(); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	listener, err := listen(o.Socket, inherited)
	if err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	inherited.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return names.Run(ctx) })
	group.Go(func() error { return s.health.Run(ctx) })
	s.restoreDNS()
	group.Go(func() error { return s.serveHTTP(ctx, listener) })
	group.Go(func() error {
		select {
		case err := <-fencing:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	o.Log.Info("keeper serves", "pid", os.Getpid(), "logs", s.logs.count())
	err = group.Wait()
	if next := s.next.Load(); next != nil {
		return s.execute(*next, listener)
	}
	s.logs.closeAll()
	names.Close()
	listener.Close()
	fences.end() // last of all: what ends before may wait for a disk
	if failed := <-fencing; failed != nil {
		err = failed
	}
	fences.watchdog.release()
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("keeper: %w", err)
	}
	return nil
}

// serveHTTP answers on the socket until ctx ends; the listener stays open.
func (s *server) serveHTTP(ctx context.Context, listener *net.UnixListener) error {
	server := &http.Server{
		Handler:           s.handler(ctx),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	kept := keptOpen{listener}
	ended := make(chan struct{})
	stopped := context.AfterFunc(ctx, func() {
		defer close(ended)
		// Wakes Accept without closing the socket, which a successor may take over.
		_ = listener.SetDeadline(time.Unix(1, 0))
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdown)
		defer cancel()
		_ = server.Shutdown(ending)
	})
	defer stopped()
	err := server.Serve(kept)
	if ctx.Err() != nil {
		<-ended // whoever told us to end has its answer then
		return ctx.Err()
	}
	return err
}

// keptOpen is a listener that survives the server that used it.
type keptOpen struct{ *net.UnixListener }

// Close does nothing.
func (keptOpen) Close() error { return nil }

// lockDir makes sure that a run dir has one keeper.
func lockDir(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keeper: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("keeper: another keeper is alive in %s: %w", dir, err)
	}
	return file, nil
}

// listen opens the socket, or goes on with the predecessor's.
func listen(path string, inherited inheritance) (*net.UnixListener, error) {
	if inherited.listener != nil {
		l, err := net.FileListener(inherited.listener)
		if err != nil {
			return nil, fmt.Errorf("take over %s: %w", path, err)
		}
		unixListener, ok := l.(*net.UnixListener)
		if !ok {
			return nil, fmt.Errorf("take over %s: it is not a unix socket", path)
		}
		return unixListener, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177) // the socket must never be open to others, not even for an instant
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	return l, err
}

func defaultTo(value, standard string) string {
	if value == "" {
		return standard
	}
	return value
}
