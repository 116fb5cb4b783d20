//go:build e2e

package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
)

// groups are real control groups of this test alone.
type groups struct {
	*testing.T
	mount string
	dirs  []string // of the hierarchies
	top   string
}

// realGroups finds what the machine has mounted: both versions, if it can.
func realGroups(t *testing.T) map[string]*groups {
	t.Helper()
	found := map[string]*groups{}
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		k, err := newKiller(mount)
		if err != nil {
			continue
		}
		g := &groups{T: t, mount: mount, top: fmt.Sprintf("/tallyman-test-%d", os.Getpid()), dirs: []string{mount}}
		if !k.v2 {
			g.dirs = nil
			for _, h := range hierarchies {
				g.dirs = append(g.dirs, filepath.Join(mount, h))
			}
		}
		found[map[bool]string{false: "v1", true: "v2"}[k.v2]] = g
	}
	if len(found) == 0 {
		t.Fatal("no control groups are mounted below /sys/fs/cgroup")
	}
	return found
}

func (g *groups) on(t *testing.T) *groups {
	return &groups{T: t, mount: g.mount, dirs: g.dirs, top: g.top}
}

// run starts a shell with a program in a group below pod.
func (g *groups) run(pod, script string) *exec.Cmd {
	g.Helper()
	command := exec.Command("/bin/sh", "-c", "read go; "+script)
	begin, err := command.StdinPipe()
	if err != nil {
		g.Fatal(err)
	}
	if err := command.Start(); err != nil {
		g.Fatal(err)
	}
	group := filepath.Join(g.top, pod, "container")
	for _, dir := range g.dirs {
		if err := os.MkdirAll(filepath.Join(dir, group), 0o755); err != nil {
			g.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, group, "cgroup.procs"), []byte(strconv.Itoa(command.Process.Pid)), 0o644); err != nil {
			g.Fatal(err)
		}
		g.Cleanup(func() {
			for _, d := range []string{group, filepath.Join(g.top, pod), g.top} {
				eventually(g.T, "remove "+d, func() error {
					err := unix.Rmdir(filepath.Join(dir, d))
					if errors.Is(err, unix.ENOENT) || d == g.top && errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
						return nil
					}
					return err
				})
			}
		})
	}
	g.Cleanup(func() {
		for _, dir := range g.dirs {
			k := &killer{root: dir, signal: unix.SIGKILL, procs: make([]byte, 64<<10)}
			_, _ = k.signalAll(filepath.Join(dir, group), unix.SIGKILL)
		}
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	if _, err := begin.Write([]byte("\n")); err != nil {
		g.Fatal(err)
	}
	return command
}

// procs counts the processes of a pod.
func (g *groups) procs(pod string) int {
	g.Helper()
	k := &killer{procs: make([]byte, 64<<10)}
	n := 0
	for _, dir := range g.dirs {
		found, err := k.signalAll(filepath.Join(dir, g.top, pod), 0)
		if err != nil {
			g.Fatal(err)
		}
		n = max(n, found)
	}
	return n
}

func (g *groups) fence(pod string) Fence {
	return Fence{Pod: nodes.UID(pod), Groups: []string{filepath.Join(g.top, pod), filepath.Join(g.top, "besteffort", pod)}}
}

// keeper starts one over these groups.
func (g *groups) keeper(runDir string) *Client {
	g.Helper()
	c, err := Start(g.Context(), StartOptions{
		Command: []string{"/proc/self/exe", "run-keeper", runDir, g.mount}, RunDir: runDir, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() { _ = c.Stop(context.Background()) })
	return c
}

func (g *groups) gone(pod string) {
	g.Helper()
	eventually(g.T, "processes of "+pod+" end", func() error {
		if n := g.procs(pod); n > 0 {
			return fmt.Errorf("%d are alive", n)
		}
		return nil
	})
}

// breeder forks as fast as it can.
const breeder = "while :; do sleep 0.05 & sleep 0.01; done"

// TestARealPodIsKilledAtTheEndOfItsLease, with all that it forks, on every
// version of control groups that the machine has.
func TestARealPodIsKilledAtTheEndOfItsLease(t *testing.T) {
	for version, all := range realGroups(t) {
		t.Run(version, func(t *testing.T) {
			g := all.on(t)
			c := g.keeper(t.TempDir())
			g.run("a", breeder)
			g.run("b", "sleep 1000")
			ends := boottime.Now() + 2*time.Second
			if err := c.Fence(t.Context(), ends, []Fence{g.fence("a"), g.fence("unborn")}); err != nil {
				t.Fatal(err)
			}
			if g.procs("a") == 0 && boottime.Now() < ends {
				t.Error("killed before the end")
			}
			g.gone("a")
			if boottime.Now() < ends {
				t.Error("killed before the end")
			}
			if g.procs("b") == 0 {
				t.Error("another pod was killed")
			}
			held, err := c.Fences(t.Context())
			if err != nil || len(held) != 2 || held[0].Killed < ends || held[1].Killed != 0 {
				t.Errorf("held %+v, %v", held, err)
			}
			g.run("a", "sleep 1000") // by somebody who did not notice
			g.gone("a")
		})
	}
}

// TestAKeeperThatDiedKillsWhatItMissed: kill -9, and nobody for longer than the
// lease.
func TestAKeeperThatDiedKillsWhatItMissed(t *testing.T) {
	for version, all := range realGroups(t) {
		t.Run(version, func(t *testing.T) {
			g, runDir := all.on(t), t.TempDir()
			c := g.keeper(runDir)
			g.run("a", "sleep 1000")
			ends := boottime.Now() + time.Second
			if err := c.Fence(t.Context(), ends, []Fence{g.fence("a")}); err != nil {
				t.Fatal(err)
			}
			found, err := c.hello(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(found.PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the lease ends", func() error {
				if boottime.Now() < ends {
					return errors.New("not yet")
				}
				return nil
			})
			g.keeper(runDir)
			g.gone("a")
		})
	}
}

// slowDisk is a file system of its own, and a switch that has every write to it
// wait in the kernel.
func slowDisk(t *testing.T) (dir string, freeze func(bool)) {
	t.Helper()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, out)
		}
	}
	image, dir := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "disk")
	run("truncate", "--size", "16M", image)
	run("mkfs.ext4", "-q", image)
	run("mkdir", dir)
	run("mount", "-o", "loop", image, dir)
	t.Cleanup(func() {
		eventually(t, "unmount "+dir, func() error { return exec.Command("umount", dir).Run() })
	})
	return dir, func(frozen bool) {
		t.Helper()
		if frozen {
			t.Cleanup(func() { _ = exec.Command("fsfreeze", "--unfreeze", dir).Run() }) // it mostly is not any more
		}
		run("fsfreeze", map[bool]string{true: "--freeze", false: "--unfreeze"}[frozen], dir)
	}
}

