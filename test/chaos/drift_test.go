//go:build e2e

package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestDriftHeals damages what Tallyman made, behind its back.
func TestDriftHeals(t *testing.T) {
	c := newCluster(t)
	c.clone.Write("config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {motd: as in git}\n")
	c.put(deployment{
		name: "web", replicas: 2, image: c.images[0], nodePort: 30080,
		more: "        volumeMounts: [{name: config, mountPath: /config}]",
		pod:  "      volumes: [{name: config, configMap: {name: web}}]",
	})
	c.put(deployment{name: "calm", replicas: 2, image: c.images[0]})
	c.clone.Apply("begin")
	d := drift{c, c.serviceOf("web")}
	for _, test := range []struct {
		name   string
		damage func(t *testing.T)
		// restarts tells that a container of web is to restart.
		restarts bool
	}{
		{name: "container killed", damage: d.killContainer, restarts: true},
		{name: "container deleted", damage: d.deleteContainer, restarts: true},
		{name: "chains flushed", damage: d.flushChains},
		{name: "jumps removed", damage: d.removeJumps},
		{name: "everything in iptables flushed", damage: d.flushAll},
		{name: "links of all pods removed", damage: d.removeLinks},
		{name: "bridge removed", damage: d.removeBridge},
		{name: "file of a ConfigMap overwritten", damage: d.overwriteFile},
		{name: "network namespace released", damage: d.releaseNamespace},
		{name: "keeper killed", damage: d.killKeeper},
	} {
		t.Log(test.name)
		calm, web := c.processes(c.pods("calm")), c.processes(c.pods("web"))
		test.damage(t)
		d.healed(t)
		c.converged(test.name)
		c.checkUnmoved(calm, test.name)
		if !test.restarts {
			c.checkUnmoved(web, test.name)
		}
		c.checkSingle(test.name)
	}
	c.checkExactly(map[string]int{"web": 2, "calm": 2})
}

// drift damages and looks.
type drift struct {
	*cluster
	service nodes.ServiceOverview
}

// healed waits until everything about web is as the manifest says.
func (d drift) healed(t *testing.T) {
	t.Helper()
	address := d.serviceAddress(d.service)
	d.Eventually(patience, "everything works", func() error {
		if err := resolves("web", d.service.ClusterIPs[0]); err != nil {
			return err
		}
		pods := d.pods("web")
		if len(pods) != 2 {
			return fmt.Errorf("web has %d pods", len(pods))
		}
		for _, p := range pods {
			if !p.Pod.Status.Ready {
				return fmt.Errorf("%s is not ready: %s %s", p.Key.Name, p.Pod.Status.Reason, p.Pod.Status.Message)
			}
			if err := d.answers(address, p.Key.Name, true); err != nil {
				return fmt.Errorf("through the service %s: %w", p.Key.Name, err)
			}
			if text, err := get(net.JoinHostPort(p.Pod.IP, "8080"), "/file"); err != nil || text != "as in git" {
				return fmt.Errorf("%s reads %q (%v)", p.Key.Name, text, err)
			}
		}
		_, err := get("127.0.0.1:30080", "/")
		return err
	})
}

// one is a running container of web, and its pod.
func (d drift) one(t *testing.T) (nodes.ObjectHealth, process) {
	t.Helper()
	pod := d.pods("web")[0]
	for _, p := range d.processes([]nodes.ObjectHealth{pod}) {
		return pod, p
	}
	t.Fatalf("no container of %s runs", pod.Key.Name)
	return pod, process{}
}

func (d drift) restartedAfter(t *testing.T, pod nodes.ObjectHealth, old process) {
	t.Helper()
	d.Eventually(patience, "the container runs anew in its pod", func() error {
		now := d.processes([]nodes.ObjectHealth{pod})
		if _, found := now[old.ID]; found || len(now) != 1 {
			return fmt.Errorf("running: %v", now)
		}
		return nil
	})
}

