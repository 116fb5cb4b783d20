package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
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

// sockets are those of a predecessor that nobody has taken over yet.
type sockets struct {
	packets map[netip.AddrPort]net.PacketConn
	streams map[netip.AddrPort]net.Listener
}

// adopt makes sockets of files, which it closes.
func adopt(files []*os.File) sockets {
	s := sockets{map[netip.AddrPort]net.PacketConn{}, map[netip.AddrPort]net.Listener{}}
	for _, file := range files {
		// What is neither is nothing of ours.
		if packets, err := net.FilePacketConn(file); err == nil {
			s.packets[addrPort(packets.LocalAddr())] = packets
		} else if stream, err := net.FileListener(file); err == nil {
			s.streams[addrPort(stream.Addr())] = stream
		}
		file.Close()
	}
	return s
}

func addrPort(a net.Addr) netip.AddrPort {
	at, _ := netip.ParseAddrPort(a.String())
	return key(at)
}

// key is the same for all ways to write every address of the machine.
func key(a netip.AddrPort) netip.AddrPort {
	if a.Addr().IsUnspecified() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	return a
}

// take returns a predecessor's sockets of an address if there are both.
func (s sockets) take(addr netip.AddrPort) (net.PacketConn, net.Listener) {
	packets, stream := s.packets[key(addr)], s.streams[key(addr)]
	switch {
	case packets != nil && stream != nil:
		delete(s.packets, key(addr))
		delete(s.streams, key(addr))
		return packets, stream
	case packets != nil:
		packets.Close()
	case stream != nil:
		stream.Close()
	}
	return nil, nil
}

// close closes what nobody took over.
func (s sockets) close() {
	for _, packets := range s.packets {
		packets.Close()
	}
	for _, stream := range s.streams {
		stream.Close()
	}
}

// listen goes on with a predecessor's sockets, or binds addr. Packets wait in
// the kernel until somebody serves them.
func (s sockets) listen(addr netip.AddrPort, handler dns.Handler) (*listener, error) {
	packets, stream := s.take(addr)
	if packets == nil {
		var err error
		if packets, stream, err = bind(addr); err != nil {
			return nil, err
		}
	}
	bound := netip.AddrPortFrom(addr.Addr(), addrPort(packets.LocalAddr()).Port())
	l := &listener{addr: bound, packets: packets, stream: stream}
	l.servers = [2]*dns.Server{
		{PacketConn: packets, Handler: handler, UDPSize: maxUDP, MsgAcceptFunc: accept},
		{Listener: stream, Handler: handler, MsgAcceptFunc: accept},
	}
	return l, nil
}

func bind(addr netip.AddrPort) (net.PacketConn, net.Listener, error) {
	config := net.ListenConfig{Control: freebind}
	ctx := context.Background()
	packets, err := config.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		return nil, nil, err
	}
	bound := netip.AddrPortFrom(addr.Addr(), addrPort(packets.LocalAddr()).Port())
	stream, err := config.Listen(ctx, "tcp", bound.String())
	if err != nil {
		packets.Close()
		return nil, nil, err
	}
	return packets, stream, nil
}

// close makes both servers return. It does not wait for questions that are
// still with a forwarder.
func (l *listener) close() {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	l.end(now)
}

// end makes both servers return when they have answered what they have in hand,
// or ctx ends.
func (l *listener) end(ctx context.Context) {
	l.closed.Store(true)
	var ending sync.WaitGroup
	for _, server := range l.servers {
		// A server that was never started only says so.
		ending.Go(func() { _ = server.ShutdownContext(ctx) })
	}
	ending.Wait()
	l.packets.Close()
	l.stream.Close()
}

// files are copies of the sockets.
func (l *listener) files() ([]*os.File, error) {
	var files []*os.File
	for _, socket := range []any{l.packets, l.stream} {
		file, err := socket.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return files, fmt.Errorf("dns server: keep the socket of %v: %w", l.addr, err)
		}
		files = append(files, file)
	}
	return files, nil
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
