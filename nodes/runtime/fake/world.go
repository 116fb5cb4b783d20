package fake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Tick lets happen what is due by the clock.
func (r *Runtime) Tick() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick()
}

// tick ends the processes whose time has come, in the order of their ends.
func (r *Runtime) tick() {
	now := r.options.Now()
	var due []*container
	for _, c := range r.containers {
		if c.State == runtime.Running && !c.due.IsZero() && !c.due.After(now) {
			due = append(due, c)
		}
	}
	slices.SortFunc(due, func(a, b *container) int {
		if order := a.due.Compare(b.due); order != 0 {
			return order
		}
		return strings.Compare(a.Status.ID, b.Status.ID)
	})
	for _, c := range due {
		at := c.due
		r.exit(c, c.behaviour.Code, c.behaviour.OOM)
		c.Finished = at
	}
}

// NextExit is when the next process ends by itself; zero when none will.
func (r *Runtime) NextExit() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	var next time.Time
	for _, c := range r.containers {
		if c.State == runtime.Running && !c.due.IsZero() && (next.IsZero() || c.due.Before(next)) {
			next = c.due
		}
	}
	return next
}

// Exit ends a running container from outside, as a crash of its process would.
func (r *Runtime) Exit(id string, code int32, oom bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err != nil {
		return err
	}
	if c.State != runtime.Running {
		return fmt.Errorf("container %s is %s", id, c.State)
	}
	r.exit(c, code, oom)
	return nil
}

// Running are the containers that run, whether the runtime answers or not,
// sorted by ID. Their labels are shared: nobody may change them.
func (r *Runtime) Running() []runtime.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick()
	var list []runtime.Status
	for _, c := range r.containers {
		if c.State == runtime.Running {
			list = append(list, c.Status)
		}
	}
	slices.SortFunc(list, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Destroy kills all processes of a pod, also those that wait for their start, as
// killing the pod's control group does, and counts the containers.
func (r *Runtime) Destroy(pod nodes.UID) (killed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tick()
	for _, id := range slices.Sorted(maps.Keys(r.containers)) {
		c := r.containers[id]
		if c.Container.Pod != string(pod) || c.State == runtime.Exited {
			continue
		}
		c.State = runtime.Running // of a created one it is the first process that ends
		r.exit(c, 137, false)
		killed++
	}
	return killed
}

// Container is what a container was made from, with what was updated since.
func (r *Runtime) Container(id string) (c runtime.Container, found bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, found := r.containers[id]
	if found {
		c = have.Container
	}
	return c, found
}

// Lose removes a container behind the agent's back, as `ctr` could.
func (r *Runtime) Lose(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, id)
}

// Crash makes the runtime unavailable until Recover. Containers run on.
func (r *Runtime) Crash() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = true
}

// CrashInChange makes the runtime crash within the next call that changes
// something: the change is done, the answer is lost.
func (r *Runtime) CrashInChange() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing = true
}

// Recover ends a crash; listeners are told to look at everything again.
func (r *Runtime) Recover() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failing = false
	if r.down {
		r.down = false
		r.emit(runtime.Event{Reconnected: true})
	}
}

// Reboot ends every process without a word and keeps the records, as a restart
// of the machine does.
func (r *Runtime) Reboot() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.containers {
		if c.State == runtime.Running {
			c.State, c.ExitCode, c.Status.PID, c.due = runtime.Exited, 137, 0, time.Time{}
		}
	}
	r.down = false
	r.emit(runtime.Event{Reconnected: true})
}

// Publish makes an image available to be pulled.
func (r *Runtime) Publish(ref string, img runtime.Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	images := maps.Clone(r.options.Images)
	if images == nil {
		images = map[string]runtime.Image{}
	}
	images[ref] = img
	r.options.Images = images
}

// String prints the world: a line for each image and container.
func (r *Runtime) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	if r.down {
		b.WriteString("down\n")
	}
	for _, ref := range slices.Sorted(maps.Keys(r.local)) {
		fmt.Fprintf(&b, "image %s %s\n", ref, r.local[ref].ID)
	}
	for _, m := range slices.SortedFunc(maps.Keys(r.mounted), func(a, b imageMount) int { return strings.Compare(a.owner+a.dir, b.owner+b.dir) }) {
		fmt.Fprintf(&b, "mounted %s for %s\n", r.mounted[m], m.owner)
	}
	for _, id := range slices.Sorted(maps.Keys(r.containers)) {
		c := r.containers[id]
		fmt.Fprintf(&b, "container %s pod=%s image=%s %s", id, c.Status.Pod, c.Status.Image, c.State)
		if c.State == runtime.Exited {
			fmt.Fprintf(&b, " code=%d", c.ExitCode)
		}
		fmt.Fprintf(&b, " %s\n", strings.Join(c.Args, " "))
	}
	return b.String()
}

// listener is one Events with what it has not handed on yet; without a bound,
// so that the world never waits for a listener.
type listener struct {
	mu     sync.Mutex
	queue  []runtime.Event
	wakeup chan struct{}
}

// emit gives an event to all listeners, or to nobody while the runtime is down.
func (r *Runtime) emit(e runtime.Event) {
	if r.down {
		return
	}
	for _, l := range r.listeners {
		l.add(e)
	}
}

func (l *listener) add(e runtime.Event) {
	l.mu.Lock()
	l.queue = append(l.queue, e)
	l.mu.Unlock()
	select {
	case l.wakeup <- struct{}{}:
	default:
	}
}

func (l *listener) take() []runtime.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := l.queue
	l.queue = nil
	return taken
}

// Events implements runtime.Runtime.
func (r *Runtime) Events(ctx context.Context) <-chan runtime.Event {
	l := &listener{wakeup: make(chan struct{}, 1)}
	r.mu.Lock()
	key := r.nextID
	r.nextID++
	r.listeners[key] = l
	if !r.down {
		l.add(runtime.Event{Reconnected: true})
	}
	r.mu.Unlock()
	out := make(chan runtime.Event)
	go func() {
		defer close(out)
		defer r.forget(key)
		l.pump(ctx, out)
	}()
	return out
}

func (r *Runtime) forget(key int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.listeners, key)
}

func (l *listener) pump(ctx context.Context, out chan<- runtime.Event) {
	for {
		for _, e := range l.take() {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-l.wakeup:
		case <-ctx.Done():
			return
		}
	}
}
