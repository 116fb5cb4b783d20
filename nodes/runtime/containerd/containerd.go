// Package containerd runs containers with a containerd daemon (1.6 and newer)
// and runc: the real implementation of the port nodes/runtime.
//
// It guarantees that
//   - whatever it made is found again after any crash, of the agent or of
//     containerd: all it must remember is in labels of containerd's own records;
//   - containers, their logs included, do not depend on this process: the shim
//     opens the log pipes itself;
//   - a connection that was lost comes back by itself, and Events says so;
//   - all containers of a pod share one shim process.
//
// It does not make namespaces, log pipes or volumes: it is given their paths.
// It must run on the machine of the daemon, as root: it reads cgroup files and
// image file systems directly. See DESIGN.md.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	clog "github.com/containerd/log"
	"github.com/moby/locker"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Options for New.
type Options struct {
	// Address is the path of containerd's socket, without scheme. Required.
	Address string
	// Namespace of containerd that holds all our things; "tallyman" by default.
	Namespace string
	// Snapshotter is "overlayfs" by default.
	Snapshotter string
	// CertsDir follows containerd's hosts.toml conventions; /etc/containerd/certs.d by default.
	CertsDir string
	// RunDir is for pipes of short life (output of Exec, standard inputs) and
	// runc's state; it is made when needed and must be this instance's alone.
	// /run/tallyman/containerd by default.
	RunDir string
	// CDIDirs hold the specs of CDI devices, later ones first; /etc/cdi and
	// /var/run/cdi by default.
	CDIDirs []string
	// Log is required.
	Log *slog.Logger
}

// Runtime implements runtime.Runtime. Make it with New, end it with Close.
type Runtime struct {
	log         *slog.Logger
	client      *client.Client
	containers  containers.Store
	snapshots   snapshots.Snapshotter
	tasks       tasksapi.TasksClient
	snapshotter string
	address     string
	namespace   string
	certsDir    string
	runDir      string
	cdiDirs     []string
	host        host

	images *images
	pulls  pulls
	shims  locker.Locker

	mu sync.Mutex // guards known
	// known holds what later calls on a container need and containerd would
	// have to be asked for; losing it costs a round trip.
	known map[string]*known
}

var _ runtime.Runtime = (*Runtime)(nil)

// New connects lazily: it succeeds without a daemon, calls then return
// runtime.ErrUnavailable until there is one.
func New(o Options) (*Runtime, error) {
	if o.Address == "" {
		return nil, errors.New("containerd: no socket address")
	}
	if o.Log == nil {
		return nil, errors.New("containerd: no logger")
	}
	o.Namespace = defaultTo(o.Namespace, "tallyman")
	o.Snapshotter = defaultTo(o.Snapshotter, "overlayfs")
	o.CertsDir = defaultTo(o.CertsDir, "/etc/containerd/certs.d")
	o.RunDir = defaultTo(o.RunDir, "/run/tallyman/containerd")
	if o.CDIDirs == nil {
		o.CDIDirs = cdi.DefaultSpecDirs
	}
	machine, err := probeHost()
	if err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	c, err := client.New(
		o.Address,
		client.WithDefaultNamespace(o.Namespace),
		client.WithDefaultRuntime(shimName),
		client.WithExtraDialOpts([]grpc.DialOption{grpc.WithConnectParams(reconnect), grpc.WithChainUnaryInterceptor(ownDeadline)}),
	)
	if err != nil {
		return nil, fmt.Errorf("containerd: connect to %s: %w", o.Address, err)
	}
	r := &Runtime{
		log: o.Log, client: c,
		containers: c.ContainerService(), tasks: c.TaskService(),
		snapshots:   c.SnapshotService(o.Snapshotter),
		snapshotter: o.Snapshotter, address: o.Address, namespace: o.Namespace, certsDir: o.CertsDir, runDir: o.RunDir, cdiDirs: o.CDIDirs,
		host:  machine,
		known: map[string]*known{},
	}
	r.images = newImages(c, o.Snapshotter)
	return r, nil
}

// shimName is containerd's shim for runc with cgroup v1 and v2.
const shimName = "io.containerd.runc.v2"

// reconnect makes a restarted daemon be noticed within a fraction of a second.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 250 * time.Millisecond},
	MinConnectTimeout: 2 * time.Second,
}

// Close ends the connection. Containers are not affected.
func (r *Runtime) Close() error { return r.client.Close() }

// Info implements runtime.Runtime.
func (r *Runtime) Info(ctx context.Context) (runtime.Info, error) {
	v, err := r.client.VersionService().Version(ctx, &emptypb.Empty{})
	if err != nil {
		return runtime.Info{}, r.wrap("ask for the version of", "containerd", err)
	}
	return runtime.Info{Name: "containerd", Version: v.Version}, nil
}

// wrap says what was tried on what, and translates containerd's errors into
// the port's.
func (r *Runtime) wrap(operation, object string, err error) error {
	err = native(err)
	switch {
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%s %s: %w", operation, object, runtime.ErrNotFound)
	case errdefs.IsUnavailable(err):
		return fmt.Errorf("%s %s: %w", operation, object, runtime.ErrUnavailable)
	}
	return fmt.Errorf("%s %s: %w", operation, object, err)
}

// ownDeadline keeps a caller's deadline from the daemon: daemon and shim would
// notice it a moment earlier than the caller and answer with an error of their
// own, of no class. The call ends by its context all the same.
func ownDeadline(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return invoke(call, method, request, reply, conn, o...)
}

// quiet returns a context in which containerd's client library, which logs to
// a global logger, keeps silent: its errors are returned anyway.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return clog.WithLogger(ctx, logrus.NewEntry(l))
}

// native gives an error that came over the wire the class that errdefs knows;
// one that has it already stays as it is.
func native(err error) error {
	if _, remote := status.FromError(err); !remote {
		return err
	}
	return errgrpc.ToNative(err)
}

func notFound(err error) bool { return errdefs.IsNotFound(native(err)) }

func alreadyExists(err error) bool { return errdefs.IsAlreadyExists(native(err)) }

func defaultTo(value, standard string) string {
	if value == "" {
		return standard
	}
	return value
}

// ensureRunDir makes the directory for pipes of short life.
func (r *Runtime) ensureRunDir() error { return os.MkdirAll(r.runDir, 0o700) }
