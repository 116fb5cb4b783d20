package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/signal"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Create implements runtime.Runtime. The record is made before the snapshot
// that it names: then containerd's garbage collection never finds a snapshot
// that nobody refers to, and no lease is needed.
func (r *Runtime) Create(ctx context.Context, c runtime.Container) error {
	img, err := r.images.resolve(ctx, c.Image)
	if err != nil {
		return r.wrap("find image", c.Image, err)
	}
	accounts, err := r.images.accountsOf(ctx, img)
	if err != nil {
		return r.wrap("create container", c.ID, err)
	}
	user, err := accounts.user(c)
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	k := r.knowledge(c)
	spec, err := r.spec(c, user, k.cgroup)
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	k.process = spec.Process
	if err := r.createRecord(ctx, c, img, k, spec); err != nil {
		return r.wrap("create container", c.ID, err)
	}
	if k.mounts, err = r.prepare(ctx, c.ID, img); err != nil {
		return r.wrap("make the root file system of", c.ID, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[c.ID] = k
	return nil
}

func (r *Runtime) knowledge(c runtime.Container) *known {
	k := &known{pod: c.Pod, handler: c.Handler, stdio: stdio{stdout: c.Stdout, stderr: c.Stderr, terminal: c.Terminal}}
	k.cgroup = path.Join("/", defaultTo(c.CgroupParent, r.namespace), c.ID)
	if c.Terminal {
		k.stdio.stderr = "" // a terminal has a single output
	}
	if c.Stdin {
		k.stdio.stdin = filepath.Join(r.runDir, c.ID+".stdin")
	}
	return k
}

func (r *Runtime) createRecord(ctx context.Context, c runtime.Container, img *image, k *known, spec *specs.Spec) error {
	encoded, err := typeurl.MarshalAny(spec)
	if err != nil {
		return err
	}
	if c.Stdin {
		// Nobody writes to it: the process sees an input without data and without end.
		if err := r.makeStdin(k.stdio.stdin); err != nil {
			return err
		}
	}
	shim, err := r.runtimeOf(c.Handler)
	if err != nil {
		return err
	}
	_, err = r.containers.Create(ctx, containers.Container{
		ID: c.ID, Labels: r.labels(c, img, k), Image: img.Names[0],
		Runtime:     shim,
		Spec:        encoded,
		Snapshotter: r.snapshotter, SnapshotKey: c.ID,
	})
	if alreadyExists(err) {
		return nil
	}
	return err
}

func (r *Runtime) makeStdin(path string) error {
	if err := r.ensureRunDir(); err != nil {
		return err
	}
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make pipe %s: %w", path, err)
	}
	return nil
}

// prepare makes the root file system. That of a known image can be missing
// when somebody cleaned up behind our back: then it is unpacked again.
func (r *Runtime) prepare(ctx context.Context, id string, img *image) ([]mount.Mount, error) {
	mounts, err := r.snapshots.Prepare(ctx, id, img.chain)
	if notFound(err) {
		if err := r.images.ensureUnpacked(ctx, img); err != nil {
			return nil, err
		}
		mounts, err = r.snapshots.Prepare(ctx, id, img.chain)
	}
	if alreadyExists(err) {
		return nil, nil
	}
	return mounts, err
}

// recall returns what is known of a container, asking containerd if need be.
func (r *Runtime) recall(ctx context.Context, id string) (*known, error) {
	r.mu.Lock()
	k := r.known[id]
	r.mu.Unlock()
	if k != nil {
		return k, nil
	}
	record, err := r.containers.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	k = remembered(record)
	var spec specs.Spec
	if err := typeurl.UnmarshalTo(record.Spec, &spec); err != nil {
		return nil, fmt.Errorf("read the record of container %s: %w", id, err)
	}
	k.process = spec.Process
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[id] = k
	return k, nil
}

// Start implements runtime.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) error {
	k, err := r.recall(ctx, id)
	if err != nil {
		return r.wrap("start container", id, err)
	}
	k.begun.Add(1)
	defer k.done.Add(1)
	if k.tried.Swap(true) {
		// What the last attempt left would go on beside what this one makes.
		if err := r.endUnknown(ctx, id); err != nil {
			return r.wrap("start container", id, err)
		}
	}
	marked := make(chan error, 1)
	go func() { marked <- r.mark(ctx, id, labelStarted, time.Now().UTC().Format(time.RFC3339Nano)) }()
	err = r.createTask(ctx, id, k)
	if leftBehind(err) {
		if err = r.endOrphan(ctx, id); err == nil {
			err = r.createTask(ctx, id, k)
		}
	}
	if markErr := <-marked; err == nil {
		err = markErr
	}
	if alreadyExists(err) {
		return r.resume(ctx, id)
	}
	if err == nil {
		_, err = r.tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: id})
	}
	if err != nil && noShim(err) {
		// It never started, and can once the program is there.
		return fmt.Errorf("start container %s: %w", id, errors.Join(explainNoShim(k.handler), r.mark(ctx, id, labelStarted, "")))
	}
	if err != nil {
		return r.startFailed(ctx, id, err)
	}
	return nil
}

