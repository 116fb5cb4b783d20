package sim

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/runtime/fake"
)

// containers is a machine's container runtime: the fake one at a real one's
// pace, with the witness looking on.
type containers struct {
	*fake.Runtime
	machine *machine
	pace    *pace

	mu sync.Mutex
	// guarded by mu
	env     map[string][]string // by container ID
	unready map[nodes.UID]bool  // pods whose probe fails
	meters  map[string]meter    // by container ID
	noPull  bool
	// served is whether there is an agent that may still do something.
	served bool
}

var errDead = errors.New("the caller is dead")

func newContainers(m *machine, p *pace) *containers {
	c := &containers{machine: m, pace: p, env: map[string][]string{}, unready: map[nodes.UID]bool{}, meters: map[string]meter{}, served: true}
	published := map[string]runtime.Image{}
	for _, ref := range images {
		if ref != badImage {
			published[ref] = imageOf(ref)
		}
	}
	c.Runtime = fake.New(fake.Options{
		Now: time.Now, Images: published, FailPull: c.failPull, Exec: c.probe,
		Behave: func(made runtime.Container) fake.Behaviour {
			// One in five ignores SIGTERM; which one, its name decides.
			b := fake.Behaviour{IgnoresTerm: len(made.ID) > 0 && hash(made.ID)%5 == 0}
			if ofJob(made.Labels) {
				b.Exits, b.After, b.Code = true, time.Duration(hash(made.ID)%8000)*time.Millisecond, failure(made.ID)
				if strings.Contains(made.Labels[labelWorkload], "/"+cronName) {
					b.After *= 12 // some are still at work when the next is due
				}
			}
			return b
		},
	})
	return c
}

func imageOf(ref string) runtime.Image {
	return runtime.Image{ID: "sha256:" + ref, Digest: "sha256:d-" + ref, Config: runtime.ImageConfig{Cmd: []string{"/app"}}}
}

func ofJob(labels map[string]string) bool {
	return strings.HasPrefix(labels[labelWorkload], "batch/"+kindJob+"/")
}

// failure is the exit code of a Job's container: one in four fails.
func failure(id string) int32 {
	if hash(id+"fails")%4 == 0 {
		return 1
	}
	return 0
}

func hash(s string) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}

func (c *containers) failPull(string, runtime.PullOptions) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.noPull {
		return errors.New("registry is down")
	}
	return nil
}

// probe answers the readiness probe of a container.
func (c *containers) probe(ctx context.Context, made runtime.Container, _ []string, _ io.Writer) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unready[nodes.UID(made.Pod)] {
		return 1, nil
	}
	return 0, ctx.Err()
}

// serve says whether calls come from a living agent.
func (c *containers) serve(served bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served = served
}

func (c *containers) begin(ctx context.Context, most time.Duration) error {
	if err := c.pace.take(ctx, most); err != nil {
		return err
	}
	return c.alive()
}

func (c *containers) alive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.served {
		return errDead
	}
	return nil
}

// Pull implements runtime.Runtime.
func (c *containers) Pull(ctx context.Context, ref string, o runtime.PullOptions) (runtime.Image, error) {
	if err := c.begin(ctx, 800*time.Millisecond); err != nil {
		return runtime.Image{}, err
	}
	return c.Runtime.Pull(ctx, ref, o)
}

// Create implements runtime.Runtime.
func (c *containers) Create(ctx context.Context, made runtime.Container) error {
	if err := c.begin(ctx, 40*time.Millisecond); err != nil {
		return err
	}
	c.mu.Lock()
	c.env[made.ID] = made.Env
	c.mu.Unlock()
	defer c.machine.keeper.made(nodes.UID(made.Pod))
	return c.Runtime.Create(ctx, made)
}

// Start implements runtime.Runtime.
func (c *containers) Start(ctx context.Context, id string) error {
	if err := c.begin(ctx, 60*time.Millisecond); err != nil {
		return err
	}
	before, err := c.Runtime.Status(ctx, id)
	if err == nil && before.State == runtime.Created {
		c.machine.world.witness.starts(c.machine, before, c.running())
	}
	return c.Runtime.Start(ctx, id)
}

// Kill implements runtime.Runtime.
func (c *containers) Kill(ctx context.Context, id, signal string) error {
	if err := c.begin(ctx, 20*time.Millisecond); err != nil {
		return err
	}
	c.ends(ctx, id)
	return c.Runtime.Kill(ctx, id, signal)
}

// Delete implements runtime.Runtime.
func (c *containers) Delete(ctx context.Context, id string) error {
	if err := c.begin(ctx, 20*time.Millisecond); err != nil {
		return err
	}
	c.ends(ctx, id)
	return c.Runtime.Delete(ctx, id)
}

// ends tells the witness that an agent is about to end what runs.
func (c *containers) ends(ctx context.Context, id string) {
	if s, err := c.Runtime.Status(ctx, id); err == nil && s.State == runtime.Running {
		c.machine.world.witness.ends(c.machine, s)
	}
}

// running are the containers that run, whatever the runtime says of itself.
func (c *containers) running() []runtime.Status { return c.Runtime.Running() }

// all are the containers that exist, sorted by ID. It may be called while the
// runtime is up only.
func (c *containers) all() []runtime.Status {
	list, err := c.Runtime.List(context.Background())
	if err != nil {
		return nil
	}
	slices.SortFunc(list, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// envOf is the environment that a container was made with.
func (c *containers) envOf(id string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.env[id]
}

// flap lets the probes of a pod fail or succeed.
func (c *containers) flap(uid nodes.UID, unready bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unready[uid] = unready
}

func (c *containers) steady() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.unready)
	c.noPull = false
}

func (c *containers) pulls(work bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noPull = !work
}

// wipe leaves no container.
func (c *containers) wipe() {
	for _, s := range c.all() {
		c.Lose(s.ID)
	}
}

func (c *containers) reboot() { c.Runtime.Reboot() }

// end lets nobody wait for the runtime any more.
func (c *containers) end() { c.Runtime.Recover() }
