// Package fake is a container runtime without containers: a small world in
// memory that keeps the promises of nodes/runtime and passes the same suite as
// the real one. The simulator and the agent's tests run on it.
//
// It is deterministic: what happens depends on the calls and on the clock it
// is given. It prints itself (String) and panics when it is asked for
// something that its caller cannot mean, such as a mount without destination.
// It starts no goroutine but one for each Events, and never sleeps: what is
// due by the clock happens on the next call, or when Tick is called.
package fake

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Behaviour is what a container's process does.
type Behaviour struct {
	// Exits tells that it ends by itself, After its start with Code.
	Exits bool
	After time.Duration
	Code  int32
	// OOM tells that it ends by the memory killer.
	OOM bool
	// IgnoresTerm tells that only SIGKILL ends it.
	IgnoresTerm bool
	// TermCode is what it exits with when asked to end.
	TermCode int32
	// FailStart is the reason why it cannot be started, if it cannot.
	FailStart string
}

// Options for New.
type Options struct {
	// Now is the clock. Required.
	Now func() time.Time
	// Images can be pulled, by the reference that containers use.
	Images map[string]runtime.Image
	// FailPull, when set, may refuse a pull with an error.
	FailPull func(ref string, o runtime.PullOptions) error
	// Behave says what a container's process does; nil runs until it is asked to end.
	Behave func(c runtime.Container) Behaviour
	// Handlers are those that containers may name beside runc.
	Handlers []string
	// Exec answers a command; nil answers 0 without output.
	Exec func(ctx context.Context, c runtime.Container, command []string, w io.Writer) (int, error)
}

// Runtime is the fake. Safe for concurrent use.
type Runtime struct {
	options Options

	mu         sync.Mutex // guards what follows
	down       bool
	failing    bool // goes down within the next change
	nextPID    int
	local      map[string]runtime.Image // by reference
	containers map[string]*container
	mounted    map[imageMount]string // image IDs
	listeners  map[int]*listener
	nextID     int
}

type container struct {
	runtime.Container
	runtime.Status
	behaviour Behaviour
	due       time.Time // zero: does not end by itself
}

var _ runtime.Runtime = (*Runtime)(nil)

// New returns an empty world.
func New(o Options) *Runtime {
	if o.Now == nil {
		panic("fake: no clock")
	}
	return &Runtime{
		options: o, nextPID: 100, local: map[string]runtime.Image{},
		containers: map[string]*container{}, mounted: map[imageMount]string{}, listeners: map[int]*listener{},
	}
}

// enter begins a call: it lets happen what is due and refuses while the runtime is down.
func (r *Runtime) enter(ctx context.Context) error {
	r.mu.Lock()
	r.tick()
	switch {
	case ctx.Err() != nil:
		r.mu.Unlock()
		return ctx.Err()
	case r.down:
		r.mu.Unlock()
		return runtime.ErrUnavailable
	}
	return nil
}

// leave ends a call that has changed something. A runtime that is failing goes
// down with it: it has done the change and does not answer.
func (r *Runtime) leave() error {
	if !r.failing {
		return nil
	}
	r.failing, r.down = false, true
	return runtime.ErrUnavailable
}

// Info implements runtime.Runtime.
func (r *Runtime) Info(ctx context.Context) (runtime.Info, error) {
	if err := r.enter(ctx); err != nil {
		return runtime.Info{}, err
	}
	defer r.mu.Unlock()
	return runtime.Info{Name: "fake", Version: "1"}, nil
}

// Image implements runtime.Runtime.
func (r *Runtime) Image(ctx context.Context, ref string) (runtime.Image, error) {
	if err := r.enter(ctx); err != nil {
		return runtime.Image{}, err
	}
	defer r.mu.Unlock()
	return r.image(ref)
}

func (r *Runtime) image(ref string) (runtime.Image, error) {
	if img, ok := r.local[ref]; ok {
		return img, nil
	}
	for _, name := range slices.Sorted(maps.Keys(r.local)) {
		if r.local[name].ID == ref {
			return r.local[name], nil
		}
	}
	return runtime.Image{}, fmt.Errorf("find image %s: %w", ref, runtime.ErrNotFound)
}

