package network

import (
	"net/netip"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/tallyman-dev/tallyman/proxy"
)

// TestAKeyIsOnePeers: whoever tells another's key does not get its packets, nor
// keep them from it.
func TestAKeyIsOnePeers(t *testing.T) {
	var private, public []wgtypes.Key
	for range 3 {
		key, err := wgtypes.GeneratePrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		private, public = append(private, key), append(public, key.PublicKey())
	}
	peer := func(name, addr, pods string, key wgtypes.Key) proxy.Node {
		return proxy.Node{Name: name, Addr: netip.MustParseAddr(addr), PodCIDR: netip.MustParsePrefix(pods), WireGuard: key.String()}
	}
	n := &Network{}
	n.peers = []proxy.Node{
		peer("a", "10.0.0.1", "10.244.1.0/24", public[1]),
		peer("b", "10.0.0.2", "10.244.2.0/24", public[1]),
		peer("c", "10.0.0.3", "10.244.3.0/24", public[2]),
		peer("d", "10.0.0.4", "10.244.4.0/24", private[0].PublicKey()),
	}
	want, missed := newPaths(), &Unreachable{}
	wanted := n.wireguardPeers(public[0], 7, want, missed)
	if len(wanted) != 2 || wanted[public[1]].AllowedIPs[0].String() != "10.244.1.0/24" || wanted[public[2]].Endpoint.IP.String() != "10.0.0.3" {
		t.Errorf("peers %v", wanted)
	}
	if len(want.routes) != 2 || want.routes[netip.MustParsePrefix("10.244.1.0/24")] != (hop{link: 7}) || want.routes[netip.MustParsePrefix("10.244.3.0/24")] != (hop{link: 7}) {
		t.Errorf("routes %v", want.routes)
	}
	if got := missed.Error(); strings.Join(missed.Reasons, "; ") != "node b tells the WireGuard key of node a; node d tells the WireGuard key of this node" {
		t.Error(got)
	}
}
