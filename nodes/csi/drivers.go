package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Options for New. All are required unless a comment says otherwise.
type Options struct {
	// Dir is the directory that drivers share with a kubelet. Empty: no driver
	// is used.
	Dir string
	// DataDir remembers, below "csi", what was made of Dir.
	DataDir string
	// Changed is told when other drivers answer than before; may be nil.
	Changed func()
	Log     *slog.Logger
}

// ErrAway is returned when a driver does not answer on this node.
var ErrAway = errors.New("does not run on this node")

// Drivers are those that run on this node. Safe for concurrent use.
type Drivers struct {
	o Options

	mu sync.Mutex
	// guarded by mu
	running map[string]*Driver
}

// New makes Drivers; none is found before Run.
func New(o Options) (*Drivers, error) {
	if o.Dir != "" {
		dir, err := filepath.Abs(o.Dir)
		if err != nil {
			return nil, err
		}
		o.Dir = dir
	}
	if o.Log == nil || o.Dir != "" && o.DataDir == "" {
		return nil, errors.New("csi: DataDir and Log are required")
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	return &Drivers{o: o, running: map[string]*Driver{}}, nil
}

// Nodes is what the drivers that answer say of this node, sorted by their names.
func (d *Drivers) Nodes() []nodes.DriverNode {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []nodes.DriverNode
	for _, name := range slices.Sorted(maps.Keys(d.running)) {
		r := d.running[name]
		list = append(list, nodes.DriverNode{Name: name, ID: r.NodeID, Controller: len(r.controllers) > 0, MaxVolumes: r.MaxVolumes})
	}
	return list
}

// Topology is where the drivers say that this node is, as labels.
func (d *Drivers) Topology() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	labels := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(d.running)) {
		maps.Copy(labels, d.running[name].Topology)
	}
	return labels
}

// Named is the driver of this name; ErrAway when it does not answer now.
func (d *Drivers) Named(name string) (*Driver, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if found := d.running[name]; found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("storage driver %s %w: waiting for it to register", name, ErrAway)
}

func (d *Drivers) set(name string, driver *Driver) {
	d.mu.Lock()
	d.running[name] = driver
	d.mu.Unlock()
	d.o.Log.Info("storage driver answers", "driver", name, "node_id", driver.NodeID)
	d.o.Changed()
}

// unset takes a driver off the list, unless another run of it is there.
func (d *Drivers) unset(name string, driver *Driver) {
	d.mu.Lock()
	mine := driver != nil && d.running[name] == driver
	if mine {
		delete(d.running, name)
	}
	d.mu.Unlock()
	if mine {
		d.o.Log.Warn("storage driver is away: its volumes wait for it", "driver", name)
		d.o.Changed()
	}
}

// registry is where drivers register, in Options.Dir.
const registry = "plugins_registry"

// Run prepares the directory that drivers share and follows registrations until
// ctx ends.
func (d *Drivers) Run(ctx context.Context) error {
	if d.o.Dir == "" {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := d.prepare(); err != nil {
		return err
	}
	return d.Follow(ctx)
}

// Follow is Run in a directory that mounts need not be shared of.
func (d *Drivers) Follow(ctx context.Context) error {
	if err := d.makeDirs(); err != nil {
		return err
	}
	watch, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch for storage drivers: %w", err)
	}
	defer watch.Close()
	dir := filepath.Join(d.o.Dir, registry)
	if err := watch.Add(dir); err != nil {
		return fmt.Errorf("watch for storage drivers: %w", err)
	}
	f := &follower{drivers: d, dir: dir, followed: map[string]follow{}}
	defer f.end()
	f.look(ctx)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-watch.Events:
			if !ok {
				return errors.New("watch for storage drivers: the watch has ended")
			}
		case err := <-watch.Errors: // events were lost: all there is is looked at
			d.o.Log.Warn("watch for storage drivers", "err", err)
		}
		f.look(ctx)
	}
}

func (d *Drivers) makeDirs() error {
	for _, name := range []string{registry, "plugins", "pods"} {
		if err := os.MkdirAll(filepath.Join(d.o.Dir, name), 0o750); err != nil {
			return fmt.Errorf("make the directory of storage drivers: %w", err)
		}
	}
	return nil
}

// prepare makes the directories that drivers mount, shared with them.
func (d *Drivers) prepare() error {
	if err := d.makeDirs(); err != nil {
		return err
	}
	at := place{}
	if _, err := readRecord(placePath(d.o.DataDir), &at); err != nil {
		return err
	}
	if at.Dir != d.o.Dir {
		at = place{Dir: d.o.Dir}
		if err := writeRecord(placePath(d.o.DataDir), at); err != nil {
			return err
		}
	}
	mark := func() error {
		at.Mounted = true
		return writeRecord(placePath(d.o.DataDir), at)
	}
	if err := share(d.o.Dir, mark); err != nil {
		return fmt.Errorf("share %s with storage drivers: %w", d.o.Dir, err)
	}
	return nil
}

