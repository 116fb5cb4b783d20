// Package network gives pods their namespaces and addresses on one node.
//
// A pod has a network, an IPC and a UTS namespace, pinned below the run
// directory so that they outlive every process. Its eth0 is one end of a veth
// pair whose other end hangs on the node's bridge; its address is a host route
// (/32) with the bridge as gateway, so that all traffic between pods passes the
// node's own network stack, where services are routed: nothing depends on the
// kernel's bridge netfilter.
//
// Guarantees: every call may be repeated and repairs what is missing; the
// kernel and the store are looked at first, so that a pod keeps its namespaces
// and its address whatever process died; an address is used again as late as
// possible; Close leaves nothing behind. No program is run for a pod.
//
// SetPeers connects the pods of other nodes: over VXLAN, over WireGuard, or by
// plain routes where nodes share a link. Which pods are where comes from the
// caller alone; no packet is flooded to find out.
//
// It does not route services (proxy does) or run containers. Pods have IPv4
// addresses; namespaces, store and interface name no family.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy/netfilter"
)

// DefaultBridge is the name of the bridge when Options name none.
const DefaultBridge = "tally0"

// Options of New.
type Options struct {
	// PodCIDR is the node's own range; its first address is the gateway. While it
	// is invalid nobody gave the node one: there is no bridge, and no pod can be added.
	PodCIDR netip.Prefix
	// ClusterCIDR holds the pods of all nodes: traffic to it keeps its source.
	ClusterCIDR netip.Prefix
	// ServiceCIDR is routed over the bridge, so that services are reachable
	// from the node without a default route. May be invalid: no such route.
	ServiceCIDR netip.Prefix
	// Bridge is an interface name of at most 12 characters, to which the name of
	// the overlay's link adds three; empty means DefaultBridge.
	Bridge string
	// NodeAddr is the node's own address, which other nodes reach it by. May be
	// invalid: it then has no peers.
	NodeAddr netip.Addr
	// Overlay is how packets travel to peers: VXLAN (when empty), Routes or WireGuard.
	Overlay string
	// KeyFile holds the node's WireGuard key; made when missing. Needed for that
	// overlay only.
	KeyFile string
	// RunDir holds the pinned namespaces; it must not survive a reboot.
	RunDir string
	// MTU of the pods; 0 takes that of the link with NodeAddr, else of the default
	// route's, else 1500, each less what the overlay adds to a packet.
	MTU int
	// DB is the agent's store: the addresses are in a bucket of their own.
	DB  *bbolt.DB
	Log *slog.Logger
}

// Sandbox is what a pod wants of its namespaces.
type Sandbox struct {
	UID      nodes.UID
	Hostname string
	// HostNetwork and HostIPC leave the pod in the node's own.
	HostNetwork, HostIPC bool
	// Sysctls by name. Only those of a namespace that the pod has of its own are
	// set; Add refuses any other.
	Sysctls map[string]string
}

// Attachment is a pod's place in the network. An empty path means the host's
// namespace, an invalid address the host's.
type Attachment struct {
	UID             nodes.UID
	IP              netip.Addr
	NetNS, IPC, UTS string
}

// Network is the pod network of one node. Safe for concurrent use; calls for
// the same pod must not overlap.
type Network struct {
	o   Options
	log *slog.Logger
	mtu atomic.Int32
	// tables is the index of the VXLAN link whose tables were filled, 0 for none.
	tables  atomic.Int32
	gateway netip.Addr
	dir     string
	host    *netlink.Handle
	store   *addresses
	drift   chan nodes.UID
	// ready is set once Setup has found out which addresses are in use.
	ready atomic.Bool

	// publicKey is the node's for WireGuard, empty for other overlays.
	publicKey string

	setting sync.Mutex // serialises Setup, SetPeers and Close and guards what follows
	rules   *netfilter.Realm
	peering

	mu sync.Mutex // guards links
	// links are the host ends of the pods that Add has finished: name → pod.
	links map[string]nodes.UID
}

// New opens the network without changing anything. The process must be in
// the node's network and mount namespaces.
func New(o Options) (*Network, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Bridge == "" {
		o.Bridge = DefaultBridge
	}
	if o.Overlay == "" {
		o.Overlay = VXLAN
	}
	o.PodCIDR = o.PodCIDR.Masked()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n := &Network{
		o: o, log: o.Log, host: host,
		gateway: gatewayOf(o.PodCIDR),
		dir:     filepath.Join(o.RunDir, "ns"),
		links:   map[string]nodes.UID{},
		drift:   make(chan nodes.UID),
	}
	n.mtu.Store(int32(n.fittingMTU()))
	if o.Overlay == WireGuard {
		if n.publicKey, err = publicKey(o.KeyFile); err != nil {
			host.Close()
			return nil, err
		}
	}
	if n.store, err = openAddresses(o.DB, o.PodCIDR); err != nil {
		host.Close()
		return nil, err
	}
	return n, nil
}

