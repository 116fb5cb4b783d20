package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/pressure"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/fake"
	"github.com/tallyman-dev/tallyman/nodes/volume"
	volumefake "github.com/tallyman-dev/tallyman/nodes/volume/fake"
	"github.com/tallyman-dev/tallyman/proxy"
)

// world is one node's surroundings: they outlive the agent.
type world struct {
	t        *testing.T
	dir      string
	runtime  *fake.Runtime
	reached  runtime.Runtime // what the agent is given: runtime, or something in front of it
	behave   func(c runtime.Container) fake.Behaviour
	exec     func(c runtime.Container, command []string) int
	noPull   atomic.Pointer[string] // why pulls fail, if they do
	queued   atomic.Int64           // connections that no program has accepted
	counting atomic.Int64           // how long it takes to count them, in nanoseconds
	disk     *volumefake.Persistent
	// forwarders are the machine's resolvers.
	forwarders atomic.Pointer[[]netip.AddrPort]
	devices    Devices
	// readings are of the machine; onDisk is what pods have in their volumes.
	readings func() map[pressure.Signal]pressure.Reading
	onDisk   map[nodes.UID]map[string]nodes.DiskUsage

	mu     sync.Mutex
	nets   map[nodes.UID]network.Attachment
	groups map[string]runtime.Resources
	mounts map[nodes.UID]bool
	drift  chan nodes.UID
	// peers are those of each SetPeers, unconnected is what it answers.
	peers       [][]proxy.Node
	unconnected error
	// noSetup is what Setup answers.
	noSetup  error
	proxied  []proxy.Config
	dns      keeper.DNS
	fences   map[nodes.UID]*keeper.HeldFence
	noFences bool
	// token is the server's answer, written what mounted volumes say of tokens.
	token   func(r nodes.TokenRequest) (nodes.Token, error)
	written map[nodes.UID][]string
	reports []nodes.Report
	// boot is that of the machine; empty for the real one's.
	boot string
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, dir: t.TempDir(), nets: map[nodes.UID]network.Attachment{}, groups: map[string]runtime.Resources{}, mounts: map[nodes.UID]bool{}, written: map[nodes.UID][]string{},
		fences: map[nodes.UID]*keeper.HeldFence{}, drift: make(chan nodes.UID), disk: volumefake.New(),
	}
	image := runtime.Image{ID: "sha256:app", Digest: "sha256:d", Config: runtime.ImageConfig{Cmd: []string{"/app"}, StopSignal: "SIGQUIT"}}
	w.runtime = fake.New(fake.Options{
		Now: time.Now, Images: map[string]runtime.Image{"app": image}, Handlers: []string{"other"},
		FailPull: func(string, runtime.PullOptions) error {
			if why := w.noPull.Load(); why != nil {
				return errors.New(*why)
			}
			return nil
		},
		Behave: func(c runtime.Container) fake.Behaviour {
			if w.behave == nil {
				return fake.Behaviour{}
			}
			return w.behave(c)
		},
		Exec: func(_ context.Context, c runtime.Container, command []string, _ io.Writer) (int, error) {
			if w.exec == nil {
				return 0, nil
			}
			return w.exec(c, command), nil
		},
	})
	w.reached = w.runtime
	w.forwarders.Store(&[]netip.AddrPort{})
	return w
}

func (w *world) Setup(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.noSetup
}

func (w *world) Close(context.Context) error { return nil }
func (w *world) Drift() <-chan nodes.UID     { return w.drift }
func (w *world) PublicKey() string           { return "" }
func (w *world) Gateway() netip.Addr         { return netip.MustParseAddr("10.244.0.1") }
func (w *world) PodCIDR() netip.Prefix       { return netip.MustParsePrefix("10.244.0.0/24") }
func (w *world) Bridge() string              { return "tally0" }

func (w *world) Queued(nodes.UID) (int, error) {
	n := w.queued.Load()
	time.Sleep(time.Duration(w.counting.Load()))
	return int(n), nil
}

func (w *world) SetPeers(_ context.Context, peers []proxy.Node) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peers = append(w.peers, peers)
	return w.unconnected
}

func (w *world) Add(_ context.Context, s network.Sandbox) (network.Attachment, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, found := w.nets[s.UID]; !found {
		ip := netip.AddrFrom4([4]byte{10, 244, 0, byte(2 + len(w.nets))})
		w.nets[s.UID] = network.Attachment{UID: s.UID, IP: ip, NetNS: "/ns/net", IPC: "/ns/ipc", UTS: "/ns/uts"}
	}
	return w.nets[s.UID], nil
}

func (w *world) Remove(_ context.Context, uid nodes.UID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.nets, uid)
	return nil
}

func (w *world) List(context.Context) ([]network.Attachment, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []network.Attachment
	for _, a := range w.nets {
		list = append(list, a)
	}
	return list, nil
}

