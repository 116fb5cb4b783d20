package containerd

import (
	"fmt"
	"strings"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// ownHandler is what an empty handler means.
const ownHandler = "runc"

// versions are those of shims that do not follow runc's: gVisor's program is
// containerd-shim-runsc-v1.
var versions = map[string]string{"runsc": "v1"}

// shimOf names the shim of a handler and its program as containerd does, which
// looks for the program in its own PATH.
func shimOf(handler string) (name, program string) {
	handler = defaultTo(handler, ownHandler)
	version := defaultTo(versions[handler], "v2")
	return "io.containerd." + handler + "." + version, "containerd-shim-" + handler + "-" + version
}

// runtimeOf is what containerd is told about who runs a container. Options are
// each shim's own; we know those of runc.
func (r *Runtime) runtimeOf(handler string) (containers.RuntimeInfo, error) {
	name, _ := shimOf(handler)
	info := containers.RuntimeInfo{Name: name}
	if name != shimName {
		return info, nil
	}
	// runc's own state must be ours alone: by default all daemons share it by
	// namespace, and two instances on one machine would meet there.
	options, err := typeurl.MarshalAny(&runcoptions.Options{Root: r.runcDir()})
	info.Options = options
	return info, err
}

// noShim tells that containerd did not find a shim's program.
func noShim(err error) bool { return strings.Contains(err.Error(), "binary not installed") }

// explainNoShim says which program is looked for.
func explainNoShim(handler string) error {
	_, program := shimOf(handler)
	return fmt.Errorf("runtime handler %q: %w: containerd finds no %s in its PATH", defaultTo(handler, ownHandler), runtime.ErrNoHandler, program)
}
