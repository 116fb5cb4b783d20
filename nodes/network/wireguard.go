package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ErrNoWireGuard is returned when the kernel has no WireGuard.
var ErrNoWireGuard = errors.New("this kernel has no WireGuard: load its module wireguard, or choose another spec.network.overlay")

// privateKey reads the node's key, or makes it. It never leaves the node.
func privateKey(file string) (wgtypes.Key, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return makeKey(file)
	}
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("read the node's WireGuard key: %w", err)
	}
	key, err := wgtypes.ParseKey(strings.TrimSpace(string(text)))
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("the node's WireGuard key in %s is damaged: remove the file, and another one is made: %w", file, err)
	}
	return key, nil
}

func makeKey(file string) (wgtypes.Key, error) {
	key, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("make the node's WireGuard key: %w", err)
	}
	// Whole or not at all: what others know must be what is there after a crash.
	temporary, err := os.CreateTemp(filepath.Dir(file), ".wireguard-*") // mode 0600
	if err != nil {
		return wgtypes.Key{}, fmt.Errorf("store the node's WireGuard key: %w", err)
	}
	_, err = temporary.WriteString(key.String() + "\n")
	err = errors.Join(err, temporary.Sync(), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), file)
	}
	if err != nil {
		return wgtypes.Key{}, errors.Join(fmt.Errorf("store the node's WireGuard key: %w", err), os.Remove(temporary.Name()))
	}
	return key, nil
}

func publicKey(file string) (string, error) {
	key, err := privateKey(file)
	if err != nil {
		return "", err
	}
	return key.PublicKey().String(), nil
}

// wireguard leads through the WireGuard link, which knows by the range of a
// packet which peer it is for.
func (n *Network) wireguard(want *paths, missed *Unreachable) error {
	key, err := privateKey(n.o.KeyFile)
	if err != nil {
		return err
	}
	link, err := n.wireguardLink()
	if err != nil {
		return err
	}
	return n.configure(key, n.wireguardPeers(key.PublicKey(), link.Attrs().Index, want, missed))
}

// wireguardPeers are the peers by key. Of two that tell the same one only the first
// can be reached: the kernel would give the ranges of both to one of them.
func (n *Network) wireguardPeers(own wgtypes.Key, link int, want *paths, missed *Unreachable) map[wgtypes.Key]wgtypes.PeerConfig {
	wanted := map[wgtypes.Key]wgtypes.PeerConfig{}
	owners := map[wgtypes.Key]string{own: "this node"}
	for _, p := range n.peers {
		peer, err := wgtypes.ParseKey(p.WireGuard)
		switch {
		case err != nil:
			missed.add("node %s has told no WireGuard key that is its own: its agent does so once it knows of the overlay", p.Name)
			continue
		case owners[peer] != "":
			missed.add("node %s tells the WireGuard key of %s", p.Name, owners[peer])
			continue
		case !p.Addr.IsValid():
			missed.add("node %s has no address", p.Name)
			continue
		}
		owners[peer] = "node " + p.Name
		wanted[peer] = wgtypes.PeerConfig{
			PublicKey: peer, ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{*ipNet(p.PodCIDR.Masked())},
			Endpoint: net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, WireGuardPort)),
		}
		want.routes[p.PodCIDR.Masked()] = hop{link: link}
	}
	return wanted
}

func (n *Network) wireguardLink() (netlink.Link, error) {
	name := n.overlayLink(WireGuard)
	link, err := n.host.LinkByName(name)
	if missing(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, n.MTU()
		if err := n.host.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); errors.Is(err, unix.EOPNOTSUPP) {
			return nil, ErrNoWireGuard
		} else if err != nil {
			return nil, fmt.Errorf("make link %s: %w", name, err)
		}
		n.log.Info("made the link to other nodes", "link", name, "overlay", WireGuard, "port", WireGuardPort, "mtu", n.MTU())
		link, err = n.host.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return link, n.setOverlayUp(link)
}

// configure changes what differs: a peer that is told anew would have to shake
// hands again.
func (n *Network) configure(key wgtypes.Key, wanted map[wgtypes.Key]wgtypes.PeerConfig) error {
	name := n.overlayLink(WireGuard)
	control, err := wgctrl.New()
	if err != nil {
		return fmt.Errorf("open WireGuard: %w", err)
	}
	defer control.Close()
	device, err := control.Device(name)
	if err != nil {
		return fmt.Errorf("look at WireGuard link %s: %w", name, err)
	}
	config := wgtypes.Config{}
	if device.PrivateKey != key {
		config.PrivateKey = &key
	}
	if port := WireGuardPort; device.ListenPort != port {
		config.ListenPort = &port
	}
	for _, p := range device.Peers {
		want, wanting := wanted[p.PublicKey]
		switch {
		case !wanting:
			config.Peers = append(config.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
		case samePeer(p, want):
			delete(wanted, p.PublicKey)
		}
	}
	for _, p := range wanted {
		config.Peers = append(config.Peers, p)
	}
	if config.PrivateKey == nil && config.ListenPort == nil && len(config.Peers) == 0 {
		return nil
	}
	// Ranges that move from one peer to another must first leave the old one.
	slices.SortStableFunc(config.Peers, func(a, b wgtypes.PeerConfig) int { return rank(a) - rank(b) })
	return wrap(control.ConfigureDevice(name, config), "configure WireGuard link "+name)
}

func rank(p wgtypes.PeerConfig) int {
	if p.Remove {
		return 0
	}
	return 1
}

func samePeer(p wgtypes.Peer, want wgtypes.PeerConfig) bool {
	return p.Endpoint != nil && p.Endpoint.IP.Equal(want.Endpoint.IP) && p.Endpoint.Port == want.Endpoint.Port &&
		slices.EqualFunc(p.AllowedIPs, want.AllowedIPs, func(a, b net.IPNet) bool { return a.String() == b.String() })
}
