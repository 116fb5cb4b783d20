//go:build e2e

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/daemon"
)

// quiet waits until agent and server have written down what they know, which
// they do within a second: what was learned in the instant before a crash of
// the machine, or the loss of the other one's file, is lost.
func (c *cluster) quiet() {
	c.t.Helper()
	for _, file := range []string{"agent/agent.db", "server/observed.db"} {
		c.Eventually(patience, file+" is quiet", func() error {
			info, err := os.Stat(filepath.Join(c.DataDir, file))
			if err == nil && time.Since(info.ModTime()) < 1200*time.Millisecond {
				err = fmt.Errorf("written at %s", info.ModTime())
			}
			return err
		})
	}
}

// reboot ends everything as a machine does that loses its power, and starts
// what an init system would: containerd, not tally.
func (c *cluster) reboot() {
	c.t.Helper()
	c.quiet()
	c.Kill()
	if pid, err := c.keeperPID(); err != nil {
		c.t.Error(err)
	} else if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		c.t.Error(err)
	}
	if err := c.Containerd.Stop(); err != nil {
		c.t.Fatal(err)
	}
	// What lies on tmpfs, and what the kernel holds, is gone.
	unmountBelow(c.t, c.RunDir)
	for _, dir := range []string{c.RunDir, filepath.Join(filepath.Dir(c.Containerd.Address), "state")} {
		if err := os.RemoveAll(dir); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, table := range []string{"nat", "filter", "mangle"} {
		command(c.t, "iptables", "-t", table, "-F")
		command(c.t, "iptables", "-t", table, "-X")
	}
	if hub, err := netlink.LinkByName(bridge); err != nil {
		c.t.Error(err)
	} else if err := netlink.LinkDel(hub); err != nil {
		c.t.Error(err)
	}
	newBoot(c.t)
	d, err := daemon.Start(context.Background(), filepath.Dir(c.Containerd.Address))
	if err != nil {
		c.t.Fatal(err)
	}
	*c.Containerd = *d
}

// unmountBelow takes all mounts below a directory away, the innermost first.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		fields := strings.Fields(lines[i])
		if len(fields) > 1 && (fields[1] == dir || strings.HasPrefix(fields[1], dir+"/")) {
			if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				t.Fatalf("unmount %s: %v", fields[1], err)
			}
		}
	}
}

