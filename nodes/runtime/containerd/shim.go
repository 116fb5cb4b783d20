package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"golang.org/x/sys/unix"
)

// A shim ends when containerd asks it to, with its last container. Of a container
// that containerd has forgotten it is never told, and so it would stay for ever.

// endShims ends the shims of a forgotten container, or notes that they are to be
// ended later, when they serve other containers of its pod. The caller holds the
// pod's lock.
func (r *Runtime) endShims(ctx context.Context, id, pod string) error {
	served, err := r.servesOthers(ctx, id, pod)
	if err != nil {
		return err
	}
	if served {
		return r.noteForgetful(pod)
	}
	for {
		found, err := r.findShims(id, pod)
		if err != nil {
			return fmt.Errorf("look for the shim of container %s: %w", id, err)
		}
		if len(found) == 0 {
			return r.removeNote(pod)
		}
		for _, pid := range found {
			r.log.Warn("ending a shim that serves no container", "container", id, "pid", pid)
			if err := endShim(ctx, pid); err != nil {
				return err
			}
		}
	}
}

// endNotedShims ends the shims of a pod that has lost its last container, if it
// once had one that containerd forgot.
func (r *Runtime) endNotedShims(ctx context.Context, id string) error {
	k, err := r.recall(ctx, id)
	if notFound(err) || err == nil && k.pod == "" {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(r.note(k.pod)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r.shims.Lock(k.pod)
	defer r.shims.Unlock(k.pod)
	return r.endShims(ctx, id, k.pod)
}

// note is the file that says of a pod that its shim may have to be ended. It
// outlives this process, as the shim does, and a reboot as little.
func (r *Runtime) note(pod string) string {
	return filepath.Join(r.runDir, r.socketName(pod)+".forgetful")
}

func (r *Runtime) noteForgetful(pod string) error {
	if err := r.ensureRunDir(); err != nil {
		return err
	}
	if err := os.WriteFile(r.note(pod), nil, 0o600); err != nil {
		return fmt.Errorf("note that a shim is to be ended: %w", err)
	}
	return nil
}

func (r *Runtime) removeNote(pod string) error {
	if err := os.Remove(r.note(pod)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the note that a shim is to be ended: %w", err)
	}
	return nil
}

// servesOthers tells that containerd has a task of another container of the pod.
func (r *Runtime) servesOthers(ctx context.Context, id, pod string) (bool, error) {
	if pod == "" {
		return false, nil
	}
	records, err := r.containers.List(ctx, fmt.Sprintf("labels.%q==%q", labelPod, pod))
	if err != nil {
		return false, err
	}
	for _, record := range records {
		if record.ID == id {
			continue
		}
		_, err := r.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: record.ID})
		if err == nil || !notFound(err) {
			return true, err
		}
	}
	return false, nil
}

// findShims finds the shims that were started for a container of ours, and those
// that serve its pod. The pod's may have been started for a container that is
// long gone: it is known by its socket.
func (r *Runtime) findShims(id, pod string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	sockets, err := inodesOf(r.socketName(defaultTo(pod, id)))
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !bytes.Contains(line, []byte("containerd-shim")) {
			continue
		}
		args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		ours := strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") &&
			argument(args, "-namespace") == r.namespace && argument(args, "-address") == r.address
		if ours && (argument(args, "-id") == id || holdsAny(pid, sockets)) {
			found = append(found, pid)
		}
	}
	return found, nil
}

// argument is the value that follows a flag.
func argument(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 && i+1 < len(args) {
		return args[i+1]
	}
	return ""
}

// socketName is what containerd names the socket of a group's shim: see
// SocketAddress in its package shim.
func (r *Runtime) socketName(group string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(filepath.Join(r.address, r.namespace, group))))
}

// inodesOf are the kernel's numbers of the sockets of this name, in whatever
// directory, as links in /proc/PID/fd show them.
func inodesOf(name string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/net/unix")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		// Num RefCount Protocol Flags Type St Inode Path
		if fields := strings.Fields(line); len(fields) == 8 && filepath.Base(fields[7]) == name {
			found = append(found, "socket:["+fields[6]+"]")
		}
	}
	return found, nil
}

// holdsAny tells that a process has one of the sockets open.
func holdsAny(pid int, sockets []string) bool {
	if len(sockets) == 0 {
		return false
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(files, func(file string) bool {
		target, err := os.Readlink(file)
		return err == nil && slices.Contains(sockets, target)
	})
}

// endShim lets a shim reap its children and ends it. What it still has then is
// runc, at work on a container that nobody waits for.
func endShim(ctx context.Context, pid int) error {
	reaping, cancel := context.WithTimeout(ctx, reapPatience)
	defer cancel()
	for len(childrenOf(pid)) > 0 && pause(reaping, reapInterval) == nil {
	}
	for _, child := range childrenOf(pid) {
		_ = unix.Kill(child, unix.SIGKILL) // gone already is as good
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end shim %d: %w", pid, err)
	}
	ending, cancel := context.WithTimeout(ctx, orphanPatience)
	defer cancel()
	for running(pid) {
		if err := pause(ending, reapInterval); err != nil {
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

func childrenOf(pid int) []int {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	var all []int
	for _, file := range files {
		text, _ := os.ReadFile(file) // of a thread that ended
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}
