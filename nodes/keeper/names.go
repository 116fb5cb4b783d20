package keeper

import (
	"net/netip"
	"slices"

	"github.com/tallyman-dev/tallyman/proxy"
)

// DNS is all that the keeper serves names from, and answers health checks of
// load balancers; see proxy/dns and proxy/health.
type DNS struct {
	Table *proxy.Table
	// Node is the node's own name: its endpoints are what health check ports tell of.
	Node       string
	Listen     []netip.AddrPort
	Forwarders []netip.AddrPort
}

// served leaves out what neither names nor health checks are made of: the nodes,
// and most endpoints, which are most of a table and most of its changes.
func (d DNS) served() DNS {
	if d.Table == nil {
		return d
	}
	t := &proxy.Table{Generation: d.Table.Generation, Domain: d.Table.Domain, Services: make([]*proxy.Service, len(d.Table.Services))}
	for i, s := range d.Table.Services {
		t.Services[i] = servedService(s, d.Node)
	}
	d.Table = t
	return d
}

func servedService(s *proxy.Service, node string) *proxy.Service {
	if s.Headless {
		return s // a name for each endpoint
	}
	short := *s
	short.Ports = slices.Clone(s.Ports)
	for i, p := range short.Ports {
		short.Ports[i].Endpoints = nil
		if s.HealthCheckPort == 0 {
			continue
		}
		for _, e := range p.Endpoints {
			if e.Node == node {
				short.Ports[i].Endpoints = append(short.Ports[i].Endpoints, e)
			}
		}
	}
	return &short
}

// equal tells whether the same is served, whatever the table's generation is.
func (d DNS) equal(o DNS) bool {
	return sameNames(d.Table, o.Table) && d.Node == o.Node && slices.Equal(d.Listen, o.Listen) && slices.Equal(d.Forwarders, o.Forwarders)
}

func sameNames(t, o *proxy.Table) bool {
	if t == nil || o == nil {
		return t == o
	}
	return (t.Generation == 0) == (o.Generation == 0) && t.Domain == o.Domain && slices.EqualFunc(t.Services, o.Services, (*proxy.Service).Equal)
}