// Pull implements runtime.Runtime.
func (r *Runtime) Pull(ctx context.Context, ref string, o runtime.PullOptions) (runtime.Image, error) {
	if r.options.FailPull != nil {
		if err := r.options.FailPull(ref, o); err != nil {
			return runtime.Image{}, fmt.Errorf("pull %s: %w", ref, err)
		}
	}
	img, err := r.pull(ctx, ref)
	if err == nil && o.Progress != nil {
		o.Progress(img.Size, img.Size)
	}
	return img, err
}

func (r *Runtime) pull(ctx context.Context, ref string) (runtime.Image, error) {
	if err := r.enter(ctx); err != nil {
		return runtime.Image{}, err
	}
	defer r.mu.Unlock()
	img, ok := r.options.Images[ref]
	if !ok {
		return runtime.Image{}, fmt.Errorf("pull %s: manifest unknown: the registry has no such image: %w", ref, runtime.ErrNotFound)
	}
	img.ID = cmp.Or(img.ID, "sha256:"+ref)
	img.Digest = cmp.Or(img.Digest, img.ID)
	img.Names = []string{nodes.ImageName(ref)}
	r.local[ref] = img
	return img, nil
}

// Images implements runtime.Runtime.
func (r *Runtime) Images(ctx context.Context) ([]runtime.Image, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	byID := map[string]runtime.Image{}
	for _, ref := range slices.Sorted(maps.Keys(r.local)) {
		img := r.local[ref]
		img.Names = append(slices.Clone(byID[img.ID].Names), img.Names...)
		byID[img.ID] = img
	}
	return slices.SortedFunc(maps.Values(byID), func(a, b runtime.Image) int { return strings.Compare(a.ID, b.ID) }), nil
}

// RemoveImage implements runtime.Runtime.
func (r *Runtime) RemoveImage(ctx context.Context, id string) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.mu.Unlock()
	maps.DeleteFunc(r.local, func(_ string, img runtime.Image) bool { return img.ID == id })
	return nil
}

// Create implements runtime.Runtime.
func (r *Runtime) Create(ctx context.Context, c runtime.Container) error {
	mustMakeSense(c)
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.mu.Unlock()
	if r.containers[c.ID] != nil {
		return nil
	}
	img, err := r.image(c.Image)
	if err != nil {
		return fmt.Errorf("create container %s: %w", c.ID, err)
	}
	made := &container{Container: c, Status: runtime.Status{
		ID: c.ID, Pod: c.Pod, Labels: maps.Clone(c.Labels), Image: c.Image, ImageID: img.ID,
		State: runtime.Created, Created: r.options.Now().UTC(),
	}}
	if r.options.Behave != nil {
		made.behaviour = r.options.Behave(c)
	}
	r.containers[c.ID] = made
	return r.leave()
}

// mustMakeSense refuses what no caller can mean.
func mustMakeSense(c runtime.Container) {
	switch {
	case c.ID == "", strings.ContainsAny(c.ID, "/ "):
		panic(fmt.Sprintf("fake: %q is no container ID", c.ID))
	case len(c.Args) == 0:
		panic(fmt.Sprintf("fake: container %s has nothing to run", c.ID))
	}
	for _, m := range c.Mounts {
		if !strings.HasPrefix(m.Destination, "/") {
			panic(fmt.Sprintf("fake: container %s has a mount at %q", c.ID, m.Destination))
		}
	}
}

func (r *Runtime) find(id string) (*container, error) {
	if c := r.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
}

// Start implements runtime.Runtime.
func (r *Runtime) Start(ctx context.Context, id string) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	switch {
	case err != nil:
		return err
	case c.State == runtime.Running:
		return nil
	case c.State == runtime.Exited:
		return fmt.Errorf("start container %s: it has ended and is not started again", id)
	}
	if h := cmp.Or(c.Handler, "runc"); h != "runc" && !slices.Contains(r.options.Handlers, h) {
		return fmt.Errorf("start container %s: runtime handler %q: %w", id, h, runtime.ErrNoHandler)
	}
	now := r.options.Now().UTC()
	if reason := c.behaviour.FailStart; reason != "" {
		c.State, c.ExitCode, c.Finished, c.Message = runtime.Exited, 128, now, reason
		return fmt.Errorf("start container %s: %s", id, reason)
	}
	r.nextPID++
	c.State, c.Started, c.Status.PID = runtime.Running, now, r.nextPID
	if c.behaviour.Exits {
		c.due = now.Add(c.behaviour.After)
	}
	r.tick()
	return r.leave()
}

