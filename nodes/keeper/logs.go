package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Log is one container's log.
type Log struct {
	// ID is the container's; [a-zA-Z0-9_.-]+.
	ID string `json:"id"`
	// Path of the log file; rotated ones are Path.1 (the newest) and so on.
	Path string `json:"path"`
	// MaxSize of one file in bytes, 10 MiB by default; MaxFiles counts Path too, 5 by default.
	MaxSize  int64 `json:"max_size,omitempty"`
	MaxFiles int   `json:"max_files,omitempty"`
}

// Pipes are where a container's process writes.
type Pipes struct {
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
}

const (
	defaultMaxSize  = 10 << 20
	defaultMaxFiles = 5
	// pipeSize is how much a pipe holds while no keeper reads it; a container
	// that writes more than that blocks until there is one again.
	pipeSize = 1 << 20
)

var validID = regexp.MustCompile(`^[a-zA-Z0-9_.-]+$`)

// logs are all open logs. Each is remembered in a file of its own below the
// run dir, from which the next keeper opens it again.
type logs struct {
	log     *slog.Logger
	dir     string
	scratch chan *scratch

	mu   sync.Mutex // guards open and is held while one is opened or forgotten
	live map[string]*openLog
}

type openLog struct {
	spec    Log
	file    *file
	streams []*stream
	done    sync.WaitGroup
}

func newLogs(dir string, log *slog.Logger) *logs {
	l := &logs{log: log, dir: dir, live: map[string]*openLog{}, scratch: make(chan *scratch, scratchCount)}
	for range scratchCount {
		l.scratch <- &scratch{}
	}
	return l
}

func (l *logs) stateFile(id string) string { return filepath.Join(l.dir, "logs", id+".json") }

func (l *logs) pipes(id string) Pipes {
	base := filepath.Join(l.dir, "fifo", id)
	return Pipes{Stdout: base + ".out", Stderr: base + ".err"}
}

func (l *logs) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.live)
}

// restore opens what the last keeper had open. One that cannot be opened does
// not stop the others.
func (l *logs) restore() error {
	for _, sub := range []string{"logs", "fifo"} {
		if err := os.MkdirAll(filepath.Join(l.dir, sub), 0o700); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(filepath.Join(l.dir, "logs"))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".json") {
			continue
		}
		if err := l.restoreOne(filepath.Join(l.dir, "logs", entry.Name())); err != nil {
			l.log.Error("log not opened again", "file", entry.Name(), "error", err)
		}
	}
	return nil
}

func (l *logs) restoreOne(path string) error {
	encoded, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec Log
	if err := json.Unmarshal(encoded, &spec); err != nil {
		return err
	}
	_, err = l.open(spec)
	return err
}

// open makes a log's pipes and begins to read them; a second time it only
// takes over what changed.
func (l *logs) open(spec Log) (Pipes, error) {
	if !validID.MatchString(spec.ID) || !filepath.IsAbs(spec.Path) {
		return Pipes{}, fmt.Errorf("open log %q at %q: not a valid id and absolute path", spec.ID, spec.Path)
	}
	if spec.MaxSize <= 0 {
		spec.MaxSize = defaultMaxSize
	}
	if spec.MaxFiles <= 0 {
		spec.MaxFiles = defaultMaxFiles
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	pipes := l.pipes(spec.ID)
	if open := l.live[spec.ID]; open != nil && open.spec == spec {
		return pipes, nil
	} else if open != nil {
		open.finish(true) // the pipes stay: only the file or its limits change
		delete(l.live, spec.ID)
	}
	encoded, err := json.Marshal(spec)
	if err != nil {
		return Pipes{}, err
	}
	open, err := l.begin(spec, pipes)
	if err != nil {
		return Pipes{}, fmt.Errorf("open log %s: %w", spec.ID, err)
	}
	l.live[spec.ID] = open
	return pipes, writeFile(l.stateFile(spec.ID), encoded)
}

func (l *logs) begin(spec Log, pipes Pipes) (*openLog, error) {
	f, err := openFile(spec.Path, spec.MaxSize, spec.MaxFiles)
	if err != nil {
		return nil, err
	}
	open := &openLog{spec: spec, file: f}
	for _, s := range []struct{ path, name string }{{pipes.Stdout, "stdout"}, {pipes.Stderr, "stderr"}} {
		pipe, err := openPipe(s.path)
		if err != nil {
			open.finish(true)
			return nil, err
		}
		reader := &stream{name: s.name, id: spec.ID, pipe: pipe, file: f, scratch: l.scratch, log: l.log}
		open.streams = append(open.streams, reader)
		open.done.Go(reader.run)
	}
	return open, nil
}

// openPipe makes and opens a named pipe. Open for writing too, it never is at
// its end; non-blocking, it waits in the runtime's poller and needs no thread.
func openPipe(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make pipe %s: %w", path, err)
	}
	pipe, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	raw, err := pipe.SyscallConn()
	if err != nil {
		pipe.Close()
		return nil, err
	}
	// Where the machine allows no more, the usual 64 KiB must do.
	err = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	return pipe, err
}

// close drains a log and forgets it; a log that is not open is success.
func (l *logs) close(id string) error {
	if !validID.MatchString(id) {
		return fmt.Errorf("close log %q: not a valid id", id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if open := l.live[id]; open != nil {
		open.finish(true)
		delete(l.live, id)
	}
	pipes := l.pipes(id)
	var failures []error
	for _, path := range []string{l.stateFile(id), pipes.Stdout, pipes.Stderr} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// closeAll ends all reading and keeps pipes and state for the next keeper.
func (l *logs) closeAll() {
	for _, pipe := range l.halt() {
		pipe.Close()
	}
}

// halt ends all reading and returns the pipes, still open. It keeps the lock:
// whoever opens or closes a log now is to wait, and to ask the next keeper.
func (l *logs) halt() []*os.File {
	l.mu.Lock()
	var pipes []*os.File
	for id, open := range l.live {
		open.finish(false)
		for _, s := range open.streams {
			pipes = append(pipes, s.pipe)
		}
		delete(l.live, id)
	}
	return pipes
}

// finish drains the streams and ends them; an unfinished last line is written
// and the pipes are closed only when the log is over.
func (o *openLog) finish(over bool) {
	for _, s := range o.streams {
		s.stop(over)
	}
	o.done.Wait()
	for _, s := range o.streams {
		if over {
			s.pipe.Close()
		}
	}
	o.file.close()
}
