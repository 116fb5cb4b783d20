package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/volume"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Machine converges one pod. Step is called from one goroutine at a time; all
// other methods may be called from anywhere and take effect with the next Step.
type Machine struct {
	ports
	node *surroundings
	log  *slog.Logger
	poke func()

	// inbox holds what others want done, in order. Guarded by mu.
	mu     sync.Mutex
	inbox  []func()
	shown  nodes.PodStatus
	gone   bool
	events []nodes.Event

	// Everything below belongs to Step.
	pod      *nodes.Pod
	memory   *Memory
	saved    []byte
	seen     map[string]runtime.Status
	mounts   map[string]volume.Volume
	mounted  bool
	stale    string // why the volumes' files could not be brought up to date
	attached bool
	shed     bool // the ended pod's containers may go
	net      network.Attachment
	images   map[string]runtime.Image // by container name
	busy     map[string]context.CancelFunc
	retries  map[string]*retry
	// trouble is why a container waits, by name; "" for the whole pod.
	trouble map[string]trouble
	// probed is what the last failed run of a probe said, by container name.
	probed  map[string]string
	probing map[string]bool // container ID/kind of the probes that were begun
	tasks   sync.WaitGroup
}

// trouble is a waiting reason in Kubernetes' words.
type trouble struct{ reason, message string }

// surroundings are what all pods of a node share.
type surroundings struct {
	name        string
	addrs       []netip.Addr
	boot        string
	memory      int64 // of the machine, in bytes
	allocatable corev1.ResourceList
	logs        string // directory of container logs
	seccomp     string // directory of localhost profiles
	pause       []string
	config      func(desired.Key) *nodes.Config
	table       func() *proxy.Table
	// rerouting reports whether the newest table is yet to be in force.
	rerouting func() bool
	cluster   func() desired.Network
	// claim stages the volume behind a volume of the pod that has a claim.
	claim func(context.Context, *corev1.Volume, csi.Wish) (volume.Volume, error)
	// driver is the CSI driver behind a volume of the pod; empty for none.
	driver func(*nodes.Pod, *corev1.Volume) string
	save   func(uid nodes.UID, memory []byte)
	// pulled is called after an image was pulled.
	pulled func()
	// unleased reports whether a pod waits for the node's lease, killed whether its
	// fence has killed it since.
	unleased func(uid nodes.UID) bool
	killed   func(ctx context.Context, uid nodes.UID, after time.Time) bool
	// saved reports whether what was last saved of a pod would outlive the agent.
	saved func(uid nodes.UID) bool
}

// newMachine makes the machine of a pod. memory is nil for a pod that this
// node never worked on, or forgot; containers are what the runtime has of it.
func newMachine(p *nodes.Pod, memory *Memory, containers []runtime.Status, on *surroundings, to ports, log *slog.Logger, poke func()) *Machine {
	m := &Machine{
		ports: to, node: on, poke: poke, pod: p, memory: memory,
		log:    log.With("pod", p.Namespace+"/"+p.Name, "uid", p.UID),
		seen:   map[string]runtime.Status{},
		images: map[string]runtime.Image{}, busy: map[string]context.CancelFunc{},
		retries: map[string]*retry{}, trouble: map[string]trouble{},
		probed: map[string]string{}, probing: map[string]bool{},
	}
	if memory == nil {
		m.memory = adopt(p, containers, on.boot, to.now())
	} else {
		m.memory.takeUp(p, containers)
	}
	m.memory.rebooted(on.boot, initNames(&p.Template.Spec))
	for _, s := range containers {
		m.seen[s.ID] = s
	}
	for _, r := range m.memory.Runs {
		if r.Kill != nil && !r.Kill.HookDone {
			r.Kill.HookBegun = false // it was cut short with the last agent
		}
	}
	m.obey(p)
	m.shown = m.status()
	return m
}

func initNames(s *corev1.PodSpec) []string {
	var names []string
	for i := range s.InitContainers {
		names = append(names, s.InitContainers[i].Name)
	}
	return names
}

// Step looks at what is there and does what is to be done now. It returns when
// it must be called again even if nobody pokes (zero: not at all), and done
// once nothing of the pod is left on the node. An error was already put into
// the pod's status; the step is repeated after a while by itself.
func (m *Machine) Step(ctx context.Context) (wake time.Time, done bool, err error) {
	m.drain()
	v := m.view()
	d := decide(v)
	wake = d.wake
	for _, a := range d.actions {
		err = m.act(ctx, a)
		if ctx.Err() != nil {
			return time.Time{}, false, ctx.Err()
		}
		if err != nil {
			wake = earlier(wake, m.failed(a, err))
			break
		}
		m.succeeded(a)
		wake = m.now()
	}
	m.attend()
	done = m.publish()
	return wake, done, err
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func (m *Machine) drain() {
	m.mu.Lock()
	inbox := m.inbox
	m.inbox = nil
	m.mu.Unlock()
	for _, f := range inbox {
		f()
	}
}

// post leaves f for the next Step.
func (m *Machine) post(f func()) {
	m.mu.Lock()
	m.inbox = append(m.inbox, f)
	m.mu.Unlock()
	m.poke()
}

func (m *Machine) view() *view {
	// Looked at before the queue: what comes meanwhile is in it.
	rerouting := m.memory.Halt != nil && m.node.rerouting()
	v := &view{
		pod: m.pod, memory: m.memory, now: m.now(), seen: m.seen,
		mounted: m.mounted, attached: m.attached,
		queued: !rerouting && m.queued(), rerouting: rerouting, shed: m.shed, unleased: m.node.unleased(m.pod.UID),
		images: map[string]bool{}, busy: map[string]bool{}, notBefore: map[string]time.Time{},
	}
	v.tokenDue, v.lacksToken = m.tokens(v.now)
	for name := range m.images {
		v.images[name] = true
	}
	for what := range m.busy {
		v.busy[what] = true
	}
	for what, r := range m.retries {
		v.notBefore[what] = r.until
	}
	return v
}

// queued reports whether connections wait to be accepted in a pod that ends.
func (m *Machine) queued() bool {
	if m.memory.Halt == nil || !m.attached || m.pod.Template.Spec.HostNetwork {
		return false
	}
	n, err := m.network.Queued(m.pod.UID)
	if err != nil {
		m.log.Debug("look at waiting connections", "err", err)
	}
	return n > 0
}

// Status is the newest status.
func (m *Machine) Status() nodes.PodStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shown
}

