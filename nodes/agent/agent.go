// Package agent converges one machine to its assignment: it makes pods, keeps
// them running, probes them, routes their services, and reports what it sees.
//
// It goes on without a server, from the assignment it stored (encrypted with
// the node's key), after a reboot too. It may be killed at any moment: the next
// one looks, adopts what it finds by label, sweeps what nobody wants, then
// converges; no container restarts for it. Each pod is one state machine
// (Machine) whose decisions are a pure function (decide). Nothing polls: exits,
// probe results, assignments and timers wake the one machine that they concern;
// a slow resync heals what no event tells of. DESIGN.md says more.
//
// It does not choose what runs, and it never deletes for lack of knowledge:
// what it does not know stays until it has seen a complete assignment.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent/pressure"
	"github.com/tallyman-dev/tallyman/nodes/boottime"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/probe"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Options for New. All are required unless a comment says otherwise.
type Options struct {
	// Name of the node, Addrs its own addresses, the preferred one first.
	Name  string
	Addrs []netip.Addr
	// Labels may be nil.
	Labels map[string]string
	// Capacity overrides what the machine has, Reserved is kept from pods; both may be nil.
	Reserved, Capacity corev1.ResourceList
	// DataDir holds logs and seccomp profiles, RunDir nothing that must survive a boot.
	DataDir, RunDir string
	// Key, 32 bytes, encrypts what is stored.
	Key []byte

	Runtime runtime.Runtime
	Network Network
	Keeper  Keeper
	Proxy   proxy.Backend
	Volumes Volumes
	// Persistent keeps volumes that outlive pods.
	Persistent Persistent
	// Prober is made by New when nil.
	Prober Prober
	// Cgroups makes the groups around pods; nil leaves it to the runtime, without limits for the pod as a whole.
	Cgroups Cgroups
	// Devices hands out devices; may be nil.
	Devices Devices
	// Drivers are the CSI drivers on the node; may be nil.
	Drivers Drivers
	// Readings reads memory and disks of the machine; nil evicts no pod for
	// their sake. See MachineReadings.
	Readings func(ctx context.Context) map[pressure.Signal]pressure.Reading
	// Pause is the command of a static program on this node that waits and
	// reaps, the path first; needed for shareProcessNamespace only.
	Pause   []string
	Version string
	// BootID changes with every boot of the machine; empty asks the kernel.
	BootID string
	// Forwarders are the machine's resolvers, asked for names outside the cluster.
	Forwarders func() []netip.AddrPort
	// DB from OpenStore; the caller closes it after Run.
	DB  *bbolt.DB
	Log *slog.Logger
	Now func() time.Time
	// Clock counts leases; default boottime.Now.
	Clock func() time.Duration
}

func (o Options) check() error {
	var missing []string
	for name, ok := range map[string]bool{
		"Name": o.Name != "", "Addrs": len(o.Addrs) > 0, "DataDir": o.DataDir != "", "RunDir": o.RunDir != "",
		"Runtime": o.Runtime != nil, "Network": o.Network != nil, "Keeper": o.Keeper != nil, "Proxy": o.Proxy != nil,
		"Volumes": o.Volumes != nil, "Persistent": o.Persistent != nil, "Forwarders": o.Forwarders != nil, "DB": o.DB != nil, "Log": o.Log != nil, "Now": o.Now != nil,
	} {
		if !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("agent: options missing: %v", missing)
	}
	return nil
}

const (
	// parallel is how many pods make heavy calls at the same time.
	parallel = 8
	// resyncEvery is how often the agent looks at everything without a reason.
	resyncEvery = 15 * time.Second
	// measureEvery counts resyncs between measurements of emptyDir volumes.
	measureEvery = 4
)

