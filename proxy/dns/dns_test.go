package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/tallyman-dev/tallyman/proxy"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// table is a small cluster with every sort of service.
func table() *proxy.Table {
	end := func(addr string, port uint16, hostname string) proxy.Endpoint {
		return proxy.Endpoint{Addr: ip(addr), Port: port, Hostname: hostname}
	}
	return &proxy.Table{Generation: 7, Domain: "cluster.local", Services: []*proxy.Service{
		{
			Namespace: "default", Name: "alias", ExternalName: "www.example.org",
		},
		{
			Namespace: "default", Name: "db", Headless: true,
			Ports: []proxy.Port{{Name: "sql", Protocol: proxy.TCP, Port: 5432, Endpoints: []proxy.Endpoint{
				end("10.244.0.5", 15432, "db-0"), end("10.244.0.6", 15432, "db-1"),
				end("10.244.0.7", 15432, ""), end("fd00::5", 15432, "db-0"),
			}}},
		},
		{
			Namespace: "default", Name: "empty", Headless: true,
			Ports: []proxy.Port{{Name: "http", Protocol: proxy.TCP, Port: 80}},
		},
		{
			Namespace: "default", Name: "inner", ExternalName: "web.default.svc.cluster.local",
		},
		{
			Namespace: "default", Name: "ring", ExternalName: "ring.default.svc.cluster.local",
		},
		{
			Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{ip("10.96.0.10"), ip("fd01::10")},
			Ports: []proxy.Port{
				{Name: "http", Protocol: proxy.TCP, Port: 80},
				{Name: "quic", Protocol: proxy.UDP, Port: 443},
			},
		},
		{
			Namespace: "prod", Name: "plain", ClusterIPs: []netip.Addr{ip("10.96.0.11")},
			Ports: []proxy.Port{{Protocol: proxy.TCP, Port: 80}},
		},
	}}
}

// start runs a server with c and returns its address.
func start(t *testing.T, c Config) (*Server, string) {
	t.Helper()
	s, err := New(Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen == nil {
		c.Listen = []netip.AddrPort{loopback}
	}
	// A port that is free for packets may be in use for connections.
	err = s.Set(c)
	for tries := 0; errors.Is(err, syscall.EADDRINUSE) && tries < 20; tries++ {
		err = s.Set(c)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		s.Close()
	})
	return s, s.Addrs()[0].String()
}

func ask(t *testing.T, network, addr, name, qtype string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
	client := dns.Client{Net: network}
	reply, _, err := client.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%s %s by %s: %v", name, qtype, network, err)
	}
	return reply
}

// lines renders a section without class and ttl, sorted: the order turns.
func lines(section []dns.RR) []string {
	out := make([]string, 0, len(section))
	for _, rr := range section {
		h := rr.Header()
		if h.Rrtype == dns.TypeSOA {
			out = append(out, h.Name+" SOA")
			continue
		}
		value := strings.TrimPrefix(rr.String(), h.String())
		out = append(out, fmt.Sprintf("%s %s %s", h.Name, dns.TypeToString[h.Rrtype], value))
	}
	slices.Sort(out)
	return out
}

