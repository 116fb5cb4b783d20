package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy/netfilter"
)

// The chains of this package; others begin otherwise.
const (
	chainPrefix  = "TALLY-NET-"
	forwardChain = chainPrefix + "FORWARD"
	outsideChain = chainPrefix + "OUTSIDE"
)

// Setup makes the bridge, forwarding and the rules for traffic to outside, or
// repairs what is missing of them, hangs the pods' links on the bridge and
// connects the peers that SetPeers told last: that those cannot be reached is
// for SetPeers to say, pods of this node work all the same. Without a range
// there is nothing to set up.
func (n *Network) Setup(ctx context.Context) error {
	n.setting.Lock()
	defer n.setting.Unlock()
	if err := shareMounts(n.dir); err != nil {
		return err
	}
	if !n.o.PodCIDR.IsValid() {
		n.ready.Store(true)
		return nil
	}
	n.mtu.Store(int32(n.fittingMTU()))
	if err := n.setupBridge(); err != nil {
		return err
	}
	if err := n.recoverAddresses(); err != nil {
		return err
	}
	if err := n.reattach(); err != nil {
		return err
	}
	if err := n.openRules(ctx); err != nil {
		return err
	}
	want, jumps := n.wantedRules()
	if err := n.rules.Apply(ctx, want, jumps); err != nil {
		return fmt.Errorf("apply the pod network's rules: %w", err)
	}
	n.ready.Store(true)
	if err := n.connect(); err != nil {
		n.log.Error("cannot set up the ways to other nodes", "error", err)
	}
	return nil
}

// wantedRules let pods' traffic through and give what leaves the cluster the
// node's address.
func (n *Network) wantedRules() (netfilter.Ruleset, []netfilter.Jump) {
	want := netfilter.Ruleset{}
	pods, cluster := n.o.PodCIDR.String(), n.o.ClusterCIDR.Masked().String()
	want.Add("filter", forwardChain,
		"-i "+n.o.Bridge+" -j ACCEPT",
		"-o "+n.o.Bridge+" -j ACCEPT")
	want.Add("nat", outsideChain,
		"-d "+cluster+" -j RETURN",
		"-d 224.0.0.0/4 -j RETURN",
		"-j MASQUERADE --random-fully")
	return want, []netfilter.Jump{
		{Table: "filter", Chain: "FORWARD", Rule: "-j " + forwardChain},
		{Table: "nat", Chain: "POSTROUTING", Rule: "-s " + pods + " ! -o " + n.o.Bridge + " -j " + outsideChain},
	}
}

func (n *Network) setupBridge() error {
	bridge, err := n.host.LinkByName(n.o.Bridge)
	if missing(err) {
		bridge, err = n.makeBridge()
	}
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.o.Bridge, err)
	}
	if bridge.Type() != "bridge" {
		return fmt.Errorf("link %s exists and is a %s, not a bridge: choose another name", n.o.Bridge, bridge.Type())
	}
	if err := onlyAddress(n.host, bridge, netip.PrefixFrom(n.gateway, n.o.PodCIDR.Bits())); err != nil {
		return err
	}
	if err := n.fitMTU(n.host, bridge); err != nil {
		return err
	}
	if err := n.host.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("set bridge %s up: %w", n.o.Bridge, err)
	}
	if n.o.ServiceCIDR.IsValid() {
		route := &netlink.Route{
			LinkIndex: bridge.Attrs().Index, Dst: ipNet(n.o.ServiceCIDR.Masked()),
			Src: n.gateway.AsSlice(), Scope: netlink.SCOPE_LINK,
		}
		if err := n.host.RouteReplace(route); err != nil {
			return fmt.Errorf("route services over bridge %s: %w", n.o.Bridge, err)
		}
	}
	return n.setForwarding()
}

func (n *Network) makeBridge() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = n.o.Bridge, n.MTU(), hardwareAddr(n.gateway)
	err := n.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make bridge: %w", err)
	}
	n.log.Info("made the pods' bridge", "bridge", n.o.Bridge, "gateway", n.gateway, "mtu", n.MTU())
	return n.host.LinkByName(n.o.Bridge)
}

// setForwarding lets the node route between its links.
func (n *Network) setForwarding() error {
	for file, value := range map[string]string{
		"/proc/sys/net/ipv4/ip_forward": "1",
		// Pods reach each other over the gateway on purpose.
		"/proc/sys/net/ipv4/conf/" + n.o.Bridge + "/send_redirects": "0",
	} {
		now, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(now)) == value {
			continue
		}
		if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s to %s: %w", file, value, err)
		}
	}
	return nil
}

// reattach finds the links of the pods that have an address: after a restart
// of the agent, and after the bridge was gone.
func (n *Network) reattach() error {
	for _, uid := range n.store.all() {
		name := linkName(uid)
		link, err := n.host.LinkByName(name)
		if missing(err) {
			continue // Add makes it
		}
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		if err := n.attach(link); err != nil {
			return err
		}
		if err := n.fitPod(uid, link); err != nil {
			return err
		}
		n.mu.Lock()
		n.links[name] = uid
		n.mu.Unlock()
	}
	return nil
}

// Close removes every pod's namespaces, links and addresses, the bridge and the
// rules. The addresses of what could not be removed stay recorded.
func (n *Network) Close(ctx context.Context) error {
	n.setting.Lock()
	defer n.setting.Unlock()
	uids, err := pinned(n.dir)
	errs := []error{err}
	n.mu.Lock()
	clear(n.links)
	n.mu.Unlock()
	var gone []nodes.UID
	for _, uid := range append(uids, n.store.all()...) {
		err := errors.Join(removeLink(n.host, linkName(uid)), n.pins(uid).remove())
		if err == nil {
			gone = append(gone, uid)
		}
		errs = append(errs, err)
	}
	errs = append(errs, n.store.release(gone...))
	errs = append(errs, n.disconnect(), removeLink(n.host, n.o.Bridge), n.closeRules(ctx), n.closeDir())
	return wrap(errors.Join(errs...), "close the pod network")
}

func (n *Network) openRules(ctx context.Context) error {
	if n.rules != nil {
		return nil
	}
	tables, err := netfilter.Open(ctx, netfilter.Options{Log: n.log})
	if err != nil {
		return err
	}
	n.rules = tables.Realm(func(chain string) bool { return strings.HasPrefix(chain, chainPrefix) })
	return nil
}

func (n *Network) closeRules(ctx context.Context) error {
	if err := n.openRules(ctx); err != nil {
		return err
	}
	return n.rules.Clear(ctx)
}

func (n *Network) closeDir() error {
	err := unix.Unmount(n.dir, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", n.dir, err)
	}
	return os.RemoveAll(n.dir)
}
