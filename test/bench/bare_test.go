//go:build e2e

package bench

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/test/machine"
)

const (
	// ours is the containerd namespace of Tallyman, bareNamespace the yardstick's.
	ours          = "tallyman"
	bareNamespace = "bare"
	// atATime is how many containers the yardstick starts side by side, as the agent does.
	atATime = 8
)

// bare is the yardstick for starting containers: containerd's own client, with
// nothing else to do.
type bare struct {
	t      *testing.T
	ctx    context.Context
	client *client.Client
	image  client.Image
	spec   *oci.Spec
}

// newBare takes the specification from a container that Tallyman made.
func newBare(t *testing.T, m *machine.Machine, ref string, built v1.Image, container string) *bare {
	t.Helper()
	c, err := client.New(m.Containerd.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	b := &bare{t: t, ctx: namespaces.WithNamespace(context.Background(), bareNamespace), client: c}
	b.importImage(ref, built)
	model, err := c.LoadContainer(namespaces.WithNamespace(context.Background(), ours), container)
	if err != nil {
		t.Fatal(err)
	}
	if b.spec, err = model.Spec(namespaces.WithNamespace(context.Background(), ours)); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bare) importImage(ref string, built v1.Image) {
	b.t.Helper()
	var archive bytes.Buffer
	if err := image.Archive(ref, built, &archive); err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.client.Import(b.ctx, &archive); err != nil {
		b.t.Fatal(err)
	}
	var err error
	if b.image, err = b.client.GetImage(b.ctx, ref); err != nil {
		b.t.Fatal(err)
	}
	if err := b.image.Unpack(b.ctx, "overlayfs"); err != nil {
		b.t.Fatal(err)
	}
}

// start measures how long it takes to create and start n containers; they are
// gone when it returns.
func (b *bare) start(n int) time.Duration {
	b.t.Helper()
	tasks := make([]client.Task, n)
	made := make([]client.Container, n)
	var group errgroup.Group
	group.SetLimit(atATime)
	begun := time.Now()
	for i := range n {
		group.Go(func() (err error) {
			made[i], tasks[i], err = b.startOne(fmt.Sprintf("bare-%d", i))
			return err
		})
	}
	err := group.Wait()
	took := time.Since(begun)
	if err != nil {
		b.t.Fatal(err)
	}
	b.end(made, tasks)
	return took
}

func (b *bare) startOne(id string) (client.Container, client.Task, error) {
	container, err := b.client.NewContainer(b.ctx, id,
		client.WithImage(b.image), client.WithSnapshotter("overlayfs"), client.WithNewSnapshot(id, b.image),
		client.WithRuntime("io.containerd.runc.v2", nil), client.WithSpec(b.spec, rename(id)))
	if err != nil {
		return nil, nil, err
	}
	task, err := container.NewTask(b.ctx, cio.NullIO)
	if err != nil {
		return nil, nil, err
	}
	return container, task, task.Start(b.ctx)
}

// rename gives a container its own control group, below the same parent, and
// its own shim; everything else stays as in the model, the namespaces of whose
// pod it joins.
func rename(id string) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
		linux := *s.Linux
		linux.CgroupsPath = path.Join(path.Dir(linux.CgroupsPath), id)
		s.Linux = &linux
		s.Annotations = map[string]string{"io.containerd.runc.v2.group": id}
		return nil
	}
}

func (b *bare) end(made []client.Container, tasks []client.Task) {
	b.t.Helper()
	var group errgroup.Group
	group.SetLimit(atATime)
	for i := range made {
		group.Go(func() error {
			if _, err := tasks[i].Delete(b.ctx, client.WithProcessKill); err != nil {
				return err
			}
			return made[i].Delete(b.ctx, client.WithSnapshotCleanup)
		})
	}
	if err := group.Wait(); err != nil {
		b.t.Fatal(err)
	}
}

// containerProcess is the first process of a container that Tallyman made.
func containerProcess(t *testing.T, m *machine.Machine, id string) int {
	t.Helper()
	c, err := client.New(m.Containerd.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(context.Background(), ours)
	container, err := c.LoadContainer(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return int(task.Pid())
}

// processState is the letter of a process' state in /proc/<pid>/stat.
func processState(stat []byte) byte {
	if i := bytes.LastIndexByte(stat, ')'); i >= 0 && i+2 < len(stat) {
		return stat[i+2]
	}
	return 0
}
