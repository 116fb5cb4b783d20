package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/test/machine"
)

const groupRoot = "/sys/fs/cgroup"

// hierarchy of control groups, as it is mounted.
type hierarchy struct {
	point string
	// options of version 1, which name the hierarchy; empty for version 2.
	options string
}

func (h hierarchy) unified() bool { return h.options == "" }

// hierarchies that are mounted here.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	var found []hierarchy
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 3 || !strings.HasPrefix(kind[0], "cgroup") {
			continue
		}
		h := hierarchy{point: fields[4]}
		if kind[0] == "cgroup" {
			options := slices.DeleteFunc(strings.Split(kind[2], ","), func(o string) bool {
				return o == "rw" || o == "xattr" || o == "clone_children" || strings.HasPrefix(o, "release_agent=")
			})
			if strings.HasPrefix(options[0], "name=") {
				options = append([]string{"none"}, options...)
			}
			h.options = strings.Join(options, ",")
		}
		found = append(found, h)
	}
	if len(found) == 0 {
		return nil, errors.New("no control groups are mounted")
	}
	return found, nil
}

// groups are a machine's: one in each hierarchy, which is the root of what the
// machine sees.
type groups []string

// newGroups makes a machine's groups and puts its first process there.
func newGroups(name string, pid int) (groups, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var made groups
	for _, h := range all {
		if h.unified() {
			if err := passOn(h.point); err != nil {
				return made, err
			}
		}
		dir := filepath.Join(h.point, machine.GroupName(name))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return made, err
		}
		made = append(made, dir)
		if err := inherit(h.point, dir); err != nil {
			return made, err
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return made, err
		}
	}
	return made, nil
}

// passOn lets the groups below a group of version 2 have its controllers.
func passOn(dir string) error {
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for c := range strings.FieldsSeq(string(controllers)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("pass on controller %s: %w", c, err)
		}
	}
	return nil
}

// inherit fills in what a new cpuset of version 1 lacks.
func inherit(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		content, err := os.ReadFile(filepath.Join(parent, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), content, 0); err != nil {
			return err
		}
	}
	return nil
}

// remove takes the groups away after everything in them has ended.
func (g groups) remove() error {
	var failures []error
	for _, dir := range g {
		failures = append(failures, machine.RemoveGroup(dir))
	}
	return errors.Join(failures...)
}

// processGroup is where the machine's own programs are, below its root.
const processGroup = "machine"

// mountGroups shows the machine its own groups only, with its own /sys, and puts this
// process into one of them.
func mountGroups() error {
	all, err := hierarchies()
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
	if all[0].point != groupRoot {
		if err := mount("tmpfs", groupRoot, "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	for _, h := range all {
		if err := mountGroup(h); err != nil {
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

func mountGroup(h hierarchy) error {
	if h.point != groupRoot {
		if err := os.MkdirAll(h.point, 0o755); err != nil {
			return err
		}
	}
	kind := "cgroup"
	if h.unified() {
		kind = "cgroup2"
	}
	if err := mount(kind, h.point, kind, 0, h.options); err != nil {
		return err
	}
	own := filepath.Join(h.point, processGroup)
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	if err := inherit(h.point, own); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("0"), 0); err != nil {
		return err
	}
	if h.unified() {
		return passOn(h.point)
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
