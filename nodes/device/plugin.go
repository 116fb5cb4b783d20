package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// answerWithin is how long a plugin may take, as long as a kubelet gives it.
const answerWithin = 30 * time.Second

// plugin is one device plugin. Its devices are unhealthy when it is away.
type plugin struct {
	client  api.DevicePluginClient
	options *api.DevicePluginOptions

	mu      sync.Mutex
	healthy map[string]bool // guarded by mu
}

func (p *plugin) devices() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.healthy)
}

// see takes over what the plugin lists.
func (p *plugin) see(list []*api.Device) {
	fresh := make(map[string]bool, len(list))
	for _, d := range list {
		fresh[d.GetID()] = d.GetHealth() == api.Healthy
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.healthy = fresh
}

// away counts every device as not working.
func (p *plugin) away() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.healthy {
		p.healthy[id] = false
	}
}

// prefer asks the plugin, if it has preferences.
func (p *plugin) prefer(ctx context.Context, ids []string, count int) []string {
	if !p.options.GetGetPreferredAllocationAvailable() {
		return ids
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answer, err := p.client.GetPreferredAllocation(ctx, &api.PreferredAllocationRequest{
		ContainerRequests: []*api.ContainerPreferredAllocationRequest{{AvailableDeviceIDs: ids, AllocationSize: int32(count)}},
	})
	if err != nil || len(answer.GetContainerResponses()) != 1 {
		return ids // a preference, no more
	}
	first := slices.DeleteFunc(slices.Clone(answer.GetContainerResponses()[0].GetDeviceIDs()), func(id string) bool { return !slices.Contains(ids, id) })
	rest := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return slices.Contains(first, id) })
	return append(first, rest...)
}

func (p *plugin) grant(ctx context.Context, ids []string) (Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	answer, err := p.client.Allocate(ctx, &api.AllocateRequest{ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err != nil {
		return Grant{}, fmt.Errorf("its device plugin does not allocate %s: %s", strings.Join(ids, ", "), status.Convert(err).Message())
	}
	if n := len(answer.GetContainerResponses()); n != 1 {
		return Grant{}, fmt.Errorf("its device plugin gave %d answers for one container", n)
	}
	return granted(answer.GetContainerResponses()[0])
}

// granted turns a plugin's answer into what the runtime is told.
func granted(r *api.ContainerAllocateResponse) (Grant, error) {
	var g Grant
	for _, d := range r.GetCdiDevices() {
		g.CDI = append(g.CDI, d.GetName())
	}
	_, annotated, err := cdi.ParseAnnotations(r.GetAnnotations())
	if err != nil {
		return Grant{}, fmt.Errorf("its device plugin answers with annotations that name no devices: %w", err)
	}
	for _, name := range annotated {
		if !slices.Contains(g.CDI, name) { // plugins may say it both ways
			g.CDI = append(g.CDI, name)
		}
	}
	for _, d := range r.GetDevices() {
		g.Devices = append(g.Devices, runtime.Device{HostPath: d.GetHostPath(), ContainerPath: d.GetContainerPath(), Permissions: d.GetPermissions()})
	}
	for _, v := range r.GetMounts() {
		access := "rw"
		if v.GetReadOnly() {
			access = "ro"
		}
		g.Mounts = append(g.Mounts, runtime.Mount{
			Source: v.GetHostPath(), Destination: v.GetContainerPath(), Type: "bind", Options: []string{"rbind", access, "rprivate"},
		})
	}
	for _, name := range slices.Sorted(maps.Keys(r.GetEnvs())) {
		g.Env = append(g.Env, name+"="+r.GetEnvs()[name])
	}
	return g, nil
}

func (p *plugin) start(ctx context.Context, ids []string) error {
	if !p.options.GetPreStartRequired() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	_, err := p.client.PreStartContainer(ctx, &api.PreStartContainerRequest{DevicesIds: ids})
	if err != nil {
		return fmt.Errorf("its device plugin does not prepare %s: %s", strings.Join(ids, ", "), status.Convert(err).Message())
	}
	return nil
}

// registration is the kubelet's side of the protocol.
type registration struct {
	api.UnimplementedRegistrationServer
	manager *Manager
	ctx     context.Context // of Run
	running *sync.WaitGroup
}

// socketName is where plugins look for a kubelet.
const socketName = "kubelet.sock"

// Run takes registrations of plugins until ctx ends. When another kubelet
// answers at the socket, plugins are its.
func (m *Manager) Run(ctx context.Context) error {
	if m.o.Dir == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	made, err := makeDir(m.o.Dir)
	if err != nil {
		return fmt.Errorf("make the directory of device plugins: %w", err)
	}
	defer made.remove()
	path := filepath.Join(m.o.Dir, socketName)
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		m.o.Log.Warn("a kubelet, or another instance, serves device plugins here: this node gets none", "socket", path)
		<-ctx.Done()
		return ctx.Err()
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen for device plugins: %w", err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	server := grpc.NewServer()
	api.RegisterRegistrationServer(server, &registration{manager: m, ctx: ctx, running: &running})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve device plugins: %w", err)
	}
	return ctx.Err()
}

// madeDirs are directories that did not exist before, the innermost first.
type madeDirs []string

func makeDir(dir string) (madeDirs, error) {
	var made madeDirs
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil {
			break
		}
		made = append(made, d)
	}
	return made, os.MkdirAll(dir, 0o750)
}

