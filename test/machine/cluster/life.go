package cluster

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bootVariable tells a re-executed test binary to be the first process of a
// machine, and which.
const bootVariable = "TALLY_TEST_BOOT"

// running is what the first process says when the machine is up.
const running = "running\n"

// bootOptions describe the machine to its first process.
type bootOptions struct {
	Name, Dir, Address, Gateway string
	// Boots counts this one.
	Boots int
}

// A machine's first process runs on its first thread: others enter the
// namespaces of that thread, and the clocks of /proc/self are its own.
func init() {
	if os.Getenv(bootVariable) != "" {
		runtime.LockOSThread()
	}
}

// live is the first process of a machine: it makes the machine's world, says
// that it runs, and reaps what is orphaned there until it is killed.
func live(text string) int {
	var o bootOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Println(err)
		return 1
	}
	os.Unsetenv(bootVariable)
	// Cable and control groups are there when the test says so.
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return 1
	}
	if err := errors.Join(o.divide(), o.mount(), o.name(), o.connect()); err != nil {
		fmt.Println(strings.ReplaceAll(err.Error(), "\n", "; "))
		return 1
	}
	fmt.Print(running)
	reap()
	return 0
}

func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for range children {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
}

// divide makes the namespaces that only a process itself can make.
func (o bootOptions) divide() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a namespace for control groups: %w", err)
	}
	// A clock that begins with every boot: whoever keeps its readings is found out.
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("make a namespace for the clocks: %w", err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return err
	}
	var monotonic unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &monotonic); err != nil {
		return err
	}
	const begin = 10 // seconds that a boot takes
	offsets := fmt.Sprintf("monotonic %d 0\nboottime %d 0\n", begin-monotonic.Sec, begin-now.Sec)
	if err := os.WriteFile("/proc/self/timens_offsets", []byte(offsets), 0); err != nil {
		return fmt.Errorf("set the clocks: %w", err)
	}
	return nil
}

// layered are the folders that begin as the outer machine's, with their names
// on the disk.
var layered = []string{"etc", "root", "usr/local"}

func (o bootOptions) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leave the outer mounts: %w", err)
	}
	if err := errors.Join(
		mount("proc", "/proc", "proc", 0, ""),
		mountGroups(),
		mount(filepath.Join(o.Dir, "disk/lib"), "/var/lib", "", unix.MS_BIND, ""),
	); err != nil {
		return err
	}
	for _, dir := range layered {
		options := fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", dir,
			filepath.Join(o.Dir, "disk", filepath.Base(dir)), filepath.Join(o.Dir, "work", dir))
		if err := mount("overlay", "/"+dir, "overlay", 0, options); err != nil {
			return err
		}
	}
	if err := o.mountDisk(); err != nil {
		return err
	}
	// The last one, for o.Dir is below it.
	if err := mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	if err := mountBootID(o.Boots); err != nil {
		return err
	}
	// As under systemd: mounts of containers and of tally see each other.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// mountBootID gives every boot an identity of its own, which the kernel does
// not, for it did not start again.
func mountBootID(boots int) error {
	outer, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return err
	}
	file := fmt.Sprintf("/run/boot-%d", boots)
	if err := os.WriteFile(file, outer, 0o444); err != nil {
		return err
	}
	return mount(file, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, "")
}

func (o bootOptions) name() error { return unix.Sethostname([]byte(o.Name)) }

// connect gives the machine's end of the cable its address.
func (o bootOptions) connect() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	end, err := netlink.LinkByName(interfaceName)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(o.Address + "/24")
	if err != nil {
		return err
	}
	gateway, err := netlink.ParseAddr(o.Gateway + "/32")
	if err != nil {
		return err
	}
	return errors.Join(
		netlink.LinkSetUp(lo), netlink.AddrAdd(end, addr), netlink.LinkSetUp(end),
		netlink.RouteAdd(&netlink.Route{Gw: gateway.IP}),
	)
}

// dataDir is where tally keeps its data.
const dataDir = "/var/lib/tallyman"

// diskFile holds a disk of its own for tally's data, where there is one.
func diskFile(dir string) string { return filepath.Join(dir, "data.img") }

func (o bootOptions) mountDisk() error {
	if _, err := os.Stat(diskFile(o.Dir)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if out, err := exec.Command("mount", "-o", "loop", diskFile(o.Dir), dataDir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount the data disk: %w: %s", err, out)
	}
	return nil
}
