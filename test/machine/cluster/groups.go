package cluster

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/test/machine"
)

const groupRoot = "/sys/fs/cgroup"

// mountGroups shows the machine its own groups only, with its own /sys, and puts this
// process into one of them.
func mountGroups() error {
	all, err := machine.Hierarchies()
	if err != nil {
		return err
	}
	links, err := groupLinks()
	if err != nil {
		return err
	}
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the outer /sys: %w", err)
	}
	if err := mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return err
	}
	if all[0].Point != groupRoot {
		if err := mount("tmpfs", groupRoot, "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range all {
		if h.Point != groupRoot {
			if err := os.MkdirAll(h.Point, 0o755); err != nil {
				return err
			}
		}
		if err := h.MountOwn(0); err != nil {
			return err
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(groupRoot, name)); err != nil {
			return err
		}
	}
	return nil
}

// groupLinks are the other names of hierarchies.
func groupLinks() (map[string]string, error) {
	entries, err := os.ReadDir(groupRoot)
	if err != nil {
		return nil, err
	}
	links := map[string]string{}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		if links[e.Name()], err = os.Readlink(filepath.Join(groupRoot, e.Name())); err != nil {
			return nil, err
		}
	}
	return links, nil
}