func (w *world) OpenLog(_ context.Context, l keeper.Log) (keeper.Pipes, error) {
	return keeper.Pipes{Stdout: "/fifo/" + l.ID + ".out", Stderr: "/fifo/" + l.ID + ".err"}, nil
}
func (w *world) CloseLog(context.Context, string) error { return nil }

// Fence has the containers of a pod killed at the end of its lease; it is told
// the wall clock for CLOCK_BOOTTIME.
func (w *world) Fence(_ context.Context, ends time.Duration, pods []keeper.Fence) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noFences {
		return errors.New("the keeper is gone")
	}
	if ends <= clock() {
		return errors.New("over")
	}
	for _, p := range pods {
		h := w.fences[p.Pod]
		if h == nil {
			h = &keeper.HeldFence{Fence: p}
			w.fences[p.Pod] = h
		}
		h.Ends = max(h.Ends, ends)
		time.AfterFunc(h.Ends-clock(), func() { w.strike(p.Pod) })
	}
	return nil
}

func (w *world) strike(pod nodes.UID) {
	w.mu.Lock()
	h := w.fences[pod]
	due := h != nil && h.Ends <= clock()
	if due {
		h.Killed = clock()
	}
	w.mu.Unlock()
	for _, id := range w.running() {
		if due && podOf(id) == pod {
			if err := w.runtime.Exit(id, 137, false); err != nil {
				w.t.Error(err)
			}
		}
	}
}

func (w *world) Unfence(_ context.Context, pods []nodes.UID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range pods {
		delete(w.fences, p)
	}
	return nil
}

func (w *world) Fences(context.Context) (list []keeper.HeldFence, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.fences {
		list = append(list, *h)
	}
	return list, nil
}

// clock stands for CLOCK_BOOTTIME, which knows of no virtual time.
func clock() time.Duration { return time.Duration(time.Now().UnixNano()) }

func (w *world) SetDNS(_ context.Context, d keeper.DNS) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dns = d
	return nil
}

func (w *world) Set(_ context.Context, c proxy.Config) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.proxied = append(w.proxied, c)
	return nil
}
func (w *world) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// testGroups are the control groups around pods.
type testGroups struct{ *world }

func (g testGroups) Ensure(parent string, r runtime.Resources, _ uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.groups[parent] = r
	return nil
}

func (g testGroups) Remove(parent string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.groups, parent)
	return nil
}

// testVolumes keeps pods' files in a plain directory.
type testVolumes struct{ *world }

func (v testVolumes) Mount(ctx context.Context, p *nodes.Pod, src volume.Source) (map[string]volume.Volume, error) {
	var tokens []string
	for i := range p.Template.Spec.Volumes {
		if projected := p.Template.Spec.Volumes[i].Projected; projected != nil {
			text, err := src.Token(projected.Sources[0].ServiceAccountToken)
			if err != nil {
				return nil, err
			}
			tokens = append(tokens, text)
		}
	}
	v.mu.Lock()
	v.mounts[p.UID] = true
	v.written[p.UID] = tokens
	v.mu.Unlock()
	made := map[string]volume.Volume{}
	for i := range p.Template.Spec.Volumes {
		claimed := &p.Template.Spec.Volumes[i]
		if claimed.Image != nil {
			if err := src.Image(ctx, claimed.Name, filepath.Join(v.dir, string(p.UID), claimed.Name)); err != nil {
				return nil, err
			}
			made[claimed.Name] = volume.Volume{Path: "/image", ReadOnly: true, NoExec: true}
		}
		if p.Claim(claimed) == "" {
			continue
		}
		var err error
		if made[claimed.Name], err = src.Claim(ctx, claimed); err != nil {
			return nil, fmt.Errorf("volume %q: %w", claimed.Name, err)
		}
	}
	return made, nil
}

func (v testVolumes) SubPath(nodes.UID, volume.Volume, string, int, string) (string, error) {
	return "", errors.New("no volumes here")
}

func (v testVolumes) Disk(_ context.Context, p *nodes.Pod) (map[string]nodes.DiskUsage, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.onDisk[p.UID], nil
}
func (v testVolumes) Shm(nodes.UID) (string, error) { return "/dev/shm", nil }
func (v testVolumes) Dir(uid nodes.UID) (string, error) {
	dir := filepath.Join(v.dir, "run", string(uid))
	return dir, os.MkdirAll(dir, 0o755)
}

func (v testVolumes) Unmount(_ context.Context, uid nodes.UID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.mounts, uid)
	return nil
}

func (v testVolumes) List(context.Context) ([]nodes.UID, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var uids []nodes.UID
	for uid := range v.mounts {
		uids = append(uids, uid)
	}
	return uids, nil
}
func (v testVolumes) Reset(context.Context) error { return nil }

func (w *world) Send(r nodes.Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reports = append(w.reports, r)
}

// read is Options.Readings.
func (w *world) read(context.Context) map[pressure.Signal]pressure.Reading {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.readings == nil {
		return nil
	}
	return w.readings()
}