func (d drift) killContainer(t *testing.T) {
	pod, victim := d.one(t)
	if err := syscall.Kill(int(victim.PID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.restartedAfter(t, pod, victim)
}

func (d drift) deleteContainer(t *testing.T) {
	pods := d.pods("web")
	pod := pods[1] // the other one: this is not about back-off
	victims := slices.Collect(maps.Values(d.processes(pods[1:])))
	ctx := namespaces.WithNamespace(context.Background(), "tallyman")
	container, err := d.runtime.LoadContainer(ctx, victims[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
		t.Fatal(err)
	}
	if err := container.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) { // the agent may have cleared up first
		t.Fatal(err)
	}
	d.restartedAfter(t, pod, victims[0])
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// rules are ours in a table, without counters.
func rules(t *testing.T, table string) []string {
	var ours []string
	for line := range strings.Lines(command(t, "iptables-save", "-t", table)) {
		if strings.Contains(line, "TALLY") && strings.HasPrefix(line, "-A") {
			ours = append(ours, strings.TrimSpace(line))
		}
	}
	return ours
}

// damaged removes rules and waits until they are all back.
func (d drift) damaged(t *testing.T, remove func()) {
	t.Helper()
	before := map[string][]string{}
	for _, table := range []string{"nat", "filter"} {
		if before[table] = rules(t, table); len(before[table]) == 0 {
			t.Fatalf("no rules of ours in %s: the test looks at nothing", table)
		}
	}
	remove()
	d.Eventually(patience, "the rules are back", func() error {
		for table, want := range before {
			got := rules(t, table)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				return fmt.Errorf("table %s has\n%s\nwant\n%s", table, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
		return nil
	})
}

func (d drift) flushChains(t *testing.T) {
	d.damaged(t, func() {
		for _, table := range []string{"nat", "filter"} {
			for line := range strings.Lines(command(t, "iptables-save", "-t", table)) {
				if chain, found := strings.CutPrefix(line, ":TALLY-"); found {
					command(t, "iptables", "-t", table, "-F", "TALLY-"+strings.Fields(chain)[0])
				}
			}
		}
	})
}

func (d drift) removeJumps(t *testing.T) {
	d.damaged(t, func() {
		for _, table := range []string{"nat", "filter"} {
			for _, rule := range rules(t, table) {
				if !strings.HasPrefix(rule, "-A TALLY-") {
					command(t, "sh", "-c", "iptables -t "+table+" -D "+strings.TrimPrefix(rule, "-A "))
				}
			}
		}
	})
}

func (d drift) flushAll(t *testing.T) {
	d.damaged(t, func() {
		for _, table := range []string{"nat", "filter"} {
			command(t, "iptables", "-t", table, "-F")
			command(t, "iptables", "-t", table, "-X")
		}
	})
}

// bridge is the interface that pods hang on.
const bridge = "tally0"

func (d drift) removeLinks(t *testing.T) {
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	hub, err := netlink.LinkByName(bridge)
	if err != nil {
		t.Fatal(err)
	}
	removed := 0
	for _, link := range links {
		if link.Attrs().MasterIndex == hub.Attrs().Index {
			if err := netlink.LinkDel(link); err != nil {
				t.Fatal(err)
			}
			removed++
		}
	}
	if removed < 4 {
		t.Fatalf("%d links hung on the bridge, want one a pod", removed)
	}
}

func (d drift) removeBridge(t *testing.T) {
	hub, err := netlink.LinkByName(bridge)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(hub); err != nil {
		t.Fatal(err)
	}
}

// overwriteFile changes what a container reads, from outside.
func (d drift) overwriteFile(t *testing.T) {
	written := 0
	for _, root := range []string{d.DataDir, d.RunDir} {
		err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.Name() != "motd" || !entry.Type().IsRegular() {
				return nil
			}
			written++
			return os.WriteFile(path, []byte("not as in git"), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if written == 0 {
		t.Fatal("found no file of the ConfigMap")
	}
	// Without a look at the damage one could not tell that it was done.
	if text, err := get(net.JoinHostPort(d.pods("web")[0].Pod.IP, "8080"), "/file"); err != nil {
		t.Errorf("the container reads %q: %v", text, err)
	}
}

// releaseNamespace takes the pin away that holds a pod's network without its
// processes. The pod goes on in it; a container that then restarts must be
// where the pod's address leads.
func (d drift) releaseNamespace(t *testing.T) {
	d.put(deployment{name: "loose", replicas: 1, image: d.images[0]})
	d.clone.Apply("one more")
	pods := d.pods("loose")
	pin := filepath.Join(d.RunDir, "ns", string(pods[0].Pod.UID), "net")
	if err := unix.Unmount(pin, unix.MNT_DETACH); err != nil {
		t.Fatalf("release %s: %v", pin, err)
	}
	if _, err := written(pods[0].Pod.IP); err != nil {
		t.Errorf("the pod without a pin does not answer: %v", err)
	}
	for _, p := range d.processes(pods) {
		if err := syscall.Kill(int(p.PID), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.restartedAfter(t, pods[0], p)
	}
	d.Eventually(patience, "the restarted container answers", func() error {
		_, err := get(d.address("loose"), "/")
		return err
	})
	if err := os.Remove(filepath.Join(d.clone.Dir, "loose.yaml")); err != nil {
		t.Fatal(err)
	}
	d.clone.Apply("away with it")
}

func (d drift) killKeeper(t *testing.T) {
	old, err := d.keeperPID()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.Eventually(patience, "another keeper runs", func() error {
		pid, err := d.keeperPID()
		if err == nil && pid == old {
			err = errors.New("the old one is still there")
		}
		return err
	})
	for _, p := range d.pods("web") {
		d.checkWrites(p, "after the keeper was killed")
		d.checkLines(p, true)
	}
}
