// Package probe asks containers whether they are started, alive and ready: by
// http, tcp, exec and grpc, with Kubernetes' thresholds and periods.
//
// One goroutine sleeps until the next probe is due; a probe runs in a goroutine
// of its own, never twice at once for the same container and kind. The outcome
// (State) is told only when it changes.
//
// A probe that has not succeeded yet is eager: between its regular runs it is
// also asked at short, growing intervals, so that a container which answers
// 20 ms after its start is not counted as unready for a whole period. A failed
// eager run counts for nothing, so thresholds mean what they mean in Kubernetes.
// Liveness probes are never eager.
//
// Regular runs fall on a common beat, so that a node with many pods that are all
// well wakes a few times a second, not once for each probe.
//
// It does not decide what follows from an outcome: package agent does.
package probe

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Kind of a probe.
type Kind string

const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// Key names one probe: a container of the runtime and a kind.
type Key struct {
	Container string
	Kind      Kind
}

// Target is what is to be probed, and how.
type Target struct {
	Key
	Probe *corev1.Probe
	// IP is where http, tcp and grpc go unless the probe names a host.
	IP netip.Addr
	// Ports resolves ports given by name.
	Ports []corev1.ContainerPort
	// Started is when the container started: the initial delay counts from it.
	Started time.Time
	// Known is the outcome that an earlier process learned; it holds until the
	// thresholds say otherwise.
	Known State
}

// State is the outcome of a probe.
type State int

const (
	Unknown State = iota
	Success
	Failure
)

// Result is told when State changes, and on every failed regular run.
type Result struct {
	Key
	State State
	// Failed tells that this run failed, whatever the thresholds made of it.
	Failed bool
	// Message is what the failed run said.
	Message string
}

// Exec runs a command in a container and returns its exit code.
type Exec func(ctx context.Context, container string, command []string, w io.Writer) (int, error)

// Options for New. All are required.
type Options struct {
	Exec Exec
	// Notify is told results, from any goroutine. It must not block.
	Notify func(Result)
	Log    *slog.Logger
}

// Prober runs the probes of one node. Safe for concurrent use.
type Prober struct {
	exec   Exec
	notify func(Result)
	log    *slog.Logger
	wake   chan struct{}
	check  func(context.Context, Target, Exec) error
	// origin is where the beat of regular runs begins.
	origin time.Time

	// guarded by mu
	mu    sync.Mutex
	tasks map[Key]*task
	queue queue
}

// task is one probe; guarded by Prober.mu.
type task struct {
	target  Target
	counter counter
	due     time.Time
	// regular is the next run that counts; due may be earlier.
	regular time.Time
	eager   time.Duration
	index   int
	stop    context.CancelFunc
}

// firstEager is the first of the intervals between eager runs. Each is half as
// long again as the one before: readiness is noticed after half the time that
// the container took to get ready, at most.
const firstEager = 5 * time.Millisecond

// New makes a Prober that does nothing before Run.
func New(o Options) (*Prober, error) {
	if o.Exec == nil || o.Notify == nil || o.Log == nil {
		return nil, errors.New("probe: Exec, Notify and Log are required")
	}
	return &Prober{
		exec: o.Exec, notify: o.Notify, log: o.Log, check: Check,
		wake: make(chan struct{}, 1), tasks: map[Key]*task{}, origin: time.Now(),
	}, nil
}

// Add begins to probe t, unless a probe of that key is running already.
func (p *Prober) Add(t Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, found := p.tasks[t.Key]; found {
		return
	}
	k := &task{target: t, counter: newCounter(t.Probe, t.Known), eager: firstEager}
	k.regular = t.Started.Add(time.Duration(t.Probe.InitialDelaySeconds) * time.Second)
	if now := time.Now(); k.regular.Before(now) {
		k.regular = now
	}
	k.due = k.regular
	p.tasks[t.Key] = k
	heap.Push(&p.queue, k)
	p.poke()
}

// Remove ends the probes of a container; of one kind, or of all when kind is
// empty. No result of theirs is told afterwards, except one under way.
func (p *Prober) Remove(container string, kind Kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range []Kind{Startup, Liveness, Readiness} {
		key := Key{container, k}
		t := p.tasks[key]
		if t == nil || (kind != "" && kind != k) {
			continue
		}
		delete(p.tasks, key)
		if t.index >= 0 {
			heap.Remove(&p.queue, t.index)
		}
		if t.stop != nil {
			t.stop()
		}
	}
}

// Run probes until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := p.launch(ctx, &running)
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.wake:
		case <-timer.C:
		}
	}
}

func (p *Prober) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// launch starts what is due and returns how long to sleep.
func (p *Prober) launch(ctx context.Context, running *sync.WaitGroup) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for len(p.queue) > 0 {
		first := p.queue[0]
		if wait := first.due.Sub(now); wait > 0 {
			return wait
		}
		heap.Pop(&p.queue)
		run, stop := context.WithTimeout(ctx, seconds(first.target.Probe.TimeoutSeconds, 1))
		first.stop = stop
		counts := !now.Before(first.regular)
		running.Go(func() {
			defer stop()
			p.once(run, first, counts)
		})
	}
	return time.Hour
}

func (p *Prober) once(ctx context.Context, k *task, counts bool) {
	err := p.check(ctx, k.target, p.exec)
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	if result, tell := p.record(k, err, counts); tell {
		p.notify(result)
	}
	p.poke()
}

// record notes the outcome of a run and plans the next.
func (p *Prober) record(k *task, err error, counts bool) (Result, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tasks[k.target.Key] != k {
		return Result{}, false
	}
	before := k.counter.state
	if err == nil || counts {
		k.counter.add(err == nil)
	}
	p.plan(k, counts)
	result := Result{Key: k.target.Key, State: k.counter.state}
	if err != nil && counts {
		result.Failed = true
		result.Message = fmt.Sprintf("%s probe failed: %v", k.target.Kind, err)
	}
	return result, result.Failed || k.counter.state != before
}

func (p *Prober) plan(k *task, counted bool) {
	now := time.Now()
	if counted {
		k.regular = p.beat(now, seconds(k.target.Probe.PeriodSeconds, 10))
	}
	k.due = k.regular
	if k.target.Kind != Liveness && !k.counter.succeeded {
		if soon := now.Add(k.eager); soon.Before(k.regular) {
			k.due = soon
			k.eager += k.eager / 2
		}
	}
	heap.Push(&p.queue, k)
}

// maxBeat bounds how far apart beats are.
const maxBeat = time.Second

// beat is the instant a period from now, moved to the nearest beat: by an
// eighth of the period at most, and after the first time by nothing.
func (p *Prober) beat(now time.Time, period time.Duration) time.Time {
	next := now.Sub(p.origin) + period
	return p.origin.Add(next.Round(min(period/4, maxBeat)))
}

func seconds(n, zero int32) time.Duration {
	if n <= 0 {
		n = zero
	}
	return time.Duration(n) * time.Second
}

// queue orders tasks by when they are due.
type queue []*task

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *queue) Push(x any) {
	t := x.(*task)
	t.index = len(*q)
	*q = append(*q, t)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	t := (*q)[last]
	t.index = -1
	(*q)[last] = nil
	*q = (*q)[:last]
	return t
}