// newBoot gives the machine another boot id.
func newBoot(t *testing.T) {
	t.Helper()
	const kernel = "/proc/sys/kernel/random/boot_id"
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "boot_id")
	if err := os.WriteFile(file, id, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, kernel, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(kernel, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestReboot loses all that a reboot loses. The pods come back, with the
// repository and without it.
func TestReboot(t *testing.T) {
	c := newCluster(t)
	c.clone.Write("config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {motd: as in git}\n")
	web := deployment{
		name: "web", replicas: 2, image: c.images[0], nodePort: 30080,
		more: "        volumeMounts: [{name: config, mountPath: /config}]",
		pod:  "      volumes: [{name: config, configMap: {name: web}}]",
	}
	c.put(web)
	sha, _ := c.clone.Apply("begin")
	d := drift{c, c.serviceOf("web")}
	names := podNames(c)

	c.reboot()
	c.Up()
	d.healed(t)
	c.WaitConverged(sha, patience)
	if now := podNames(c); now != names {
		t.Errorf("the pods were %s, are %s", names, now)
	}
	c.checkExactly(map[string]int{"web": 2})

	// Once more, and now nobody knows the repository or the record: what the
	// node was assigned is all there is.
	c.reboot()
	for _, gone := range []string{"repo.git", "mirror.git", "server"} {
		if err := os.RemoveAll(filepath.Join(c.DataDir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	c.Up()
	d.healed(t)
	c.checkExactly(map[string]int{"web": 2})
	if now := podNames(c); now != names {
		t.Errorf("without a repository the pods were %s, are %s", names, now)
	}

	// A push of any clone brings the repository back; nothing restarts for it.
	before := c.processes(c.pods("web"))
	if r := c.clone.Push(); r.Code != 0 {
		t.Fatalf("push to the new repository: %s", r.Err)
	}
	c.WaitConverged(sha, patience)
	c.checkUnmoved(before, "after the repository came back")

	// And with a server that cannot even start.
	c.reboot()
	c.Start("--repo", filepath.Join(c.Dir, "nowhere.git"))
	c.Eventually(patience, "the pods run without a server", func() error {
		if now, err := c.running(); err != nil || len(now) != 2 {
			return fmt.Errorf("running: %v %v", now, err)
		}
		_, err := get("127.0.0.1:30080", "/")
		return err
	})
}

// podNames of web in one line.
func podNames(c *cluster) string {
	var names []string
	for _, p := range c.pods("web") {
		names = append(names, p.Key.Name)
	}
	return strings.Join(names, " ")
}

// TestUpgrade replaces the binary: the keeper is replaced in place and keeps
// its pipes; no container notices.
func TestUpgrade(t *testing.T) {
	c := newCluster(t)
	c.put(deployment{name: "steady", replicas: 2, image: c.images[0]})
	sha, _ := c.clone.Apply("begin")
	steady := c.pods("steady")
	before := c.processes(steady)
	sets := c.replicaSets()
	service := c.serviceOf("steady")
	old, err := c.keeperPID()
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(c.Dir, "tally-next") // lives as long as the machine, which is cleared with it
	build := exec.Command("go", "build", "-ldflags", "-s -w -X main.version=next", "-o", next, "github.com/tallyman-dev/tallyman/cmd/tally")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false -trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the next version: %v: %s", err, out)
	}
	c.Stop()
	c.Use(next)
	c.Up()
	c.WaitConverged(sha, patience)
	o, err := c.Overview()
	if err != nil || o.Version != "next" {
		t.Errorf("version %q runs (%v), want next", o.Version, err)
	}
	now, err := c.keeperPID()
	if err != nil || now != old {
		t.Errorf("the keeper was process %d, is %d (%v): it was not replaced in place", old, now, err)
	}
	if running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", now)); err != nil {
		t.Error(err)
	} else if want, err := os.Stat(next); err != nil || !os.SameFile(running, want) {
		t.Errorf("the keeper still runs the old binary (%v)", err)
	}
	c.checkUnmoved(before, "after the upgrade")
	c.checkSame(service, sets)
	for _, p := range steady {
		c.checkWrites(p, "after the upgrade")
		c.checkLines(p, false)
	}
	if err := resolves("steady", service.ClusterIPs[0]); err != nil {
		t.Error(err)
	}
}

// TestCorruptFiles damages the record and the agent's store in every way.
func TestCorruptFiles(t *testing.T) {
	c := newCluster(t)
	c.put(deployment{name: "web", replicas: 2, image: c.images[0], nodePort: 30080})
	sha, _ := c.clone.Apply("begin")
	before, addresses := c.processes(c.pods("web")), c.addresses("web")
	service, sets := c.serviceOf("web"), c.replicaSets()
	// Who asks the service never meets a moment without it.
	traffic := startLoad(c.serviceAddress(service), 4, false)
	damages := map[string]func(*testing.T, string){
		"truncated": truncate, "empty": empty, "garbage": garbage, "pages overwritten": overwritePages,
	}
	for _, file := range []string{"server/observed.db", "agent/agent.db"} {
		path := filepath.Join(c.DataDir, file)
		for _, name := range slices.Sorted(maps.Keys(damages)) {
			what := file + " " + name
			c.quiet()
			c.Kill()
			said := len(c.logged())
			damages[name](t, path)
			c.Up()
			c.WaitConverged(sha, patience)
			c.checkUnmoved(before, what)
			c.checkSame(service, sets)
			c.checkExactly(map[string]int{"web": 2})
			if now := c.addresses("web"); !maps.Equal(now, addresses) {
				t.Errorf("%s: the pods had the addresses %v, and have %v", what, addresses, now)
			}
			if name == "empty" {
				continue // as if it was lost
			}
			if !strings.Contains(c.logged()[said:], "set aside") {
				t.Errorf("%s: nothing was said; the log has\n%s", what, c.logged()[said:])
			}
			if aside, err := filepath.Glob(path + ".corrupt*"); err != nil || len(aside) == 0 {
				t.Errorf("%s: nothing was set aside (%v)", what, err)
			}
		}
	}
	traffic.check(t, "while files were damaged", 50)
}

// addresses are those of a deployment's pods, by name.
func (c *cluster) addresses(name string) map[string]string {
	found := map[string]string{}
	for _, p := range c.pods(name) {
		found[p.Key.Name] = p.Pod.Status.IP
	}
	return found
}

func (c *cluster) logged() string {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.Dir, "tally.log"))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(text)
}

// truncate leaves half of what was written: a file is longer than that.
func truncate(t *testing.T, path string) {
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(bytes.TrimRight(content, "\x00"))/2)); err != nil {
		t.Fatal(err)
	}
}

