package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	podnetwork "github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/nodes/volume"
	"github.com/tallyman-dev/tallyman/proxy"
)

type place = podnetwork.Attachment

// network gives pods addresses of the machine's range, each as late as possible
// again. The range is 10.244.<machine>.0/24, or what several servers give it.
type network struct {
	machine *machine
	pace    *pace
	drift   chan nodes.UID

	mu sync.Mutex
	// guarded by mu
	pods     netip.Prefix // invalid while it has no range
	attached map[nodes.UID]place
	last     byte
}

func (n *network) Setup(context.Context) error                  { return nil }
func (n *network) Close(context.Context) error                  { n.reset(); return nil }
func (n *network) SetPeers(context.Context, []proxy.Node) error { return nil }
func (n *network) PublicKey() string                            { return "" }
func (n *network) Drift() <-chan nodes.UID                      { return n.drift }
func (n *network) Bridge() string                               { return "tally0" }

func (n *network) Gateway() netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.pods.IsValid() {
		return netip.Addr{}
	}
	return n.addr(1)
}

func (n *network) PodCIDR() netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.pods
}

// give tells the machine its range, and whether that is news: one that it has it keeps.
func (n *network) give(pods netip.Prefix) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods.IsValid() || !pods.IsValid() {
		return false
	}
	n.pods = pods
	return true
}

// addr is an address of the range. The caller holds mu.
func (n *network) addr(last byte) netip.Addr {
	four := n.pods.Addr().As4()
	four[3] = last
	return netip.AddrFrom4(four)
}

func (n *network) Add(ctx context.Context, s podnetwork.Sandbox) (place, error) {
	if err := n.pace.take(ctx, 20*time.Millisecond); err != nil {
		return place{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, found := n.attached[s.UID]; found {
		return p, nil
	}
	if !n.pods.IsValid() {
		return place{}, errors.New("the machine has no range yet")
	}
	taken := map[netip.Addr]bool{}
	for _, p := range n.attached {
		taken[p.IP] = true
	}
	for range 253 {
		n.last = n.last%253 + 1
		if ip := n.addr(n.last + 1); !taken[ip] {
			n.attached[s.UID] = place{UID: s.UID, IP: ip, NetNS: "/ns/net", IPC: "/ns/ipc", UTS: "/ns/uts"}
			return n.attached[s.UID], nil
		}
	}
	return place{}, errors.New("no address is free")
}

func (n *network) Remove(_ context.Context, uid nodes.UID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, uid)
	return nil
}

func (n *network) List(context.Context) ([]place, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []place
	for _, p := range n.attached {
		list = append(list, p)
	}
	return list, nil
}

func (n *network) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.attached)
}

// volumes remembers which pods have some.
type volumes struct {
	machine *machine
	pace    *pace

	mu sync.Mutex
	// guarded by mu
	mounted map[nodes.UID][]string // the persistent volumes of pods
}

func (v *volumes) Mount(ctx context.Context, p *nodes.Pod, src volume.Source) (map[string]volume.Volume, error) {
	if err := v.pace.take(ctx, 5*time.Millisecond); err != nil {
		return nil, err
	}
	v.mounts(p.UID)
	made := map[string]volume.Volume{}
	for i := range p.Template.Spec.Volumes {
		claimed := &p.Template.Spec.Volumes[i]
		if claimed.Image != nil {
			if err := src.Image(ctx, claimed.Name, filepath.Join(v.machine.dir, string(p.UID), claimed.Name)); err != nil {
				return nil, err
			}
		}
		if p.Claim(claimed) == "" {
			continue
		}
		var err error
		if made[claimed.Name], err = src.Claim(ctx, claimed); err != nil {
			return nil, fmt.Errorf("volume %q: %w", claimed.Name, err)
		}
		id := filepath.Base(made[claimed.Name].Path)
		v.machine.world.witness.mounts(v.machine, claimKey(p.Namespace, p.Claim(claimed)), id)
		v.mounts(p.UID, id)
	}
	return made, nil
}

// mounts notes volumes of a pod.
func (v *volumes) mounts(uid nodes.UID, ids ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mounted[uid] = append(v.mounted[uid], ids...)
}

// has reports whether a pod has a persistent volume mounted.
func (v *volumes) has(uid nodes.UID, id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Contains(v.mounted[uid], id)
}

// anyHas reports whether some pod has.
func (v *volumes) anyHas(id string) bool {
	return slices.ContainsFunc(v.uids(), func(uid nodes.UID) bool { return v.has(uid, id) })
}

func (v *volumes) SubPath(nodes.UID, volume.Volume, string, int, string) (string, error) {
	return "", errors.New("the simulator mounts no volumes")
}

func (v *volumes) Disk(context.Context, *nodes.Pod) (map[string]nodes.DiskUsage, error) {
	return nil, nil
}

func (v *volumes) Shm(nodes.UID) (string, error) { return "/dev/shm", nil }

func (v *volumes) Dir(uid nodes.UID) (string, error) {
	dir := filepath.Join(v.machine.dir, "run", string(uid))
	return dir, os.MkdirAll(dir, 0o755)
}

func (v *volumes) Unmount(_ context.Context, uid nodes.UID) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.mounted, uid)
	return nil
}

func (v *volumes) List(context.Context) ([]nodes.UID, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []nodes.UID
	for uid := range v.mounted {
		list = append(list, uid)
	}
	return list, nil
}

func (v *volumes) Reset(context.Context) error { v.reset(); return nil }

func (v *volumes) reset() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.mounted)
}

func (n *network) addrOf(uid nodes.UID) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.attached[uid].IP
}

func (n *network) uids() []nodes.UID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.attached))
}

func (v *volumes) uids() []nodes.UID {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.mounted))
}

// Queued draws now and then a connection that is still to be accepted.
func (n *network) Queued(nodes.UID) (int, error) {
	n.pace.mu.Lock()
	defer n.pace.mu.Unlock()
	return max(0, n.pace.rng.IntN(10)-8), nil
}