// follower keeps one goroutine for each registration.
type follower struct {
	drivers  *Drivers
	dir      string
	followed map[string]follow
	running  sync.WaitGroup
}

// follow is one registration: the socket as it was found, and what ends its
// goroutine.
type follow struct {
	info   fs.FileInfo
	cancel context.CancelFunc
}

func (f *follower) end() {
	for _, r := range f.followed {
		r.cancel()
	}
	f.running.Wait()
}

// look compares the sockets that are there with those that are followed.
func (f *follower) look(ctx context.Context) {
	found := f.sockets()
	for path, r := range f.followed {
		// A socket that was made anew under its name is another registration.
		if info := found[path]; info == nil || !os.SameFile(info, r.info) || !info.ModTime().Equal(r.info.ModTime()) {
			r.cancel()
			delete(f.followed, path)
		}
	}
	for path, info := range found {
		if _, known := f.followed[path]; known {
			continue
		}
		its, cancel := context.WithCancel(ctx)
		f.followed[path] = follow{info, cancel}
		f.running.Go(func() { f.drivers.register(its, path) })
	}
}

func (f *follower) sockets() map[string]fs.FileInfo {
	found := map[string]fs.FileInfo{}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		f.drivers.o.Log.Warn("list storage drivers", "err", err)
		return found
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode()&fs.ModeSocket != 0 {
			found[filepath.Join(f.dir, e.Name())] = info
		}
	}
	return found
}

// Back-off of what a registration is tried again with.
const (
	firstDelay = 500 * time.Millisecond
	maxDelay   = 10 * time.Second
)

// register follows one registration until ctx ends.
func (d *Drivers) register(ctx context.Context, path string) {
	delay := firstDelay
	for ctx.Err() == nil {
		err := d.registered(ctx, path)
		if ctx.Err() != nil {
			return
		}
		d.o.Log.Warn("storage driver does not register", "socket", path, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, maxDelay)
	}
}

// registered speaks the kubelet's part of the registration, and then follows
// the driver.
func (d *Drivers) registered(ctx context.Context, path string) error {
	conn, err := dial(path)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := api.NewRegistrationClient(conn)
	info, err := client.GetInfo(ctx, &api.InfoRequest{})
	if err != nil {
		return fmt.Errorf("ask for its name: %w", err)
	}
	tell := func(err error) error {
		status := &api.RegistrationStatus{PluginRegistered: err == nil}
		if err != nil {
			status.Error = err.Error()
		}
		if _, told := client.NotifyRegistrationStatus(ctx, status); told != nil {
			err = errors.Join(err, fmt.Errorf("tell it that it is registered: %w", told))
		}
		return err
	}
	if err := acceptable(info); err != nil {
		return tell(err)
	}
	endpoint := info.GetEndpoint()
	if endpoint == "" {
		endpoint = path
	}
	return d.follow(ctx, info.GetName(), endpoint, tell)
}

// acceptable judges a registration, as a kubelet does.
func acceptable(info *api.PluginInfo) error {
	spoken := slices.ContainsFunc(info.GetSupportedVersions(), func(v string) bool { return len(v) > 1 && v[:2] == "1." || len(v) > 2 && v[:3] == "v1." })
	switch {
	case info.GetType() != api.CSIPlugin:
		return fmt.Errorf("plugin %s is of type %s, only %s is used here", info.GetName(), info.GetType(), api.CSIPlugin)
	case info.GetName() == "":
		return errors.New("the plugin has no name")
	case !spoken:
		return fmt.Errorf("plugin %s speaks versions %v of CSI, 1.x is spoken here", info.GetName(), info.GetSupportedVersions())
	}
	return nil
}

// dial connects to a socket when the first call comes.
func dial(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstDelay, Multiplier: 2, Jitter: 0.2, MaxDelay: maxDelay},
			MinConnectTimeout: maxDelay,
		}))
}

// follow keeps a driver on the list for as long as it answers.
func (d *Drivers) follow(ctx context.Context, name, endpoint string, tell func(error) error) error {
	conn, err := dial(endpoint)
	if err != nil {
		return tell(err)
	}
	defer conn.Close()
	var driver *Driver
	defer func() { d.unset(name, driver) }()
	first := true
	for {
		conn.Connect()
		switch state := conn.GetState(); state {
		case connectivity.Ready:
			fresh, err := Learn(ctx, conn)
			if err == nil && fresh.Name != name {
				err = fmt.Errorf("the driver registered as %s, its socket answers as %s", name, fresh.Name)
			}
			if err != nil {
				return tell(err)
			}
			if first {
				if err := tell(nil); err != nil {
					return err
				}
				first = false
			}
			driver = fresh
			d.set(name, driver)
			conn.WaitForStateChange(ctx, state)
			d.unset(name, driver)
		default:
			conn.WaitForStateChange(ctx, state)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