// remove takes away those that are empty.
func (m madeDirs) remove() {
	for _, dir := range m {
		if os.Remove(dir) != nil {
			return
		}
	}
}

// Register answers a plugin, and then looks at its devices for as long as it lives.
func (r *registration) Register(_ context.Context, q *api.RegisterRequest) (*api.Empty, error) {
	name, endpoint := q.GetResourceName(), q.GetEndpoint()
	domain, rest, slash := strings.Cut(name, "/")
	switch {
	case q.GetVersion() != api.Version:
		return nil, status.Errorf(codes.InvalidArgument, "version %q of the protocol is not spoken here, %s is", q.GetVersion(), api.Version)
	case !slash || domain == "" || rest == "" || strings.HasSuffix(domain, "kubernetes.io"):
		return nil, status.Errorf(codes.InvalidArgument, "%q is no name of an extended resource", name)
	case endpoint == "" || filepath.Base(endpoint) != endpoint:
		return nil, status.Errorf(codes.InvalidArgument, "endpoint %q is not the name of a socket", endpoint)
	}
	if _, static := r.manager.o.Static[name]; static {
		return nil, status.Errorf(codes.AlreadyExists, "%s is listed by the node's flags", name)
	}
	r.running.Go(func() {
		if err := r.manager.follow(r.ctx, name, endpoint, q.GetOptions()); err != nil && r.ctx.Err() == nil {
			r.manager.o.Log.Warn("device plugin is away: its devices are handed out no more", "resource", name, "err", err)
		}
	})
	return &api.Empty{}, nil
}

// follow keeps up with one plugin's devices until it goes away.
func (m *Manager) follow(ctx context.Context, name, endpoint string, options *api.DevicePluginOptions) error {
	conn, err := grpc.NewClient("unix:"+filepath.Join(m.o.Dir, endpoint), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	p := &plugin{client: api.NewDevicePluginClient(conn), options: options}
	if p.options == nil {
		limited, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		if p.options, err = p.client.GetDevicePluginOptions(limited, &api.Empty{}, grpc.WaitForReady(true)); err != nil {
			return err
		}
	}
	stream, err := p.client.ListAndWatch(ctx, &api.Empty{})
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.sources[name] = p // in place of an earlier run of the plugin
	m.mu.Unlock()
	m.o.Log.Info("device plugin registered", "resource", name, "endpoint", endpoint)
	for {
		list, err := stream.Recv()
		if err != nil {
			p.away()
			m.o.Changed()
			return err
		}
		p.see(list.GetDevices())
		m.o.Changed()
	}
}
