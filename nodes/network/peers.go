package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/proxy"
)

// The overlays: how packets travel to the pods of other nodes.
const (
	// VXLAN wraps them in UDP to VXLANPort: any network that carries UDP will do.
	VXLAN = "vxlan"
	// Routes sends them as they are: the nodes must share a link.
	Routes = "routes"
	// WireGuard encrypts them and wraps them in UDP to WireGuardPort. The kernel
	// must have it.
	WireGuard = "wireguard"
)

// UDP ports that nodes must reach each other by.
const (
	VXLANPort     = 7410
	WireGuardPort = 7411
)

// routeProtocol marks the routes to peers as ours, for whoever reads them and
// for the next process ("proto 74").
const routeProtocol = 74

// Unreachable tells of peers that cannot be connected, though this node itself
// is as it should be. All others are connected.
type Unreachable struct {
	// Reasons is a sentence for each of them, in the order of the peers.
	Reasons []string
}

func (u *Unreachable) Error() string { return strings.Join(u.Reasons, "; ") }

func (u *Unreachable) add(format string, args ...any) {
	u.Reasons = append(u.Reasons, fmt.Sprintf(format, args...))
}

// peering is the state of SetPeers, guarded by Network.setting.
type peering struct {
	// told is set once peers are known: until then nothing of what an earlier
	// process left is touched.
	told  bool
	peers []proxy.Node
	// connected tells that peers are in force, as far as anybody knows, and
	// unreachable which of them are not.
	connected   bool
	unreachable *Unreachable
}

// SetPeers makes the pods of these nodes reachable and those of no others. It
// may be called any time, twice; it changes only what differs, adopts what an
// earlier process left and sweeps what belongs to another overlay. The node
// itself may be among them. When it returns nil, all are connected; an
// *Unreachable tells that all but some are. Run repairs what others change.
func (n *Network) SetPeers(ctx context.Context, peers []proxy.Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n.setting.Lock()
	defer n.setting.Unlock()
	others := slices.DeleteFunc(slices.Clone(peers), func(p proxy.Node) bool {
		return !p.PodCIDR.IsValid() || p.PodCIDR.Masked() == n.o.PodCIDR
	})
	if !n.o.PodCIDR.IsValid() {
		if len(others) > 0 {
			return ErrNoRange
		}
		return nil
	}
	if !n.connected || !slices.Equal(others, n.peers) {
		n.told, n.peers = true, others
		if err := n.connect(); err != nil {
			return err
		}
	}
	if n.unreachable != nil {
		return n.unreachable
	}
	return nil
}

// connect makes the kernel agree with the peers. The caller holds setting.
func (n *Network) connect() error {
	if !n.told {
		return nil
	}
	n.connected = false
	if err := n.sweepOverlays(); err != nil {
		return err
	}
	want, missed := newPaths(), &Unreachable{}
	var err error
	switch {
	case len(n.peers) == 0:
	case n.o.Overlay == Routes:
		err = n.plainRoutes(want, missed)
	case n.o.Overlay == WireGuard:
		err = n.wireguard(want, missed)
	default:
		err = n.vxlan(want, missed)
	}
	if err == nil {
		err = n.lay(want)
	}
	if err != nil {
		return fmt.Errorf("connect the pods of other nodes by overlay %s: %w", n.o.Overlay, err)
	}
	n.connected, n.unreachable = true, nil
	if len(missed.Reasons) > 0 {
		n.unreachable = missed
	}
	return nil
}

// overlayLink is the name of an overlay's link; empty for Routes, which has none.
func (n *Network) overlayLink(overlay string) string {
	switch overlay {
	case VXLAN:
		return n.o.Bridge + "-vx"
	case WireGuard:
		return n.o.Bridge + "-wg"
	}
	return ""
}

// sweepOverlays removes the links that the peers do not need.
func (n *Network) sweepOverlays() error {
	var errs []error
	for _, overlay := range []string{VXLAN, WireGuard} {
		if overlay != n.o.Overlay || len(n.peers) == 0 {
			errs = append(errs, removeLink(n.host, n.overlayLink(overlay)))
		}
	}
	return errors.Join(errs...)
}

// disconnect removes all that connects peers.
func (n *Network) disconnect() error {
	n.peering = peering{}
	err := errors.Join(n.sweepOverlays(), n.lay(newPaths()))
	return errors.Join(err, removeLink(n.host, n.overlayLink(n.o.Overlay)))
}

// setOverlayUp gives an overlay's link MTU and address and sets it up. It has
// the gateway's address, so that what the node itself sends comes from its own range.
func (n *Network) setOverlayUp(link netlink.Link) error {
	name := link.Attrs().Name
	if err := n.fitMTU(n.host, link); err != nil {
		return err
	}
	quiet(name)
	if err := onlyAddress(n.host, link, netip.PrefixFrom(n.gateway, n.gateway.BitLen())); err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return wrap(n.host.LinkSetUp(link), "set link "+name+" up")
}

// plainRoutes leads to the peers' own addresses.
func (n *Network) plainRoutes(want *paths, missed *Unreachable) error {
	for _, p := range n.peers {
		routes, err := n.host.RouteGet(p.Addr.AsSlice())
		if err != nil || len(routes) == 0 || len(routes[0].Gw) > 0 || routes[0].Type != unix.RTN_UNICAST {
			missed.add("node %s at %s is not on a link of this node, as overlay routes needs it: choose another spec.network.overlay, or join them to one link",
				p.Name, p.Addr)
			continue
		}
		want.routes[p.PodCIDR.Masked()] = hop{link: routes[0].LinkIndex, via: p.Addr}
	}
	return nil
}