func (w *world) Token(_ context.Context, r nodes.TokenRequest) (nodes.Token, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.token == nil {
		return nodes.Token{}, errors.New("no server")
	}
	return w.token(r)
}

// start runs an agent until the returned function kills it.
func (w *world) start() (*Agent, func()) {
	w.t.Helper()
	db, err := OpenStore(filepath.Join(w.dir, "agent.db"))
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := New(Options{
		Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Pause: []string{"/pause"}, DataDir: w.dir, RunDir: w.dir,
		Key: bytes.Repeat([]byte{7}, 32), Runtime: w.reached, Network: w, Keeper: w, Proxy: w, Volumes: testVolumes{w}, Devices: w.devices, Readings: w.read, Persistent: w.disk, Cgroups: testGroups{w},
		Forwarders: func() []netip.AddrPort { return *w.forwarders.Load() }, DB: db, Log: slog.New(slog.DiscardHandler), Now: time.Now, Clock: clock, BootID: w.boot,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := a.Run(ctx, w); !errors.Is(err, context.Canceled) {
			w.t.Errorf("agent ended: %v", err)
		}
	}()
	return a, func() {
		cancel()
		<-ended
		if err := db.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

// settle lets time pass.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// last is the newest status that was reported of a pod.
func (w *world) last(uid nodes.UID) nodes.PodStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range slices.Backward(w.reports) {
		for _, s := range r.Statuses {
			if s.UID == uid {
				return s
			}
		}
	}
	return nodes.PodStatus{}
}

func (w *world) gone(uid nodes.UID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.reports, func(r nodes.Report) bool { return slices.Contains(r.Gone, uid) })
}

// reasons are those of all events, in order.
func (w *world) reasons() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for _, r := range w.reports {
		for _, e := range r.Events {
			list = append(list, e.Reason)
		}
	}
	return list
}

// running are the IDs of what runs, sorted.
func (w *world) running() []string {
	w.t.Helper()
	all, err := w.runtime.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var ids []string
	for _, s := range all {
		if s.State == runtime.Running {
			ids = append(ids, s.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func pod(uid string, s corev1.PodSpec) *nodes.Pod {
	if s.RestartPolicy == "" {
		s.RestartPolicy = corev1.RestartPolicyAlways
	}
	if s.TerminationGracePeriodSeconds == nil {
		s.TerminationGracePeriodSeconds = new(int64(30))
	}
	s.DNSPolicy = corev1.DNSClusterFirst
	return &nodes.Pod{
		UID: nodes.UID(uid), Namespace: "shop", Name: "pod-" + uid, Ordinal: -1, Incarnation: 1,
		Workload: desired.Key{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "web"},
		Template: &nodes.Template{Hash: "hash", Spec: s}, TemplateHash: "hash", Node: "n1",
	}
}

func container(name string) corev1.Container {
	return corev1.Container{Name: name, Image: "app", ImagePullPolicy: corev1.PullIfNotPresent}
}

func assign(pods ...*nodes.Pod) *nodes.Assignment {
	return &nodes.Assignment{Node: "n1", Pods: pods, Network: desired.DefaultSettings().Network}
}

func stopped(p *nodes.Pod, grace time.Duration) *nodes.Pod {
	q := *p
	q.Stop = &nodes.Stop{Grace: grace, Reason: "scaled down"}
	return &q
}

// inWorld runs f in virtual time.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t)) })
}

func expectRunning(t *testing.T, w *world, ids ...string) {
	t.Helper()
	if got := w.running(); !slices.Equal(got, ids) {
		t.Fatalf("running %v, want %v\n%s", got, ids, w.runtime)
	}
}

func TestPodStartsAndStops(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a"), container("b")}})
		a.Assign(assign(p))
		settle(time.Second)
		expectRunning(t, w, "u1_a_0", "u1_b_0")
		s := w.last("u1")
		if !s.Ready || s.Phase != corev1.PodRunning || s.IP != "10.244.0.2" || s.Reason != "" {
			t.Fatalf("status %+v", s)
		}
		for _, reason := range []string{"Pulling", "Pulled", "Created", "Started"} {
			if !slices.Contains(w.reasons(), reason) {
				t.Errorf("no event %s in %v", reason, w.reasons())
			}
		}
		a.Assign(assign(stopped(p, 10*time.Second)))
		settle(time.Second)
		expectRunning(t, w)
		if !w.gone("u1") || len(w.nets) != 0 || len(w.mounts) != 0 || len(w.groups) != 0 {
			t.Fatalf("gone %v, networks %v, mounts %v, control groups %v", w.gone("u1"), w.nets, w.mounts, w.groups)
		}
	})
}

func TestNewAgentAdoptsAndRestartsNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		c := container("a")
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 5, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"ready"}}}}
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{c}})))
		settle(time.Second)
		kill()
		before := len(w.reports)
		a, kill = w.start()
		defer kill()
		hello, err := a.Hello(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(hello.Statuses) != 1 || !hello.Statuses[0].Ready || len(hello.Held) != 1 || hello.Held[0].Template.Spec.Containers[0].Image != "app" {
			t.Fatalf("hello %+v", hello)
		}
		settle(time.Minute)
		expectRunning(t, w, "u1_a_0")
		for _, r := range w.reports[before:] {
			for _, s := range r.Statuses {
				if !s.Ready {
					t.Errorf("the pod flapped: %+v", s)
				}
			}
		}
		// It still restarts what dies, without any server.
		if err := w.runtime.Exit("u1_a_0", 1, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		expectRunning(t, w, "u1_a_1")
	})
}

