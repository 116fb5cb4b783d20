package network

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// rangeBits is the size of every node's range.
const rangeBits = 24

// KnownRange is the range that this node's pods had addresses of so far, from
// the agent's store or else from the bridge; invalid when the node is new. An
// empty bridge means DefaultBridge.
func KnownRange(db *bbolt.DB, bridge string) (netip.Prefix, error) {
	var known netip.Prefix
	err := db.View(func(tx *bbolt.Tx) error {
		if meta := tx.Bucket(metaBucket); meta != nil {
			if last, ok := netip.AddrFromSlice(meta.Get(lastKey)); ok {
				known = netip.PrefixFrom(last, rangeBits).Masked()
			}
		}
		return nil
	})
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("read the store of pod addresses: %w", err)
	}
	if known.IsValid() {
		return known, nil
	}
	if bridge == "" {
		bridge = DefaultBridge
	}
	link, err := netlink.LinkByName(bridge)
	if missing(err) {
		return netip.Prefix{}, nil
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	addrs, err := netlink.AddrList(link, unix.AF_INET)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list addresses of bridge %s: %w", bridge, err)
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			bits, _ := a.Mask.Size()
			known = netip.PrefixFrom(addr, bits).Masked()
		}
	}
	return known, nil
}
