// Package daemon runs a containerd of one's own, with everything of it below
// one directory, for tests, benchmarks and the demo. It needs root. Whatever
// the daemon started is gone after Stop.
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
)

// startTimeout is how long the daemon may take until it answers.
const startTimeout = 30 * time.Second

// Daemon is a containerd process. Its methods are not safe for concurrent use.
type Daemon struct {
	// Address is the path of its socket, Root where its data is.
	Address, Root string
	// Shims is a directory that the daemon looks through for shims before PATH;
	// it need not exist.
	Shims string

	dir     string
	process *os.Process
	ended   chan struct{}
}

// Start runs a containerd with its things in dir and returns when it answers.
// What an earlier one left in dir is taken up.
func Start(ctx context.Context, dir string) (*Daemon, error) {
	d := &Daemon{dir: dir, Address: filepath.Join(dir, "containerd.sock"), Root: filepath.Join(dir, "root"), Shims: filepath.Join(dir, "shims")}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	// The CRI plugin is Kubernetes' way in, and slow to start.
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n[debug]\n  level = \"warn\"\n",
		d.Root, filepath.Join(dir, "state"), d.Address)
	if err := os.WriteFile(d.config(), []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	return d, d.Restart(ctx)
}

func (d *Daemon) config() string { return filepath.Join(d.dir, "config.toml") }

// PID of the daemon's process.
func (d *Daemon) PID() int { return d.process.Pid }

// Restart starts the daemon again after Kill. Containers live through both.
func (d *Daemon) Restart(ctx context.Context) error {
	output, err := os.OpenFile(filepath.Join(d.dir, "containerd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	defer output.Close()
	command := exec.Command("containerd", "--config", d.config())
	command.Stdout, command.Stderr = output, output
	command.Env = append(os.Environ(), "PATH="+d.Shims+":"+os.Getenv("PATH"))
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start containerd (Debian package containerd): %w", err)
	}
	d.process, d.ended = command.Process, make(chan struct{})
	go func(ended chan struct{}) { defer close(ended); _ = command.Wait() }(d.ended)
	if err := d.await(ctx); err != nil {
		return fmt.Errorf("start containerd: %w (see %s)", err, output.Name())
	}
	return nil
}

func (d *Daemon) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if c, err := client.New(d.Address); err == nil {
			serving, err := c.IsServing(ctx)
			c.Close()
			if err == nil && serving {
				return nil
			}
		}
		select {
		case <-d.ended:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return errors.New("it does not answer")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Kill ends the daemon as a crash would: its shims and containers live on.
func (d *Daemon) Kill() error {
	if err := d.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill containerd: %w", err)
	}
	<-d.ended
	return nil
}

// Stop ends the daemon with all its shims and containers and takes its mounts
// away; dir can be removed afterwards.
func (d *Daemon) Stop() error {
	failure := d.Kill()
	for _, shim := range d.shims() {
		for _, pid := range append(descendants(shim), shim) {
			_ = unix.Kill(pid, unix.SIGKILL) // gone already is as good
		}
	}
	return errors.Join(failure, unmountBelow(d.dir))
}

// shims finds the shim processes that serve this daemon.
func (d *Daemon) shims() []int {
	var pids []int
	for pid, args := range processes() {
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && slices.Contains(args, d.Address) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processes maps process ids to command lines.
func processes() map[int][]string {
	found := map[int][]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	for _, file := range dirs {
		text, err := os.ReadFile(file)
		pid, convErr := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil && convErr == nil && len(text) > 0 {
			found[pid] = strings.Split(string(bytes.TrimRight(text, "\x00")), "\x00")
		}
	}
	return found
}

// descendants of a process, as far as it still has them.
func descendants(pid int) []int {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	var all []int
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}

// unmountBelow takes away all mounts below a directory, the innermost first.
func unmountBelow(dir string) error {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			points = append(points, fields[1])
		}
	}
	slices.Reverse(points)
	var failures []error
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			failures = append(failures, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(failures...)
}