// mark notes a fact on a container's record.
func (r *Runtime) mark(ctx context.Context, id, label, value string) error {
	_, err := r.containers.Update(ctx, containers.Container{ID: id, Labels: map[string]string{label: value}}, "labels."+label)
	return err
}

// createTask makes the container's process up to the point where it would run.
// A pod's tasks are made one after the other, so that its first one starts the
// shim that the others share.
func (r *Runtime) createTask(ctx context.Context, id string, k *known) error {
	lock := defaultTo(k.pod, id)
	r.shims.Lock(lock)
	defer r.shims.Unlock(lock)
	mounts := k.mounts
	if mounts == nil {
		var err error
		if mounts, err = r.snapshots.Mounts(ctx, id); err != nil {
			return err
		}
	}
	request := &tasksapi.CreateTaskRequest{
		ContainerID: id, Terminal: k.stdio.terminal,
		Stdin: k.stdio.stdin, Stdout: k.stdio.stdout, Stderr: k.stdio.stderr,
	}
	for _, m := range mounts {
		request.Rootfs = append(request.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	_, err := r.tasks.Create(ctx, request)
	for attempt := 0; err != nil && attempt < 5 && shimLeft(err); attempt++ {
		if err := pause(ctx, 20*time.Millisecond<<attempt); err != nil {
			return err
		}
		_, err = r.tasks.Create(ctx, request)
	}
	return err
}

// shimLeft tells that the pod's shim ended, with its last container, at the
// moment that we asked it for another: the next attempt starts a new one.
func shimLeft(err error) bool {
	text := err.Error()
	return strings.Contains(text, "ttrpc: closed") || strings.Contains(text, "shim.sock") ||
		strings.Contains(text, "failed to start shim") && strings.Contains(text, "connect")
}

// leftBehind tells that runc has a container of this name which containerd,
// killed in the middle of making it, knows nothing of.
func leftBehind(err error) bool {
	return err != nil && strings.Contains(err.Error(), "container with given ID already exists")
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// resume starts a task that an earlier attempt left behind.
func (r *Runtime) resume(ctx context.Context, id string) error {
	task, err := r.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: id})
	if err != nil {
		return r.wrap("start container", id, err)
	}
	switch task.Process.Status {
	case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		return nil
	case tasktypes.Status_CREATED:
		if _, err := r.tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: id}); err != nil {
			return r.startFailed(ctx, id, err)
		}
		return nil
	}
	return fmt.Errorf("start container %s: it has ended and is not started again", id)
}

// startFailed keeps the reason on the record, so that Status tells it even
// after a restart of ours, unless trying again may help.
func (r *Runtime) startFailed(ctx context.Context, id string, cause error) error {
	wrapped := r.wrap("start container", id, cause)
	if errors.Is(wrapped, runtime.ErrUnavailable) || errors.Is(wrapped, runtime.ErrNotFound) || ctx.Err() != nil {
		return wrapped
	}
	reason := startReason(native(cause))
	if err := r.mark(ctx, id, labelFailure, reason[:min(len(reason), maxFailure)]); err != nil {
		r.log.Warn("reason of a failed start not kept", "container", id, "error", err)
	}
	if err := r.deleteTask(ctx, id); err != nil {
		r.log.Warn("failed task not removed", "container", id, "error", err)
	}
	return fmt.Errorf("start container %s: %s", id, reason)
}

