package proxytest

import (
	"net/netip"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/proxy"
)

// remote is the pod of a node of another zone, which answers under the name "far".
func (f *fixture) remote() proxy.Endpoint {
	f.w.Outside.ServeAt(netip.AddrPortFrom(remotePod, 8080), "far")
	return proxy.Endpoint{Addr: remotePod, Port: 8080, Node: elsewhere, Pod: "far"}
}

// neighbour is the pod of another node of the own zone, which answers under the name "near".
func (f *fixture) neighbour() proxy.Endpoint {
	f.w.Outside.ServeAt(netip.AddrPortFrom(nearbyPod, 8080), "near")
	return proxy.Endpoint{Addr: nearbyPod, Port: 8080, Node: nearby, Pod: "near"}
}

// with adds endpoints to all ports of a service.
func with(s *proxy.Service, endpoints ...proxy.Endpoint) *proxy.Service {
	for i := range s.Ports {
		s.Ports[i].Endpoints = append(slices.Clone(s.Ports[i].Endpoints), endpoints...)
		slices.SortFunc(s.Ports[i].Endpoints, proxy.Endpoint.Compare)
	}
	return s
}

func (f *fixture) otherNodes() {
	f.set(with(web(f.pods[0]), f.remote()))
	for _, from := range []*Place{f.client, f.w.Node, f.w.Outside} {
		f.expectTCP(from, clusterIP+":80", "a", "far")
		f.expectTCP(from, nodeAddr.String()+":30080", "a", "far")
	}
	only := with(web(), f.remoteAgain())
	f.set(only)
	// A pod keeps its address on the way to another node; whoever comes from outside
	// must be answered through this one.
	f.expectPeer(f.client, clusterIP+":80", f.client.IP.String())
	f.expectPeer(f.w.Outside, nodeAddr.String()+":30080", nodeAddr.String())
	f.expectPeer(f.w.Outside, clusterIP+":80", nodeAddr.String())
}

// remoteAgain is remote, which serves already.
func (f *fixture) remoteAgain() proxy.Endpoint {
	return proxy.Endpoint{Addr: remotePod, Port: 8080, Node: elsewhere, Pod: "far"}
}

func (f *fixture) externalLocal() {
	far := f.remote()
	s := with(web(f.pods[0]), far)
	s.ExternalLocal = true
	s.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.7")}
	f.set(s)
	for _, to := range []string{nodeAddr.String() + ":30080", "203.0.113.7:80"} {
		f.expect(f.w.Outside, to, "a")
		f.expectPeer(f.w.Outside, to, outsideAddr.String())
		f.expectTCP(f.client, to, "a", "far")
	}
	f.expectTCP(f.client, clusterIP+":80", "a", "far")
	f.expectTCP(f.w.Node, "127.0.0.1:30080", "a", "far")

	only := with(web(), far)
	only.ExternalLocal, only.ExternalIPs = true, s.ExternalIPs
	f.set(only)
	for _, to := range []string{nodeAddr.String() + ":30080", "203.0.113.7:80"} {
		if _, _, err := f.w.Outside.Ask(to); !Silent(err) {
			f.Errorf("without an endpoint here, outside got %v from %s, want no answer", err, to)
		}
		f.expectTCP(f.client, to, "far")
	}
	// Without an endpoint anywhere, everybody is refused.
	none := web()
	none.ExternalLocal, none.ExternalIPs = true, s.ExternalIPs
	f.set(none)
	f.expectRefused(f.w.Outside, nodeAddr.String()+":30080")
	f.expectRefused(f.client, clusterIP+":80")
}

func (f *fixture) internalLocal() {
	far := f.remote()
	s := with(web(f.pods[0]), far)
	s.InternalLocal = true
	f.set(s)
	f.expect(f.client, clusterIP+":80", "a")
	f.expect(f.w.Node, clusterIP+":80", "a")
	f.expectTCP(f.w.Outside, nodeAddr.String()+":30080", "a", "far")
	only := with(web(), far)
	only.InternalLocal = true
	f.set(only)
	for _, from := range []*Place{f.client, f.w.Outside} {
		if _, _, err := from.Ask(clusterIP + ":80"); !Silent(err) {
			f.Errorf("without an endpoint here, %s got %v, want no answer", from.Name, err)
		}
	}
	if _, _, err := f.w.Node.Ask(clusterIP + ":80"); err == nil {
		f.Error("a cluster address with policy Local was answered from another node")
	}
	none := web()
	none.InternalLocal = true
	f.set(none)
	f.expectRefused(f.client, clusterIP+":80")
}

func (f *fixture) sameZone() {
	near, far := f.neighbour(), f.remote()
	s := with(web(f.pods[0]), near, far)
	s.Prefer = proxy.SameZone
	f.set(s)
	f.expectTCP(f.client, clusterIP+":80", "a", "near")
	f.expectTCP(f.w.Outside, nodeAddr.String()+":30080", "a", "near")
	s = with(web(), near, far)
	s.Prefer = proxy.SameZone
	f.set(s)
	f.expectTCP(f.client, clusterIP+":80", "near")
	s = with(web(), far)
	s.Prefer = proxy.SameZone
	f.set(s)
	f.expectTCP(f.client, clusterIP+":80", "far")
}

func (f *fixture) sameNode() {
	near, far := f.neighbour(), f.remote()
	s := with(web(f.pods...), near, far)
	s.Prefer = proxy.SameNode
	f.set(s)
	f.expectTCP(f.client, clusterIP+":80", "a", "b", "c")
	s = with(web(), near, far)
	s.Prefer = proxy.SameNode
	f.set(s)
	f.expectTCP(f.client, clusterIP+":80", "near")
	// Local wins over a preference: who comes from outside meets only this node's.
	s = with(web(f.pods[0]), near, far)
	s.Prefer, s.ExternalLocal = proxy.SameZone, true
	f.set(s)
	f.expectTCP(f.w.Outside, nodeAddr.String()+":30080", "a")
	f.expectTCP(f.client, nodeAddr.String()+":30080", "a", "near")
}

func (f *fixture) affinityOverNodes() {
	s := with(web(f.pods...), f.remote(), f.neighbour())
	s.Affinity = time.Hour
	f.set(s)
	for _, from := range []*Place{f.client, f.w.Node, f.w.Outside} {
		first, _, err := from.Ask(clusterIP + ":80")
		f.must(err)
		f.expectTCP(from, clusterIP+":80", first)
	}
}

// forwardDrop is a node whose policy is to forward nothing, as Docker sets it.
func (f *fixture) forwardDrop() {
	f.h.Forward(f, false)
	defer f.h.Forward(f, true)
	f.set(with(web(), f.remote()))
	f.expectTCP(f.w.Outside, nodeAddr.String()+":30080", "far")
	f.set(web(f.pods[0]))
	f.expect(f.w.Outside, nodeAddr.String()+":30080", "a")
}