func TestLostStoreAdoptsByLabelOnceAssigned(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		p, q := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(p, q))
		settle(time.Second)
		kill()
		if err := os.WriteFile(filepath.Join(w.dir, "agent.db"), bytes.Repeat([]byte("junk"), 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		a, kill = w.start()
		defer kill()
		settle(2 * time.Minute)
		expectRunning(t, w, "u1_a_0", "u2_a_0") // nothing is deleted for lack of knowledge
		if r, err := a.Hello(t.Context()); err != nil || len(r.Held) > 0 || !slices.Equal(r.Left, []nodes.UID{"u1", "u2"}) {
			t.Errorf("what is here and not known was not said: %v, %v", r.Left, err)
		}
		aside, _ := filepath.Glob(filepath.Join(w.dir, "agent.db.corrupt-*"))
		if len(aside) != 1 {
			t.Errorf("set aside: %v", aside)
		}
		a.Assign(assign(p))
		settle(time.Second)
		expectRunning(t, w, "u1_a_0")
		if !w.gone("u2") || w.gone("u1") {
			t.Error("the unassigned pod was not swept, or the assigned one was")
		}
		if r, err := a.Hello(t.Context()); err != nil || len(r.Left) > 0 {
			t.Errorf("still left: %v, %v", r.Left, err)
		}
		if len(w.groups) != 1 {
			t.Errorf("control groups left: %v", w.groups)
		}
	})
}

// TestLostStoreMovesNoReadiness: containers of a lost store count as ready
// until their probe has spoken.
func TestLostStoreMovesNoReadiness(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var sick atomic.Bool
		w.exec = func(runtime.Container, []string) int {
			if sick.Load() {
				return 1
			}
			return 0
		}
		c := container("a")
		c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 5, FailureThreshold: 3, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"ready"}}}}
		p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{c}})
		a, kill := w.start()
		a.Assign(assign(p))
		settle(time.Minute)
		again := func() {
			kill()
			if err := os.Remove(filepath.Join(w.dir, "agent.db")); err != nil {
				t.Fatal(err)
			}
			w.reports = nil
			a, kill = w.start()
			a.Assign(assign(p))
			settle(time.Minute)
		}
		again()
		for _, r := range w.reports {
			if len(r.Statuses) > 0 && !r.Statuses[0].Ready {
				t.Errorf("readiness moved: %+v", r.Statuses[0])
			}
		}
		sick.Store(true)
		again()
		defer func() { kill() }()
		if s := w.last("u1"); s.Ready {
			t.Errorf("the probe fails and the pod is ready: %+v", s)
		}
		expectRunning(t, w, "u1_a_0")
	})
}

// TestARebootIsNoCrash: a pod that restarted before does not wait for its
// back-off when the machine comes back.
func TestARebootIsNoCrash(t *testing.T) {
	m := Memory{Boot: "one", Runs: map[string]*Run{"a": {ID: "u1_a_0", Next: 1, Delay: maxDelay, Restarted: time.Unix(100, 0)}}}
	m.rebooted("two", nil)
	finished := time.Unix(101, 0)
	if at := m.Runs["a"].restartAt(finished); !at.Equal(finished) {
		t.Errorf("the container waits until %s", at)
	}
}

func TestUnreadableEntryDeletesNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		p, q := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(p, q))
		settle(time.Second)
		kill()
		w.spoil(podBucket, "u2")
		a, kill = w.start()
		settle(time.Minute)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
		a.Assign(assign(p)) // now it is known
		settle(time.Second)
		expectRunning(t, w, "u1_a_0")
		kill()
		a, kill = w.start()
		defer kill()
		settle(time.Second)
		if a.partial {
			t.Error("the unreadable entry is still there")
		}
	})
}

