// Package proxytest is what every proxy.Backend must do, checked by packets: a
// node with pods and a machine outside are built from network namespaces, real
// servers answer in them, and real clients ask.
//
// The suite needs root and the kernel parts that the backend uses. It knows
// nothing of how a backend does its work: a Harness makes one, damages what it
// made and describes what is left. The package is for tests alone.
package proxytest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/proxy"
)

// Harness is one backend under test.
type Harness struct {
	// New makes a backend, as a new process would.
	New func(t testing.TB) proxy.Backend
	// Flush destroys what backends made, as a careless program would.
	Flush func(t testing.TB)
	// Forward has the node forward by default, or only what somebody accepts, as
	// another program of the backend's kind would.
	Forward func(t testing.TB, all bool)
	// State describes all that backends leave in the kernel.
	State func(t testing.TB) string
}

// Run runs the suite.
func (h Harness) Run(t *testing.T) {
	for name, test := range map[string]func(*fixture){
		"spreads over endpoints":          (*fixture).balancing,
		"refuses without endpoints":       (*fixture).noEndpoints,
		"node ports answer everywhere":    (*fixture).nodePorts,
		"external addresses route":        (*fixture).externalIPs,
		"a pod reaches itself":            (*fixture).hairpin,
		"clients stay with affinity":      (*fixture).affinity,
		"external policy Local":           (*fixture).externalLocal,
		"internal policy Local":           (*fixture).internalLocal,
		"endpoints of other nodes":        (*fixture).otherNodes,
		"prefers its zone":                (*fixture).sameZone,
		"prefers its node":                (*fixture).sameNode,
		"affinity over nodes":             (*fixture).affinityOverNodes,
		"forwards though others drop":     (*fixture).forwardDrop,
		"host ports":                      (*fixture).hostPorts,
		"udp follows its endpoints":       (*fixture).udpFollows,
		"udp finds the first endpoint":    (*fixture).udpFirstEndpoint,
		"connections outlive their route": (*fixture).keptConnections,
		"attempts do not outlive theirs":  (*fixture).unanswered,
		"changes fail no new connection":  (*fixture).changesUnderLoad,
		"flushed rules come back":         (*fixture).flushed,
		"the next process adopts":         (*fixture).adoption,
		"generation 0 changes nothing":    (*fixture).generationZero,
		"close leaves nothing":            (*fixture).closeLeavesNothing,
		"in force when Set returns":       (*fixture).inForceAtOnce,
	} {
		t.Run(name, func(t *testing.T) { test(h.fixture(t)) })
	}
}

// fixture is a world, a backend and three pods that serve.
type fixture struct {
	*testing.T
	h          Harness
	w          *World
	b          proxy.Backend
	pods       []*Place
	client     *Place
	generation uint64
}

// clusterIP is the address of the service that most tests use.
const clusterIP = "10.96.0.10"

