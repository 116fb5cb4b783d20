package planner

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// TestDataIsSafe drives claims and volumes through pushes, restarts, lost
// records and days, and checks after each step that no volume serves two
// claims, that none changes its claim, and that no data goes before its time.
func TestDataIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := &dataWorld{chaos: &chaos{t: t, world: newWorld(t, "n1", "n2")}, bound: map[string]time.Time{}, owner: map[string]desired.Key{}, classes: map[string]int{}}
		for range rapid.IntRange(3, 25).Draw(t, "steps") {
			d.step()
			d.check()
			d.checkFixpoint()
		}
		for d.turn() {
			d.check()
		}
	})
}

type dataWorld struct {
	*chaos
	// bound is when each volume last had a claim, owner the first claim it had.
	bound   map[string]time.Time
	owner   map[string]desired.Key
	disks   map[string]bool
	classes map[string]int
}

func (d *dataWorld) step() {
	switch rapid.IntRange(0, 6).Draw(d.t, "event") {
	case 0, 1:
		d.pushClaims()
	case 2, 3:
		d.turn()
	case 4:
		d.pass(time.Duration(rapid.IntRange(1, 30).Draw(d.t, "hours")) * time.Hour)
	case 5:
		d.restartAll(rapid.Bool().Draw(d.t, "with record"), rapid.Bool().Draw(d.t, "with ledger"))
	case 6:
		d.silence()
	}
}

func (d *dataWorld) class(name string) int {
	if _, drawn := d.classes[name]; !drawn {
		d.classes[name] = rapid.IntRange(0, 3).Draw(d.t, "class of "+name)
	}
	return d.classes[name]
}

func (d *dataWorld) pushClaims() {
	objects := []runtime.Object{configMap("x", nil), class("now", nodes.LocalProvisioner), hostVolume("pv", "3Gi", "/srv")}
	for _, name := range []string{"p", "q", "r"} {
		if !rapid.Bool().Draw(d.t, "has "+name) {
			continue
		}
		c := claimFor(name, rapid.SampledFrom([]string{"1Gi", "2Gi"}).Draw(d.t, "size"))
		switch d.class(name) { // never changes: a claim's class is immutable
		case 0:
			ofClass("now")(c)
		case 1:
			ofClass("")(c)
		}
		if name == "r" {
			access(corev1.ReadWriteOncePod)(c)
		}
		objects = append(objects, c)
		if rapid.Bool().Draw(d.t, "used") {
			objects = append(objects, deployment("d"+name, int32(rapid.IntRange(1, 2).Draw(d.t, "replicas")), withClaim(name)))
		}
	}
	if rapid.Bool().Draw(d.t, "ephemeral") {
		objects = append(objects, deployment("e", 1, ephemeral))
	}
	before := d.serial
	if p := d.world.push(objects...); p.Hold != nil {
		d.pushWith("yes\n\n"+p.Hold.Confirm, objects...)
	}
	if d.s.held != nil {
		d.t.Fatalf("still held after %d: %s", before, d.s.held.Why)
	}
	d.objects = objects
}

// restartAll loses the server's memory, perhaps with record and ledgers. Nodes
// that did not answer come back.
func (d *dataWorld) restartAll(withRecord, withLedger bool) {
	d.heal()
	for d.turn() {
		d.check()
	}
	before := d.bindings()
	for _, m := range d.machines { // one that came back was given the whole ledger
		m.ledger = nil
		for _, decision := range d.record {
			if withLedger && decision.Kind != nodes.PodDecision {
				m.ledger = append(m.ledger, decision)
			}
		}
	}
	d.restart(withRecord)
	d.join("n1")
	d.join("n2")
	if d.snapshot != nil {
		d.next(Change{Snapshot: d.snapshot, Source: d.source})
	}
	after := d.bindings()
	for name, volume := range before {
		if after[name] != volume {
			d.t.Fatalf("a restart (record %v, ledger %v) took %s from claim %s and gave it %q", withRecord, withLedger, volume, name, after[name])
		}
	}
}

// bindings are those to provisioned volumes of the claims in Git.
func (d *dataWorld) bindings() map[string]string {
	out := map[string]string{}
	for k, c := range entries(d.s.claims) {
		if v, ok := d.s.volumes.Get(c.Volume); ok && v.provisioned() && d.snapshot.Get(k) != nil {
			out[k.Name] = c.Volume
		}
	}
	return out
}

func (d *dataWorld) check() {
	if d.s.snapshot == nil {
		return
	}
	has := map[string]desired.Key{}
	for k, c := range entries(d.s.claims) {
		if c.Volume == "" {
			continue
		}
		if other, twice := has[c.Volume]; twice {
			d.t.Fatalf("volume %s serves %s and %s", c.Volume, other, k)
		}
		has[c.Volume] = k
		v, ok := d.s.volumes.Get(c.Volume)
		if !ok || !v.Bound || v.Claim != k {
			d.t.Fatalf("%s has volume %s, which says %+v", k, c.Volume, v)
		}
		if first, known := d.owner[c.Volume]; v.provisioned() && known && first != k {
			d.t.Fatalf("volume %s of %s went to %s", c.Volume, first, k)
		}
		d.owner[c.Volume] = k
		if c.Pod == "" {
			d.bound[c.Volume] = d.now
		}
	}
	d.checkDisks()
	d.checkPlaces()
}

// checkDisks: what is deleted had no claim for a day, or was ephemeral.
func (d *dataWorld) checkDisks() {
	now := map[string]bool{}
	for _, m := range d.machines {
		for name, v := range m.disk {
			if !v.Delete {
				now[name] = true
			}
		}
	}
	for name := range d.disks {
		if last, had := d.bound[name]; !now[name] && had && d.now.Sub(last) < desired.DefaultSettings().KeepData {
			d.t.Fatalf("volume %s was deleted %s after %s lost it", name, d.now.Sub(last), d.owner[name])
		}
	}
	d.disks = now
}

// checkPlaces: pods run where their data is, and once-only claims serve one.
func (d *dataWorld) checkPlaces() {
	users := map[desired.Key][]string{}
	for _, g := range entries(d.s.groups) {
		for _, p := range g.pods {
			if p.Node == "" || p.done() {
				continue
			}
			for _, k := range p.claims {
				c, ok := d.s.claims.Get(k)
				if !ok || c.Volume == "" {
					d.t.Fatalf("pod %s runs without its claim %s", p.Name, k)
				}
				if v, _ := d.s.volumes.Get(c.Volume); v.Node != "" && v.Node != p.Node {
					d.t.Fatalf("pod %s runs on %s, its data is on %s", p.Name, p.Node, v.Node)
				}
				if c.wants.OncePod() {
					users[k] = append(users[k], fmt.Sprintf("%s since %s", p.Name, p.Created))
				}
			}
		}
	}
	for k, pods := range users {
		if len(pods) > 1 {
			slices.Sort(pods)
			d.t.Fatalf("%s is ReadWriteOncePod and serves %v", k, pods)
		}
	}
}
