package containerd

import (
	"context"
	"errors"
	"slices"
	"strings"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

const (
	// exitKilled is what a process that was killed exits with; also said of one
	// of which nothing is left to ask.
	exitKilled = 128 + int32(unix.SIGKILL)
	// exitNotStarted is what Kubernetes' runtimes say of one that could not be started.
	exitNotStarted = 128
)

// List implements runtime.Runtime.
func (r *Runtime) List(ctx context.Context) ([]runtime.Status, error) {
	// Tasks first: a container made in between then shows as created, not as gone.
	tasks, err := r.tasks.List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, r.wrap("list", "tasks", err)
	}
	byID := make(map[string]*tasktypes.Process, len(tasks.Tasks))
	for _, task := range tasks.Tasks {
		byID[task.ID] = task
	}
	records, err := r.containers.List(ctx, ours)
	if err != nil {
		return nil, r.wrap("list", "containers", err)
	}
	list := make([]runtime.Status, 0, len(records))
	for _, record := range records {
		task := byID[record.ID]
		if task == nil && triedToStart(record) {
			status, err := r.Status(ctx, record.ID)
			if errors.Is(err, runtime.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			list = append(list, status)
			continue
		}
		list = append(list, r.status(record, task))
	}
	slices.SortFunc(list, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// triedToStart tells of a record without a task that the task has ended, or is
// about to be made: Start notes the attempt while containerd makes the task.
func triedToStart(record containers.Container) bool {
	return record.Labels[labelStarted] != "" && record.Labels[labelFailure] == ""
}

// Status implements runtime.Runtime. A container whose task is missing has not
// ended while a start is under way, nor when one was since we began to ask.
func (r *Runtime) Status(ctx context.Context, id string) (runtime.Status, error) {
	for {
		before, _ := r.starts(id)
		record, err := r.containers.Get(ctx, id)
		if err != nil {
			return runtime.Status{}, r.wrap("look at container", id, err)
		}
		task, err := r.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: id})
		if err == nil {
			return r.status(record, task.Process), nil
		}
		if !notFound(err) {
			return runtime.Status{}, r.wrap("look at container", id, err)
		}
		begun, underWay := r.starts(id)
		if underWay && triedToStart(record) {
			delete(record.Labels, labelStarted)
		}
		if underWay || begun == before {
			return r.status(record, nil), nil
		}
	}
}

// status puts record and task (nil when there is none) together.
func (r *Runtime) status(record containers.Container, task *tasktypes.Process) runtime.Status {
	labels := record.Labels
	s := runtime.Status{
		ID: record.ID, Pod: labels[labelPod], Labels: theirs(labels), Image: labels[labelImage], ImageID: labels[labelImageID],
		State: runtime.Created, Created: record.CreatedAt.UTC(), Message: labels[labelFailure],
	}
	switch {
	case s.Message != "":
		s.State, s.ExitCode, s.Finished = runtime.Exited, exitNotStarted, record.UpdatedAt.UTC()
	case task == nil && labels[labelStarted] != "":
		s.State, s.ExitCode, s.Started = runtime.Exited, exitKilled, startedAt(labels)
	case task != nil:
		r.addTask(&s, record, task)
	}
	return s
}

func (r *Runtime) addTask(s *runtime.Status, record containers.Container, task *tasktypes.Process) {
	switch task.Status {
	case tasktypes.Status_CREATED:
		return
	case tasktypes.Status_STOPPED:
		s.State, s.ExitCode = runtime.Exited, int32(task.ExitStatus)
		s.Finished = task.ExitedAt.AsTime()
		// The cgroup stays until the task is deleted and has counted the killer's strikes.
		s.OOMKilled = s.ExitCode == exitKilled && r.host.oomKilled(record.Labels[labelCgroup])
	case tasktypes.Status_UNKNOWN:
		// The shim does not answer; the kernel does.
		if task.Pid == 0 || errors.Is(unix.Kill(int(task.Pid), 0), unix.ESRCH) {
			s.State, s.ExitCode = runtime.Exited, exitKilled
			break
		}
		fallthrough
	default:
		s.State, s.PID = runtime.Running, int(task.Pid)
	}
	s.Started = startedAt(record.Labels)
}
