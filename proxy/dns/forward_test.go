package dns

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// here answers every question of type A with 192.0.2.<last>.
func here(last byte) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg).SetReply(q)
		reply.Answer = []dns.RR{&dns.A{Hdr: header(q.Question[0].Name, dns.TypeA), A: net.IPv4(192, 0, 2, last)}}
		_ = w.WriteMsg(reply)
	}
}

func silent(dns.ResponseWriter, *dns.Msg) {}

func fails(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode)) }
}

func TestNamesOfTheClusterAreNeverForwarded(t *testing.T) {
	var asked atomic.Int32
	upstream := newUpstream(t, count(&asked, here(1)))
	_, addr := start(t, Config{Table: table(), Forwarders: []netip.AddrPort{upstream}})
	for _, name := range []string{"no.default.svc.cluster.local.", "x.cluster.local.", "CLUSTER.local.", "1.2.3.4.nowhere.pod.cluster.local."} {
		ask(t, "udp", addr, name, "A")
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d questions were forwarded", n)
	}
}

func TestNextForwarderIsAskedWhenOneFails(t *testing.T) {
	for name, bad := range map[string]dns.HandlerFunc{
		"silent":   silent,
		"servfail": fails(dns.RcodeServerFailure),
		"refused":  fails(dns.RcodeRefused),
	} {
		t.Run(name, func(t *testing.T) {
			first, second := newUpstream(t, bad), newUpstream(t, here(2))
			_, addr := start(t, Config{Table: table(), Forwarders: []netip.AddrPort{first, second}})
			m := new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA)
			reply, _, err := (&dns.Client{Timeout: 5 * time.Second}).Exchange(m, addr)
			if err != nil {
				t.Fatal(err)
			}
			if len(reply.Answer) != 1 {
				t.Errorf("reply %v", reply)
			}
		})
	}
}

func TestSilentForwarderIsAskedLastForAWhile(t *testing.T) {
	var asked atomic.Int32
	first, second := newUpstream(t, count(&asked, silent)), newUpstream(t, here(2))
	_, addr := start(t, Config{Table: table(), Forwarders: []netip.AddrPort{first, second}})
	client := dns.Client{Timeout: 5 * time.Second}
	for range 3 {
		if _, _, err := client.Exchange(new(dns.Msg).SetQuestion("www.example.org.", dns.TypeA), addr); err != nil {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the silent one was asked %d times", n)
	}
}

func TestNegativeAnswersPassThrough(t *testing.T) {
	upstream := newUpstream(t, fails(dns.RcodeNameError))
	_, addr := start(t, Config{Table: table(), Forwarders: []netip.AddrPort{upstream}})
	if reply := ask(t, "udp", addr, "no.example.org.", "A"); reply.Rcode != dns.RcodeNameError {
		t.Errorf("rcode %s", dns.RcodeToString[reply.Rcode])
	}
}

func TestTruncatedAnswersAreAskedForAgainByTCP(t *testing.T) {
	upstream := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg).SetReply(q)
		if w.RemoteAddr().Network() == "udp" {
			reply.Truncated = true
		} else {
			reply.Answer = []dns.RR{&dns.A{Hdr: header(q.Question[0].Name, dns.TypeA), A: net.IPv4(192, 0, 2, 3)}}
		}
		_ = w.WriteMsg(reply)
	})
	_, addr := start(t, Config{Table: table(), Forwarders: []netip.AddrPort{upstream}})
	if reply := ask(t, "udp", addr, "big.example.org.", "A"); len(reply.Answer) != 1 || reply.Truncated {
		t.Errorf("reply %v", reply)
	}
}

func TestWithoutForwardersOtherNamesFail(t *testing.T) {
	_, addr := start(t, Config{Table: table()})
	if reply := ask(t, "udp", addr, "www.example.org.", "A"); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("rcode %s", dns.RcodeToString[reply.Rcode])
	}
}

func TestOwnAddressIsNoForwarder(t *testing.T) {
	own := []netip.AddrPort{netip.MustParseAddrPort("10.244.0.1:53"), netip.MustParseAddrPort("0.0.0.0:54")}
	got := withoutOwn([]netip.AddrPort{
		netip.MustParseAddrPort("10.244.0.1:53"), netip.MustParseAddrPort("127.0.0.53:54"),
		netip.MustParseAddrPort("127.0.0.53:53"),
		{},
	}, own)
	if len(got) != 1 || got[0].String() != "127.0.0.53:53" {
		t.Errorf("left over: %v", got)
	}
}

func TestForwarderThatLeadsBackIsLeftOut(t *testing.T) {
	var addr atomic.Pointer[string]
	mirror := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		back := addr.Load()
		if back == nil {
			return
		}
		reply, _, err := (&dns.Client{Timeout: time.Second}).Exchange(q, *back)
		if err == nil {
			_ = w.WriteMsg(reply)
		}
	})
	honest := newUpstream(t, here(4))
	s, own := start(t, Config{Table: table()})
	addr.Store(&own)
	if err := s.Set(Config{
		Table: table(), Listen: []netip.AddrPort{loopback},
		Forwarders: []netip.AddrPort{mirror, honest},
	}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		usable, _ := s.forward.usable()
		if len(usable) == 1 && usable[0].addr == honest {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the loop was not noticed")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if reply := ask(t, "udp", own, "www.example.org.", "A"); len(reply.Answer) != 1 {
		t.Errorf("reply %v", reply)
	}
}
