//go:build e2e

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/cgroup"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/containerd"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/daemon"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/registry"
	"github.com/tallyman-dev/tallyman/nodes/volume"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/proxy"
)

// TestMain is the tests in namespaces of their own, or a keeper, or the first
// process of a shared process namespace.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "run-keeper":
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		exit(keeper.Run(context.Background(), keeper.Options{RunDir: os.Args[2], Log: log}))
	case os.Getenv("TALLY_TEST_NODE") == "":
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "TALLY_TEST_NODE=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
		exit(cmd.Run())
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		exit(err)
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// machine is one node of real parts, except for the routing rules.
type machine struct {
	t       *testing.T
	dir     string
	image   string
	daemon  *daemon.Daemon
	runtime *containerd.Runtime
	keeper  *keeper.Client

	mu      sync.Mutex
	status  map[nodes.UID]nodes.PodStatus
	gone    map[nodes.UID]bool
	events  []nodes.Event
	flapped []nodes.UID
	// watch has pods noted that stop being ready.
	watch bool
}

func (m *machine) Send(r nodes.Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range r.Statuses {
		if m.watch && m.status[s.UID].Ready && !s.Ready {
			m.flapped = append(m.flapped, s.UID)
		}
		m.status[s.UID] = s
	}
	for _, uid := range r.Gone {
		m.gone[uid] = true
		delete(m.status, uid)
	}
	m.events = append(m.events, r.Events...)
}

func (m *machine) Token(context.Context, nodes.TokenRequest) (nodes.Token, error) {
	return nodes.Token{}, errors.New("no server")
}

func (m *machine) Set(context.Context, proxy.Config) error { return nil }
func (m *machine) Run(ctx context.Context) error           { <-ctx.Done(); return ctx.Err() }
func (m *machine) Close(context.Context) error             { return nil }

func newMachineE2E(t *testing.T) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "tt-agent-")
	need(t, err)
	m := &machine{t: t, dir: dir, status: map[nodes.UID]nodes.PodStatus{}, gone: map[nodes.UID]bool{}}
	t.Cleanup(func() { need(t, os.RemoveAll(dir)) })
	m.daemon, err = daemon.Start(t.Context(), filepath.Join(dir, "containerd"))
	need(t, err)
	t.Cleanup(func() { need(t, m.daemon.Stop()) })
	reg, err := registry.Start(t.Context(), registry.Options{Dir: filepath.Join(dir, "registry")})
	need(t, err)
	t.Cleanup(func() { need(t, reg.Stop()) })
	m.image = reg.Addr + "/test/program:v1"
	binary, err := image.BuildBinary(t.Context(), image.Program, dir)
	need(t, err)
	img, err := image.Build(image.Spec{Binaries: map[string]string{"/program": binary}, Entrypoint: []string{"/program"}, Cmd: []string{"serve"}})
	need(t, err)
	need(t, image.Push(t.Context(), m.image, img, "", ""))
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	m.runtime, err = containerd.New(containerd.Options{
		Address: m.daemon.Address, CertsDir: filepath.Join(dir, "certs"), RunDir: filepath.Join(dir, "run/containerd"), Log: log,
	})
	need(t, err)
	m.keeper, err = keeper.Start(t.Context(), keeper.StartOptions{Command: []string{"/proc/self/exe", "run-keeper", filepath.Join(dir, "run")}, RunDir: filepath.Join(dir, "run"), Log: log})
	need(t, err)
	t.Cleanup(func() { need(t, m.keeper.Stop(context.Background())) })
	return m
}

