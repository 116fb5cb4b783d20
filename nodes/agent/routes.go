package agent

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/proxy"
)

func (a *Agent) wakeRoutes() {
	select {
	case a.reroute <- struct{}{}:
	default:
	}
}

const (
	dnsPort = 53
	// A table of a megabyte is written every two seconds at most, a small one
	// almost at once.
	storeRest        = 50 * time.Millisecond
	storeRestPerByte = 2 * time.Microsecond
)

// routes puts the newest table into force whenever it or a host port changes.
// Tables that were overtaken meanwhile are skipped.
func (a *Agent) routes(ctx context.Context) {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	stored := routeStore{agent: a, free: time.NewTimer(0)}
	defer stored.free.Stop()
	for {
		select {
		case <-ctx.Done():
			stored.write()
			return
		case <-retry.C:
		case <-stored.free.C:
			stored.resting = false
			stored.write()
			continue
		case <-a.reroute:
		}
		t := a.table.Load()
		if t == nil || t.Generation == 0 || !a.o.Network.PodCIDR().IsValid() {
			continue // without a range another agent is about to take over, with one
		}
		if err := a.apply(ctx, t); err != nil {
			if ctx.Err() == nil {
				a.log.Warn("apply routes", "generation", t.Generation, "err", err)
			}
			retry.Reset(time.Second)
			continue
		}
		if a.routed.Swap(t.Generation) != t.Generation {
			a.up.Send(nodes.Report{Node: a.o.Name, Routes: t.Generation})
			stored.newest = t
			if !stored.resting {
				stored.write()
			}
		}
	}
}

// rerouting reports whether the newest table is yet to be in force on this node.
func (a *Agent) rerouting() bool {
	t := a.table.Load()
	return t != nil && t.Generation > a.routed.Load()
}

// routeStore writes tables at once, but large ones not often. What it holds is
// all that a machine knows of routes after it lost its power.
type routeStore struct {
	agent *Agent
	// newest is what was not written yet; nil when all was.
	newest *proxy.Table
	// resting until free fires.
	resting bool
	free    *time.Timer
}

func (s *routeStore) write() {
	if s.newest == nil {
		return
	}
	size := s.agent.store.putJSON(routeBucket, "table", s.newest)
	s.newest, s.resting = nil, true
	s.free.Reset(storeRest + time.Duration(size)*storeRestPerByte)
}

// checkForwarders has the keeper told when the machine's resolvers changed.
func (a *Agent) checkForwarders() {
	if told := a.forwarders.Load(); told != nil && !slices.Equal(*told, a.o.Forwarders()) {
		a.wakeRoutes()
	}
}

// apply brings the ways to other nodes into force, then rules and names, side
// by side: no rule leads where there is no way yet.
func (a *Agent) apply(ctx context.Context, t *proxy.Table) error {
	unconnected := a.connect(ctx, t)
	forwarders := a.o.Forwarders()
	a.forwarders.Store(&forwarders)
	named := make(chan error, 1)
	go func() {
		named <- a.o.Keeper.SetDNS(ctx, keeper.DNS{
			Table:      t,
			Node:       a.o.Name,
			Listen:     []netip.AddrPort{netip.AddrPortFrom(a.o.Network.Gateway(), dnsPort)},
			Forwarders: forwarders,
		})
	}()
	err := a.o.Proxy.Set(ctx, a.proxyConfig(t))
	return errors.Join(unconnected, err, <-named)
}

// connect connects the pods of other nodes. That some of those cannot be
// reached is told, and nothing that this node could wait for.
func (a *Agent) connect(ctx context.Context, t *proxy.Table) error {
	err := a.o.Network.SetPeers(ctx, t.Nodes)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var some *network.Unreachable
	if errors.As(err, &some) {
		a.tellNetwork(err, false)
		return nil
	}
	a.tellNetwork(err, err != nil)
	return err
}

// tellNetwork tells, once, what keeps pods from those of other nodes. While
// cutOff, the node gets no new pods.
func (a *Agent) tellNetwork(trouble error, cutOff bool) {
	text := ""
	if trouble != nil {
		text = trouble.Error()
	}
	a.mu.Lock()
	same := a.networkTrouble == text
	a.networkTrouble, a.cutOff = text, cutOff
	a.mu.Unlock()
	if !same {
		a.sayNetwork(text, "pods of all other nodes are reached again")
	}
}

// tellSetup tells, once, why the pod network can't be set up, or that it is.
func (a *Agent) tellSetup(trouble error) {
	text := ""
	if trouble != nil {
		text = "the pod network can't be set up: " + trouble.Error()
	}
	a.mu.Lock()
	same := a.noNetwork == text
	a.noNetwork = text
	a.mu.Unlock()
	if same {
		return
	}
	if text != "" {
		a.log.Warn("new pods wait", "reason", text)
	}
	a.sayNetwork(text, "the pod network is set up")
}

// sayNetwork reports the node as it is now, with an event: trouble, or well when
// there is none.
func (a *Agent) sayNetwork(trouble, well string) {
	a.tell()
	now := a.ports.now()
	e := nodes.Event{
		Object: desired.Key{Kind: "Node", Name: a.o.Name}, Warning: true, Reason: "NetworkUnavailable", Message: trouble,
		Source: "agent " + a.o.Name, First: now, Last: now, Count: 1,
	}
	if trouble == "" {
		e.Warning, e.Reason, e.Message = false, "NetworkAvailable", well
	}
	a.up.Send(nodes.Report{Node: a.o.Name, Events: []nodes.Event{e}})
}

func (a *Agent) proxyConfig(t *proxy.Table) proxy.Config {
	cluster := a.cluster.Load()
	c := proxy.Config{Table: t, Local: proxy.Local{
		Node: a.o.Name, NodeAddrs: a.o.Addrs, PodCIDR: a.o.Network.PodCIDR(), ClusterCIDR: cluster.Pods,
		ServiceCIDR: cluster.Services, Bridge: a.o.Network.Bridge(),
	}}
	a.mu.Lock()
	for _, ports := range a.hostPorts {
		c.HostPorts = append(c.HostPorts, ports...)
	}
	a.mu.Unlock()
	slices.SortFunc(c.HostPorts, func(x, y proxy.HostPort) int {
		return cmp.Or(
			cmp.Compare(x.HostPort, y.HostPort), cmp.Compare(x.Protocol, y.Protocol),
			x.HostIP.Compare(y.HostIP), x.Endpoint.Compare(y.Endpoint),
		)
	})
	return c
}