func (o Options) check() error {
	switch {
	case o.Log == nil:
		return errors.New("network: no logger")
	case o.DB == nil:
		return errors.New("network: no store")
	case !filepath.IsAbs(o.RunDir):
		return fmt.Errorf("network: run directory %q is not an absolute path", o.RunDir)
	case o.PodCIDR.IsValid() && (!o.PodCIDR.Addr().Is4() || o.PodCIDR.Bits() > 30):
		return fmt.Errorf("network: pod range %s is not an IPv4 range of at least four addresses", o.PodCIDR)
	case !o.ClusterCIDR.IsValid() || o.PodCIDR.IsValid() && !o.ClusterCIDR.Overlaps(o.PodCIDR):
		return fmt.Errorf("network: cluster range %s does not hold the pod range %s", o.ClusterCIDR, o.PodCIDR)
	case o.ServiceCIDR.IsValid() && o.ServiceCIDR.Overlaps(o.ClusterCIDR):
		return fmt.Errorf("network: service range %s overlaps the cluster range %s", o.ServiceCIDR, o.ClusterCIDR)
	case len(o.Bridge) > 12:
		return fmt.Errorf("network: bridge name %q is longer than 12 characters", o.Bridge)
	case !slices.Contains([]string{"", VXLAN, Routes, WireGuard}, o.Overlay):
		return fmt.Errorf("network: overlay %q is not one of %s, %s, %s", o.Overlay, VXLAN, Routes, WireGuard)
	case o.Overlay == WireGuard && !filepath.IsAbs(o.KeyFile):
		return fmt.Errorf("network: key file %q is not an absolute path", o.KeyFile)
	}
	return nil
}

// ErrNoRange is returned when something needs the node's range of pod
// addresses and nobody gave the node one yet.
var ErrNoRange = errors.New("the node has no range of pod addresses yet: its server gives it one")

// errNotReady is returned for a pod that comes before Setup has succeeded.
var errNotReady = errors.New("the pod network is not set up yet")

// gatewayOf is the address of a node's bridge; invalid without a range.
func gatewayOf(pods netip.Prefix) netip.Addr {
	if !pods.IsValid() {
		return netip.Addr{}
	}
	return pods.Masked().Addr().Next()
}

// Gateway is the bridge's address: the pods' next hop. Invalid without a range.
func (n *Network) Gateway() netip.Addr { return n.gateway }

// PodCIDR is the range of this node's pods; invalid while it has none.
func (n *Network) PodCIDR() netip.Prefix { return n.o.PodCIDR }

// MTU of the pods' links.
func (n *Network) MTU() int { return int(n.mtu.Load()) }

// PublicKey is the node's for WireGuard, base64; empty for other overlays.
func (n *Network) PublicKey() string { return n.publicKey }

// Bridge is the name of the interface that the pods hang on.
func (n *Network) Bridge() string { return n.o.Bridge }

// Drift yields pods whose link vanished or went down, "" when all may have
// been touched. Whoever hears of one calls Add again. Run feeds it.
func (n *Network) Drift() <-chan nodes.UID { return n.drift }

// List gives the attachments that exist, in the order of their UIDs. A pod that
// only has an address recorded is one of them: it is Remove that frees it.
func (n *Network) List(ctx context.Context) ([]Attachment, error) {
	uids, err := pinned(n.dir)
	if err != nil {
		return nil, err
	}
	uids = append(uids, n.store.all()...)
	slices.Sort(uids)
	uids = slices.Compact(uids)
	list := make([]Attachment, 0, len(uids))
	for _, uid := range uids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		list = append(list, n.attachment(uid))
	}
	return list, nil
}

// attachment is what is pinned for a pod at this moment.
func (n *Network) attachment(uid nodes.UID) Attachment {
	pins := n.pins(uid)
	a := Attachment{UID: uid, NetNS: pins.existing("net"), IPC: pins.existing("ipc"), UTS: pins.existing("uts")}
	if a.NetNS != "" {
		a.IP, _ = n.store.get(uid)
	}
	return a
}
