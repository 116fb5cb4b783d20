package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	// reapInterval is how often the kernel is asked whether a process has ended.
	reapInterval = time.Millisecond
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
	group := r.host.controller("memory", k.cgroup)
	if err := r.endProcesses(ctx, id, group); err != nil {
		return err
	}
	if err := r.endShims(ctx, id, k.pod); err != nil {
		return err
	}
	// The shim may have been at work on one more until it ended.
	if err := r.endProcesses(ctx, id, group); err != nil {
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
