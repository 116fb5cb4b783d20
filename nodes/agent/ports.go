package agent

import (
	"context"
	"io"
	"net/netip"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/csi"
	"github.com/tallyman-dev/tallyman/nodes/device"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/nodes/probe"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
	"github.com/tallyman-dev/tallyman/nodes/volume"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Network gives pods their namespaces and addresses; *network.Network is one.
type Network interface {
	Setup(ctx context.Context) error
	Add(ctx context.Context, s network.Sandbox) (network.Attachment, error)
	Remove(ctx context.Context, uid nodes.UID) error
	List(ctx context.Context) ([]network.Attachment, error)
	// Queued counts connections that a pod's programs have yet to accept.
	Queued(uid nodes.UID) (int, error)
	// SetPeers makes the pods of these nodes reachable; a *network.Unreachable
	// tells that it did, but for some nodes.
	SetPeers(ctx context.Context, peers []proxy.Node) error
	Close(ctx context.Context) error
	Drift() <-chan nodes.UID
	// Gateway and PodCIDR are invalid while the node has no range.
	Gateway() netip.Addr
	PodCIDR() netip.Prefix
	// PublicKey is the node's for WireGuard; empty for other overlays.
	PublicKey() string
	Bridge() string
}

// Keeper holds the log pipes, serves DNS and kills fenced pods; *keeper.Client
// is one.
type Keeper interface {
	OpenLog(ctx context.Context, l keeper.Log) (keeper.Pipes, error)
	CloseLog(ctx context.Context, id string) error
	SetDNS(ctx context.Context, d keeper.DNS) error
	// Fence has pods killed at an instant of CLOCK_BOOTTIME, or moves it to later.
	Fence(ctx context.Context, ends time.Duration, pods []keeper.Fence) error
	Unfence(ctx context.Context, pods []nodes.UID) error
	Fences(ctx context.Context) ([]keeper.HeldFence, error)
}

// Volumes makes what pods mount; *volume.Manager is one.
type Volumes interface {
	Mount(ctx context.Context, pod *nodes.Pod, src volume.Source) (map[string]volume.Volume, error)
	SubPath(uid nodes.UID, v volume.Volume, container string, index int, path string) (string, error)
	// Disk measures the pod's emptyDir volumes on disk, by name.
	Disk(ctx context.Context, pod *nodes.Pod) (map[string]nodes.DiskUsage, error)
	Shm(uid nodes.UID) (string, error)
	Dir(uid nodes.UID) (string, error)
	Unmount(ctx context.Context, uid nodes.UID) error
	List(ctx context.Context) ([]nodes.UID, error)
	Reset(ctx context.Context) error
}

// Persistent keeps the volumes behind claims; *volume.Persistent is one. Calls
// may be repeated after any crash.
type Persistent interface {
	// Ensure makes a volume, or finds it, and grows it. It never makes one anew
	// that was Made.
	Ensure(ctx context.Context, v *nodes.Volume) (nodes.VolumeStatus, error)
	// Stage makes an ensured volume mountable by one pod.
	Stage(ctx context.Context, v *nodes.Volume, w csi.Wish) (volume.Volume, error)
	// Unstage undoes Stage if unused then still says so.
	Unstage(ctx context.Context, v *nodes.Volume, unused func() bool) error
	// Detach takes a volume of a CSI driver from another node, by the id that the
	// driver has for it.
	Detach(ctx context.Context, v *nodes.Volume, from, id string) error
	// Delete ends the data; nil says that nothing is left.
	Delete(ctx context.Context, v *nodes.Volume) error
	// Held are the volumes whose data lies on this node.
	Held(ctx context.Context) ([]*nodes.Volume, error)
	// Sweep finishes removals that were cut short, and unmounts what is not assigned.
	Sweep(ctx context.Context, assigned func(name, uid string) bool) error
	// Reset unmounts everything; data goes only with remove.
	Reset(ctx context.Context, remove bool) error
}

// Drivers are the CSI drivers that answer on the node; *csi.Drivers is one.
type Drivers interface {
	// Nodes is what they say of the node, sorted by their names.
	Nodes() []nodes.DriverNode
	// Topology is where they say that the node is, as labels.
	Topology() map[string]string
}

// Prober asks containers how they are; *probe.Prober is one.
type Prober interface {
	Add(t probe.Target)
	// Remove ends the probes of a container, of every kind when kind is empty.
	Remove(container string, kind probe.Kind)
}

// Cgroups makes the control group around a pod; *cgroup.Tree is one.
type Cgroups interface {
	// Ensure makes it; node are the shares that all pods have together.
	Ensure(parent string, r runtime.Resources, node uint64) error
	Remove(parent string) error
}

// Devices hands out the machine's devices; *device.Manager is one.
type Devices interface {
	// Equip gives a container that is about to start what it requests.
	Equip(ctx context.Context, c device.Claim) (device.Grant, error)
	Release(uid nodes.UID) error
	Counts() map[string]device.Count
}

// Upstream takes reports to the server. Send never blocks: it merges with what
// was not sent yet.
type Upstream interface {
	Send(r nodes.Report)
	// Token asks the server for a token of a pod on this node.
	Token(ctx context.Context, r nodes.TokenRequest) (nodes.Token, error)
}

// ports are what a Machine reaches the world through.
type ports struct {
	runtime runtime.Runtime
	network Network
	keeper  Keeper
	volumes Volumes
	prober  Prober
	cgroups Cgroups
	devices Devices // nil where there are none
	// slots bounds how many pods make heavy calls at the same time.
	slots chan struct{}
	now   func() time.Time
	// token asks the server for one.
	token func(ctx context.Context, r nodes.TokenRequest) (nodes.Token, error)
	// readLog reads the end of a log file.
	readLog func(ctx context.Context, path string, lines int, w io.Writer) error
}