// spoil damages an entry of the agent's store, of which no agent runs.
func (w *world) spoil(bucket, key string) {
	w.t.Helper()
	db, err := OpenStore(filepath.Join(w.dir, "agent.db"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), []byte("spoiled")) })
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestHalfReadableIsUnreadable: what an agent of another version wrote, in a form
// that this one reads only in part, is not taken for all of it.
func TestHalfReadableIsUnreadable(t *testing.T) {
	db, err := OpenStore(filepath.Join(t.TempDir(), "agent.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := newStore(db, bytes.Repeat([]byte{7}, 32), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
	s.saveAssignment(nil, assign(p))
	s.put(templateBucket, templateKey(p), []byte(`{"hash": "h", "spec": {"containers": "none"}}`))
	s.put(memoryBucket, "u1", []byte(`{"boot": "b", "runs": "none"}`))
	s.put(routeBucket, "table", []byte(`{"generation": 3, "services": "none"}`))
	if !s.flush(t.Context()) {
		t.Fatal("not written")
	}
	got, err := s.load()
	if err != nil || got.table != nil || len(got.memories) != 0 || !got.partial || len(got.assignment.Pods) != 0 {
		t.Errorf("loaded %+v, %v", got, err)
	}
}

func TestWhatCouldNotBeWrittenIsWrittenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := OpenStore(filepath.Join(t.TempDir(), "agent.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		s, err := newStore(db, bytes.Repeat([]byte{7}, 32), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); s.run(ctx) }()
		s.put("no such bucket", "", nil) // bbolt has none to write to, as if there was no room
		s.put(ledgerBucket, "key", []byte("old"))
		settle(time.Second)
		s.mu.Lock()
		delete(s.pending, entry{"no such bucket", ""})
		s.mu.Unlock()
		s.put(ledgerBucket, "key", []byte("new"))
		settle(time.Minute)
		got := ""
		if err := s.each(ledgerBucket, func(_ string, value []byte) error { got = string(value); return nil }); err != nil || got != "new" {
			t.Errorf("stored is %q (%v), want the newest value", got, err)
		}
		cancel()
		<-ended
	})
}

func TestCrashingContainerBacksOff(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})))
		settle(time.Second)
		for i, wait := range []time.Duration{0, 10, 20, 40, 80, 160, 300, 300} {
			id := fmt.Sprintf("u1_a_%d", i)
			expectRunning(t, w, id)
			if err := w.runtime.Exit(id, 3, false); err != nil {
				t.Fatal(err)
			}
			if wait > 0 {
				settle(wait*time.Second - time.Millisecond)
				expectRunning(t, w)
				s := w.last("u1")
				if c := s.Containers[0]; c.Reason != "CrashLoopBackOff" || c.Last.ExitCode != 3 || c.Restarts != i || s.Ready {
					t.Fatalf("status %+v", s)
				}
			}
			settle(2 * time.Millisecond)
		}
		settle(11 * time.Minute) // calm: it begins anew
		if err := w.runtime.Exit("u1_a_8", 1, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Millisecond)
		expectRunning(t, w, "u1_a_9")
	})
}

func TestStoppingRunsTheHookThenSignalsThenKills(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.behave = func(runtime.Container) fake.Behaviour { return fake.Behaviour{IgnoresTerm: true} }
		var hooked atomic.Bool
		w.exec = func(_ runtime.Container, command []string) int { hooked.Store(command[0] == "bye"); return 0 }
		a, kill := w.start()
		defer kill()
		c := container("a")
		c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"bye"}}}}
		p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{c}})
		a.Assign(assign(p))
		settle(time.Second)
		a.Assign(assign(stopped(p, 10*time.Second)))
		settle(9 * time.Second)
		expectRunning(t, w, "u1_a_0")
		if s := w.last("u1"); !hooked.Load() || s.Reason != "Terminating" {
			t.Fatalf("hooked %v, status %+v", hooked.Load(), s)
		}
		settle(2 * time.Second)
		expectRunning(t, w)
		if !w.gone("u1") {
			t.Error("the pod is not gone")
		}
	})
}

// TestNoSignalWhileConnectionsWait: a program that is told to end resets what
// it has not accepted.
func TestNoSignalWhileConnectionsWait(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		busy := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		stuck := pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(busy, stuck))
		settle(time.Second)
		w.queued.Store(1)
		a.Assign(assign(stopped(busy, 30*time.Second), stuck))
		settle(500 * time.Millisecond)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
		w.queued.Store(0)
		settle(50 * time.Millisecond)
		expectRunning(t, w, "u2_a_0")
		// A program that never accepts is signalled all the same.
		w.queued.Store(1)
		a.Assign(assign(stopped(stuck, 30*time.Second)))
		settle(2 * time.Second)
		expectRunning(t, w)
	})
}