func need(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start runs an agent until the returned function kills it; with reset it
// removes everything afterwards.
func (m *machine) start() (*Agent, func(reset bool)) {
	m.t.Helper()
	t, log := m.t, slog.New(slog.NewTextHandler(m.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	db, err := OpenStore(filepath.Join(m.dir, "data", "agent.db"))
	need(t, err)
	a, pods := m.build(db, log)
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { _ = pods.Run(ctx) })
	parts.Go(func() {
		if err := a.Run(ctx, m); !errors.Is(err, context.Canceled) {
			t.Errorf("agent ended: %v", err)
		}
	})
	return a, func(reset bool) {
		cancel()
		parts.Wait()
		if reset {
			need(t, a.Reset(context.Background(), true))
		}
		need(t, db.Close())
	}
}

func (m *machine) build(db *bbolt.DB, log *slog.Logger) (*Agent, *network.Network) {
	m.t.Helper()
	settings := desired.DefaultSettings().Network
	pods, err := network.New(network.Options{
		PodCIDR: netip.MustParsePrefix("10.244.0.0/24"), ClusterCIDR: settings.Pods, ServiceCIDR: settings.Services,
		RunDir: filepath.Join(m.dir, "run"), MTU: 1450, DB: db, Log: log,
	})
	need(m.t, err)
	volumes, err := volume.New(volume.Options{DataDir: filepath.Join(m.dir, "data"), RunDir: filepath.Join(m.dir, "run"), Log: log})
	need(m.t, err)
	persistent, err := volume.NewPersistent(volume.PersistentOptions{DataDir: filepath.Join(m.dir, "data"), RunDir: filepath.Join(m.dir, "run"), Node: "n1", Log: log})
	need(m.t, err)
	groups, err := cgroup.New("/sys/fs/cgroup")
	need(m.t, err)
	a, err := New(Options{
		Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, DataDir: filepath.Join(m.dir, "data"), RunDir: filepath.Join(m.dir, "run"),
		Key: bytes.Repeat([]byte{7}, 32), Runtime: m.runtime, Network: pods, Keeper: m.keeper, Proxy: m, Volumes: volumes, Persistent: persistent, Cgroups: groups,
		// A static program that waits stands for our own.
		Pause: []string{filepath.Join(m.dir, "program"), "forever"}, Forwarders: func() []netip.AddrPort { return nil }, DB: db, Log: log, Now: time.Now,
	})
	need(m.t, err)
	return a, pods
}

// eventually polls until ok reports true.
func (m *machine) eventually(what string, ok func() bool) time.Duration {
	m.t.Helper()
	begin := time.Now()
	for deadline := begin.Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		m.mu.Lock()
		done := ok()
		m.mu.Unlock()
		if done {
			return time.Since(begin)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.events {
		m.t.Logf("%s: %s", e.Reason, e.Message)
	}
	m.t.Fatalf("%s: not within 40 s; statuses %+v", what, m.status)
	return 0
}

func (m *machine) exec(id string, command ...string) string {
	m.t.Helper()
	var out bytes.Buffer
	code, err := m.runtime.Exec(m.t.Context(), id, command, &out)
	if err != nil || code != 0 {
		m.t.Fatalf("%v in %s: %d %v %s", command, id, code, err, out.String())
	}
	return out.String()
}

func (m *machine) container(name string, args ...string) corev1.Container {
	return corev1.Container{Name: name, Image: m.image, ImagePullPolicy: corev1.PullIfNotPresent, Args: args}
}

func TestPodsOnARealMachine(t *testing.T) {
	m := newMachineE2E(t)
	a, kill := m.start()
	c := m.container("web")
	c.Env = []corev1.EnvVar{{Name: "COLOR", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "cfg"}, Key: "color"}}}}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "cfg", MountPath: "/cfg"}, {Name: "tmp", MountPath: "/tmp/one", SubPath: "a/b"}, {Name: "tmp", MountPath: "/tmp/all"}}
	p := pod("u1", corev1.PodSpec{
		Hostname: "front", Subdomain: "web", Containers: []corev1.Container{c, m.container("other")}, ShareProcessNamespace: new(true),
		Volumes: []corev1.Volume{
			{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cfg"}}}},
			{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		},
	})
	config := func(color string) []*nodes.Config {
		return []*nodes.Config{{Key: desired.Key{Kind: "ConfigMap", Namespace: "shop", Name: "cfg"}, Version: color, Data: map[string][]byte{"color": []byte(color)}}}
	}
	x := assign(p)
	x.Configs = config("blue")
	a.Assign(x)
	m.eventually("ready", func() bool { return m.status["u1"].Ready })
	ip := m.status["u1"].IP

	for _, c := range []struct{ want, got string }{
		{"blue\n", m.exec("u1_web_0", "/program", "env", "COLOR")},
		{"blue", m.exec("u1_web_0", "/program", "cat", "/cfg/color")},
		{"front\n", m.exec("u1_web_0", "/program", "hostname")},
		{"front\n", m.exec("u1_other_0", "/program", "cat", "/etc/hostname")},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	if hosts := m.exec("u1_web_0", "/program", "cat", "/etc/hosts"); !strings.Contains(hosts, ip+"\tfront.web.shop.svc.cluster.local\tfront") {
		t.Errorf("hosts %s", hosts)
	}
	if resolv := m.exec("u1_web_0", "/program", "cat", "/etc/resolv.conf"); !strings.HasPrefix(resolv, "nameserver 10.244.0.1\nsearch shop.svc.cluster.local") {
		t.Errorf("resolv.conf %s", resolv)
	}
	m.exec("u1_web_0", "/program", "write", "/tmp/one/f", "x")
	if got := m.exec("u1_web_0", "/program", "cat", "/tmp/all/a/b/f"); got != "x" {
		t.Errorf("subPath: %q", got)
	}
	// Both containers are in the namespace whose first process is ours.
	if first := m.exec("u1_other_0", "/program", "cat", "/proc/1/cmdline"); !strings.Contains(first, "tally-pause") {
		t.Errorf("first process %q", first)
	}

	y := *x
	y.Configs = config("green")
	a.Assign(&y)
	m.eventually("changed file", func() bool { return m.exec("u1_web_0", "/program", "cat", "/cfg/color") == "green" })
	overwritten, err := filepath.Glob(filepath.Join(m.dir, "run/volumes/u1/cfg/..data/color"))
	need(t, err)
	need(t, os.WriteFile(overwritten[0], []byte("black"), 0o644))
	m.eventually("healed file", func() bool { return m.exec("u1_web_0", "/program", "cat", "/cfg/color") == "green" })

	var log bytes.Buffer
	need(t, a.Logs(t.Context(), wire.LogQuery{Pod: "u1", Container: "web", Tail: -1}, &log))
	if log.String() != "serving\n" {
		t.Errorf("log %q", log.String())
	}
	a.Assign(assign(stopped(p, time.Second)))
	m.eventually("gone", func() bool { return m.gone["u1"] })
	kill(true)
}

func TestKilledAgentAndContainerd(t *testing.T) {
	m := newMachineE2E(t)
	a, kill := m.start()
	const n = 30
	x := assign()
	for i := range n {
		x.Pods = append(x.Pods, pod(fmt.Sprintf("u%02d", i), corev1.PodSpec{Containers: []corev1.Container{m.container("web")}}))
	}
	a.Assign(assign(x.Pods[0])) // pulls
	m.eventually("first ready", func() bool { return m.status["u00"].Ready })
	a.Assign(x)
	ready := func() bool {
		count := 0
		for _, s := range m.status {
			if s.Ready {
				count++
			}
		}
		return count == n
	}
	t.Logf("%d pods ready after %v", n-1, m.eventually("all ready", ready))
	before := m.pids()
	m.mu.Lock()
	m.watch = true
	m.mu.Unlock()

	for range 3 {
		kill(false)
		a, kill = m.start()
		_, err := a.Hello(t.Context())
		need(t, err)
		need(t, m.daemon.Kill())
		need(t, m.daemon.Restart(t.Context()))
	}
	m.eventually("all ready", ready)
	m.mu.Lock()
	if len(m.flapped) > 0 {
		t.Errorf("pods stopped being ready: %v", m.flapped)
	}
	m.watch = false
	m.mu.Unlock()
	if after := m.pids(); after != before {
		t.Errorf("containers changed:\n%s\n%s", before, after)
	}

	need(t, m.runtime.Kill(t.Context(), "u07_web_0", "SIGKILL"))
	took := m.eventually("serving again", func() bool {
		s := m.status["u07"]
		return s.Ready && s.Restarts() == 1
	})
	t.Logf("killed container ready again after %v", took)
	need(t, m.runtime.Delete(t.Context(), "u08_web_0"))
	m.eventually("deleted container remade", func() bool { s := m.status["u08"]; return s.Ready && s.Restarts() == 1 })

	if _, err := net.InterfaceByName(network.DefaultBridge); err != nil {
		t.Error(err)
	}
	kill(true)
	left, err := m.runtime.List(t.Context())
	if err != nil || len(left) != 0 {
		t.Errorf("left after reset: %v %v", left, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), filepath.Join(m.dir, "run/volumes")) {
		t.Errorf("volumes are still mounted (%v)", err)
	}
}

// pids are the first processes of all running containers.
func (m *machine) pids() string {
	m.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		all, err := m.runtime.List(m.t.Context())
		if err == nil {
			var lines []string
			for _, s := range all {
				if s.State == runtime.Running {
					lines = append(lines, fmt.Sprintf("%s=%d", s.ID, s.PID))
				}
			}
			return strings.Join(slices.Sorted(slices.Values(lines)), " ")
		}
		if time.Now().After(deadline) {
			m.t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
