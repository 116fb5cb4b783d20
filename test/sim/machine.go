package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent"
	volumefake "github.com/tallyman-dev/tallyman/nodes/volume/fake"
	"github.com/tallyman-dev/tallyman/nodes/wire"
	"github.com/tallyman-dev/tallyman/proxy"
)

// mostPods is how many pods a machine takes.
const mostPods = 250

// machine is one node: what survives its agent, and the agent.
type machine struct {
	world   *world
	name    string
	index   int
	dir     string
	boot    int
	line    *line
	runtime *containers
	network *network
	volumes *volumes
	disk    *disk
	kernel  *kernel
	keeper  *watchman
	// down and noPull are faults of the runtime, off is one of the power.
	down, noPull, off bool
	// buried machines were declared dead, until grave is in force, which says that
	// they live, and they are switched on again.
	buried bool
	grave  *commit
	// watchdog resets the machine when its keeper dies.
	watchdog bool
	// clock is its CLOCK_BOOTTIME.
	clock *boottime
	// skew is by how much the machine's wall clock is wrong.
	skew time.Duration
	// since is when the agent started.
	since time.Time
	agent *running // nil while there is none
}

// running is one life of an agent.
type running struct {
	*agent.Agent
	db     *bbolt.DB
	cancel context.CancelFunc
	ended  chan error
}

func newMachine(w *world, index int) (*machine, error) {
	m := &machine{world: w, index: index, name: fmt.Sprintf("n%d", index+1), line: newLine()}
	m.dir = filepath.Join(w.o.Dir, m.name)
	m.clock = newBoottime(w.fleet.drift())
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, err
	}
	pace := &pace{rng: rand.New(rand.NewPCG(w.o.Seed, uint64(index))), held: m.line.held}
	m.network = &network{machine: m, pace: pace, attached: map[nodes.UID]place{}, drift: make(chan nodes.UID)}
	if w.store == nil {
		m.network.give(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(index), 0}), 24))
	}
	m.volumes = &volumes{machine: m, pace: pace, mounted: map[nodes.UID][]string{}}
	m.disk = &disk{Persistent: volumefake.New(), machine: m, pace: pace}
	m.kernel = &kernel{pace: pace}
	m.runtime = newContainers(m, pace)
	m.keeper = newWatchman(m)
	m.watchdog = w.tended != nil && w.tended.rng.IntN(2) == 0
	return m, nil
}

// startAgent begins a new life of the agent on what is there.
func (m *machine) startAgent() error {
	db, err := agent.OpenStore(filepath.Join(m.dir, "agent.db"))
	if err != nil {
		return err
	}
	db.NoSync = true // a crash of the process loses nothing that was written
	a, err := agent.New(agent.Options{
		Name: m.name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(m.index + 1)})},
		Labels: m.world.fleet.labels(m.index),
		Capacity: corev1.ResourceList{
			corev1.ResourceCPU:    *resource.NewQuantity(m.world.shape.cpu, resource.DecimalSI),
			corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: *resource.NewQuantity(mostPods, resource.DecimalSI),
		},
		DataDir: m.dir, RunDir: m.dir, Key: bytes.Repeat([]byte{7}, 32), BootID: fmt.Sprintf("boot-%d", m.boot),
		Runtime: m.runtime, Network: m.network, Keeper: m.keeper, Proxy: m.kernel, Volumes: m.volumes, Persistent: m.disk,
		Forwarders: func() []netip.AddrPort { return nil }, DB: db, Log: silent, Now: m.wallClock(), Clock: m.clock.now,
	})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	client, err := wire.NewClient(wire.ClientOptions{
		Dial: m.line.dial, Node: m.name, Version: "sim", Handler: ranged{a, m}, Clock: m.clock.now, Log: silent,
	})
	if err != nil {
		return errors.Join(err, db.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return client.Run(ctx) })
	group.Go(func() error { return a.Run(ctx, client) })
	r := &running{Agent: a, db: db, cancel: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- group.Wait() }()
	m.agent, m.since = r, time.Now()
	m.world.disturb()
	m.runtime.serve(true)
	m.keeper.revive()
	m.world.note("agent %s starts", m.name)
	return nil
}

// ranged is an agent whose machine sets up its network when it learns its range,
// and then says so in a new session.
type ranged struct {
	*agent.Agent
	machine *machine
}