func TestAnswers(t *testing.T) {
	upstream := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			reply.Answer = []dns.RR{&dns.A{Hdr: header(q.Question[0].Name, dns.TypeA), A: net.IPv4(192, 0, 2, 1)}}
		}
		_ = w.WriteMsg(reply)
	})
	_, addr := start(t, Config{Table: table(), Forwarders: []netip.AddrPort{upstream}})
	const soa = "cluster.local. SOA"
	tests := []struct {
		name, qtype string
		rcode       int
		answer      []string
		authority   []string
		extra       []string
	}{
		{"web.default.svc.cluster.local.", "A", 0, []string{"web.default.svc.cluster.local. A 10.96.0.10"}, nil, nil},
		{"web.default.svc.cluster.local.", "AAAA", 0, []string{"web.default.svc.cluster.local. AAAA fd01::10"}, nil, nil},
		{"WeB.Default.SVC.cluster.LOCAL.", "A", 0, []string{"WeB.Default.SVC.cluster.LOCAL. A 10.96.0.10"}, nil, nil},
		{"web.default.svc.cluster.local.", "MX", 0, nil, []string{soa}, nil},
		{"plain.prod.svc.cluster.local.", "AAAA", 0, nil, []string{soa}, nil},
		{"gone.default.svc.cluster.local.", "A", dns.RcodeNameError, nil, []string{soa}, nil},
		{"web.other.svc.cluster.local.", "A", dns.RcodeNameError, nil, []string{soa}, nil},
		{"a.web.default.svc.cluster.local.", "A", dns.RcodeNameError, nil, []string{soa}, nil},
		{"www.example.org.default.svc.cluster.local.", "A", dns.RcodeNameError, nil, []string{soa}, nil},
		{"default.svc.cluster.local.", "A", 0, nil, []string{soa}, nil},
		{"svc.cluster.local.", "A", 0, nil, []string{soa}, nil},
		{"_tcp.web.default.svc.cluster.local.", "A", 0, nil, []string{soa}, nil},
		{"cluster.local.", "A", 0, nil, []string{soa}, nil},
		{"cluster.local.", "SOA", 0, []string{soa}, nil, nil},
		{"cluster.local.", "NS", 0, []string{"cluster.local. NS ns.dns.cluster.local."}, nil, nil},
		{"ns.dns.cluster.local.", "A", 0, []string{"ns.dns.cluster.local. A 127.0.0.1"}, nil, nil},
		{"dns-version.cluster.local.", "TXT", 0, []string{`dns-version.cluster.local. TXT "1.1.0"`}, nil, nil},

		{
			"_http._tcp.web.default.svc.cluster.local.", "SRV", 0,
			[]string{"_http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local."},
			nil,
			[]string{"web.default.svc.cluster.local. A 10.96.0.10", "web.default.svc.cluster.local. AAAA fd01::10"},
		},
		{
			"_quic._udp.web.default.svc.cluster.local.", "SRV", 0,
			[]string{"_quic._udp.web.default.svc.cluster.local. SRV 0 100 443 web.default.svc.cluster.local."},
			nil,
			[]string{"web.default.svc.cluster.local. A 10.96.0.10", "web.default.svc.cluster.local. AAAA fd01::10"},
		},
		{"_http._udp.web.default.svc.cluster.local.", "SRV", dns.RcodeNameError, nil, []string{soa}, nil},
		{"_http._tcp.web.default.svc.cluster.local.", "A", 0, nil, []string{soa}, nil},

		{"db.default.svc.cluster.local.", "A", 0, []string{
			"db.default.svc.cluster.local. A 10.244.0.5",
			"db.default.svc.cluster.local. A 10.244.0.6",
			"db.default.svc.cluster.local. A 10.244.0.7",
		}, nil, nil},
		{"db.default.svc.cluster.local.", "AAAA", 0, []string{"db.default.svc.cluster.local. AAAA fd00::5"}, nil, nil},
		{"db-0.db.default.svc.cluster.local.", "A", 0, []string{"db-0.db.default.svc.cluster.local. A 10.244.0.5"}, nil, nil},
		{"db-0.db.default.svc.cluster.local.", "AAAA", 0, []string{"db-0.db.default.svc.cluster.local. AAAA fd00::5"}, nil, nil},
		{"10-244-0-7.db.default.svc.cluster.local.", "A", 0, []string{"10-244-0-7.db.default.svc.cluster.local. A 10.244.0.7"}, nil, nil},
		{"db-9.db.default.svc.cluster.local.", "A", dns.RcodeNameError, nil, []string{soa}, nil},
		{
			"_sql._tcp.db.default.svc.cluster.local.", "SRV", 0,
			[]string{
				"_sql._tcp.db.default.svc.cluster.local. SRV 0 100 15432 10-244-0-7.db.default.svc.cluster.local.",
				"_sql._tcp.db.default.svc.cluster.local. SRV 0 100 15432 db-0.db.default.svc.cluster.local.",
				"_sql._tcp.db.default.svc.cluster.local. SRV 0 100 15432 db-1.db.default.svc.cluster.local.",
			},
			nil,
			[]string{
				"10-244-0-7.db.default.svc.cluster.local. A 10.244.0.7",
				"db-0.db.default.svc.cluster.local. A 10.244.0.5",
				"db-0.db.default.svc.cluster.local. AAAA fd00::5",
				"db-1.db.default.svc.cluster.local. A 10.244.0.6",
			},
		},
		{"empty.default.svc.cluster.local.", "A", 0, nil, []string{soa}, nil},

		{"99.0.96.10.in-addr.arpa.", "PTR", 0, nil, nil, nil}, // not ours: the forwarder's empty answer
		{"99.0.96.10.in-addr.arpa.", "TXT", 0, nil, nil, nil},
		{"5.0.244.10.in-addr.arpa.", "PTR", 0, []string{"5.0.244.10.in-addr.arpa. PTR db-0.db.default.svc.cluster.local."}, nil, nil},
		{"7.0.244.10.in-addr.arpa.", "PTR", 0, []string{"7.0.244.10.in-addr.arpa. PTR 10-244-0-7.db.default.svc.cluster.local."}, nil, nil},
		{"11.0.96.10.IN-ADDR.arpa.", "PTR", 0, []string{"11.0.96.10.IN-ADDR.arpa. PTR plain.prod.svc.cluster.local."}, nil, nil},
		{"11.0.96.10.in-addr.arpa.", "A", 0, nil, []string{"11.0.96.10.in-addr.arpa. SOA"}, nil},
		{
			"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "PTR", 0,
			[]string{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. PTR db-0.db.default.svc.cluster.local."},
			nil, nil,
		},

		{"alias.default.svc.cluster.local.", "CNAME", 0, []string{"alias.default.svc.cluster.local. CNAME www.example.org."}, nil, nil},
		{"alias.default.svc.cluster.local.", "A", 0, []string{
			"alias.default.svc.cluster.local. CNAME www.example.org.",
			"www.example.org. A 192.0.2.1",
		}, nil, nil},
		{"inner.default.svc.cluster.local.", "A", 0, []string{
			"inner.default.svc.cluster.local. CNAME web.default.svc.cluster.local.",
			"web.default.svc.cluster.local. A 10.96.0.10",
		}, nil, nil},

		{"10-244-0-9.default.pod.cluster.local.", "A", 0, []string{"10-244-0-9.default.pod.cluster.local. A 10.244.0.9"}, nil, nil},
		{"fd00--9.default.pod.cluster.local.", "AAAA", 0, []string{"fd00--9.default.pod.cluster.local. AAAA fd00::9"}, nil, nil},
		{"10-244-0-9.default.pod.cluster.local.", "AAAA", 0, nil, []string{soa}, nil},
		{"10-244-0-999.default.pod.cluster.local.", "A", dns.RcodeNameError, nil, []string{soa}, nil},
		{"a.10-244-0-9.default.pod.cluster.local.", "A", dns.RcodeNameError, nil, []string{soa}, nil},
		{"default.pod.cluster.local.", "A", 0, nil, []string{soa}, nil},

		{"www.example.org.", "A", 0, []string{"www.example.org. A 192.0.2.1"}, nil, nil},
		{"notcluster.local.", "A", 0, []string{"notcluster.local. A 192.0.2.1"}, nil, nil},
		{"web.default.svc.cluster.local.", "ANY", dns.RcodeRefused, nil, nil, nil},
		{"www.example.org.", "ANY", dns.RcodeRefused, nil, nil, nil},
		{"cluster.local.", "AXFR", dns.RcodeRefused, nil, nil, nil},
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, test := range tests {
			t.Run(network+"/"+test.name+test.qtype, func(t *testing.T) {
				reply := ask(t, network, addr, test.name, test.qtype)
				if reply.Rcode != test.rcode {
					t.Errorf("rcode %s, want %s", dns.RcodeToString[reply.Rcode], dns.RcodeToString[test.rcode])
				}
				for i, want := range [][]string{test.answer, test.authority, test.extra} {
					got := [][]dns.RR{reply.Answer, reply.Ns, reply.Extra}[i]
					if diff := cmp.Diff(append([]string{}, want...), lines(got)); diff != "" {
						t.Errorf("section %d (-want +got):\n%s", i, diff)
					}
				}
				if !reply.RecursionAvailable {
					t.Error("recursion is not offered")
				}
			})
		}
	}
}