// take returns the status if it is not the one that was taken before, and the
// events since.
func (m *Machine) take(before *nodes.PodStatus) (*nodes.PodStatus, []nodes.Event, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	events := m.events
	m.events = nil
	if before != nil && reflect.DeepEqual(*before, m.shown) {
		return nil, events, m.gone
	}
	s := m.shown
	return &s, events, m.gone
}

// publish makes status and memory known; it reports whether the pod is gone.
func (m *Machine) publish() bool {
	now := m.now()
	status := m.status()
	if status.Ready != m.memory.Ready || m.memory.ReadySince.IsZero() {
		m.memory.Ready, m.memory.ReadySince = status.Ready, now
		status.ReadySince = now
	}
	m.mu.Lock()
	m.shown = status
	gone := m.gone
	m.mu.Unlock()
	if gone {
		m.node.save(m.pod.UID, nil)
		return true
	}
	data, err := json.Marshal(m.memory)
	if err != nil {
		m.log.Error("encode pod memory", "err", err)
		return false
	}
	if !bytes.Equal(data, m.saved) {
		m.saved = data
		m.node.save(m.pod.UID, data)
	}
	return false
}

// event notes one for the pod.
func (m *Machine) event(warning bool, reason, format string, args ...any) {
	now := m.now()
	e := nodes.Event{
		Object: m.pod.Key(), Warning: warning, Reason: reason, Message: fmt.Sprintf(format, args...),
		Source: "agent " + m.node.name, First: now, Last: now, Count: 1,
	}
	m.mu.Lock()
	m.events = append(m.events, e)
	m.mu.Unlock()
}

// retry holds back what failed, longer each time.
type retry struct {
	delay        time.Duration
	since, until time.Time
}

func (m *Machine) backOff(what string, first, most time.Duration) time.Time {
	r := m.retries[what]
	if r == nil {
		r = &retry{}
		m.retries[what] = r
	}
	r.delay = min(max(2*r.delay, first), most)
	r.since = m.now()
	r.until = r.since.Add(r.delay)
	return r.until
}

// failed notes an action that went wrong; it returns when to try again.
func (m *Machine) failed(a action, err error) time.Time {
	m.log.Warn("pod step", "op", a.op, "container", a.container, "err", err)
	if errors.Is(err, runtime.ErrUnavailable) {
		return m.backOff(string(a.op)+a.container, 200*time.Millisecond, 5*time.Second)
	}
	was := m.trouble[a.container]
	now := trouble{"ContainerCreating", err.Error()}
	if t, ok := errors.AsType[*containerError](err); ok {
		now.reason = t.reason
	}
	m.trouble[a.container] = now
	if was != now {
		m.event(true, eventFor(a.op, now.reason), "%s", err)
	}
	first := 500 * time.Millisecond
	if errors.Is(err, errNoAnswer) {
		first = 10 * time.Second // others need the slot that this one held so long
	}
	return m.backOff(string(a.op)+a.container, first, 2*time.Minute)
}

func eventFor(o op, reason string) string {
	switch {
	case o == opMount || o == opToken:
		return "FailedMount"
	case o == opAttach:
		return "FailedCreatePodSandBox"
	case o == opResize:
		return "ResizeError"
	case o == opSignal || o == opForce:
		return "FailedKillPod"
	case reason != "ContainerCreating":
		return "Failed"
	}
	return "FailedSync"
}

func (m *Machine) succeeded(a action) {
	if !m.begun(a) {
		delete(m.retries, string(a.op)+a.container)
	}
	switch a.op {
	case opMount, opAttach:
		delete(m.trouble, "")
	case opRun:
		delete(m.trouble, a.container)
	}
}

// containerError is an error with the waiting reason that Kubernetes gives it.
type containerError struct {
	reason string
	err    error
}

func (e *containerError) Error() string { return e.err.Error() }
func (e *containerError) Unwrap() error { return e.err }

// spawn runs f beside the steps; what it returns is done with the next Step.
func (m *Machine) spawn(ctx context.Context, what string, f func(ctx context.Context) func()) {
	ctx, cancel := context.WithCancel(ctx)
	m.busy[what] = cancel
	m.tasks.Go(func() {
		then := f(ctx)
		cancel()
		m.post(func() {
			delete(m.busy, what)
			then()
		})
	})
}

// Wait returns when everything that steps have set going has ended.
func (m *Machine) Wait() { m.tasks.Wait() }
