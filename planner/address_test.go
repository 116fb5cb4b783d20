package planner

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestForeignAddressesAreNotRouted: a node may not have the traffic of others
// led where it likes (invariant 11).
func TestForeignAddressesAreNotRouted(t *testing.T) {
	for name, c := range map[string]struct {
		address string
		routed  bool
	}{
		"of its range":                    {"10.244.0.77", true},
		"of another node's range":         {"10.244.1.77", false},
		"of a service":                    {"10.96.0.1", false},
		"of the world":                    {"192.0.2.200", false},
		"no address":                      {"nonsense", false},
		"the node's, on the pods'":        {"192.0.2.11", false},
		"of its range, written otherwise": {"::ffff:10.244.0.77", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			w.push(deployment("a", 2, spreadOut), serviceFor("a"))
			w.work()
			p := w.pods("a")[slices.IndexFunc(w.pods("a"), func(p *pod) bool { return p.Node == "n1" })]
			s := *w.machines["n1"].status[p.UID]
			s.IP = c.address
			w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{s}}}})
			if got := slices.Contains(w.routedNodes("a"), "n1"); got != c.routed {
				t.Errorf("routed: %v, want %v", got, c.routed)
			}
			o := w.s.Overview(w.now)
			said := fmt.Sprint(o.Nodes[0].Notes)
			if refused := strings.Contains(said, "at "+c.address); refused == c.routed {
				t.Errorf("the node's status says %s", said)
			}
			i := slices.IndexFunc(o.Objects, func(h nodes.ObjectHealth) bool { return h.Pod != nil && h.Pod.UID == p.UID })
			if shown := o.Objects[i].Pod.IP; (shown == c.address) != c.routed {
				t.Errorf("the pod's address is shown as %q", shown)
			}
			event := slices.ContainsFunc(w.events, func(e nodes.Event) bool { return e.Reason == "AddressRefused" && e.Object == p.Key() })
			if event == c.routed {
				t.Errorf("events %v", w.events)
			}
		})
	}
}

// TestAddressesOfHostNetwork: a pod on its node's network has the node's.
func TestAddressesOfHostNetwork(t *testing.T) {
	n := &node{kept: machineRecord{PodCIDR: "10.244.0.0/24"}}
	n.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.13")}
	for address, may := range map[string]bool{"192.0.2.11": true, "192.0.2.13": true, "192.0.2.12": false, "10.244.0.77": false} {
		p := &pod{Pod: &nodes.Pod{Template: &nodes.Template{Spec: corev1.PodSpec{HostNetwork: true}}}}
		if got := n.mayUse(p, netip.MustParseAddr(address)); got != may {
			t.Errorf("%s: %v, want %v", address, got, may)
		}
	}
}
