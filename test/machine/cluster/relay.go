package cluster

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// relay carries the frames of one machine between its port, which it takes off
// the switch, and a port of its own, later than they came. The kernel's netem
// does the same, but many kernels come without.
type relay struct {
	port   netlink.Link // at the switch; its removal removes the other end
	ends   [2]*os.File  // sockets on the machine's port and behind ours
	copies sync.WaitGroup
}

func newRelay(machine string, by time.Duration) (*relay, error) {
	behind := "b-" + machine
	own := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: relayPortOf(machine)}, PeerName: behind}
	if err := netlink.LinkAdd(own); err != nil {
		return nil, err
	}
	r := &relay{port: own}
	for i, name := range []string{portOf(machine), behind} {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = errors.Join(netlink.LinkSetNoMaster(link), netlink.LinkSetUp(link))
		}
		if err == nil {
			r.ends[i], err = frames(link)
		}
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
	}
	r.copies.Go(func() { carry(r.ends[0], r.ends[1], by) })
	r.copies.Go(func() { carry(r.ends[1], r.ends[0], by) })
	return r, nil
}

// frames opens a socket for everything that arrives at an interface. Each frame
// is preceded by the kernel's note on checksums and segments that are still to
// be made, so that what is sent is what was received.
func frames(link netlink.Link) (*os.File, error) {
	const everything = uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8) // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: link.Attrs().Index}),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", link.Attrs().Name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), link.Attrs().Name), nil
}

// frame and the instant at which it goes on.
type frame struct {
	content []byte
	due     time.Time
}

// carry passes frames on in their order until one of the sockets is closed.
func carry(from, to *os.File, by time.Duration) {
	const (
		largest = 66 << 10 // a frame that the kernel has not cut into segments yet
		most    = 10_000   // frames held back: a bandwidth to speak of, times the delay
	)
	queue := make(chan frame, most)
	var sender sync.WaitGroup
	sender.Go(func() {
		for f := range queue {
			time.Sleep(time.Until(f.due))
			to.Write(f.content) // what cannot be sent is lost, as on any cable
		}
	})
	defer sender.Wait()
	defer close(queue)
	for buffer := make([]byte, largest); ; {
		n, err := from.Read(buffer)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue // the interface is down, or the frame cannot be described
		}
		select {
		case queue <- frame{append([]byte(nil), buffer[:n]...), time.Now().Add(by)}:
		default: // lost
		}
	}
}

// close ends the relay; the machine's port is left without a switch.
func (r *relay) close() error {
	var failures []error
	for _, end := range r.ends {
		if end != nil {
			failures = append(failures, end.Close())
		}
	}
	r.copies.Wait()
	return errors.Join(append(failures, netlink.LinkDel(r.port))...)
}