// TestNoSignalWhileTheNodeRoutesToThePod: a node that is slow to change its
// routes still leads connections to a pod that is told to stop.
func TestNoSignalWhileTheNodeRoutesToThePod(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		other := pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(p, other))
		settle(time.Second)
		w.mu.Lock()
		w.unconnected = errors.New("not yet")
		w.mu.Unlock()
		a.Route(&proxy.Table{Generation: 2})
		a.Assign(assign(stopped(p, 30*time.Second), other))
		settle(3 * time.Second)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
		w.mu.Lock()
		w.unconnected = nil
		w.mu.Unlock()
		settle(1100 * time.Millisecond) // routes are tried again every second
		expectRunning(t, w, "u2_a_0")
		// Routes that can't be had keep nobody for ever.
		w.mu.Lock()
		w.unconnected = errors.New("never")
		w.mu.Unlock()
		a.Route(&proxy.Table{Generation: 3})
		a.Assign(assign(stopped(other, 30*time.Second)))
		settle(routesPatience + time.Second)
		expectRunning(t, w)
	})
}

// TestTheLastConnectionsCount: those that came while the node changed its routes.
func TestTheLastConnectionsCount(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(p))
		settle(time.Second)
		w.mu.Lock()
		w.unconnected = errors.New("not yet")
		w.mu.Unlock()
		a.Route(&proxy.Table{Generation: 2}) // tried again after a second
		settle(900 * time.Millisecond)
		w.counting.Store(int64(50 * time.Millisecond))
		a.Assign(assign(stopped(p, 30*time.Second)))
		settle(90 * time.Millisecond)
		w.mu.Lock()
		w.unconnected = nil
		w.mu.Unlock()
		w.queued.Store(1)
		settle(200 * time.Millisecond)
		expectRunning(t, w, "u1_a_0")
	})
}

func TestInitContainersAndSidecarsKeepTheirOrder(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var ready atomic.Bool
		w.exec = func(runtime.Container, []string) int {
			if ready.Load() {
				return 0
			}
			return 1
		}
		w.behave = func(c runtime.Container) fake.Behaviour {
			return fake.Behaviour{IgnoresTerm: c.Labels[labelContainer] == "main"}
		}
		always := corev1.ContainerRestartPolicyAlways
		side := container("side")
		side.RestartPolicy = &always
		side.StartupProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 100, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
		p := pod("u1", corev1.PodSpec{InitContainers: []corev1.Container{container("first"), side}, Containers: []corev1.Container{container("main")}})
		a, kill := w.start()
		defer kill()
		a.Assign(assign(p))
		settle(time.Second)
		expectRunning(t, w, "u1_first_0")
		if err := w.runtime.Exit("u1_first_0", 1, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		expectRunning(t, w, "u1_first_1")
		if err := w.runtime.Exit("u1_first_1", 0, false); err != nil {
			t.Fatal(err)
		}
		settle(3 * time.Second)
		expectRunning(t, w, "u1_side_0")
		ready.Store(true)
		settle(3 * time.Second)
		expectRunning(t, w, "u1_main_0", "u1_side_0")
		a.Assign(assign(stopped(p, 10*time.Second)))
		settle(9 * time.Second)
		expectRunning(t, w, "u1_main_0", "u1_side_0") // the sidecar waits for the main container
		settle(5 * time.Second)
		if !w.gone("u1") {
			t.Error("the pod is not gone")
		}
	})
}

func TestImageThatCannotBePulled(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.noPull.Store(new("no such host"))
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})))
		settle(time.Second)
		if s := w.last("u1"); s.Containers[0].Reason != "ErrImagePull" || !strings.Contains(s.Message, "no such host") || s.Phase != corev1.PodPending {
			t.Fatalf("status %+v", s)
		}
		settle(10 * time.Second)
		if s := w.last("u1"); s.Containers[0].Reason != "ImagePullBackOff" {
			t.Fatalf("status %+v", s)
		}
		w.noPull.Store(nil)
		settle(20 * time.Second)
		if s := w.last("u1"); !s.Ready {
			t.Fatalf("status %+v", s)
		}
	})
}

func TestContainerThatVanishesIsRemade(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}})))
		settle(time.Second)
		w.runtime.Lose("u1_a_0")
		settle(resyncEvery + time.Second)
		expectRunning(t, w, "u1_a_1")
	})
}

func TestLivenessRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.exec = func(c runtime.Container, _ []string) int {
			if c.ID == "u1_a_0" {
				return 1
			}
			return 0
		}
		c := container("a")
		c.LivenessProbe = &corev1.Probe{PeriodSeconds: 5, FailureThreshold: 2, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}}
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{c}})))
		settle(4 * time.Second)
		expectRunning(t, w, "u1_a_0")
		settle(2 * time.Second)
		expectRunning(t, w, "u1_a_1")
		settle(time.Minute)
		expectRunning(t, w, "u1_a_1")
		if s := w.last("u1"); s.Containers[0].Restarts != 1 || !s.Ready {
			t.Errorf("status %+v", s)
		}
	})
}

