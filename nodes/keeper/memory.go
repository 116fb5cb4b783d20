package keeper

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// hardy makes the keeper depend on as little as it can while it holds fences:
// its memory stays where it is, and others go first when memory is short.
type hardy struct {
	log *slog.Logger
	dir string
}

// prepare locks the memory in use, and what comes to be used, and goes the way
// to a kill once, so that no page of it need be read from a disk at the end.
// Pages that are never used are not locked: they are most of the program.
func (h hardy) prepare() {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		h.log.Warn("memory is not locked: a kill may wait for a disk", "error", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0o644); err != nil {
		h.log.Warn("the keeper is not spared when memory is short", "error", err)
	}
	if err := h.rehearse(); err != nil {
		h.log.Warn("rehearse a kill", "error", err)
	}
}

// rest lets the memory go again.
func (h hardy) rest() {
	if err := unix.Munlockall(); err != nil {
		h.log.Warn("memory stays locked", "error", err)
	}
}

// rehearse kills with signal 0, which does nothing, the only process of
// something that looks like groups: this one.
func (h hardy) rehearse() error {
	dir, err := os.MkdirTemp(h.dir, "rehearsal")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	self := []byte(strconv.Itoa(os.Getpid()) + "\n")
	for path, content := range map[string][]byte{
		"freezer/a/freezer.state": nil, "freezer/a/b/cgroup.procs": self, "freezer/a/cgroup.procs": self,
		"v2/a/cgroup.procs": self, "v2/a/cgroup.kill": nil,
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
	}
	buffer := make([]byte, 4096)
	first, err := (&killer{root: dir, procs: buffer}).kill([]string{"/a"})
	second, failed := (&killer{root: filepath.Join(dir, "v2"), v2: true, procs: buffer}).kill([]string{"/a"})
	if err := errors.Join(err, failed); err != nil || first != 2 || second != 1 {
		return fmt.Errorf("found %d and %d processes: %w", first, second, err)
	}
	return nil
}
