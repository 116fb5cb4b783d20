package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stop removes everything that a demo made, however far it came. It is also
// what start begins with.
func (d *demo) stop(ctx context.Context) error {
	if _, err := os.Stat(d.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := d.end("tally")
	// Containers, network and rules go with the help of their containerd.
	if _, missing := os.Stat(d.path("data")); missing == nil {
		if !d.runs("containerd") {
			err = errors.Join(err, d.startContainerd(ctx))
		}
		err = errors.Join(err, d.command(ctx, d.dir, d.tally, d.tallyArgs("reset", "--delete-volumes", "--containerd", d.socket("containerd.sock"))...))
	}
	err = errors.Join(err, d.end("registry"), d.end("containerd"))
	if err != nil {
		return err
	}
	if err := unmountBelow(d.run, d.dir); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(d.run), os.RemoveAll(d.dir))
}

// unmountBelow takes away every mount below the directories, the deepest
// first: what is mounted there would otherwise be deleted with them.
func unmountBelow(dirs ...string) error {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		for _, dir := range dirs {
			if fields[1] != dir && !strings.HasPrefix(fields[1], dir+"/") {
				continue
			}
			if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", fields[1], err)
			}
		}
	}
	return nil
}