func empty(t *testing.T, path string) {
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
}

func garbage(t *testing.T, path string) {
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 5000)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// overwritePages leaves the two pages that say where everything is.
func overwritePages(t *testing.T, path string) {
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	page := int64(os.Getpagesize())
	for at := 2 * page; at+page <= info.Size(); at += page {
		if _, err := file.WriteAt([]byte(strings.Repeat("no page ", 100)), at); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTheRecordsDiskIsFull gives server/ a disk of its own and fills it.
func TestTheRecordsDiskIsFull(t *testing.T) {
	c := newCluster(t)
	web := deployment{name: "web", replicas: 2, image: c.images[0]}
	c.put(web)
	sha, _ := c.clone.Apply("begin")
	before := c.processes(c.pods("web"))
	c.Stop()
	disk := filepath.Join(c.DataDir, "server")
	kept, err := os.ReadFile(filepath.Join(disk, "observed.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", len(kept)+1<<20)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) }) // before the machine is cleared
	writeSparse(t, filepath.Join(disk, "observed.db"), kept)
	c.Up()
	c.WaitConverged(sha, patience)
	filler := filepath.Join(disk, "filler")
	fill(t, filler)

	web.change, web.replicas = "while the disk is full", 3
	c.put(web)
	for i := range 30 { // more decisions than there is room for
		c.put(deployment{name: fmt.Sprintf("more%d", i), image: c.images[0]})
	}
	next := c.clone.Commit("no room")
	r := c.clone.Push("-o", "tally.wait=false")
	c.Eventually(patience, "somebody says that the disk is full", func() error {
		if !strings.Contains(c.logged()+r.Err, "no space left on device") {
			return errors.New("nobody does")
		}
		return nil
	})
	t.Logf("the push ended with %d and said:\n%s", r.Code, r.Err)
	if o, err := c.Overview(); err != nil {
		t.Errorf("the server does not answer: %v", err)
	} else {
		t.Logf("sync: %s %s", o.Sync.State, o.Sync.Message)
	}
	c.checkNoneLost(before)

	// With room again all goes on by itself; a push that was refused is pushed again.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		if r := c.clone.Push(); r.Code != 0 {
			t.Fatalf("push again: %s", r.Err)
		}
	}
	c.WaitConverged(next, patience)
	c.checkExactly(map[string]int{"web": 3})
	// What was decided is in the record.
	sets := c.replicaSets()
	service := c.serviceOf("web")
	after := c.processes(c.pods("web"))
	c.Kill()
	c.Up()
	c.WaitConverged(next, patience)
	c.checkUnmoved(after, "after the disk was full")
	c.checkSame(service, sets)
}

// writeSparse leaves out the pages of zeros: writing them takes room.
func writeSparse(t *testing.T, path string, content []byte) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(content); at += 4096 {
		page := content[at:min(at+4096, len(content))]
		if len(bytes.Trim(page, "\x00")) == 0 {
			continue
		}
		if _, err := file.WriteAt(page, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
}

// fill writes until there is no room.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for block := make([]byte, 4096); ; {
		if _, err := file.Write(block); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// checkNoneLost holds that at least as many containers run as before.
func (c *cluster) checkNoneLost(before map[string]process) {
	c.t.Helper()
	if now := c.mustRunning(); len(now) < len(before) {
		c.t.Errorf("%d containers ran, now %d", len(before), len(now))
	}
}