func TestRingOfAliasesEnds(t *testing.T) {
	_, addr := start(t, Config{Table: table()})
	if reply := ask(t, "udp", addr, "ring.default.svc.cluster.local.", "A"); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %s", dns.RcodeToString[reply.Rcode])
	}
}

func TestTTLAndNegativeTTLAreShort(t *testing.T) {
	_, addr := start(t, Config{Table: table()})
	if h := ask(t, "udp", addr, "web.default.svc.cluster.local.", "A").Answer[0].Header(); h.Ttl != 5 {
		t.Errorf("ttl %d", h.Ttl)
	}
	if soa := ask(t, "udp", addr, "no.cluster.local.", "A").Ns[0].(*dns.SOA); soa.Minttl != 5 || soa.Hdr.Ttl != 5 {
		t.Errorf("negative ttl %d, %d", soa.Minttl, soa.Hdr.Ttl)
	}
}

func TestBeforeTheFirstTableNothingIsDenied(t *testing.T) {
	s, addr := start(t, Config{Table: &proxy.Table{Domain: "cluster.local"}})
	if reply := ask(t, "udp", addr, "web.default.svc.cluster.local.", "A"); reply.Rcode != dns.RcodeServerFailure {
		t.Fatalf("rcode %s", dns.RcodeToString[reply.Rcode])
	}
	listen := Config{Listen: []netip.AddrPort{loopback}, Table: table()}
	if err := s.Set(listen); err != nil {
		t.Fatal(err)
	}
	if reply := ask(t, "udp", addr, "web.default.svc.cluster.local.", "A"); len(reply.Answer) != 1 {
		t.Fatalf("after the first table: %v", reply)
	}
	listen.Table = nil
	if err := s.Set(listen); err != nil {
		t.Fatal(err)
	}
	if reply := ask(t, "udp", addr, "web.default.svc.cluster.local.", "A"); len(reply.Answer) != 1 {
		t.Fatalf("a missing table forgot the last one: %v", reply)
	}
}

