//go:build e2e

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/daemon"
)

// instance is a second tally on the machine: its own data and run directories,
// containerd and network namespace. A registry of the same images holds the namespace.
type instance struct {
	w        *world
	flags    []string
	registry *exec.Cmd
	up       *exec.Cmd
	dir      string
}

func (w *world) secondInstance() *instance {
	w.t.Helper()
	dir := filepath.Join(w.Dir, "second")
	second, err := daemon.Start(w.t.Context(), filepath.Join(dir, "containerd"))
	if err != nil {
		w.t.Fatal(err)
	}
	i := &instance{w: w, dir: dir, flags: []string{
		"--data-dir", filepath.Join(dir, "data"), "--run-dir", filepath.Join(dir, "run"), "--containerd", second.Address,
	}}
	i.registry = exec.Command("sh", "-c", "ip link set lo up && exec docker-registry serve '"+filepath.Join(w.Dir, "registry", "config.yml")+"'")
	i.registry.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := i.registry.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		err := errors.Join(i.registry.Process.Kill(), second.Stop())
		_ = i.registry.Wait() // killed
		if err != nil {
			w.t.Error(err)
		}
	})
	i.start()
	return i
}

// inside makes a command in the instance's network.
func (i *instance) inside(name string, args ...string) *exec.Cmd {
	net := fmt.Sprintf("--net=/proc/%d/ns/net", i.registry.Process.Pid)
	return exec.Command("nsenter", append([]string{net, name}, args...)...)
}

func (i *instance) start() {
	i.w.t.Helper()
	log, err := os.Create(filepath.Join(i.dir, "tally.log"))
	if err != nil {
		i.w.t.Fatal(err)
	}
	defer log.Close()
	i.up = i.inside(i.w.Binary(), append([]string{"up", "--node-name", "second", "--kubelet-dir", filepath.Join(i.dir, "kubelet")}, i.flags...)...)
	i.up.Stdout, i.up.Stderr = log, log
	if err := i.up.Start(); err != nil {
		i.w.t.Fatal(err)
	}
	i.w.Eventually(patience, "the second instance is ready", func() error {
		return i.inside("curl", "-sf", root+"/readyz").Run()
	})
}

// end stops the instance and removes what it made.
func (i *instance) end() {
	i.w.t.Helper()
	if err := i.up.Process.Signal(syscall.SIGTERM); err != nil {
		i.w.t.Error(err)
	}
	if err := i.up.Wait(); err != nil {
		i.w.t.Errorf("the second instance ended with %v", err)
	}
	if out, err := i.inside(i.w.Binary(), append([]string{"reset"}, i.flags...)...).CombinedOutput(); err != nil {
		i.w.t.Errorf("reset of the second instance: %v: %s", err, out)
	}
}

// TestTwoInstances has two clusters on one machine with the same names,
// addresses and node ports; the end of one does not touch the other.
func TestTwoInstances(t *testing.T) {
	w := newWorld(t)
	manifest := deployment("web", 1, "env: [{name: WHERE, value: first}]") + service("web", "type: NodePort")
	w.clone.Write("web.yaml", manifest)
	w.clone.Apply("first")
	i := w.secondInstance()
	clone := w.CloneFrom(filepath.Join(i.dir, "data", "repo.git"))
	clone.Write("web.yaml", strings.Replace(manifest, "value: first", "value: second", 1))
	clone.Commit("second")
	if r := clone.Push(); r.Code != 0 || !strings.Contains(r.Err, "converged in") {
		t.Fatalf("push to the second instance: exit code %d: %s", r.Code, r.Err)
	}
	at := w.clusterIP("web")
	w.Eventually(patience, "the second instance's service answers", func() error {
		out, err := i.inside("curl", "-sf", "http://"+at+"/env").Output()
		if err == nil && !bytes.Contains(out, []byte(`"WHERE":"second"`)) {
			t.Fatalf("somebody else answers: %s", out)
		}
		return err
	})
	before := w.pod("web-", ready)
	i.end()
	if env, err := tryAsk[map[string]string](at, "/env"); err != nil || env["WHERE"] != "first" {
		t.Errorf("after the end of the second, the first answers %v, %v", env, err)
	}
	if after := w.pod("web-", ready); after.UID != before.UID || after.Status.Restarts() != 0 {
		t.Errorf("the pod of the first instance was %+v and is %+v", before, after)
	}
}
