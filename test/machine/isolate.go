// Package machine gives a test a machine of its own: namespaces for network,
// mounts, processes and control groups that vanish with everything in them when
// the test ends, a real containerd, a real registry, and the built tally binary to
// run on it. Tests of several packages run beside each other.
//
// It makes no assertion about Tallyman; it starts, stops and looks.
package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stage tells a re-executed test binary which of its three lives it leads.
const stage = "TALLY_TEST_STAGE"

// Main runs the tests of a package in namespaces of their own. A first process
// stays outside and waits; a second is the first process of the namespaces and
// reaps what is orphaned there; the third runs the tests. When the second ends,
// the kernel ends everything that was started inside. Call it from TestMain.
func Main(m *testing.M) {
	switch os.Getenv(stage) {
	case "":
		os.Exit(outside())
	case "init":
		os.Exit(inside())
	}
	os.Unsetenv(stage)
	if err := mountGroups(); err != nil {
		fmt.Fprintln(os.Stderr, "mount the control groups of the tests:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Outside tells that this process is the one outside of the namespaces: it alone
// has the outer machine's network, to fetch what the tests need before Main.
func Outside() bool { return os.Getenv(stage) == "" }

func outside() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make containers and network namespaces: run them as root")
		return 1
	}
	cmd := again("init")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWPID,
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		Pdeathsig:    syscall.SIGKILL,
	}
	cmd.Env = append(cmd.Env, runVariable+"="+strconv.Itoa(os.Getpid()))
	sweepEnded()
	code := wait(cmd)
	sweepGroups(strconv.Itoa(os.Getpid()))
	return code
}

// sweepEnded takes the groups away of tests that were killed before they could.
func sweepEnded() {
	for _, dir := range groupsOf("*") {
		run, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), groupPrefix), "-")
		if _, err := os.Stat("/proc/" + run); errors.Is(err, fs.ErrNotExist) {
			_ = RemoveGroup(dir) // unless somebody is still in it
		}
	}
}

// runVariable names the run: the outermost process's id.
const runVariable = "TALLY_TEST_RUN"

// GroupName is a name for a control group directly below the root of its hierarchy
// that is taken away, if it is left, when the tests have ended.
func GroupName(name string) string { return groupName(os.Getenv(runVariable), name) }

const groupPrefix = "tally-test-"

func groupName(run, name string) string { return groupPrefix + run + "-" + name }

// sweepGroups takes the groups away that a test left that ended half-way. All
// processes in them have ended.
func sweepGroups(run string) {
	for _, dir := range groupsOf(run) {
		if err := RemoveGroup(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func groupsOf(run string) []string {
	left, _ := filepath.Glob("/sys/fs/cgroup/*/" + groupName(run, "*"))
	unified, _ := filepath.Glob("/sys/fs/cgroup/" + groupName(run, "*"))
	return append(left, unified...)
}

// RemoveGroup takes a control group and all below it away. It fails while one
// of them has a process.
func RemoveGroup(dir string) error {
	var below []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			below = append(below, path)
		}
		return nil // another one may end meanwhile
	})
	if err != nil {
		return err
	}
	slices.Reverse(below)
	for _, path := range below {
		if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}

// inside prepares the namespaces, runs the tests and reaps orphans.
func inside() int {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare the test's namespaces:", err)
		return 1
	}
	if err := enterGroups(); err != nil {
		fmt.Fprintln(os.Stderr, "make control groups for the tests:", err)
		return 1
	}
	cmd := again("tests")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWCGROUP}
	signal.Ignore(syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "wait:", err)
			return 1
		}
		if pid == cmd.Process.Pid {
			if status.Signaled() {
				return 128 + int(status.Signal())
			}
			return status.ExitStatus()
		}
	}
}

// prepare mounts what belongs to the new namespaces and raises loopback.
func prepare() error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Machines of their own have a run directory of their own, too.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(lo)
}

// enterGroups makes control groups for the tests and all that they start, and moves
// this process into them. They weigh as much as several programs of the outer
// machine's, for so many are in them.
func enterGroups() error {
	groups, err := NewGroups("all", os.Getpid())
	if err != nil {
		return err
	}
	weights := map[string]string{"cpu.shares": "8192", "cpu.weight": "800"} // eight programs', by versions 1 and 2
	for _, dir := range groups {
		for file, weight := range weights {
			path := filepath.Join(dir, file)
			if _, err := os.Stat(path); err != nil {
				continue // the processor is another hierarchy's
			}
			if err := os.WriteFile(path, []byte(weight), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// mountGroups shows the tests these groups only.
func mountGroups() error {
	all, err := Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if err := unix.Unmount(h.Point, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("leave the outer %s: %w", h.Point, err)
		}
		if err := h.MountOwn(0, 1); err != nil {
			return err
		}
	}
	return nil
}

func again(life string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stage+"="+life)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

func wait(cmd *exec.Cmd) int {
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