// Agent converges one node. It implements wire.Handler.
type Agent struct {
	o      Options
	log    *slog.Logger
	store  *store
	on     *surroundings
	ports  ports
	fences *fencing
	prober *probe.Prober // nil when Options brought one
	info   nodes.Node

	configs atomic.Pointer[map[desired.Key]*nodes.Config]
	table   atomic.Pointer[proxy.Table]
	cluster atomic.Pointer[desired.Network]
	routed  atomic.Uint64
	// forwarders are those that the keeper was last told.
	forwarders atomic.Pointer[[]netip.AddrPort]
	reroute    chan struct{}
	looked     chan struct{} // closed after the first look
	// changed is poked when the node is not as it was told.
	changed chan struct{}
	// lookAgain is poked when the runtime is back.
	lookAgain chan struct{}
	// otherImages is poked when there may be other images on the node.
	otherImages chan struct{}
	// measuring is poked when other pods are to be measured.
	measuring chan struct{}

	// guarded by mu
	mu         sync.Mutex
	up         Upstream
	ctx        context.Context // of Run, nil before
	running    sync.WaitGroup
	isLooked   bool
	assignment *nodes.Assignment // nil while unknown
	// partial: some of the stored assignment was unreadable, and nothing that
	// it lacks may be removed before the server tells.
	partial   bool
	memories  map[nodes.UID]*Memory
	ledger    map[string]nodes.Decision
	pods      map[nodes.UID]*worker
	leftover  map[nodes.UID][]runtime.Status // containers of pods without a worker
	sweeping  map[nodes.UID]bool
	hostPorts map[nodes.UID][]proxy.HostPort
	taints    []corev1.Taint // while the machine is short of something
	// noNetwork is why the pod network can't be set up, networkTrouble what was last
	// told of the ways to other nodes, cutOff that no pod there can be reached.
	noNetwork, networkTrouble string
	cutOff                    bool
	// toldImages are those that the server was last told of.
	toldImages *nodes.Images
	volumes    map[volumeKey]*volumeWorker
	// volumesSwept: what the last agent left of volumes was looked at.
	volumesSwept bool
	// told: the server has assigned something since the agent began.
	told bool
}

// New makes an Agent and reads the machine's description; nothing moves before Run.
func New(o Options) (*Agent, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Clock == nil {
		o.Clock = boottime.Now
	}
	s, err := newStore(o.DB, o.Key, o.Log)
	if err != nil {
		return nil, err
	}
	info, memory, err := describe(o)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		o: o, log: o.Log, store: s, info: info, fences: newFencing(o.Keeper, o.Clock, o.Log),
		reroute: make(chan struct{}, 1), changed: make(chan struct{}, 1), looked: make(chan struct{}),
		lookAgain: make(chan struct{}, 1), otherImages: make(chan struct{}, 1), measuring: make(chan struct{}, 1),
		memories: map[nodes.UID]*Memory{}, ledger: map[string]nodes.Decision{},
		pods: map[nodes.UID]*worker{}, leftover: map[nodes.UID][]runtime.Status{},
		sweeping: map[nodes.UID]bool{}, hostPorts: map[nodes.UID][]proxy.HostPort{},
		volumes: map[volumeKey]*volumeWorker{},
	}
	network := desired.DefaultSettings().Network
	a.cluster.Store(&network)
	a.configs.Store(&map[desired.Key]*nodes.Config{})
	a.on = &surroundings{
		name: o.Name, addrs: o.Addrs, boot: info.BootID, memory: memory, allocatable: info.Allocatable,
		logs: filepath.Join(o.DataDir, "logs"), seccomp: filepath.Join(o.DataDir, "seccomp"), pause: o.Pause,
		config:    func(k desired.Key) *nodes.Config { return (*a.configs.Load())[k] },
		table:     a.table.Load,
		rerouting: a.rerouting,
		cluster:   func() desired.Network { return *a.cluster.Load() },
		claim:     a.claim,
		driver:    a.driverOf,
		save:      a.saveMemory,
		pulled:    a.pulled,
		unleased:  a.fences.waits,
		killed: func(ctx context.Context, uid nodes.UID, after time.Time) bool {
			return a.fences.killed(ctx, uid, after, o.Now())
		},
		saved: func(uid nodes.UID) bool { return s.written(memoryBucket, string(uid)) },
	}
	a.ports = ports{
		runtime: o.Runtime, network: o.Network, keeper: o.Keeper, volumes: o.Volumes, prober: o.Prober,
		cgroups: o.Cgroups, devices: o.Devices, slots: make(chan struct{}, parallel), now: func() time.Time { return o.Now().UTC() },
		readLog: readTail, token: a.askToken,
	}
	return a, a.makeProber()
}

