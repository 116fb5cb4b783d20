package keeper

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// killer ends all processes of control groups, those below them included, on
// hierarchies of version 1 and 2.
type killer struct {
	root   string
	v2     bool
	signal unix.Signal
	// procs is where lists of processes are read to: nothing large is allocated
	// on the way to a kill.
	procs []byte
}

func newKiller(root string) (*killer, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(root, &s); err != nil {
		return nil, &os.PathError{Op: "look at control groups", Path: root, Err: err}
	}
	return &killer{root: root, v2: s.Type == unix.CGROUP2_SUPER_MAGIC, signal: unix.SIGKILL, procs: make([]byte, 64<<10)}, nil
}

// hierarchies of version 1 that a pod's groups are in: the agent and the
// runtime make them in every one that is mounted.
var hierarchies = [...]string{"freezer", "pids", "memory", "cpu"}

// kill tells how many processes it found; call it until there are none. It must
// not be called twice at the same time.
func (k *killer) kill(groups []string) (found int, err error) {
	for _, group := range groups {
		n, failed := k.killGroup(group)
		found, err = found+n, errors.Join(err, failed)
	}
	return found, err
}

func (k *killer) killGroup(group string) (found int, err error) {
	if k.v2 {
		dir := filepath.Join(k.root, group)
		found, err := k.signalAll(dir, 0)
		if found == 0 {
			return 0, err
		}
		// At once and with all that is being forked; kernels before 5.14 can't.
		if put(filepath.Join(dir, "cgroup.kill"), "1") == nil {
			return found, nil
		}
		return k.signalAll(dir, k.signal)
	}
	// What is frozen forks no more and gives no number away.
	freezer := filepath.Join(k.root, "freezer", group, "freezer.state")
	frozen := put(freezer, "FROZEN") == nil
	for _, h := range hierarchies {
		n, failed := k.signalAll(filepath.Join(k.root, h, group), k.signal)
		found, err = max(found, n), errors.Join(err, failed)
	}
	if frozen {
		err = errors.Join(err, put(freezer, "THAWED"))
	}
	return found, err
}

// signalAll sends a signal to the processes of a group and of those below.
func (k *killer) signalAll(dir string, signal unix.Signal) (found int, err error) {
	n, err := k.read(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return 0, nil // there is no such group, or none any more
	}
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(k.procs[:n]) {
		pid, failed := strconv.Atoi(string(bytes.TrimSpace(line)))
		if failed != nil || pid <= 0 {
			continue // 0 is a process outside of our namespace
		}
		found++
		if failed := unix.Kill(pid, signal); failed != nil && !errors.Is(failed, unix.ESRCH) {
			err = errors.Join(err, failed)
		}
	}
	below, failed := os.ReadDir(dir)
	if failed != nil && !errors.Is(failed, os.ErrNotExist) {
		err = errors.Join(err, failed)
	}
	for _, entry := range below {
		if !entry.IsDir() {
			continue
		}
		n, failed := k.signalAll(filepath.Join(dir, entry.Name()), signal)
		found, err = found+n, errors.Join(err, failed)
	}
	return found, err
}

// read fills procs with whole lines of a file; what does not fit is found the
// next time. The beginning of a number would be somebody else's.
func (k *killer) read(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	total := 0
	for total < len(k.procs) {
		n, err := unix.Read(fd, k.procs[total:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return total, err
		}
		total += n
	}
	return bytes.LastIndexByte(k.procs, '\n') + 1, nil
}

func put(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(text))
	return err
}
