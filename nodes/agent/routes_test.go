package agent

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/network"
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

func TestPeersComeIntoForceWithTheirTable(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, kill := w.start()
		defer kill()
		peers := []proxy.Node{{Name: "other", Addr: netip.MustParseAddr("192.0.2.2"), PodCIDR: netip.MustParsePrefix("10.244.1.0/24")}}
		w.unconnected = errors.New("this kernel cannot")
		a.Route(&proxy.Table{Generation: 7, Nodes: peers})
		settle(3 * time.Second)
		if a.routed.Load() != 0 {
			t.Error("a generation was reported in force whose peers are not connected")
		}
		if len(w.proxied) == 0 || w.dns.Table == nil {
			t.Error("rules and names waited for the peers")
		}
		if got := w.taints(); len(got) != 1 || got[0].Key != corev1.TaintNodeNetworkUnavailable {
			t.Errorf("a node that reaches no other has the taints %v", got)
		}
		// Whom nobody can help, nobody waits for.
		w.mu.Lock()
		w.unconnected = &network.Unreachable{Reasons: []string{"node other is behind a router"}}
		w.mu.Unlock()
		settle(3 * time.Second)
		if a.routed.Load() != 7 || len(w.taints()) != 0 {
			t.Errorf("with one peer out of reach: generation %d in force, taints %v", a.routed.Load(), w.taints())
		}
		w.mu.Lock()
		w.unconnected = nil
		w.mu.Unlock()
		a.Route(&proxy.Table{Generation: 8, Nodes: peers})
		settle(time.Second)
		want := []string{"NetworkUnavailable: this kernel cannot", "NetworkUnavailable: node other is behind a router", "NetworkAvailable: pods of all other nodes are reached again"}
		if got := w.nodeEvents(); !slices.Equal(got, want) {
			t.Errorf("events\n%q\nwant\n%q", got, want)
		}
		if last := w.peers[len(w.peers)-1]; !slices.Equal(last, peers) {
			t.Errorf("the network was told %v", last)
		}
	})
}

// TestANodeWithoutANetworkIsNotSilent: it says what it runs and what is wrong.
func TestANodeWithoutANetworkIsNotSilent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.noSetup = errors.New("link tally0 is no bridge")
		a, kill := w.start()
		defer kill()
		settle(time.Minute)
		report, err := a.Hello(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		const trouble = "the pod network can't be set up: link tally0 is no bridge"
		if !slices.Equal(report.Info.Problems, []string{trouble}) || len(report.Info.Taints) != 1 || report.Info.Taints[0].Key != corev1.TaintNodeNetworkUnavailable {
			t.Errorf("problems %q, taints %v", report.Info.Problems, report.Info.Taints)
		}
		w.mu.Lock()
		w.noSetup = nil
		w.mu.Unlock()
		settle(time.Minute)
		if report, err = a.Hello(t.Context()); err != nil || len(report.Info.Problems)+len(report.Info.Taints) > 0 {
			t.Errorf("afterwards %v, %q, %v", err, report.Info.Problems, report.Info.Taints)
		}
		if got := w.nodeEvents(); !slices.Equal(got, []string{"NetworkUnavailable: " + trouble, "NetworkAvailable: the pod network is set up"}) {
			t.Errorf("events %q", got)
		}
	})
}

// nodeEvents are those about the node, in order.
func (w *world) nodeEvents() (events []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.reports {
		for _, e := range r.Events {
			if e.Object.Kind == "Node" {
				events = append(events, e.Reason+": "+e.Message)
			}
		}
	}
	return events
}