func TestPodsThatEnd(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy corev1.RestartPolicy
		codes  [2]int32
		want   corev1.PodPhase
		share  bool
	}{
		{"both well", corev1.RestartPolicyNever, [2]int32{0, 0}, corev1.PodSucceeded, false},
		{"both well, processes shared", corev1.RestartPolicyNever, [2]int32{0, 0}, corev1.PodSucceeded, true},
		{"one failed", corev1.RestartPolicyNever, [2]int32{0, 2}, corev1.PodFailed, false},
		{"on failure, well", corev1.RestartPolicyOnFailure, [2]int32{0, 0}, corev1.PodSucceeded, false},
		{"on failure, failed", corev1.RestartPolicyOnFailure, [2]int32{0, 2}, corev1.PodRunning, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				a, kill := w.start()
				defer kill()
				a.Assign(assign(pod("u1", corev1.PodSpec{RestartPolicy: c.policy, ShareProcessNamespace: &c.share, Containers: []corev1.Container{container("a"), container("b")}})))
				settle(time.Second)
				for i, name := range []string{"u1_a_0", "u1_b_0"} {
					if err := w.runtime.Exit(name, c.codes[i], false); err != nil {
						t.Fatal(err)
					}
					settle(time.Second)
				}
				if s := w.last("u1"); s.Phase != c.want || s.Ready {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

func TestActiveDeadlineFailsThePod(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Assign(assign(pod("u1", corev1.PodSpec{ActiveDeadlineSeconds: new(int64(60)), Containers: []corev1.Container{container("a")}})))
		settle(59 * time.Second)
		expectRunning(t, w, "u1_a_0")
		settle(2 * time.Second)
		expectRunning(t, w)
		if s := w.last("u1"); s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" {
			t.Errorf("status %+v", s)
		}
	})
}

func TestRestartKeepsTheEnvironmentItWasMadeWith(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var seen []string
		w.behave = func(c runtime.Container) fake.Behaviour {
			seen = append(seen, c.Env[len(c.Env)-1])
			return fake.Behaviour{}
		}
		c := container("a")
		c.Env = []corev1.EnvVar{{Name: "K", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}}}
		p := pod("u1", corev1.PodSpec{Containers: []corev1.Container{c}})
		config := func(version, value string) *nodes.Config {
			return &nodes.Config{Key: desired.Key{Kind: "Secret", Namespace: "shop", Name: "s"}, Version: version, Data: map[string][]byte{"k": []byte(value)}}
		}
		a, kill := w.start()
		x := assign(p)
		a.Assign(x)
		settle(time.Second)
		if s := w.last("u1"); s.Containers[0].Reason != "CreateContainerConfigError" || !strings.Contains(s.Message, `secret "s" not found`) {
			t.Fatalf("status %+v", s)
		}
		x.Configs = []*nodes.Config{config("1", "hunter2-in-the-clear")}
		y := *x
		a.Assign(&nodes.Assignment{Node: "n1", Pods: y.Pods, Network: y.Network})
		y.Configs = x.Configs
		a.Assign(&y)
		settle(time.Second)
		expectRunning(t, w, "u1_a_0")
		kill()
		stored, err := os.ReadFile(filepath.Join(w.dir, "agent.db"))
		if err != nil || bytes.Contains(stored, []byte("hunter2")) {
			t.Errorf("the store holds a secret in the clear (%v)", err)
		}
		a, kill = w.start()
		defer kill()
		settle(time.Second)
		z := y
		z.Configs = []*nodes.Config{config("2", "new")}
		a.Assign(&z)
		settle(time.Second)
		if err := w.runtime.Exit("u1_a_0", 1, false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		expectRunning(t, w, "u1_a_1")
		if want := []string{"K=hunter2-in-the-clear", "K=hunter2-in-the-clear"}; !slices.Equal(seen, want) {
			t.Errorf("environments %q, want %q", seen, want)
		}
	})
}

func TestPodWaitsForItsHandler(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer func() { kill() }()
		p, other := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		missing, there := *p.Template, *other.Template
		missing.RuntimeHandler, there.RuntimeHandler = "absent", "other"
		p.Template, other.Template = &missing, &there
		a.Assign(assign(p, other))
		settle(10 * time.Second)
		kill()
		a, kill = w.start()
		settle(10 * time.Second)
		expectRunning(t, w, "u2_a_0")
		if s := w.last("u1"); s.Containers[0].Reason != "CreateContainerError" || s.Containers[0].Restarts != 0 || !strings.Contains(s.Message, `runtime handler "absent"`) {
			t.Fatalf("status %+v", s)
		}
		a.Assign(assign(stopped(p, 0), other))
		settle(time.Second)
		if !w.gone("u1") {
			t.Fatal("it stays")
		}
	})
}

func TestRuntimeCrashRestartsNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		p, q := pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("a")}}), pod("u2", corev1.PodSpec{Containers: []corev1.Container{container("a")}})
		a.Assign(assign(p))
		settle(time.Second)
		w.runtime.Crash()
		a.Assign(assign(p, q))
		settle(time.Minute)
		if s := w.last("u1"); !s.Ready {
			t.Errorf("status %+v", s)
		}
		w.runtime.Recover()
		settle(time.Second)
		expectRunning(t, w, "u1_a_0", "u2_a_0")
	})
}

