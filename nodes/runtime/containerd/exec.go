package containerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
)

const (
	// execOutput is how much of a command's output is handed on; the rest is read and dropped.
	execOutput = 64 << 10
	// execCleanup bounds how long an unwilling command may hold up its caller.
	execCleanup = 10 * time.Second
)

// Exec implements runtime.Runtime.
func (r *Runtime) Exec(ctx context.Context, id string, command []string, w io.Writer) (int, error) {
	k, err := r.recall(ctx, id)
	if err != nil {
		return 0, r.wrap("run a command in", id, err)
	}
	process := *k.process
	process.Args, process.Terminal = command, false
	spec, err := typeurl.MarshalAnyToProto(&process)
	if err != nil {
		return 0, fmt.Errorf("run a command in %s: %w", id, err)
	}
	execID := "exec-" + rand.Text()
	streams, err := r.execStreams(execID, w)
	if err != nil {
		return 0, fmt.Errorf("run a command in %s: %w", id, err)
	}
	defer streams.Close()
	config := streams.Config()
	_, err = r.tasks.Exec(ctx, &tasksapi.ExecProcessRequest{
		ContainerID: id, ExecID: execID, Stdout: config.Stdout, Stderr: config.Stderr, Spec: spec,
	})
	if err != nil {
		streams.Cancel()
		if ctx.Err() != nil {
			return 0, fmt.Errorf("run a command in %s: %w", id, context.Cause(ctx))
		}
		return 0, r.wrap("run a command in", id, err)
	}
	code, err := r.finishExec(ctx, id, execID)
	r.deleteExec(ctx, id, execID)
	drain(streams)
	return code, err
}

// drain reads what is left of a command's output. The shim has closed its ends
// with the command, unless something that the command started holds them.
func drain(streams cio.IO) {
	late := time.AfterFunc(execCleanup, streams.Cancel)
	defer late.Stop()
	streams.Wait()
}

func (r *Runtime) execStreams(execID string, w io.Writer) (cio.IO, error) {
	if w == nil {
		return cio.NullIO(execID)
	}
	if err := r.ensureRunDir(); err != nil {
		return nil, err
	}
	out := &limited{w: w, left: execOutput}
	return cio.NewCreator(cio.WithStreams(nil, out, out), cio.WithFIFODir(r.runDir))(execID)
}

// finishExec starts the command and waits for its end, killing it when ctx ends.
func (r *Runtime) finishExec(ctx context.Context, id, execID string) (int, error) {
	if _, err := r.tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: id, ExecID: execID}); err != nil && ctx.Err() == nil {
		wrapped := r.wrap("run a command in", id, err)
		if reason := execReason(native(err)); reason != "" {
			wrapped = fmt.Errorf("run a command in %s: %s", id, reason)
		}
		return 0, wrapped
	}
	exit, err := r.tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: id, ExecID: execID})
	if err == nil {
		return int(exit.ExitStatus), nil
	}
	if ctx.Err() == nil {
		return 0, r.wrap("run a command in", id, err)
	}
	r.killExec(ctx, id, execID)
	return 0, fmt.Errorf("run a command in %s: %w", id, context.Cause(ctx))
}

func (r *Runtime) killExec(ctx context.Context, id, execID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execCleanup)
	defer cancel()
	_, err := r.tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: id, ExecID: execID, Signal: uint32(unix.SIGKILL)})
	if err == nil {
		_, err = r.tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: id, ExecID: execID})
	}
	if err != nil && !notFound(err) && !ended(err) {
		r.log.Warn("command not killed", "container", id, "error", err)
	}
}

func (r *Runtime) deleteExec(ctx context.Context, id, execID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execCleanup)
	defer cancel()
	_, err := r.tasks.DeleteProcess(ctx, &tasksapi.DeleteProcessRequest{ContainerID: id, ExecID: execID})
	if err != nil && !notFound(err) {
		r.log.Debug("command left behind", "container", id, "error", err)
	}
}

// limited passes on what fits and swallows the rest; two streams share it.
type limited struct {
	mu   sync.Mutex
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(p), l.left)
	l.left -= n
	if n > 0 {
		if _, err := l.w.Write(p[:n]); err != nil && !errors.Is(err, io.ErrShortWrite) {
			l.left = 0
		}
	}
	return len(p), nil
}