// Kill implements runtime.Runtime.
func (r *Runtime) Kill(ctx context.Context, id, signal string) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err != nil {
		return err
	}
	switch strings.TrimPrefix(signal, "SIG") {
	case "KILL", "9":
		r.exit(c, 137, false)
	case "TERM", "INT", "QUIT", "2", "3", "15":
		if !c.behaviour.IgnoresTerm {
			r.exit(c, c.behaviour.TermCode, false)
		}
	}
	return r.leave()
}

// exit ends a running container now.
func (r *Runtime) exit(c *container, code int32, oom bool) {
	if c.State != runtime.Running {
		return
	}
	c.State, c.ExitCode, c.OOMKilled, c.Status.PID = runtime.Exited, code, oom, 0
	c.Finished, c.due = r.options.Now().UTC(), time.Time{}
	if oom {
		r.emit(runtime.Event{ID: c.Status.ID, OOM: true})
	}
	r.emit(runtime.Event{ID: c.Status.ID})
}

// Delete implements runtime.Runtime.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.mu.Unlock()
	if c := r.containers[id]; c != nil {
		r.exit(c, 137, false)
		delete(r.containers, id)
	}
	return r.leave()
}

// List implements runtime.Runtime.
func (r *Runtime) List(ctx context.Context) ([]runtime.Status, error) {
	if err := r.enter(ctx); err != nil {
		return nil, err
	}
	defer r.mu.Unlock()
	list := make([]runtime.Status, 0, len(r.containers))
	for _, id := range slices.Sorted(maps.Keys(r.containers)) {
		list = append(list, r.containers[id].status())
	}
	return list, nil
}

func (c *container) status() runtime.Status {
	s := c.Status
	s.Labels = maps.Clone(s.Labels)
	return s
}

// Status implements runtime.Runtime.
func (r *Runtime) Status(ctx context.Context, id string) (runtime.Status, error) {
	if err := r.enter(ctx); err != nil {
		return runtime.Status{}, err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err != nil {
		return runtime.Status{}, err
	}
	return c.status(), nil
}

// Exec implements runtime.Runtime.
func (r *Runtime) Exec(ctx context.Context, id string, command []string, w io.Writer) (int, error) {
	c, err := r.running(ctx, id)
	if err != nil {
		return 0, err
	}
	if r.options.Exec == nil {
		return 0, nil
	}
	return r.options.Exec(ctx, c, command, w)
}

func (r *Runtime) running(ctx context.Context, id string) (runtime.Container, error) {
	if err := r.enter(ctx); err != nil {
		return runtime.Container{}, err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err != nil {
		return runtime.Container{}, err
	}
	if c.State != runtime.Running {
		return runtime.Container{}, fmt.Errorf("container %s is %s", id, c.State)
	}
	return c.Container, nil
}

// Update implements runtime.Runtime.
func (r *Runtime) Update(ctx context.Context, id string, to runtime.Resources) error {
	if err := r.enter(ctx); err != nil {
		return err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err == nil {
		c.Resources = to
	}
	return err
}

// Written implements runtime.Runtime: nothing is ever written.
func (r *Runtime) Written(ctx context.Context, id string) (nodes.DiskUsage, error) {
	if err := r.enter(ctx); err != nil {
		return nodes.DiskUsage{}, err
	}
	defer r.mu.Unlock()
	_, err := r.find(id)
	return nodes.DiskUsage{}, err
}

// Usage implements runtime.Runtime: a process uses a thousandth of its time and 1 MiB.
func (r *Runtime) Usage(ctx context.Context, id string) (runtime.Usage, error) {
	if err := r.enter(ctx); err != nil {
		return runtime.Usage{}, err
	}
	defer r.mu.Unlock()
	c, err := r.find(id)
	if err != nil {
		return runtime.Usage{}, err
	}
	if c.State != runtime.Running {
		return runtime.Usage{}, fmt.Errorf("usage of container %s: it does not run: %w", id, runtime.ErrNotFound)
	}
	return runtime.Usage{CPU: r.options.Now().Sub(c.Started) / 1000, Memory: 1 << 20}, nil
}
