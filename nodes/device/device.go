// Package device hands out the devices of a machine that manifests request by
// the name of an extended resource (vendor.com/gpu): those that the node's
// flags list, and those of device plugins, which speak the kubelet's protocol
// (v1beta1) and so run unchanged.
//
// A device belongs to one container at a time; only the init containers of a
// pod share with the containers that come after them. What was handed out is
// on the disk before anybody uses it: a container that restarts, under another
// agent too, gets the same again. Devices that fail are handed out no more and
// taken from nobody.
//
// It does not choose the node: counts are reported, the planner reckons.
package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// Options for New.
type Options struct {
	// Static are device files by resource: one device each.
	Static map[string][]string
	// Dir is where plugins and this package have their sockets; empty for none.
	Dir string
	// Record is the file that remembers who has what. Required.
	Record string
	// Changed is told when Counts may have changed; may be nil.
	Changed func()
	// Log is required.
	Log *slog.Logger
}

// Count of one resource.
type Count struct {
	// Total devices, and those of them that work.
	Total, Healthy int64
}

// Grant is what a container gets.
type Grant struct {
	Devices []runtime.Device `json:"devices,omitempty"`
	Mounts  []runtime.Mount  `json:"mounts,omitempty"`
	Env     []string         `json:"env,omitempty"`
	// CDI are devices by the names that the node's CDI specs give them.
	CDI []string `json:"cdi,omitempty"`
}

// Claim is what one container asks for.
type Claim struct {
	Pod       nodes.UID
	Container string
	// Shares are containers of the pod that never run beside this one: their
	// devices may be its, too.
	Shares []string
	// Wants are counts by resource.
	Wants map[string]int64
}

// source is whatever has devices of one resource.
type source interface {
	// devices by ID, with whether they work.
	devices() map[string]bool
	// prefer orders IDs that may be taken, the best first.
	prefer(ctx context.Context, ids []string, count int) []string
	// grant makes devices ready for a container.
	grant(ctx context.Context, ids []string) (Grant, error)
	// start is told before each start of a container that has devices.
	start(ctx context.Context, ids []string) error
}

// Manager hands out devices. Safe for concurrent use.
type Manager struct {
	o Options

	mu sync.Mutex
	// guarded by mu
	sources map[string]source
	held    holdings
}

// New reads the record.
func New(o Options) (*Manager, error) {
	if o.Record == "" || o.Log == nil {
		return nil, errors.New("device: Record and Log are required")
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	m := &Manager{o: o, sources: map[string]source{}}
	for name, paths := range o.Static {
		m.sources[name] = files(paths)
	}
	var err error
	m.held, err = readHoldings(o.Record)
	return m, err
}

// Counts by resource.
func (m *Manager) Counts() map[string]Count {
	counts := map[string]Count{}
	for name, s := range m.all() {
		var c Count
		for _, healthy := range s.devices() {
			c.Total++
			if healthy {
				c.Healthy++
			}
		}
		counts[name] = c
	}
	return counts
}

func (m *Manager) all() map[string]source {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.sources)
}

// Equip gives a container that is about to start what it asks for: what it had
// before, or else what is free.
func (m *Manager) Equip(ctx context.Context, c Claim) (Grant, error) {
	var all Grant
	for _, name := range slices.Sorted(maps.Keys(c.Wants)) {
		count := int(c.Wants[name])
		if count <= 0 {
			continue
		}
		g, err := m.equipOne(ctx, &c, name, count)
		if err != nil {
			return Grant{}, fmt.Errorf("resource %s: %w", name, err)
		}
		all.Devices = append(all.Devices, g.Devices...)
		all.Mounts = append(all.Mounts, g.Mounts...)
		all.Env = append(all.Env, g.Env...)
		all.CDI = append(all.CDI, g.CDI...)
	}
	return all, nil
}

func (m *Manager) equipOne(ctx context.Context, c *Claim, name string, count int) (Grant, error) {
	m.mu.Lock()
	s := m.sources[name]
	have, found := m.held.get(c.Pod, c.Container, name)
	m.mu.Unlock()
	if s == nil {
		return Grant{}, errors.New("the node has no such devices (any more): see its --device flags, or whether its device plugin runs")
	}
	if !found || have.asked || len(have.IDs) != count {
		var err error
		if have, err = m.allocate(ctx, s, c, name, count); err != nil {
			return Grant{}, err
		}
	}
	return have.Grant, s.start(ctx, have.IDs)
}

// allocate picks devices and writes down whose they are.
func (m *Manager) allocate(ctx context.Context, s source, c *Claim, name string, count int) (holding, error) {
	m.mu.Lock()
	free := m.held.free(c, name, s.devices())
	m.mu.Unlock()
	if len(free) < count {
		return holding{}, fmt.Errorf("%d of its devices wanted, %d free", count, len(free))
	}
	ids := s.prefer(ctx, free, count)[:count]
	if err := m.reserve(c, name, ids, s); err != nil {
		return holding{}, err
	}
	grant, err := s.grant(ctx, ids)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.held.drop(c.Pod, c.Container, name)
		return holding{}, err
	}
	h := holding{IDs: ids, Grant: grant}
	m.held.set(c.Pod, c.Container, name, h)
	return h, m.held.write(m.o.Record)
}

// reserve takes devices before their plugin is asked, which takes time.
func (m *Manager) reserve(c *Claim, name string, ids []string, s source) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	free := m.held.free(c, name, s.devices())
	for _, id := range ids {
		if !slices.Contains(free, id) {
			return fmt.Errorf("device %s was taken at the same moment", id)
		}
	}
	m.held.set(c.Pod, c.Container, name, holding{IDs: ids, asked: true})
	return nil
}

// Release gives back all that a pod has.
func (m *Manager) Release(uid nodes.UID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, found := m.held[uid]; !found {
		return nil
	}
	delete(m.held, uid)
	return m.held.write(m.o.Record)
}

// files are devices that the node's flags list.
type files []string

func (f files) devices() map[string]bool {
	all := make(map[string]bool, len(f))
	for _, path := range f {
		_, err := os.Stat(path)
		all[path] = err == nil
	}
	return all
}

func (f files) prefer(_ context.Context, ids []string, _ int) []string { return ids }

func (f files) grant(_ context.Context, ids []string) (Grant, error) {
	var g Grant
	for _, path := range ids {
		g.Devices = append(g.Devices, runtime.Device{HostPath: path, ContainerPath: path, Permissions: "rwm"})
	}
	return g, nil
}

func (f files) start(context.Context, []string) error { return nil }

// Parse reads flags of the form vendor.com/name=/dev/x,/dev/y.
func Parse(flags []string) (map[string][]string, error) {
	static := map[string][]string{}
	for _, text := range flags {
		name, list, found := strings.Cut(text, "=")
		domain, rest, slash := strings.Cut(name, "/")
		switch {
		case !found || list == "":
			return nil, fmt.Errorf("%q: want vendor.com/name=/dev/x,/dev/y", text)
		case !slash || domain == "" || rest == "" || strings.HasSuffix(domain, "kubernetes.io"):
			return nil, fmt.Errorf("%q is no name of an extended resource: want vendor.com/name", name)
		case static[name] != nil:
			return nil, fmt.Errorf("%s is there twice", name)
		}
		for path := range strings.SplitSeq(list, ",") {
			if !strings.HasPrefix(path, "/dev/") || slices.Contains(static[name], path) {
				return nil, fmt.Errorf("%s: %q: want different files below /dev", name, path)
			}
			static[name] = append(static[name], path)
		}
	}
	return static, nil
}
