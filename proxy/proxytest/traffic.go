package proxytest

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Serve answers on TCP and UDP until the test ends: "NAME PEER" first, then,
// on TCP, every line again; on UDP, once a packet.
func (p *Place) Serve(port uint16) {
	p.w.t.Helper()
	p.ServeAt(netip.AddrPortFrom(netip.IPv4Unspecified(), port), p.Name)
}

// ServeAt answers on one address under a name.
func (p *Place) ServeAt(at netip.AddrPort, name string) {
	p.w.t.Helper()
	p.Do(func() error {
		l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		p.w.t.Cleanup(func() { l.Close() })
		u, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		p.w.t.Cleanup(func() { u.Close() })
		go acceptAll(l, name)
		go answerAll(u, name)
		return nil
	})
}

func acceptAll(l *net.TCPListener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr().(*net.TCPAddr).IP)
			lines := bufio.NewReader(c)
			for {
				line, err := lines.ReadString('\n')
				if err != nil {
					return
				}
				if _, err := c.Write([]byte(line)); err != nil {
					return
				}
			}
		}()
	}
}

func answerAll(u *net.UDPConn, name string) {
	buf := make([]byte, 64)
	for {
		_, from, err := u.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = u.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s\n", name, from.Addr()), from)
		}
	}
}

// patience is how long an answer may take before it counts as none.
const patience = 2 * time.Second

// Conn is a connection to whatever a service chose.
type Conn struct {
	net.Conn
	// Server is the name of who answered first, Peer the address it saw; empty for UDP.
	Server, Peer string
	lines        *bufio.Reader
}

// Dial connects to a TCP address and reads the greeting.
func (p *Place) Dial(to string) (*Conn, error) { return p.DialFrom(0, to) }

// DialFrom does so from a port; 0 is any.
func (p *Place) DialFrom(port uint16, to string) (*Conn, error) {
	c, err := p.dial("tcp4", to, &net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: int(port)}})
	if err != nil {
		return nil, err
	}
	line, err := c.read()
	if err != nil {
		c.Close()
		return nil, err
	}
	c.Server, c.Peer, _ = strings.Cut(line, " ")
	return c, nil
}

// DialUDP makes a socket for one address; its source port stays.
func (p *Place) DialUDP(to string) (*Conn, error) { return p.dial("udp4", to, &net.Dialer{}) }

func (p *Place) dial(network, to string, dialer *net.Dialer) (*Conn, error) {
	var c net.Conn
	err := p.try(func() (err error) {
		c, err = dialer.Dial(network, to)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: c, lines: bufio.NewReader(c)}, nil
}

func (c *Conn) read() (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	line, err := c.lines.ReadString('\n')
	return strings.TrimSpace(line), err
}

// Say sends a line and returns the answer.
func (c *Conn) Say(line string) (string, error) {
	if _, err := c.Write([]byte(line + "\n")); err != nil {
		return "", err
	}
	return c.read()
}

// Ask makes one new TCP connection and tells who answered and whom it saw.
func (p *Place) Ask(to string) (server, peer string, err error) {
	c, err := p.Dial(to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return c.Server, c.Peer, nil
}

// AskUDP sends one packet from a new socket.
func (p *Place) AskUDP(to string) (server, peer string, err error) {
	c, err := p.DialUDP(to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	line, err := c.Say("?")
	if err != nil {
		return "", "", err
	}
	server, peer, _ = strings.Cut(line, " ")
	return server, peer, nil
}

// Refused reports whether an attempt was refused, rather than left without an
// answer. A process of the node itself may be told by the send call.
func Refused(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EPERM)
}

// Silent reports whether an attempt met no answer at all.
func Silent(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