func (h Harness) fixture(t *testing.T) *fixture {
	w := NewWorld(t)
	f := &fixture{T: t, h: h, w: w, b: h.New(t), client: w.Pod("client")}
	for _, name := range []string{"a", "b", "c"} {
		pod := w.Pod(name)
		pod.Serve(8080)
		f.pods = append(f.pods, pod)
	}
	t.Cleanup(func() {
		if err := f.b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) set(services ...*proxy.Service) { f.setWith(nil, services...) }

func (f *fixture) setWith(ports []proxy.HostPort, services ...*proxy.Service) {
	f.Helper()
	f.must(f.b.Set(f.Context(), f.config(ports, services...)))
}

func (f *fixture) config(ports []proxy.HostPort, services ...*proxy.Service) proxy.Config {
	f.generation++
	slices.SortFunc(services, (*proxy.Service).Compare)
	return proxy.Config{
		Table: &proxy.Table{Generation: f.generation, Domain: "cluster.local", Services: services, Nodes: f.w.nodes()},
		Local: f.w.Local(), HostPorts: ports,
	}
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// web is a service on TCP and UDP port 80, node port 30080, with these pods behind it.
func web(pods ...*Place) *proxy.Service {
	var endpoints []proxy.Endpoint
	for _, p := range pods {
		endpoints = append(endpoints, proxy.Endpoint{Addr: p.IP, Port: 8080, Node: nodeName, Pod: p.Name})
	}
	slices.SortFunc(endpoints, proxy.Endpoint.Compare)
	return &proxy.Service{
		Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr(clusterIP)},
		Ports: []proxy.Port{
			{Name: "http", Protocol: proxy.TCP, Port: 80, NodePort: 30080, Endpoints: endpoints},
			{Name: "dns", Protocol: proxy.UDP, Port: 80, NodePort: 30080, Endpoints: endpoints},
		},
	}
}

// expect asks until every one of the named servers has answered, and no other.
func (f *fixture) expect(from *Place, to string, servers ...string) {
	f.Helper()
	for proto, ask := range map[string]func(string) (string, string, error){"tcp": from.Ask, "udp": from.AskUDP} {
		f.expectBy(proto, ask, from, to, servers...)
	}
}

func (f *fixture) expectTCP(from *Place, to string, servers ...string) {
	f.Helper()
	f.expectBy("tcp", from.Ask, from, to, servers...)
}

func (f *fixture) expectBy(proto string, ask func(string) (string, string, error), from *Place, to string, servers ...string) {
	f.Helper()
	seen := map[string]int{}
	for range 60 {
		server, _, err := ask(to)
		if err != nil {
			f.Fatalf("%s from %s to %s: %v", proto, from.Name, to, err)
		}
		seen[server]++
	}
	// Of 60 even chances among three, fewer than three is one in a hundred million.
	for _, s := range servers {
		if seen[s] < 3 {
			f.Errorf("%s from %s to %s: %s answered %d times of 60", proto, from.Name, to, s, seen[s])
		}
		delete(seen, s)
	}
	if len(seen) > 0 {
		f.Errorf("%s from %s to %s: answers by %v, want only %v", proto, from.Name, to, seen, servers)
	}
}

func (f *fixture) expectRefused(from *Place, to string) {
	f.Helper()
	if _, _, err := from.Ask(to); !Refused(err) {
		f.Errorf("tcp from %s to %s gave %v, want a refusal", from.Name, to, err)
	}
	if _, _, err := from.AskUDP(to); !Refused(err) {
		f.Errorf("udp from %s to %s gave %v, want a refusal", from.Name, to, err)
	}
}

func (f *fixture) expectPeer(from *Place, to, want string) {
	f.Helper()
	_, peer, err := from.Ask(to)
	if err != nil || peer != want {
		f.Errorf("from %s to %s the server saw %q (%v), want %q", from.Name, to, peer, err, want)
	}
}

func (f *fixture) balancing() {
	f.set(web(f.pods...))
	for _, from := range []*Place{f.client, f.w.Node, f.w.Outside} {
		f.expect(from, clusterIP+":80", "a", "b", "c")
	}
	f.expectPeer(f.client, clusterIP+":80", f.client.IP.String())
	f.expectPeer(f.w.Outside, clusterIP+":80", gateway.String())
	f.set(web(f.pods[1]))
	f.expect(f.client, clusterIP+":80", "b")
	f.set()
	f.expectRefused(f.client, clusterIP+":80")
}

func (f *fixture) noEndpoints() {
	f.set(web())
	f.expectRefused(f.client, clusterIP+":80")
	f.expectRefused(f.w.Node, clusterIP+":80")
	f.expectRefused(f.w.Outside, nodeAddr.String()+":30080")
	f.expectRefused(f.w.Node, "127.0.0.1:30080")
	// Not a service at all, but an address only services have.
	f.expectRefused(f.client, "10.96.99.99:80")
	f.set(web(f.pods...))
	f.expect(f.client, clusterIP+":80", "a", "b", "c")
	f.expect(f.w.Outside, nodeAddr.String()+":30080", "a", "b", "c")
}

func (f *fixture) nodePorts() {
	f.set(web(f.pods...))
	f.expect(f.w.Outside, nodeAddr.String()+":30080", "a", "b", "c")
	f.expect(f.client, nodeAddr.String()+":30080", "a", "b", "c")
	f.expect(f.w.Node, nodeAddr.String()+":30080", "a", "b", "c")
	f.expect(f.w.Node, "127.0.0.1:30080", "a", "b", "c")
	f.expectPeer(f.w.Outside, nodeAddr.String()+":30080", gateway.String())
	f.expectRefused(f.w.Outside, nodeAddr.String()+":30081")
}

func (f *fixture) externalIPs() {
	s := web(f.pods...)
	s.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.7")}
	f.set(s)
	for _, from := range []*Place{f.w.Outside, f.client, f.w.Node} {
		f.expect(from, "203.0.113.7:80", "a", "b", "c")
	}
	none := web()
	none.ExternalIPs = s.ExternalIPs
	f.set(none)
	f.expectRefused(f.w.Outside, "203.0.113.7:80")
	f.expectRefused(f.w.Node, "203.0.113.7:80")
}

func (f *fixture) hairpin() {
	f.set(web(f.pods[0]))
	f.expect(f.pods[0], clusterIP+":80", "a")
	f.expect(f.pods[0], nodeAddr.String()+":30080", "a")
	// Only who reaches itself is hidden behind the gateway.
	f.expectPeer(f.pods[0], clusterIP+":80", gateway.String())
	f.expectPeer(f.pods[1], clusterIP+":80", f.pods[1].IP.String())
}

func (f *fixture) affinity() {
	s := web(f.pods...)
	s.Affinity = time.Hour
	f.set(s)
	first := map[string]string{}
	for range 20 {
		for _, from := range []*Place{f.client, f.w.Node, f.w.Outside} {
			server, _, err := from.Ask(clusterIP + ":80")
			f.must(err)
			if first[from.Name] == "" {
				first[from.Name] = server
			}
			if server != first[from.Name] {
				f.Fatalf("%s went to %s, then to %s", from.Name, first[from.Name], server)
			}
		}
	}
	// The endpoint goes: the client gets another, and the others keep theirs.
	i := slices.IndexFunc(f.pods, func(p *Place) bool { return p.Name == first["client"] })
	rest := web(slices.Delete(slices.Clone(f.pods), i, i+1)...)
	rest.Affinity = time.Hour
	f.set(rest)
	for _, from := range []*Place{f.client, f.w.Node} {
		server, _, err := from.Ask(clusterIP + ":80")
		f.must(err)
		if server == f.pods[i].Name {
			f.Errorf("%s still went to %s, which is no endpoint any more", from.Name, server)
		}
		if first[from.Name] != f.pods[i].Name && server != first[from.Name] {
			f.Errorf("%s lost its endpoint %s to %s when another endpoint went", from.Name, first[from.Name], server)
		}
	}
}

func (f *fixture) hostPorts() {
	at := netip.AddrPortFrom(f.pods[0].IP, 8080)
	other := netip.AddrPortFrom(f.pods[1].IP, 8080)
	f.setWith([]proxy.HostPort{
		{Protocol: proxy.TCP, HostPort: 8088, Endpoint: at},
		{Protocol: proxy.UDP, HostPort: 8088, Endpoint: at},
		{Protocol: proxy.TCP, HostPort: 8089, HostIP: netip.MustParseAddr("127.0.0.1"), Endpoint: other},
		{Protocol: proxy.UDP, HostPort: 8089, HostIP: netip.MustParseAddr("127.0.0.1"), Endpoint: other},
	})
	for _, from := range []*Place{f.w.Outside, f.client, f.w.Node, f.pods[0]} {
		f.expect(from, nodeAddr.String()+":8088", "a")
	}
	f.expect(f.w.Node, "127.0.0.1:8088", "a")
	f.expect(f.w.Node, "127.0.0.1:8089", "b")
	f.expectPeer(f.w.Outside, nodeAddr.String()+":8088", outsideAddr.String())
	f.expectRefused(f.w.Outside, nodeAddr.String()+":8089")
	f.set()
	f.expectRefused(f.w.Outside, nodeAddr.String()+":8088")
}

func (f *fixture) udpFollows() {
	f.set(web(f.pods[0]))
	for _, to := range []string{clusterIP + ":80", nodeAddr.String() + ":30080"} {
		f.set(web(f.pods[0]))
		c, err := f.client.DialUDP(to)
		f.must(err)
		defer c.Close()
		f.saysFrom(c, "a")
		f.set(web(f.pods[0], f.pods[1]))
		f.saysFrom(c, "a") // a known flow stays while its endpoint does
		f.set(web(f.pods[1]))
		f.saysFrom(c, "b")
	}
}

func (f *fixture) saysFrom(c *Conn, want string) {
	f.Helper()
	if line, err := c.Say("?"); err != nil || line[:1] != want {
		f.Errorf("udp flow to %s was answered %q (%v), want %s", c.RemoteAddr(), line, err, want)
	}
}

func (f *fixture) udpFirstEndpoint() {
	f.set()
	// A flow from before there was a service, that the kernel remembers untranslated.
	c, err := f.w.Outside.DialUDP(nodeAddr.String() + ":30080")
	f.must(err)
	defer c.Close()
	if _, err := c.Say("?"); err == nil {
		f.Fatal("something answered before there was a service")
	}
	f.set(web())
	if _, err := c.Say("?"); err == nil {
		f.Fatal("something answered before there was an endpoint")
	}
	f.set(web(f.pods[0]))
	f.saysFrom(c, "a")
}

func (f *fixture) keptConnections() {
	f.set(web(f.pods[0]))
	var conns []*Conn
	for from, to := range map[*Place]string{
		f.client: clusterIP + ":80", f.w.Node: "127.0.0.1:30080", f.w.Outside: nodeAddr.String() + ":30080",
	} {
		c, err := from.Dial(to)
		f.must(err)
		defer c.Close()
		conns = append(conns, c)
	}
	for _, services := range [][]*proxy.Service{{web(f.pods[1])}, {web()}, {}} {
		f.set(services...)
		for _, c := range conns {
			if line, err := c.Say("still there?"); err != nil || line != "still there?" {
				f.Fatalf("connection to %s broke when its route changed: %q, %v", c.RemoteAddr(), line, err)
			}
		}
	}
}

// unanswered looks that who tries again from the same port does not end up where
// nobody answers any more.
func (f *fixture) unanswered() {
	go func() { _ = f.b.Run(f.Context()) }()
	dead := web()
	for i := range dead.Ports {
		dead.Ports[i].Endpoints = []proxy.Endpoint{{Addr: deadPod, Port: 8080, Node: elsewhere, Pod: "dead"}}
	}
	f.set(dead)
	const port = 61234
	if _, err := f.client.DialFrom(port, clusterIP+":80"); !Silent(err) {
		f.Fatalf("a pod that is not there gave %v", err)
	}
	f.set(web(f.pods[0]))
	Eventually(f, 30*time.Second, func() error {
		c, err := f.client.DialFrom(port, clusterIP+":80")
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// during asks from everywhere, over and over, while f runs, and wants no failure.
func (f *fixture) during(change func()) {
	f.Helper()
	ctx, cancel := context.WithCancel(f.Context())
	type asker struct {
		from *Place
		to   string
	}
	askers := []asker{
		{f.client, clusterIP + ":80"},
		{f.w.Outside, nodeAddr.String() + ":30080"},
		{f.w.Node, "127.0.0.1:30080"},
	}
	failures := make(chan error, len(askers))
	for _, a := range askers {
		go func() {
			for n := 0; ctx.Err() == nil; n++ {
				if _, _, err := a.from.Ask(a.to); err != nil {
					failures <- fmt.Errorf("request %d from %s to %s: %w", n, a.from.Name, a.to, err)
					return
				}
			}
			failures <- nil
		}()
	}
	change()
	cancel()
	for range askers {
		if err := <-failures; err != nil {
			f.Error(err)
		}
	}
}

func (f *fixture) changesUnderLoad() {
	f.set(web(f.pods[0]))
	f.during(func() {
		for i := range 40 {
			f.set(web(f.pods[i%3], f.pods[(i+1)%3]))
			f.set(web(f.pods[(i+1)%3]))
		}
	})
}

func (f *fixture) flushed() {
	f.set(web(f.pods...))
	whole := f.h.State(f)
	f.h.Flush(f)
	if _, _, err := f.client.Ask(clusterIP + ":80"); err == nil {
		f.Fatal("the harness flushed nothing")
	}
	ctx, cancel := context.WithCancel(f.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.b.Run(ctx) }()
	for range 2 {
		Eventually(f, 10*time.Second, func() error {
			if diff := cmp.Diff(whole, f.h.State(f)); diff != "" {
				return errors.New(diff)
			}
			return nil
		})
		f.expect(f.client, clusterIP+":80", "a", "b", "c")
		f.expect(f.w.Outside, nodeAddr.String()+":30080", "a", "b", "c")
		f.h.Flush(f)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		f.Errorf("Run ended with %v, want the context's error", err)
	}
	// And without Run, the next Set notices.
	f.h.Flush(f)
	f.set(web(f.pods...))
	f.expect(f.client, clusterIP+":80", "a", "b", "c")
}

func (f *fixture) adoption() {
	old := web(f.pods...)
	old.Name, old.ClusterIPs = "old", []netip.Addr{netip.MustParseAddr("10.96.200.1")}
	old.Ports = old.Ports[:1]
	old.Ports[0].NodePort = 30999
	f.set(web(f.pods...), old, f.everything())
	f.during(func() {
		f.b = f.h.New(f)
		f.set(web(f.pods...), f.everything())
		f.b = f.h.New(f)
		f.set(web(f.pods...), f.everything())
	})
	f.expectRefused(f.client, "10.96.200.1:80")
	f.expectRefused(f.w.Outside, nodeAddr.String()+":30999")
	before := f.h.State(f)
	f.b = f.h.New(f)
	f.set(web(f.pods...), f.everything())
	if diff := cmp.Diff(before, f.h.State(f)); diff != "" {
		f.Errorf("taking over the same routes changed the kernel (-before +after):\n%s", diff)
	}
}

// everything is a service with all there is, so that all of it is adopted.
func (f *fixture) everything() *proxy.Service {
	s := web(f.pods...)
	s.Name, s.ClusterIPs = "everything", []netip.Addr{netip.MustParseAddr("10.96.77.7")}
	s.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.9")}
	s.Affinity, s.InternalLocal, s.ExternalLocal = 3*time.Hour, true, true
	s.Ports = append(s.Ports, proxy.Port{Protocol: proxy.SCTP, Port: 99, NodePort: 31099, Endpoints: s.Ports[0].Endpoints})
	for i := range s.Ports[:2] {
		s.Ports[i].NodePort = 31080
	}
	return s
}

func (f *fixture) generationZero() {
	f.set(web(f.pods[0]))
	none := f.config(nil)
	none.Table.Generation = 0
	f.must(f.b.Set(f.Context(), none))
	f.must(f.b.Set(f.Context(), proxy.Config{Local: f.w.Local()}))
	f.expect(f.client, clusterIP+":80", "a")
}

func (f *fixture) closeLeavesNothing() {
	before := f.h.State(f)
	f.setWith([]proxy.HostPort{{Protocol: proxy.TCP, HostPort: 8088, Endpoint: netip.AddrPortFrom(f.pods[0].IP, 8080)}},
		web(f.pods...), f.everything())
	// The backend that closes need not be the one that set.
	for _, b := range []proxy.Backend{f.h.New(f), f.b} {
		f.must(b.Close(f.Context()))
		if diff := cmp.Diff(before, f.h.State(f)); diff != "" {
			f.Errorf("left behind (-before +after):\n%s", diff)
		}
	}
	f.set(web(f.pods...))
	f.expect(f.client, clusterIP+":80", "a", "b", "c")
}

// inForceAtOnce asks at once after each Set, with nothing in between.
func (f *fixture) inForceAtOnce() {
	for i := range 10 {
		pod := f.pods[i%3]
		f.set(web(pod))
		server, _, err := f.client.Ask(clusterIP + ":80")
		if err != nil || server != pod.Name {
			f.Fatalf("after Set %d %q answered (%v), want %s", i, server, err, pod.Name)
		}
	}
}
