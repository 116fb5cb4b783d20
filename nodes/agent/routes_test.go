package agent

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/proxy"
)

// TestNewForwardersAreTold: a machine that got another address has other
// resolvers, while its routes stay as they are.
func TestNewForwardersAreTold(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		a.Route(&proxy.Table{Generation: 7})
		settle(time.Second)
		now := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
		w.forwarders.Store(&now)
		settle(resyncEvery + time.Second)
		if !slices.Equal(w.dns.Forwarders, now) || w.dns.Table.Generation != 7 {
			t.Errorf("the keeper was told %+v", w.dns)
		}
		calls := len(w.proxied)
		settle(10 * resyncEvery)
		if len(w.proxied) != calls {
			t.Errorf("routes were set %d times more for nothing", len(w.proxied)-calls)
		}
	})
}