func (a *Agent) makeProber() error {
	if a.o.Prober != nil {
		return nil
	}
	p, err := probe.New(probe.Options{Exec: a.o.Runtime.Exec, Notify: a.Probed, Log: a.log})
	if err != nil {
		return err
	}
	a.prober, a.ports.prober = p, p
	return nil
}

// askToken asks the server, which only Run knows.
func (a *Agent) askToken(ctx context.Context, r nodes.TokenRequest) (nodes.Token, error) {
	a.mu.Lock()
	up := a.up
	a.mu.Unlock()
	return up.Token(ctx, r)
}

func readTail(ctx context.Context, path string, lines int, w io.Writer) error {
	return keeper.Read(ctx, path, keeper.ReadOptions{Tail: lines}, w)
}

func (a *Agent) saveMemory(uid nodes.UID, memory []byte) {
	a.store.put(memoryBucket, string(uid), memory)
}

// Pressed tells that the node's disk runs full: what containers of pods that
// have ended take of it goes, their status and logs stay.
func (a *Agent) Pressed() {
	for _, w := range a.workers() {
		w.m.Shed()
	}
}

// Probed hands a probe's outcome to its pod. Options.Prober must call it.
func (a *Agent) Probed(r probe.Result) {
	if w := a.worker(podOf(r.Container)); w != nil {
		w.m.Probed(r)
	}
}

func (a *Agent) worker(uid nodes.UID) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pods[uid]
}

// workers are all pods at this moment.
func (a *Agent) workers() []*worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]*worker, 0, len(a.pods))
	for _, w := range a.pods {
		list = append(list, w)
	}
	return list
}

// Run converges until ctx ends. It begins with the stored assignment and needs
// no server; up takes what a server should know.
func (a *Agent) Run(ctx context.Context, up Upstream) error {
	if up == nil {
		return errors.New("agent: Run needs an upstream")
	}
	if err := a.remember(); err != nil {
		return err
	}
	storing, stopStoring := context.WithCancel(context.WithoutCancel(ctx))
	var stored sync.WaitGroup
	stored.Go(func() { a.store.run(storing) })
	defer stored.Wait()
	defer stopStoring()

	a.mu.Lock()
	a.up, a.ctx = up, ctx
	a.mu.Unlock()
	events := a.o.Runtime.Events(ctx)
	var parts sync.WaitGroup
	if a.prober != nil {
		parts.Go(func() { _ = a.prober.Run(ctx) }) // ends with ctx only
	}
	parts.Go(func() { a.routes(ctx) })
	a.fences.recall(ctx)
	tried := make(chan struct{})
	parts.Go(func() { a.setUpNetwork(ctx, tried) })
	<-tried
	if a.firstLook(ctx) {
		parts.Go(func() { a.fence(ctx) })
		parts.Go(func() { a.drift(ctx) })
		parts.Go(func() { a.tellChanges(ctx) })
		parts.Go(func() { a.tellImages(ctx) })
		parts.Go(func() { a.relieve(ctx) })
		parts.Go(func() { a.resync(ctx) })
		parts.Go(func() { a.usage(ctx) })
		a.follow(ctx, events)
	}
	<-ctx.Done()
	parts.Wait()
	a.running.Wait()
	return ctx.Err()
}

// remember takes up what the last agent stored.
func (a *Agent) remember() error {
	if text := a.store.note(); text != "" {
		a.log.Error(text + "; running containers are adopted by their labels, the assignment comes from the server")
	}
	s, err := a.store.load()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.assignment == nil && s.assignment != nil {
		a.assignment, a.partial = s.assignment, s.partial
		a.setConfigs(s.assignment)
		a.fences.want(s.assignment, func(nodes.UID) bool { return false })
	}
	a.memories, a.ledger = s.memories, s.ledger
	if s.table != nil && a.table.CompareAndSwap(nil, s.table) {
		a.wakeRoutes()
	}
	return nil
}

// setConfigs makes an assignment's configs and network known to all machines.
func (a *Agent) setConfigs(x *nodes.Assignment) {
	configs := make(map[desired.Key]*nodes.Config, len(x.Configs))
	for _, c := range x.Configs {
		configs[c.Key] = c
	}
	a.configs.Store(&configs)
	if x.Network.Domain != "" {
		network := x.Network
		a.cluster.Store(&network)
	}
}
