package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Queued counts the TCP connections that wait in a pod for a program to accept
// them, those in the middle of their handshake included. A program that ends
// now resets them. It is 0 for a pod without a network of its own.
func (n *Network) Queued(uid nodes.UID) (int, error) {
	path := n.pins(uid).existing("net")
	if path == "" {
		return 0, nil
	}
	ns, err := netns.GetFromPath(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("open network of pod %s: %w", uid, err)
	}
	defer ns.Close()
	socket, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, fmt.Errorf("ask the network of pod %s: %w", uid, err)
	}
	defer socket.Close()
	handles := map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: socket}}
	total := 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		request.Sockets = handles
		request.AddData(diagRequest(family))
		answers, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return 0, fmt.Errorf("list listening sockets of pod %s: %w", uid, err)
		}
		for _, a := range answers {
			total += queuedIn(a)
		}
	}
	return total, nil
}

// States of TCP sockets, from the kernel's net/tcp_states.h.
const (
	tcpListen     = 10
	tcpSynRecv    = 3
	tcpNewSynRecv = 12
)

// diagRequest is the kernel's struct inet_diag_req_v2.
type diagRequest uint8

func (diagRequest) Len() int { return 56 }

func (family diagRequest) Serialize() []byte {
	b := make([]byte, family.Len())
	b[0], b[1] = uint8(family), unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], 1<<tcpListen|1<<tcpSynRecv|1<<tcpNewSynRecv)
	return b
}

// queuedIn reads the kernel's struct inet_diag_msg: what a listening socket
// still has to accept, or one connection in its handshake.
func queuedIn(message []byte) int {
	const state, receiveQueue, size = 1, 56, 72
	if len(message) < size {
		return 0
	}
	if message[state] != tcpListen {
		return 1
	}
	return int(binary.NativeEndian.Uint32(message[receiveQueue:]))
}