// startReason cuts a chain of errors from runc down to what a user can act on.
func startReason(err error) string {
	text := strings.TrimSpace(err.Error())
	text = strings.TrimSuffix(text, ": unknown")
	for _, noise := range []string{"unable to start container process: ", "runc create failed: ", "OCI runtime create failed: ", "failed to create shim task: ", "failed to create shim: "} {
		if _, rest, found := strings.Cut(text, noise); found {
			return rest
		}
	}
	return text
}

// Kill implements runtime.Runtime.
func (r *Runtime) Kill(ctx context.Context, id, name string) error {
	number, err := signal.ParseSignal(name)
	if err != nil {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	_, err = r.tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: id, Signal: uint32(number), All: number == unix.SIGKILL})
	if err == nil {
		return nil
	}
	if !notFound(err) && !ended(err) {
		return r.wrap("kill container", id, err)
	}
	if _, err := r.recall(ctx, id); err != nil {
		return r.wrap("kill container", id, err)
	}
	return nil
}

// ended recognises what runc says to a signal for a process that is no more.
func ended(err error) bool {
	known := native(err)
	text := known.Error()
	return strings.Contains(text, "already finished") || strings.Contains(text, "container not running") ||
		strings.Contains(text, "no such process") || errdefs.IsFailedPrecondition(known) && strings.Contains(text, "stopped")
}

// Delete implements runtime.Runtime.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if err := r.deleteTask(ctx, id); err != nil {
		return r.wrap("delete container", id, err)
	}
	if err := r.snapshots.Remove(ctx, id); err != nil && !notFound(err) {
		return r.wrap("remove the root file system of", id, err)
	}
	if err := r.containers.Delete(ctx, id); err != nil && !notFound(err) {
		return r.wrap("delete container", id, err)
	}
	if err := os.Remove(filepath.Join(r.runDir, id+".stdin")); err != nil && !errors.Is(err, os.ErrNotExist) {
		r.log.Debug("standard input left behind", "container", id, "error", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.known, func(key string, _ *known) bool { return key == id })
	return nil
}

// deleteTask ends and removes a container's process.
func (r *Runtime) deleteTask(ctx context.Context, id string) error {
	task, err := r.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: id})
	if notFound(err) {
		return r.endOrphan(ctx, id)
	}
	if err != nil {
		return err
	}
	if task.Process.Status != tasktypes.Status_STOPPED {
		if err := r.killAndWait(ctx, id); err != nil {
			return err
		}
	}
	if _, err = r.tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id}); err != nil && !notFound(err) {
		return err
	}
	return r.endNotedShims(ctx, id)
}

func (r *Runtime) killAndWait(ctx context.Context, id string) error {
	_, err := r.tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true})
	if err != nil && !notFound(err) && !ended(err) {
		return err
	}
	_, err = r.tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: id})
	if notFound(err) {
		return nil
	}
	return err
}

// Update implements runtime.Runtime.
func (r *Runtime) Update(ctx context.Context, id string, to runtime.Resources) error {
	encoded, err := typeurl.MarshalAnyToProto(resources(to))
	if err != nil {
		return fmt.Errorf("update container %s: %w", id, err)
	}
	if _, err := r.tasks.Update(ctx, &tasksapi.UpdateTaskRequest{ContainerID: id, Resources: encoded}); err != nil {
		return r.wrap("update container", id, err)
	}
	return nil
}

// Written implements runtime.Runtime.
func (r *Runtime) Written(ctx context.Context, id string) (nodes.DiskUsage, error) {
	used, err := r.snapshots.Usage(ctx, id)
	if err != nil {
		return nodes.DiskUsage{}, r.wrap("measure the root file system of", id, err)
	}
	return nodes.DiskUsage{Bytes: used.Size, Files: used.Inodes}, nil
}

// Usage implements runtime.Runtime; it asks the kernel, not containerd.
func (r *Runtime) Usage(ctx context.Context, id string) (runtime.Usage, error) {
	k, err := r.recall(ctx, id)
	if err != nil {
		return runtime.Usage{}, r.wrap("read the usage of", id, err)
	}
	used, err := r.host.usage(k.cgroup)
	if errors.Is(err, os.ErrNotExist) {
		return runtime.Usage{}, fmt.Errorf("read the usage of %s: it does not run: %w", id, runtime.ErrNotFound)
	}
	if err != nil {
		return runtime.Usage{}, fmt.Errorf("read the usage of %s: %w", id, err)
	}
	return used, nil
}
