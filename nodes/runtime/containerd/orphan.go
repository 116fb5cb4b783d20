package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"golang.org/x/sys/unix"
)

const (
	// orphanPatience is how long killed processes may take to be gone.
	orphanPatience = 2 * time.Second
	// reapPatience is how long their shim may take to reap them.
	reapPatience = time.Second
)

// endOrphan ends what runs of a container that containerd has no task of. A
// containerd that is killed while it makes a task forgets the shim, and the
// shim goes on: with a process that nobody knows, or without.
func (r *Runtime) endOrphan(ctx context.Context, id string) error {
	k, err := r.recall(ctx, id)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	lock := defaultTo(k.pod, id)
	r.shims.Lock(lock)
	defer r.shims.Unlock(lock)
	if err := r.endProcesses(ctx, id, r.host.controller("memory", k.cgroup)); err != nil {
		return err
	}
	if err := r.endOrphanShim(ctx, id); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(r.runcDir(), r.namespace, id)); err != nil {
		return fmt.Errorf("remove what runc knows of container %s: %w", id, err)
	}
	return nil
}

// runcDir is where runc keeps what it knows of containers, below a directory
// for each namespace of containerd.
func (r *Runtime) runcDir() string { return filepath.Join(r.runDir, "runc") }

// endUnknown is endOrphan for a container that containerd may have a task of.
func (r *Runtime) endUnknown(ctx context.Context, id string) error {
	_, err := r.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: id})
	if notFound(err) {
		return r.endOrphan(ctx, id)
	}
	return err
}

// endProcesses kills what is in a cgroup, until nothing is.
func (r *Runtime) endProcesses(ctx context.Context, id, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, orphanPatience)
	defer cancel()
	for first := true; ; first = false {
		left, err := processesBelow(dir)
		if err != nil {
			return fmt.Errorf("look for processes without a task: %w", err)
		}
		if len(left) == 0 {
			return nil
		}
		if first {
			r.log.Warn("ending processes that containerd has no task of", "container", id, "processes", len(left))
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL) // gone already is as good
		}
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("end processes without a task: %d are left: %w", len(left), err)
		}
	}
}

// endOrphanShim ends the shim that was started for a container, if it has no
// child left: a shim that serves other containers of the pod has theirs.
func (r *Runtime) endOrphanShim(ctx context.Context, id string) error {
	pid, err := r.findShim(id)
	if err != nil || pid == 0 {
		return err
	}
	reaping, cancel := context.WithTimeout(ctx, reapPatience)
	defer cancel()
	for hasChildren(pid) {
		if pause(reaping, 5*time.Millisecond) != nil {
			return ctx.Err() // it serves others
		}
	}
	r.log.Warn("ending a shim that serves no container", "container", id, "pid", pid)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end shim %d: %w", pid, err)
	}
	ending, cancel := context.WithTimeout(ctx, orphanPatience)
	defer cancel()
	for running(pid) {
		if err := pause(ending, time.Millisecond); err != nil {
			return fmt.Errorf("end shim %d: it was killed and goes on: %w", pid, err)
		}
	}
	return nil
}

// running reports whether a process has yet to end; one that only waits to be
// reaped has no program any more.
func running(pid int) bool {
	_, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	return err == nil
}

// processesBelow lists the processes of a cgroup and those below it.
func processesBelow(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return pids, nil // it went meanwhile
	}
	return pids, err
}

// findShim finds the shim that was started for a container of ours; 0 when
// there is none.
func (r *Runtime) findShim(id string) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !bytes.Contains(line, []byte(id)) {
			continue
		}
		args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") &&
			argument(args, "-id") == id && argument(args, "-namespace") == r.namespace && argument(args, "-address") == r.address {
			return pid, nil
		}
	}
	return 0, nil
}

// argument is the value that follows a flag.
func argument(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

func hasChildren(pid int) bool {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return true
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && len(bytes.TrimSpace(text)) > 0 {
			return true
		}
	}
	return false
}