// TestRuntimeCrashesInTheMiddleOfAStart: containerd has made or started the
// container and dies before it can say so.
func TestRuntimeCrashesInTheMiddleOfAStart(t *testing.T) {
	hooked := container("hooked")
	hooked.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"greet"}}}}
	for changes, crash := range []string{"create", "start"} {
		t.Run(crash, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				var greeted atomic.Int64
				w.exec = func(runtime.Container, []string) int { greeted.Add(1); return 0 }
				w.reached = &failing{Runtime: w.runtime, fake: w.runtime, after: changes}
				a, kill := w.start()
				defer kill()
				a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{container("plain"), hooked}})))
				settle(time.Minute)
				w.runtime.Recover()
				settle(time.Second)
				expectRunning(t, w, "u1_hooked_0", "u1_plain_0")
				s := w.last("u1")
				if !s.Ready || s.Containers[0].StartedAt.IsZero() || greeted.Load() != 1 {
					t.Errorf("status %+v, greeted %d times", s, greeted.Load())
				}
			})
		})
	}
}

// failing is a runtime that crashes in the middle of the change after so many.
type failing struct {
	runtime.Runtime
	fake  *fake.Runtime
	after int
}

func (f *failing) change() {
	if f.after == 0 {
		f.fake.CrashInChange()
	}
	f.after--
}

func (f *failing) Create(ctx context.Context, c runtime.Container) error {
	f.change()
	return f.Runtime.Create(ctx, c)
}

func (f *failing) Start(ctx context.Context, id string) error {
	f.change()
	return f.Runtime.Start(ctx, id)
}

func TestRoutesAreReportedOnceInForce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		c := container("a")
		c.Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
		a.Assign(assign(pod("u1", corev1.PodSpec{Containers: []corev1.Container{c}})))
		a.Route(&proxy.Table{Generation: 7})
		settle(5 * time.Second)
		last := w.proxied[len(w.proxied)-1]
		want := []proxy.HostPort{{Protocol: proxy.TCP, HostPort: 8080, Endpoint: netip.MustParseAddrPort("10.244.0.2:80")}}
		if last.Table.Generation != 7 || !slices.Equal(last.HostPorts, want) {
			t.Fatalf("config %+v", last)
		}
		kill()
		w.proxied, w.reports = nil, nil
		_, kill = w.start() // without a server
		defer kill()
		settle(time.Second)
		if len(w.proxied) == 0 || w.proxied[0].Table.Generation != 7 || !slices.ContainsFunc(w.reports, func(r nodes.Report) bool { return r.Routes == 7 }) {
			t.Errorf("routes are not in force again: %+v", w.reports)
		}
	})
}

// TestDamagedStoreIsSetAside damages every page in turn: bbolt must not end the
// process.
func TestDamagedStoreIsSetAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.db")
	db, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newStore(db, bytes.Repeat([]byte{7}, 32), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		s.put(memoryBucket, fmt.Sprint(i), bytes.Repeat([]byte{byte(i)}, 700))
	}
	s.flush(t.Context())
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	for at := 0; at < len(good); at += page {
		for name, bad := range map[string][]byte{
			"overwritten": slices.Concat(good[:at], bytes.Repeat([]byte("no page "), page/8), good[at+page:]),
			"cut off":     good[:at],
		} {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			db, err := OpenStore(path)
			if err != nil {
				t.Fatalf("page %d %s: %v", at/page, name, err)
			}
			if err := db.Update(makeBuckets); err != nil {
				t.Errorf("page %d %s: %v", at/page, name, err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRoutesAreStoredWhileTheyChange: a machine may lose its power in the
// middle of a long rollout.
func TestRoutesAreStoredWhileTheyChange(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		for generation := range uint64(10) {
			a.Route(&proxy.Table{Generation: generation + 1})
			settle(time.Second)
			s, err := a.store.load()
			if err != nil {
				t.Fatal(err)
			}
			if s.table == nil || s.table.Generation+2 < generation+1 {
				t.Fatalf("generation %d is in force, stored is %+v", generation+1, s.table)
			}
		}
	})
}

func TestLedgerIsKept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		settle(time.Second)
		a.Ledger(true, []nodes.Decision{{Kind: "service", Key: "a", Value: []byte(`1`)}, {Kind: "service", Key: "b", Value: []byte(`2`)}})
		a.Ledger(false, []nodes.Decision{{Kind: "service", Key: "a"}, {Kind: "job", Key: "c", Value: []byte(`3`)}})
		kill()
		a, kill = w.start()
		defer kill()
		hello, err := a.Hello(t.Context())
		if err != nil || len(hello.Ledger) != 2 || hello.Ledger[0].Key != "c" || hello.Ledger[1].Key != "b" {
			t.Errorf("ledger %+v %v", hello.Ledger, err)
		}
	})
}