// stuck reports whether a thread of a process waits for a disk.
func stuck(pid int) error {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range paths {
		if stat, err := os.ReadFile(path); err == nil && bytes.Contains(stat, []byte(") D ")) {
			return nil
		}
	}
	return fmt.Errorf("none of %d threads waits for a disk (%v)", len(paths), err)
}

// TestAKeeperThatWaitsForADiskGuardsItsFences: it is to be replaced, or to end, and
// the disk with a log hangs for as long as the test likes.
func TestAKeeperThatWaitsForADiskGuardsItsFences(t *testing.T) {
	for version, all := range realGroups(t) {
		for _, end := range []string{"replaced", "stopped"} {
			t.Run(version+", "+end, func(t *testing.T) {
				g, runDir := all.on(t), t.TempDir()
				disk, freeze := slowDisk(t)
				c := g.keeper(runDir)
				path := filepath.Join(disk, "log")
				pipes, err := c.OpenLog(t.Context(), Log{ID: "web", Path: path})
				if err != nil {
					t.Fatal(err)
				}
				before, err := c.hello(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				f := container(t, pipes.Stdout)
				freeze(true)
				fmt.Fprintln(f, "written when the disk is back")
				eventually(t, "the keeper waits for the disk", func() error { return stuck(before.PID) })
				g.run("a", "sleep 1000")
				if err := c.Fence(t.Context(), boottime.Now()+2*time.Second, []Fence{g.fence("a")}); err != nil {
					t.Fatal(err)
				}
				if end == "stopped" {
					if err := c.try(t.Context(), http.MethodPost, "/stop", nil, nil); err != nil {
						t.Fatal(err)
					}
					g.gone("a")
					freeze(false)
					return
				}
				self, err := os.Executable()
				if err != nil {
					t.Fatal(err)
				}
				body, err := json.Marshal(replacement{Path: self, Args: []string{"/proc/self/exe", "run-keeper", runDir, g.mount, ""}})
				if err != nil {
					t.Fatal(err)
				}
				if err := c.try(t.Context(), http.MethodPost, "/replace", body, nil); err != nil {
					t.Fatal(err)
				}
				g.gone("a")
				if held, err := c.Fences(t.Context()); err != nil || len(held) != 1 || held[0].Killed == 0 {
					t.Errorf("while it waits it holds %+v, %v", held, err)
				}
				freeze(false)
				eventually(t, "replaced", func() error {
					if now, err := c.hello(t.Context()); err != nil || now.PID != before.PID || now.Binary == before.Binary {
						return fmt.Errorf("%+v, %v", now, err)
					}
					return nil
				})
				if held, err := c.Fences(t.Context()); err != nil || len(held) != 1 || held[0].Killed == 0 {
					t.Errorf("replaced it holds %+v, %v", held, err)
				}
				eventually(t, "the line", func() error { return want(text(t, path, ReadOptions{}), "written when the disk is back\n") })
			})
		}
	}
}