// crowd is a headless service with n endpoints.
func crowd(n int) *proxy.Table {
	s := &proxy.Service{Namespace: "default", Name: "crowd", Headless: true, Ports: []proxy.Port{{Name: "http", Protocol: proxy.TCP, Port: 80}}}
	for i := range n {
		s.Ports[0].Endpoints = append(s.Ports[0].Endpoints, proxy.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), Port: 80})
	}
	return &proxy.Table{Generation: 1, Domain: "cluster.local", Services: []*proxy.Service{s}}
}

func TestTruncation(t *testing.T) {
	const n = 300
	_, addr := start(t, Config{Table: crowd(n)})
	plain := ask(t, "udp", addr, "crowd.default.svc.cluster.local.", "A")
	plain.Compress = true // as it was sent: Len counts that way
	if !plain.Truncated || plain.Len() > 512 || len(plain.Answer) == 0 {
		t.Errorf("plain: truncated %v, %d bytes, %d answers", plain.Truncated, plain.Len(), len(plain.Answer))
	}
	m := new(dns.Msg).SetQuestion("crowd.default.svc.cluster.local.", dns.TypeA).SetEdns0(4096, false)
	wide, _, err := (&dns.Client{UDPSize: 4096}).Exchange(m, addr)
	if err != nil {
		t.Fatal(err)
	}
	wide.Compress = true
	if !wide.Truncated || wide.Len() > maxUDP || len(wide.Answer) <= len(plain.Answer) || wide.IsEdns0() == nil {
		t.Errorf("with EDNS0: truncated %v, %d bytes, %d answers", wide.Truncated, wide.Len(), len(wide.Answer))
	}
	if whole := ask(t, "tcp", addr, "crowd.default.svc.cluster.local.", "A"); whole.Truncated || len(whole.Answer) != n {
		t.Errorf("by TCP: truncated %v, %d answers", whole.Truncated, len(whole.Answer))
	}
}

func TestAnswersTakeTurns(t *testing.T) {
	_, addr := start(t, Config{Table: crowd(3)})
	firsts := map[string]bool{}
	for range 6 {
		firsts[ask(t, "udp", addr, "crowd.default.svc.cluster.local.", "A").Answer[0].(*dns.A).A.String()] = true
	}
	if len(firsts) != 3 {
		t.Errorf("first answers were %v", firsts)
	}
}

