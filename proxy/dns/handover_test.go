package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestHandoverLosesNoQuestion ends a server that has a question in hand, and
// asks another while nobody serves: both are answered.
func TestHandoverLosesNoQuestion(t *testing.T) {
	asked, reply := make(chan struct{}), make(chan struct{})
	upstream := newUpstream(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeA {
			close(asked)
			<-reply
		}
		here(7)(w, q)
	})
	c := Config{Table: table(), Listen: []netip.AddrPort{loopback}, Forwarders: []netip.AddrPort{upstream}}
	first, err := New(Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Set(c); err != nil {
		t.Fatal(err)
	}
	c.Listen = first.Addrs()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- first.Run(ctx) }()
	inHand := askOnce(c.Listen[0], "www.example.org.", dns.TypeA)
	<-asked
	cancel()
	close(reply)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := <-inHand; err != nil {
		t.Errorf("the question in hand: %v", err)
	}
	waits := askOnce(c.Listen[0], "web.default.svc.cluster.local.", dns.TypeA)
	second, err := New(Options{Log: slog.New(slog.DiscardHandler), Inherited: first.Sockets()})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Set(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(context.Background())
	go func() { done <- second.Run(ctx) }()
	if err := <-waits; err != nil {
		t.Errorf("the question that nobody heard: %v", err)
	}
	ask(t, "tcp", c.Listen[0].String(), "web.default.svc.cluster.local.", "A")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	second.Close()
	if _, err := dns.Exchange(new(dns.Msg).SetQuestion("web.default.svc.cluster.local.", dns.TypeA), c.Listen[0].String()); err == nil {
		t.Error("a closed server's socket is open")
	}
}

// TestSocketsThatAreNotWantedAreClosed lets a successor listen elsewhere.
func TestSocketsThatAreNotWantedAreClosed(t *testing.T) {
	first, at := start(t, Config{Table: table()})
	listener := netip.MustParseAddrPort(at)
	if err := first.halt(); err != nil {
		t.Fatal(err)
	}
	second, err := New(Options{Log: slog.New(slog.DiscardHandler), Inherited: first.Sockets()})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Set(Config{Table: table()}); err != nil {
		t.Fatal(err)
	}
	packets, stream, err := bind(listener)
	if err != nil {
		t.Fatalf("the port is taken still: %v", err)
	}
	packets.Close()
	stream.Close()
}

// askOnce asks once; the channel says what came of it.
func askOnce(at netip.AddrPort, name string, kind uint16) <-chan error {
	result := make(chan error, 1)
	conn, err := dns.Dial("udp", at.String())
	if err == nil {
		err = conn.WriteMsg(new(dns.Msg).SetQuestion(name, kind))
	}
	if err != nil {
		result <- err
		return result
	}
	go func() {
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		_, err := conn.ReadMsg()
		result <- err
	}()
	return result
}
