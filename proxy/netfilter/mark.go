package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// mark is a cheap witness of the kernel's rules: as long as it stays the same,
// nobody changed them. With nf_tables it is the generation of the whole
// ruleset, which every transaction raises by one; with the legacy interface
// the number of entries and the size of each table.
type mark struct {
	generation uint32
	tables     [2]tableInfo
}

type tableInfo struct{ entries, size uint32 }

// legacyTables are those that realms use.
var legacyTables = [2]string{"filter", "nat"}

func (t *Tables) mark() (mark, error) {
	if t.variant == NFT {
		generation, err := nftGeneration()
		return mark{generation: generation}, err
	}
	var m mark
	for i, name := range legacyTables {
		info, err := legacyInfo(name)
		if err != nil {
			return mark{}, err
		}
		m.tables[i] = info
	}
	return m, nil
}

// after is the mark that follows m when nobody but us made n transactions.
// Legacy tables tell only what they are, so that there the present is taken.
func (t *Tables) after(m mark, n int) (mark, error) {
	if t.variant == NFT {
		m.generation += uint32(n)
		return m, nil
	}
	return t.mark()
}

func nftGeneration() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	replies, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("read the generation of nf_tables: %w", err)
	}
	for _, reply := range replies {
		if len(reply) < nl.SizeofNfgenmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(reply[nl.SizeofNfgenmsg:])
		if err != nil {
			return 0, fmt.Errorf("read the generation of nf_tables: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("read the generation of nf_tables: no answer")
}

// getInfo is IPT_SO_GET_INFO and its argument from linux/netfilter_ipv4/ip_tables.h.
const getInfo = 64

type iptGetInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

func legacyInfo(table string) (tableInfo, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return tableInfo{}, fmt.Errorf("open raw socket: %w", err)
	}
	defer unix.Close(fd)
	var info iptGetInfo
	copy(info.name[:], table)
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_IP, getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno == unix.ENOENT {
		return tableInfo{}, nil
	}
	if errno != 0 {
		return tableInfo{}, os.NewSyscallError("read size of legacy table "+table, errno)
	}
	return tableInfo{info.entries, info.size}, nil
}
