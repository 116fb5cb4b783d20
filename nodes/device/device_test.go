package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// fakePlugin is a device plugin as vendors write them.
type fakePlugin struct {
	api.UnimplementedDevicePluginServer
	dir, socket string
	lists       chan []*api.Device

	mu       sync.Mutex
	prepared []string
}

func (p *fakePlugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{PreStartRequired: true, GetPreferredAllocationAvailable: true}, nil
}

func (p *fakePlugin) ListAndWatch(_ *api.Empty, s grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	for {
		select {
		case list := <-p.lists:
			if err := s.Send(&api.ListAndWatchResponse{Devices: list}); err != nil {
				return err
			}
		case <-s.Context().Done():
			return nil
		}
	}
}

// GetPreferredAllocation likes the last devices best.
func (p *fakePlugin) GetPreferredAllocation(_ context.Context, r *api.PreferredAllocationRequest) (*api.PreferredAllocationResponse, error) {
	ids := slices.Clone(r.ContainerRequests[0].AvailableDeviceIDs)
	slices.Sort(ids)
	slices.Reverse(ids)
	return &api.PreferredAllocationResponse{ContainerResponses: []*api.ContainerPreferredAllocationResponse{{DeviceIDs: ids[:r.ContainerRequests[0].AllocationSize]}}}, nil
}

func (p *fakePlugin) Allocate(_ context.Context, r *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.ContainerAllocateResponse{Envs: map[string]string{"VISIBLE": strings.Join(r.ContainerRequests[0].DevicesIds, ",")}}
	for _, id := range r.ContainerRequests[0].DevicesIds {
		if id == "broken" {
			return nil, errors.New("no power")
		}
		answer.CdiDevices = append(answer.CdiDevices, &api.CDIDevice{Name: "vendor.com/x=" + id})
		answer.Devices = append(answer.Devices, &api.DeviceSpec{HostPath: "/dev/" + id, ContainerPath: "/dev/" + id, Permissions: "rw"})
	}
	answer.Annotations = map[string]string{"cdi.k8s.io/vendor.com_x": answer.CdiDevices[0].Name + ",vendor.com/net=all", "vendor.com/note": "more"}
	answer.Mounts = []*api.Mount{{HostPath: "/usr/lib/driver", ContainerPath: "/driver", ReadOnly: true}}
	return &api.AllocateResponse{ContainerResponses: []*api.ContainerAllocateResponse{answer}}, nil
}

func (p *fakePlugin) PreStartContainer(_ context.Context, r *api.PreStartContainerRequest) (*api.PreStartContainerResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prepared = append(p.prepared, r.DevicesIds...)
	return &api.PreStartContainerResponse{}, nil
}

// start serves and registers the plugin until the result is called.
func (p *fakePlugin) start(t *testing.T, resource string) func() {
	t.Helper()
	path := filepath.Join(p.dir, p.socket)
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	must(t, err)
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends with Stop
	}()
	conn, err := grpc.NewClient("unix:"+filepath.Join(p.dir, socketName), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(conn).Register(ctx, &api.RegisterRequest{Version: api.Version, Endpoint: p.socket, ResourceName: resource}, grpc.WaitForReady(true))
	must(t, err)
	return func() { server.Stop(); <-done }
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run starts a manager until the test ends or the result is called.
func run(t *testing.T, o Options) (*Manager, func()) {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	m, err := New(o)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return m, stop
}

// eventually waits for counts; their change has no event of its own here.
func eventually(t *testing.T, m *Manager, resource string, want Count) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for m.Counts()[resource] != want {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %+v, want %+v", resource, m.Counts()[resource], want)
		}
		time.Sleep(time.Millisecond)
	}
}

func healthy(ids ...string) []*api.Device {
	var list []*api.Device
	for _, id := range ids {
		list = append(list, &api.Device{ID: id, Health: api.Healthy})
	}
	return list
}

