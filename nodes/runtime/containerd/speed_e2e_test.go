//go:build e2e

package containerd_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	fleet    = 40
	parallel = 8
)

// BenchmarkFleet creates and starts containers, eight at a time: with this
// package, and with nothing but containerd's client, given the same spec.
func BenchmarkFleet(b *testing.B) {
	b.Run("runtime", func(b *testing.B) {
		in := newInside(b)
		for round := range b.N {
			took := inParallel(b, func(i int) error {
				c := in.container(fmt.Sprintf("c%d-%d", round, i), "serve")
				if err := in.r.Create(b.Context(), c); err != nil {
					return err
				}
				return in.r.Start(b.Context(), c.ID)
			})
			b.ReportMetric(took.Seconds()/fleet*1000, "ms/container")
		}
	})
	b.Run("bare", func(b *testing.B) {
		in := newInside(b)
		c, err := client.New(in.daemon.Address, client.WithDefaultNamespace(in.namespace()))
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		spec := in.specOf(b, c)
		for round := range b.N {
			took := inParallel(b, func(i int) error { return in.bare(b, c, spec, fmt.Sprintf("c%d-%d", round, i)) })
			b.ReportMetric(took.Seconds()/fleet*1000, "ms/container")
		}
	})
}

// specOf lets this package make a container and returns its spec.
func (in inside) specOf(b *testing.B, c *client.Client) *specs.Spec {
	b.Helper()
	if err := in.r.Create(b.Context(), in.container("model", "serve")); err != nil {
		b.Fatal(err)
	}
	model, err := c.LoadContainer(b.Context(), "model")
	if err != nil {
		b.Fatal(err)
	}
	spec, err := model.Spec(namespaces.WithNamespace(b.Context(), in.namespace()))
	if err != nil {
		b.Fatal(err)
	}
	return spec
}

func (in inside) bare(b *testing.B, c *client.Client, model *specs.Spec, id string) error {
	ctx := namespaces.WithNamespace(b.Context(), in.namespace())
	img, err := c.GetImage(ctx, in.image())
	if err != nil {
		return err
	}
	spec, linux := *model, *model.Linux
	linux.CgroupsPath = in.cgroup + "/" + id
	spec.Linux, spec.Annotations = &linux, map[string]string{}
	container, err := c.NewContainer(ctx, id, client.WithNewSnapshot(id, img), client.WithSpec(&spec))
	if err != nil {
		return err
	}
	task, err := container.NewTask(ctx, cio.NullIO)
	if err != nil {
		return err
	}
	return task.Start(ctx)
}

// inParallel runs do for a whole fleet and returns how long that took.
func inParallel(b *testing.B, do func(i int) error) time.Duration {
	b.Helper()
	began := time.Now()
	work := make(chan int)
	var group sync.WaitGroup
	for range parallel {
		group.Go(func() {
			for i := range work {
				if err := do(i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range fleet {
		work <- i
	}
	close(work)
	group.Wait()
	return time.Since(began)
}
