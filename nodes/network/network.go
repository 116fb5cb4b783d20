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
// It does not route services (proxy does), run containers, or connect nodes.
// It handles IPv4; namespaces, store and interface name no family.
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
	// PodCIDR is the node's own range; its first address is the gateway.
	PodCIDR netip.Prefix
	// ClusterCIDR holds the pods of all nodes: traffic to it keeps its source.
	ClusterCIDR netip.Prefix
	// ServiceCIDR is routed over the bridge, so that services are reachable
	// from the node without a default route. May be invalid: no such route.
	ServiceCIDR netip.Prefix
	// Bridge is an interface name; empty means DefaultBridge.
	Bridge string
	// RunDir holds the pinned namespaces; it must not survive a reboot.
	RunDir string
	// MTU of the pods; 0 takes that of the default route's link, else 1500.
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
	o       Options
	log     *slog.Logger
	mtu     int
	gateway netip.Addr
	dir     string
	host    *netlink.Handle
	store   *addresses
	drift   chan nodes.UID

	setting sync.Mutex // serialises Setup and Close and guards rules
	rules   *netfilter.Realm

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
	o.PodCIDR = o.PodCIDR.Masked()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	n := &Network{
		o: o, log: o.Log, mtu: o.MTU, host: host,
		gateway: o.PodCIDR.Addr().Next(),
		dir:     filepath.Join(o.RunDir, "ns"),
		links:   map[string]nodes.UID{},
		drift:   make(chan nodes.UID),
	}
	if n.mtu == 0 {
		n.mtu = defaultMTU(host)
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
	case !o.PodCIDR.IsValid() || !o.PodCIDR.Addr().Is4() || o.PodCIDR.Bits() > 30:
		return fmt.Errorf("network: pod range %s is not an IPv4 range of at least four addresses", o.PodCIDR)
	case !o.ClusterCIDR.IsValid() || !o.ClusterCIDR.Overlaps(o.PodCIDR):
		return fmt.Errorf("network: cluster range %s does not hold the pod range %s", o.ClusterCIDR, o.PodCIDR)
	case o.ServiceCIDR.IsValid() && o.ServiceCIDR.Overlaps(o.ClusterCIDR):
		return fmt.Errorf("network: service range %s overlaps the cluster range %s", o.ServiceCIDR, o.ClusterCIDR)
	case len(o.Bridge) > 15:
		return fmt.Errorf("network: bridge name %q is longer than 15 characters", o.Bridge)
	}
	return nil
}

// Gateway is the bridge's address: the pods' next hop.
func (n *Network) Gateway() netip.Addr { return n.gateway }

// PodCIDR is the range of this node's pods.
func (n *Network) PodCIDR() netip.Prefix { return n.o.PodCIDR }

// MTU of the pods' links.
func (n *Network) MTU() int { return n.mtu }

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