// Assign implements wire.Handler.
func (r ranged) Assign(a *nodes.Assignment) {
	r.Agent.Assign(a)
	if r.machine.network.give(a.PodCIDR) {
		r.machine.world.note("machine %s has range %s", r.machine.name, a.PodCIDR)
		r.machine.line.cut()
	}
}

// wallClock is the machine's as a process sees it that starts now.
func (m *machine) wallClock() func() time.Time {
	skew := m.skew
	return func() time.Time { return time.Now().Add(skew) }
}

// killAgent ends it as kill -9 does: its last act is whatever it did last, and
// what it had not stored is lost.
func (m *machine) killAgent() {
	r := m.agent
	if r == nil {
		return
	}
	m.agent = nil
	m.world.disturb()
	synctest.Wait()
	file := filepath.Join(m.dir, "agent.db")
	stored, err := os.ReadFile(file)
	m.runtime.serve(false)
	m.line.cut()
	r.cancel()
	if ended := <-r.ended; !errors.Is(ended, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("agent %s ended: %w", m.name, ended))
	}
	err = errors.Join(err, r.db.Close())
	if err == nil {
		err = os.WriteFile(file, stored, 0o600)
	}
	if err != nil {
		m.world.witness.report(fmt.Errorf("simulator: kill agent: %w", err))
	}
	m.world.note("agent %s killed", m.name)
}

// statuses are what the agent says of its pods now.
func (m *machine) statuses() []nodes.PodStatus {
	report, err := m.agent.Hello(context.Background())
	if err != nil {
		m.world.witness.report(err)
	}
	return report.Statuses
}

// reboot ends every process and forgets what only memory held.
func (m *machine) reboot() error {
	m.powerOff()
	time.Sleep(5 * time.Second)
	return m.powerOn()
}

func (m *machine) powerOff() {
	m.killAgent()
	m.world.note("machine %s goes off", m.name)
	m.off, m.down = true, false
	m.line.held.set(false)
	m.boot++
	m.clock.reboot()
	m.keeper.reboot()
	m.runtime.reboot()
	m.network.reset()
	m.volumes.reset()
	m.disk.Reboot()
	m.kernel.reset()
}

func (m *machine) powerOn() error {
	if rises, err := m.mayRise(); !rises || err != nil {
		return err
	}
	m.off = false
	return m.startAgent()
}

// stop has the agent do nothing at all, as SIGSTOP does, or go on.
func (m *machine) stop(stopped bool) {
	m.world.note("agent %s stopped: %v", m.name, stopped)
	m.world.disturb()
	m.line.held.set(stopped)
	if !stopped {
		m.keeper.revive()
	}
}

// loseStore removes what the agent stored. It must not run.
func (m *machine) loseStore() error {
	m.world.note("store of %s lost", m.name)
	return os.Remove(filepath.Join(m.dir, "agent.db"))
}

// pace makes things take their time, and wait while the agent is stopped.
type pace struct {
	held *gate

	mu sync.Mutex
	// guarded by mu
	rng *rand.Rand
	// slow is how often longer everything takes; 0 is once.
	slow int64
}

// drag makes everything take so often longer.
func (p *pace) drag(slow int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = slow
}

// draw is how long something takes.
func (p *pace) draw(most time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Duration(p.rng.Int64N(int64(most)) * max(1, p.slow))
}

// take waits for up to most, or until ctx ends.
func (p *pace) take(ctx context.Context, most time.Duration) error {
	timer := time.NewTimer(p.draw(most))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	if !p.held.pass(ctx.Done()) {
		return ctx.Err()
	}
	return nil
}

// kernel holds the routes that are in force.
type kernel struct {
	pace *pace

	mu sync.Mutex
	// guarded by mu
	config proxy.Config
}

// Set implements proxy.Backend.
func (k *kernel) Set(ctx context.Context, c proxy.Config) error {
	if err := k.pace.take(ctx, 30*time.Millisecond); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.config = c
	return nil
}

// Run implements proxy.Backend.
func (k *kernel) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Close implements proxy.Backend.
func (k *kernel) Close(context.Context) error { k.reset(); return nil }

func (k *kernel) reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.config = proxy.Config{}
}

// takes is how long a kill takes: slow disks don't matter to it.
func (k *kernel) takes() time.Duration {
	k.pace.mu.Lock()
	defer k.pace.mu.Unlock()
	return time.Duration(k.pace.rng.Int64N(int64(killWithin)))
}

// table is what is in force; nil before the first.
func (k *kernel) table() *proxy.Table {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.config.Table
}
