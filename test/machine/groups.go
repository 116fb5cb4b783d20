package machine

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
)

// Hierarchy of control groups, as it is mounted.
type Hierarchy struct {
	Point string
	// options of version 1, which name the hierarchy; empty for version 2.
	options string
	// alone is set when there is no other one, which is then of version 2. Beside
	// version 1 its groups get no controllers: one that they have nobody else can
	// mount.
	alone bool
}

func (h Hierarchy) unified() bool { return h.options == "" }

// Hierarchies that are mounted here.
func Hierarchies() ([]Hierarchy, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	var found []Hierarchy
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 3 || !strings.HasPrefix(kind[0], "cgroup") {
			continue
		}
		h := Hierarchy{Point: fields[4]}
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
	found[0].alone = len(found) == 1 && found[0].unified()
	return found, nil
}

// Groups are a machine's: one in each hierarchy, which is the root of what the
// machine sees.
type Groups []string

// NewGroups makes a machine's groups and puts its first process there.
func NewGroups(name string, pid int) (Groups, error) {
	all, err := Hierarchies()
	if err != nil {
		return nil, err
	}
	var made Groups
	for _, h := range all {
		if h.alone {
			if err := passOn(h.Point); err != nil {
				return made, err
			}
		}
		dir := filepath.Join(h.Point, GroupName(name))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return made, err
		}
		made = append(made, dir)
		if err := inherit(h.Point, dir); err != nil {
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

// Remove takes the groups away after everything in them has ended.
func (g Groups) Remove() error {
	var failures []error
	for _, dir := range g {
		failures = append(failures, RemoveGroup(dir))
	}
	return errors.Join(failures...)
}

// ProcessGroup is where a machine's own programs are, below its root.
const ProcessGroup = "machine"

// MountOwn mounts a hierarchy where it was, so that its root is the group that
// this process's namespace began with, and moves processes of the machine from
// there: containers' groups are beside theirs. Process 0 is this one.
func (h Hierarchy) MountOwn(pids ...int) error {
	kind := "cgroup"
	if h.unified() {
		kind = "cgroup2"
	}
	if err := unix.Mount(kind, h.Point, kind, 0, h.options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, h.Point, err)
	}
	own := filepath.Join(h.Point, ProcessGroup)
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	if err := inherit(h.Point, own); err != nil {
		return err
	}
	for _, pid := range pids {
		if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return err
		}
	}
	if h.alone {
		return passOn(h.Point)
	}
	return nil
}
