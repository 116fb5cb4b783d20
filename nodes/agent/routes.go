package agent

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/keeper"
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
		if t == nil || t.Generation == 0 {
			continue
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

// apply brings rules and names into force, side by side.
func (a *Agent) apply(ctx context.Context, t *proxy.Table) error {
	forwarders := a.o.Forwarders()
	a.forwarders.Store(&forwarders)
	named := make(chan error, 1)
	go func() {
		named <- a.o.Keeper.SetDNS(ctx, keeper.DNS{
			Table:      t,
			Listen:     []netip.AddrPort{netip.AddrPortFrom(a.o.Network.Gateway(), dnsPort)},
			Forwarders: forwarders,
		})
	}()
	err := a.o.Proxy.Set(ctx, a.proxyConfig(t))
	return errors.Join(err, <-named)
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