// dir is short: the path of a socket has 107 characters at most.
func dir(t *testing.T) string {
	d, err := os.MkdirTemp("", "dev")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func TestDevicePlugin(t *testing.T) {
	d := dir(t)
	o := Options{Dir: filepath.Join(d, "plugins"), Record: filepath.Join(d, "record")}
	m, stop := run(t, o)
	must(t, os.MkdirAll(o.Dir, 0o755))
	p := &fakePlugin{dir: o.Dir, socket: "gpu.sock", lists: make(chan []*api.Device)}
	end := p.start(t, "vendor.com/gpu")
	p.lists <- healthy("g0", "g1", "g2", "broken")
	eventually(t, m, "vendor.com/gpu", Count{4, 4})

	// The plugin's preference decides; it wants the last first, but not the broken one twice.
	p.lists <- append(healthy("g0", "g1", "g2"), &api.Device{ID: "broken", Health: api.Unhealthy})
	eventually(t, m, "vendor.com/gpu", Count{4, 3})
	claim := Claim{Pod: "u1", Container: "a", Wants: map[string]int64{"vendor.com/gpu": 2}}
	got, err := m.Equip(t.Context(), claim)
	must(t, err)
	want := Grant{
		Devices: []runtime.Device{{HostPath: "/dev/g2", ContainerPath: "/dev/g2", Permissions: "rw"}, {HostPath: "/dev/g1", ContainerPath: "/dev/g1", Permissions: "rw"}},
		Mounts:  []runtime.Mount{{Source: "/usr/lib/driver", Destination: "/driver", Type: "bind", Options: []string{"rbind", "ro", "rprivate"}}},
		Env:     []string{"VISIBLE=g2,g1"},
		CDI:     []string{"vendor.com/x=g2", "vendor.com/x=g1", "vendor.com/net=all"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if _, err := m.Equip(t.Context(), Claim{Pod: "u2", Container: "a", Wants: claim.Wants}); err == nil || !strings.Contains(err.Error(), "2 of its devices wanted, 1 free") {
		t.Errorf("more than there is: %v", err)
	}
	// A new agent and a new plugin: the container keeps what it has.
	end()
	eventually(t, m, "vendor.com/gpu", Count{4, 0})
	stop()
	m, _ = run(t, o)
	must(t, os.MkdirAll(o.Dir, 0o755)) // the last run took it away
	end = p.start(t, "vendor.com/gpu")
	defer end()
	p.lists <- healthy("g0", "g1", "g2")
	eventually(t, m, "vendor.com/gpu", Count{3, 3})
	again, err := m.Equip(t.Context(), claim)
	must(t, err)
	if diff := cmp.Diff(want, again); diff != "" {
		t.Error(diff)
	}
	must(t, m.Release("u1"))
	if _, err := m.Equip(t.Context(), Claim{Pod: "u2", Container: "a", Wants: map[string]int64{"vendor.com/gpu": 3}}); err != nil {
		t.Errorf("after a release: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.prepared) != 7 {
		t.Errorf("prepared before starts: %v", p.prepared)
	}
}

func TestFailedAllocationHoldsNothing(t *testing.T) {
	d := dir(t)
	o := Options{Dir: filepath.Join(d, "plugins"), Record: filepath.Join(d, "record")}
	m, _ := run(t, o)
	must(t, os.MkdirAll(o.Dir, 0o755))
	p := &fakePlugin{dir: o.Dir, socket: "gpu.sock", lists: make(chan []*api.Device)}
	defer p.start(t, "vendor.com/gpu")()
	p.lists <- healthy("broken")
	eventually(t, m, "vendor.com/gpu", Count{1, 1})
	for range 2 {
		_, err := m.Equip(t.Context(), Claim{Pod: "u1", Container: "a", Wants: map[string]int64{"vendor.com/gpu": 1}})
		if err == nil || !strings.Contains(err.Error(), "no power") {
			t.Fatalf("%v, want the plugin's words", err)
		}
	}
}

// TestWhatWasOnlyAskedForIsAskedForAgain: an agent that is killed while a plugin
// thinks must not leave a container that has devices and no way to them.
func TestWhatWasOnlyAskedForIsAskedForAgain(t *testing.T) {
	o := Options{Record: filepath.Join(t.TempDir(), "record"), Static: map[string][]string{"vendor.com/x": {"/dev/null", "/dev/zero"}}, Log: slog.New(slog.DiscardHandler)}
	m, err := New(o)
	must(t, err)
	asking := Claim{Pod: "u1", Container: "a", Wants: map[string]int64{"vendor.com/x": 1}}
	must(t, m.reserve(&asking, "vendor.com/x", []string{"/dev/null"}, files(o.Static["vendor.com/x"])))
	other := Claim{Pod: "u2", Container: "a", Wants: asking.Wants}
	if g, err := m.Equip(t.Context(), other); err != nil || len(g.Devices) != 1 || g.Devices[0].HostPath != "/dev/zero" {
		t.Fatalf("the other pod got %+v, %v", g, err)
	}
	again, err := New(o)
	must(t, err)
	if g, err := again.Equip(t.Context(), asking); err != nil || len(g.Devices) != 1 || g.Devices[0].HostPath != "/dev/null" {
		t.Errorf("after a crash the pod got %+v, %v", g, err)
	}
}

func TestRegistrationRefuses(t *testing.T) {
	m, err := New(Options{Record: filepath.Join(t.TempDir(), "r"), Static: map[string][]string{"vendor.com/x": {"/dev/null"}}, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	r := &registration{manager: m, ctx: t.Context(), running: &sync.WaitGroup{}}
	for want, q := range map[string]*api.RegisterRequest{
		"is not spoken here":      {Version: "v1alpha", ResourceName: "vendor.com/y", Endpoint: "y.sock"},
		"no name of an extended":  {Version: api.Version, ResourceName: "cpu", Endpoint: "y.sock"},
		"is not the name of":      {Version: api.Version, ResourceName: "vendor.com/y", Endpoint: "../y.sock"},
		"listed by the node's fl": {Version: api.Version, ResourceName: "vendor.com/x", Endpoint: "y.sock"},
	} {
		if _, err := r.Register(t.Context(), q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestSharesBetweenInitContainersAndOthers(t *testing.T) {
	m, err := New(Options{Record: filepath.Join(t.TempDir(), "r"), Static: map[string][]string{"vendor.com/x": {"/dev/null", "/dev/zero", "/dev/absent"}}, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	if got := m.Counts()["vendor.com/x"]; got != (Count{3, 2}) {
		t.Errorf("counts %+v", got)
	}
	take := func(pod, container string, count int64, shares ...string) (string, error) {
		g, err := m.Equip(t.Context(), Claim{Pod: nodes.UID(pod), Container: container, Shares: shares, Wants: map[string]int64{"vendor.com/x": count}})
		return fmt.Sprint(g.Devices), err
	}
	init, err := take("u1", "init", 1)
	must(t, err)
	main, err := take("u1", "main", 1, "init")
	must(t, err)
	if init != main {
		t.Errorf("the init container had %s, the container after it has %s", init, main)
	}
	other, err := take("u1", "other", 1)
	must(t, err)
	if other == main {
		t.Error("two containers that run beside one another have one device")
	}
	if _, err := take("u2", "main", 1); err == nil {
		t.Error("a second pod got a device of the first")
	}
}

func TestParse(t *testing.T) {
	got, err := Parse([]string{"vendor.com/x=/dev/a,/dev/b", "other.org/y=/dev/c"})
	if diff := cmp.Diff(map[string][]string{"vendor.com/x": {"/dev/a", "/dev/b"}, "other.org/y": {"/dev/c"}}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for _, bad := range []string{"x=/dev/a", "vendor.com/x", "vendor.com/x=", "vendor.com/x=/etc/passwd", "vendor.com/x=/dev/a,/dev/a", "node.kubernetes.io/x=/dev/a"} {
		if _, err := Parse([]string{bad}); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestDamagedRecordIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r")
	must(t, os.WriteFile(path, []byte("{"), 0o600))
	if _, err := New(Options{Record: path, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a damaged record was taken for none")
	}
}
