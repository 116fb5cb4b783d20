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
)

const (
	// checkEvery is how often the rules are checked: a system call.
	checkEvery = 2 * time.Second
	// lookEvery is how often everything is looked at although nothing was
	// heard: events can be lost, forwarding can be switched off.
	lookEvery = 30 * time.Second
)

// Run watches the node's links until ctx ends: it repairs bridge and rules
// itself and tells pods that lost their link over Drift. It returns ctx's error.
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
}

func (n *Network) watch(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	failed := make(chan error, 2)
	report := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: report}); err != nil {
		return fmt.Errorf("subscribe to addresses: %w", err)
	}
	return (&watcher{n: n}).loop(ctx, links, addrs, failed)
}

func (w *watcher) loop(ctx context.Context, links <-chan netlink.LinkUpdate, addrs <-chan netlink.AddrUpdate, failed <-chan error) error {
	check, look := time.NewTicker(checkEvery), time.NewTicker(lookEvery)
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
		case err := <-failed:
			return err
		case u, ok := <-links:
			if !ok {
				return errors.New("subscription to links ended")
			}
			w.link(ctx, u)
		case u, ok := <-addrs:
			if !ok {
				return errors.New("subscription to addresses ended")
			}
			w.addr(ctx, u)
		case out <- first:
			w.drifted = w.drifted[1:]
		case <-check.C:
			w.checkRules(ctx)
		case <-look.C:
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