func TestUnknownEDNSVersion(t *testing.T) {
	_, addr := start(t, Config{Table: table()})
	m := new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA).SetEdns0(1232, false)
	m.IsEdns0().SetVersion(1)
	reply, _, err := new(dns.Client).Exchange(m, addr)
	if err != nil {
		t.Fatal(err)
	}
	if reply.Rcode != dns.RcodeBadVers || reply.IsEdns0() == nil || len(reply.Answer) != 0 {
		t.Errorf("reply %v", reply)
	}
}

func TestBrokenPacketsAreSurvived(t *testing.T) {
	_, addr := start(t, Config{Table: table()})
	for _, packet := range []string{"", "x", strings.Repeat("\x00", 12), "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00", strings.Repeat("\xff", 600)} {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(packet))
		conn.Close()
	}
	if reply := ask(t, "udp", addr, "web.default.svc.cluster.local.", "A"); len(reply.Answer) != 1 {
		t.Errorf("reply %v", reply)
	}
}

func TestSetRebinds(t *testing.T) {
	s, first := start(t, Config{Table: table()})
	far := netip.MustParseAddrPort("192.0.2.77:5353") // an address that this machine does not have
	if err := s.Set(Config{Table: table(), Listen: []netip.AddrPort{far}}); err != nil {
		t.Fatalf("an address that may come later: %v", err)
	}
	if diff := cmp.Diff([]string{far.String()}, []string{s.Addrs()[0].String()}); diff != "" {
		t.Error(diff)
	}
	again := netip.MustParseAddrPort(first)
	if err := s.Set(Config{Table: table(), Listen: []netip.AddrPort{again}}); err != nil {
		t.Fatalf("the same address again: %v", err)
	}
	if reply := ask(t, "tcp", first, "web.default.svc.cluster.local.", "A"); len(reply.Answer) != 1 {
		t.Errorf("reply %v", reply)
	}
}

func TestSetTellsWhatItCannotBind(t *testing.T) {
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := netip.MustParseAddrPort(taken.LocalAddr().String())
	s, _ := New(Options{Log: slog.New(slog.DiscardHandler)})
	err = s.Set(Config{Table: table(), Listen: []netip.AddrPort{addr}})
	if err == nil || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("error %v", err)
	}
}

func BenchmarkSet(b *testing.B) {
	t := &proxy.Table{Generation: 1, Domain: "cluster.local"}
	for i := range 1000 {
		end := func(j int) proxy.Endpoint {
			return proxy.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, byte(i), byte(j)}), Port: 80}
		}
		t.Services = append(t.Services, &proxy.Service{
			Namespace: "default", Name: fmt.Sprintf("svc-%d", i), ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []proxy.Port{{Name: "http", Protocol: proxy.TCP, Port: 80, Endpoints: []proxy.Endpoint{end(1), end(2), end(3)}}},
		})
	}
	for b.Loop() {
		newIndex(t, nil)
	}
}

// newUpstream runs a DNS server of the outside world.
func newUpstream(t *testing.T, answer dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	packets, stream := listenBoth(t)
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: answer}, {Listener: stream, Handler: answer}} {
		ready := make(chan struct{})
		server.NotifyStartedFunc = func() { close(ready) }
		go func() { _ = server.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return netip.MustParseAddrPort(packets.LocalAddr().String())
}

// listenBoth listens for packets and connections on one port. A free port for
// one may be in use for the other, so several are tried.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	var err error
	for range 20 {
		packets, listenErr := net.ListenPacket("udp", "127.0.0.1:0")
		if listenErr != nil {
			t.Fatal(listenErr)
		}
		stream, listenErr := net.Listen("tcp", packets.LocalAddr().String())
		if listenErr == nil {
			return packets, stream
		}
		err = errors.Join(listenErr, packets.Close())
	}
	t.Fatal(err)
	return nil, nil
}

// count wraps a handler and counts the questions of type A.
func count(n *atomic.Int32, h dns.HandlerFunc) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeA {
			n.Add(1)
		}
		h(w, q)
	}
}
