package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/beat"
)

const (
	// checkEvery is how often the rules are checked: a system call.
	checkEvery = 2 * time.Second
	// lookEvery is how often everything is looked at although nothing was
	// heard: events can be lost, forwarding can be switched off.
	lookEvery = 30 * time.Second
	// mendAfter gathers events about the ways to other nodes.
	mendAfter = 20 * time.Millisecond
	// mendAgain is when they are looked at again that could not be repaired.
	mendAgain = 5 * time.Second
)

// Run watches the node's links until ctx ends: it repairs bridge, rules and the
// ways to other nodes itself and tells pods that lost their link over Drift. It
// returns ctx's error.
func (n *Network) Run(ctx context.Context) error {
	for {
		err := n.watch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// Whatever broke the subscription may have hidden events.
		n.log.Warn("watching links again", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// watcher holds what one subscription has found and not yet handed on.
type watcher struct {
	n *Network
	// drifted are pods to be told of, each once; order of arrival.
	drifted []nodes.UID
	// mending fires when the ways to other nodes are to be looked at; nil when not.
	mending <-chan time.Time
}

// events are what a subscription tells of.
type events struct {
	links      chan netlink.LinkUpdate
	addrs      chan netlink.AddrUpdate
	routes     chan netlink.RouteUpdate
	neighbours chan netlink.NeighUpdate
	failed     chan error
}

func (n *Network) watch(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	e := events{
		links: make(chan netlink.LinkUpdate, 64), addrs: make(chan netlink.AddrUpdate, 64),
		routes: make(chan netlink.RouteUpdate, 64), neighbours: make(chan netlink.NeighUpdate, 64),
		failed: make(chan error, 4),
	}
	if err := e.subscribe(done); err != nil {
		return err
	}
	return (&watcher{n: n}).loop(ctx, e)
}

func (e events) subscribe(done <-chan struct{}) error {
	report := func(err error) {
		select {
		case e.failed <- err:
		default:
		}
	}
	if err := netlink.LinkSubscribeWithOptions(e.links, done, netlink.LinkSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(e.addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	if err := netlink.RouteSubscribeWithOptions(e.routes, done, netlink.RouteSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to routes: %w", err)
	}
	if err := netlink.NeighSubscribeWithOptions(e.neighbours, done, netlink.NeighSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to neighbours: %w", err)
	}
	return nil
}

func (w *watcher) loop(ctx context.Context, e events) error {
	check, look := time.NewTimer(beat.Wait(checkEvery)), time.NewTimer(beat.Wait(lookEvery))
	defer check.Stop()
	defer look.Stop()
	w.lookAround(ctx)
	for {
		var out chan<- nodes.UID
		var first nodes.UID
		if len(w.drifted) > 0 {
			out, first = w.n.drift, w.drifted[0]
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-e.failed:
			return err
		case u, ok := <-e.links:
			if !ok {
				return errors.New("subscription to links ended")
			}
			w.link(ctx, u)
		case u, ok := <-e.addrs:
			if !ok {
				return errors.New("subscription to addresses ended")
			}
			w.addr(ctx, u)
		case u, ok := <-e.routes:
			if !ok {
				return errors.New("subscription to routes ended")
			}
			if u.Type == unix.RTM_DELROUTE && u.Protocol == routeProtocol {
				w.mendSoon()
			}
		case u, ok := <-e.neighbours:
			if !ok {
				return errors.New("subscription to neighbours ended")
			}
			if u.Type == unix.RTM_DELNEIGH && u.LinkIndex == int(w.n.tables.Load()) {
				w.mendSoon()
			}
		case <-w.mending:
			w.mending = nil
			w.mend(ctx)
		case out <- first:
			w.drifted = w.drifted[1:]
		case <-check.C:
			check.Reset(beat.Wait(checkEvery))
			w.checkRules(ctx)
		case <-look.C:
			look.Reset(beat.Wait(lookEvery))
			w.lookAround(ctx)
		}
	}
}

// link looks at what an event is about. Events only say where to look: by the
// time one is read, the link may have been made anew. Links that Add has not
// finished, or that Remove has begun with, are not known and not judged.
func (w *watcher) link(ctx context.Context, u netlink.LinkUpdate) {
	name := u.Link.Attrs().Name
	if name == w.n.o.Bridge {
		if !w.n.bridgeIntact() {
			w.repair(ctx)
		}
		return
	}
	w.n.mu.Lock()
	uid, known := w.n.links[name]
	w.n.mu.Unlock()
	if known && !w.n.linkIntact(name) {
		w.add(uid)
	}
	if !isPodLink(name) {
		w.mendSoon() // the overlay's link, or one that leads to other nodes
	}
}

// mendSoon has the ways to other nodes looked at when the events that come
// together have all arrived.
func (w *watcher) mendSoon() {
	if w.mending == nil {
		w.mending = time.After(mendAfter)
	}
}

// mend looks whether pods still reach other nodes, at the right MTU.
func (w *watcher) mend(ctx context.Context) {
	if !w.n.o.PodCIDR.IsValid() {
		return
	}
	if w.n.fittingMTU() != w.n.MTU() {
		w.n.log.Info("packets to other nodes have another size now: changing the pods' links", "mtu", w.n.fittingMTU(), "before", w.n.MTU())
		if err := w.n.Setup(ctx); err != nil && ctx.Err() == nil {
			w.n.log.Error("cannot set up the pod network", "error", err)
		}
		return
	}
	w.n.setting.Lock()
	defer w.n.setting.Unlock()
	if err := w.n.connect(); err != nil {
		w.n.log.Error("cannot repair the ways to other nodes", "error", err, "retry_in", mendAgain)
		w.mending = time.After(mendAgain)
	}
}

func (w *watcher) addr(ctx context.Context, u netlink.AddrUpdate) {
	if !u.NewAddr && u.LinkAddress.IP.Equal(w.n.gateway.AsSlice()) && !w.n.bridgeIntact() {
		w.repair(ctx)
	}
}

// bridgeIntact tells whether the bridge is there, up and has its address.
func (n *Network) bridgeIntact() bool {
	bridge, err := n.host.LinkByName(n.o.Bridge)
	if err != nil || bridge.Attrs().Flags&net.FlagUp == 0 {
		return false
	}
	addrs, err := n.host.AddrList(bridge, unix.AF_INET)
	return err == nil && slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(n.gateway.AsSlice()) })
}

// linkIntact tells whether a pod's link is there, up and on a bridge.
func (n *Network) linkIntact(name string) bool {
	link, err := n.host.LinkByName(name)
	return err == nil && link.Attrs().Flags&net.FlagUp != 0 && link.Attrs().MasterIndex != 0
}

// repair sets everything up again and has every pod looked at.
func (w *watcher) repair(ctx context.Context) {
	w.n.log.Warn("the pods' bridge vanished, went down or lost its address: repairing", "bridge", w.n.o.Bridge)
	if err := w.n.Setup(ctx); err != nil && ctx.Err() == nil {
		w.n.log.Error("cannot repair the pod network", "error", err)
	}
	w.add("")
}

func (w *watcher) add(uid nodes.UID) {
	if slices.Contains(w.drifted, uid) {
		return
	}
	if uid != "" {
		w.n.log.Warn("a pod's link vanished, went down or left the bridge", "pod_uid", uid)
	}
	w.drifted = append(w.drifted, uid)
}

func (w *watcher) checkRules(ctx context.Context) {
	w.n.setting.Lock()
	defer w.n.setting.Unlock()
	if w.n.rules == nil {
		return
	}
	repaired, err := w.n.rules.Check(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.n.log.Error("cannot repair the pod network's rules", "error", err)
	case repaired:
		w.n.log.Warn("somebody else changed the pod network's rules: repaired")
	}
}

// lookAround finds what no event told.
func (w *watcher) lookAround(ctx context.Context) {
	if err := w.n.Setup(ctx); err != nil && ctx.Err() == nil {
		w.n.log.Error("cannot set up the pod network", "error", err)
	}
	w.n.mu.Lock()
	known := maps.Clone(w.n.links)
	w.n.mu.Unlock()
	for name, uid := range known {
		if !w.n.linkIntact(name) {
			w.add(uid)
		}
	}
}
