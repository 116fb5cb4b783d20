package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// spawn starts a program that outlives the demo command, its output in a log,
// and writes down who it is.
func (d *demo) spawn(name string, args ...string) error {
	log, err := os.Create(d.path(name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return d.note(name, cmd.Process.Pid)
}

// runs reports whether a program that was noted is still there.
func (d *demo) runs(name string) bool {
	pid, identity, err := d.noted(name)
	if err != nil {
		return false
	}
	now, err := processStart(pid)
	return err == nil && now == identity
}

// noted reads what note wrote.
func (d *demo) noted(name string) (pid int, identity string, err error) {
	content, err := os.ReadFile(d.path(name + ".pid"))
	if err != nil {
		return 0, "", err
	}
	number, identity, _ := strings.Cut(strings.TrimSpace(string(content)), " ")
	if pid, err = strconv.Atoi(number); err != nil {
		return 0, "", fmt.Errorf("%s.pid: %w", name, err)
	}
	return pid, identity, nil
}

// end stops a program that spawn started, and no other that has its number now.
func (d *demo) end(name string) error {
	pid, _, err := d.noted(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if !d.runs(name) {
			break
		}
		if err := syscall.Kill(pid, signal); err != nil {
			return err
		}
		if poll(15*time.Second, func() error {
			if d.runs(name) {
				return errors.New("still running")
			}
			return nil
		}) == nil {
			break
		}
	}
	return os.Remove(d.path(name + ".pid"))
}

// processStart gives the instant at which a process started, in the kernel's
// ticks: with the number it identifies the process. A zombie has ended.
func processStart(pid int) (string, error) {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	// The name in parentheses may hold anything; the fields count from behind it.
	fields := strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return "", fs.ErrNotExist
	}
	return fields[19], nil
}

// poll tries until it works or the time is over; the last error is the answer.
func poll(patience time.Duration, try func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// command runs a program to its end, its output on ours.
func (d *demo) command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return nil
}
