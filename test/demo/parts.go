package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/daemon"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/registry"
)

// startContainerd starts one of the demo's own: its sockets and mounts are in
// d.run, its data, too, for both go together.
func (d *demo) startContainerd(ctx context.Context) error {
	c, err := daemon.Start(ctx, d.run)
	if err != nil {
		return err
	}
	return d.note("containerd", c.PID())
}

func (d *demo) startRegistry(ctx context.Context) error {
	r, err := registry.Start(ctx, registry.Options{Dir: d.path("registry"), Addr: registryAddress})
	if err != nil {
		return err
	}
	return d.note("registry", r.PID())
}

// pushImages makes two versions of the example, so that there is something to
// roll out to.
func (d *demo) pushImages(ctx context.Context) error {
	binary, err := image.BuildBinary(ctx, "github.com/tallyman-dev/tallyman/examples-repo/app", d.dir)
	if err != nil {
		return err
	}
	for _, tag := range []string{"1", "2"} {
		built, err := image.Build(image.Spec{
			Binaries:   map[string]string{"/hello": binary},
			Entrypoint: []string{"/hello"},
			Env:        []string{"VERSION=" + tag},
			User:       "65532:65532",
			Arch:       runtime.GOARCH,
		})
		if err != nil {
			return err
		}
		if err := image.Push(ctx, registryAddress+"/hello:"+tag, built, "", ""); err != nil {
			return err
		}
	}
	return nil
}

// note writes down a process that outlives us.
func (d *demo) note(name string, pid int) error {
	identity, err := processStart(pid)
	if err != nil {
		return err
	}
	return os.WriteFile(d.path(name+".pid"), fmt.Appendf(nil, "%d %s\n", pid, identity), 0o644)
}
