package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/spf13/pflag"
)

// instance holds what every long-running command knows of itself.
type instance struct {
	dataDir    string
	runDir     string
	containerd string
	logLevel   string
	logFormat  string
}

func (i *instance) addFlags(f *pflag.FlagSet) {
	f.StringVar(&i.dataDir, "data-dir", "/var/lib/tallyman", "where state is kept")
	f.StringVar(&i.runDir, "run-dir", "/run/tallyman", "where sockets and mounts are made")
	f.StringVar(&i.containerd, "containerd", "/run/containerd/containerd.sock", "containerd's socket")
	f.StringVar(&i.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&i.logFormat, "log-format", "text", "text or json")
}

func (i *instance) socket() string { return filepath.Join(i.runDir, "tally.sock") }
func (i *instance) token() string  { return filepath.Join(i.runDir, "token") }

// logger writes to standard error: standard output is for data.
func (i *instance) logger() (*slog.Logger, error) { return i.loggerTo(os.Stderr) }

func (i *instance) loggerTo(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(i.logLevel)); err != nil {
		return nil, usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", i.logLevel)}
	}
	options := &slog.HandlerOptions{Level: level}
	switch i.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, usageError{fmt.Errorf("--log-format %q: want text or json", i.logFormat)}
}

// absolute makes the directories' paths independent of the working directory:
// the keeper and the hooks outlive it.
func (i *instance) absolute() error {
	for _, dir := range []*string{&i.dataDir, &i.runDir} {
		full, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = full
	}
	return nil
}

// makeDirs makes the data and run directories. The group tally may enter both:
// it may push by path and speak to the socket.
func (i *instance) makeDirs() error {
	for _, dir := range []string{i.dataDir, i.runDir} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		if err := shareWithGroup(dir, 0o750); err != nil {
			return err
		}
	}
	return nil
}

// group is whose members may push and look, where it exists.
const group = "tally"

// shareWithGroup gives path the mode, and the group tally if there is one.
func shareWithGroup(path string, mode os.FileMode) error {
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	g, err := user.LookupGroup(group)
	if errors.As(err, new(user.UnknownGroupError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up group %s: %w", group, err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	return os.Chown(path, -1, gid)
}

// lock keeps a second process off the data directory. The lock goes with the process.
func (i *instance) lock() (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(i.dataDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("another tally runs on %s: end it first, or give this one its own --data-dir and --run-dir", i.dataDir)
	}
	return file, nil
}
