package planner

import (
	"bytes"
	"encoding/base64"
	"net/netip"
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
)

// wireGuardKeyOf is a key that no machine has, and the same in another spelling.
func wireGuardKeyOf(b byte) (key, alike string) {
	raw := bytes.Repeat([]byte{b}, 32)
	key = base64.StdEncoding.EncodeToString(raw)
	last := key[len(key)-2]
	return key, key[:len(key)-2] + string(last+1) + "="
}

// tellKey has a node say which key it has.
func (w *world) tellKey(name, key string) {
	w.t.Helper()
	r := w.machines[name].complete()
	r.Info.WireGuard, r.Info.Addrs = key, []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(w.machines[name].index + 1)})}
	w.next(Change{Nodes: []nodes.NodeState{{Node: *r.Info, Ready: true, Since: w.now}}, Reports: []nodes.Report{r}})
}

func (w *world) wantKeys(when string, want map[string]string) {
	w.t.Helper()
	got := map[string]string{}
	for _, p := range w.s.peers {
		got[p.Name] = p.WireGuard
	}
	for name, key := range want {
		if got[name] != key {
			w.t.Fatalf("%s: node %s has key %q, want %q", when, name, got[name], key)
		}
	}
}

// TestTheFirstKeepsItsWireGuardKey: packets go by the key, so a node that tells
// another's would have them, or have them lost.
func TestTheFirstKeepsItsWireGuardKey(t *testing.T) {
	k1, alike := wireGuardKeyOf(0)
	k2, _ := wireGuardKeyOf(2)
	if one, err := base64.StdEncoding.DecodeString(alike); err != nil || alike == k1 || !bytes.Equal(one, make([]byte, 32)) {
		t.Fatalf("%q is no other spelling of %q", alike, k1)
	}
	w := newWorld(t, "a", "b", "c")
	w.push(deployment("web", 1))
	w.settle()
	w.tellKey("c", k1)
	w.tellKey("b", k2)
	w.wantKeys("at first", map[string]string{"b": k2, "c": k1})
	for _, key := range []string{k1, alike} {
		w.tellKey("a", key)
		w.wantKeys("another tells it, too", map[string]string{"a": "", "c": k1})
	}
	told := 0
	for _, e := range w.events {
		if e.Reason == "WireGuardKeyTaken" && e.Object == nodeKey("a") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	for name, withRecord := range map[string]bool{"with the record": true, "with a ledger": false} {
		if !withRecord {
			w.machines["b"].ledger = nil
			for _, d := range w.record {
				if d.Kind != kindOfPod {
					w.machines["b"].ledger = append(w.machines["b"].ledger, d)
				}
			}
			w.machines["a"].ledger, w.machines["c"].ledger = nil, nil
		}
		w.restart(withRecord)
		w.next(Change{Snapshot: w.snapshot, Source: w.source})
		w.tellKey("a", k1)
		w.tellKey("b", k2)
		w.tellKey("c", k1)
		w.wantKeys("after a restart "+name, map[string]string{"a": "", "b": k2, "c": k1})
	}
	w.tellKey("c", k2) // it can't swap to that of b either
	w.wantKeys("after it tells that of b", map[string]string{"a": "", "b": k2, "c": ""})
	w.push(deployment("web", 1), removed("c"))
	w.fallSilent("c")
	w.elapse(0)
	w.tellKey("a", k1)
	w.wantKeys("after its owner was removed", map[string]string{"a": k1, "b": k2})
}
