package dns

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// maxUDP is the largest datagram we read or send: what passes any common path
// without fragments.
const maxUDP = 1232

// listener is one address, bound for UDP and TCP.
type listener struct {
	addr    netip.AddrPort
	packets net.PacketConn
	stream  net.Listener
	servers [2]*dns.Server
	// served is set once Run has taken it on; guarded by Server.mu.
	served bool
	closed atomic.Bool
}

// listen binds addr. Packets wait in the kernel until somebody serves them.
func listen(addr netip.AddrPort, handler dns.Handler) (*listener, error) {
	config := net.ListenConfig{Control: freebind}
	ctx := context.Background()
	packets, err := config.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		return nil, err
	}
	bound := netip.AddrPortFrom(addr.Addr(), uint16(packets.LocalAddr().(*net.UDPAddr).Port))
	stream, err := config.Listen(ctx, "tcp", bound.String())
	if err != nil {
		packets.Close()
		return nil, err
	}
	l := &listener{addr: bound, packets: packets, stream: stream}
	l.servers = [2]*dns.Server{
		{PacketConn: packets, Handler: handler, UDPSize: maxUDP, MsgAcceptFunc: accept},
		{Listener: stream, Handler: handler, MsgAcceptFunc: accept},
	}
	return l, nil
}

// close makes both servers return. It does not wait for questions that are
// still with a forwarder.
func (l *listener) close() {
	l.closed.Store(true)
	now, cancel := context.WithCancel(context.Background())
	cancel()
	for _, server := range l.servers {
		// A server that was never started only says so.
		_ = server.ShutdownContext(now)
	}
	l.packets.Close()
	l.stream.Close()
}

// freebind lets an address be bound before the machine has it: the bridge of
// the pod network comes with the first pod.
func freebind(network, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		if network == "udp6" || network == "tcp6" {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
			return
		}
		failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

// accept refuses everything but plain queries before it is unpacked.
func accept(h dns.Header) dns.MsgAcceptAction {
	const response, opcodeBits = 1 << 15, 0xF << 11
	switch {
	case h.Bits&response != 0:
		return dns.MsgIgnore
	case h.Bits&opcodeBits != 0:
		return dns.MsgRejectNotImplemented
	case h.Qdcount != 1 || h.Ancount > 0 || h.Nscount > 1 || h.Arcount > 2:
		return dns.MsgReject
	}
	return dns.MsgAccept
}
