package planner

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
)

// voyage is a run of drains, partitions, deaths and restarts.
type voyage struct {
	*world
	names []string
	// away are the machines that do not answer; off those of them that are dead.
	away, off map[string]bool
	// said is what Git says about nodes: drained, or dead.
	said map[string]string
	// promised are the pods that a machine kills when its lease is over.
	promised map[string][]nodes.UID
}

func (v *voyage) objects() []runtime.Object {
	out := []runtime.Object{class("disks", disksDriver, delayed)}
	for i := range 3 {
		s := statefulSetWith(1, nil)
		s.Name = fmt.Sprintf("db%d", i)
		s.Spec.VolumeClaimTemplates[0].Spec = claimFor("", "1Gi", ofClass("disks")).Spec
		if i != 0 {
			s.Annotations = fenced
		}
		out = append(out, s)
	}
	for _, name := range v.names {
		switch v.said[name] {
		case "drained":
			out = append(out, drainedFrom(name))
		case "dead":
			out = append(out, machineOf(name, dead))
		}
	}
	return out
}

// do has one machine that answers do what it is told, and promise what it is asked.
func (v *voyage) do(name string) {
	if r, some := v.act(name); some {
		v.next(Change{Reports: []nodes.Report{r}})
	}
	n, _ := v.s.nodes.Get(name)
	v.promised[name] = v.s.fencedOn(n)
	v.promise(name)
}

// back has a machine heard again.
func (v *voyage) back(name string) {
	delete(v.away, name)
	delete(v.off, name)
	v.machines[name].cutOff = false
	v.join(name)
}

// kills ends what a machine's keeper kills with the lease.
func (v *voyage) kills(name string) {
	m := v.machines[name]
	for _, uid := range v.promised[name] {
		delete(m.held, uid)
		delete(m.status, uid)
	}
}

// TestNoVolumeHasTwoHolders: whatever happens to nodes, a volume is attached to one
// at a time, and all pods run in the end.
func TestNoVolumeHasTwoHolders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"n1", "n2", "n3", "n4", "n5"}
		d := &disks{}
		if rapid.Bool().Draw(t, "zones") {
			d.zones = map[string]string{"n1": "a", "n2": "a", "n3": "a", "n4": "b", "n5": "b"}
		}
		v := &voyage{
			world: newDisks(t, d, names...), names: names, away: map[string]bool{}, off: map[string]bool{},
			said: map[string]string{}, promised: map[string][]nodes.UID{},
		}
		v.push(v.objects()...)
		one := func(label string, fits func(string) bool) string {
			list := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !fits(n) })
			if len(list) == 0 {
				t.Skip("none")
			}
			return rapid.SampledFrom(list).Draw(t, label)
		}
		here := func(n string) bool { return !v.away[n] }
		t.Repeat(map[string]func(*rapid.T){
			"work": func(*rapid.T) {
				for range 4 {
					v.do(one("works", here))
				}
			},
			"wait": func(*rapid.T) { v.elapse(10 * time.Second) },
			"drain": func(*rapid.T) {
				v.said[one("drained", func(n string) bool { return v.said[n] == "" })] = "drained"
				v.push(v.objects()...)
			},
			"use again": func(*rapid.T) {
				v.said[one("used", func(n string) bool { return v.said[n] == "drained" })] = ""
				v.push(v.objects()...)
			},
			"partition": func(*rapid.T) {
				n := one("cut off", here)
				v.away[n], v.machines[n].cutOff = true, true
				v.next(Change{Nodes: []nodes.NodeState{{Node: nodes.Node{Name: n}, Since: v.now, Reason: "no heartbeat"}}})
			},
			"crash": func(*rapid.T) {
				n := one("crashes", here)
				v.away[n], v.off[n], v.machines[n].cutOff = true, true, true
				v.die(n)
			},
			"lapse": func(*rapid.T) {
				n := one("lapses", func(n string) bool { return v.away[n] })
				v.kills(n)
				v.over(n)
			},
			"declare": func(*rapid.T) {
				v.said[one("declared", func(n string) bool { return v.off[n] && v.said[n] == "" })] = "dead"
				v.push(v.objects()...)
			},
			"return": func(*rapid.T) {
				n := one("returns", func(n string) bool { return v.away[n] })
				v.back(n)
			},
			"storage": func(*rapid.T) {
				if d.broken == "" {
					d.broken = "it is broken"
				} else {
					d.broken = ""
				}
			},
			"server": func(*rapid.T) {
				v.restart(true)
				for _, n := range names {
					if here(n) {
						v.join(n)
					} else {
						v.next(Change{Nodes: []nodes.NodeState{{Node: nodes.Node{Name: n}, Since: v.now, Reason: "no heartbeat"}}})
					}
				}
				v.next(Change{Snapshot: v.snapshot, Source: v.source})
			},
		})
		d.broken = ""
		clear(v.said)
		for _, n := range names {
			if v.away[n] {
				v.back(n)
			}
		}
		v.push(v.objects()...)
		v.work()
		for i := range 3 {
			pods := v.pods(fmt.Sprintf("db%d", i))
			if len(pods) != 1 || pods[0].Node == "" || pods[0].Node != v.attachedTo(fmt.Sprintf("data-db%d-0", i)) {
				t.Fatalf("pods %v", v.on(fmt.Sprintf("db%d", i)))
			}
			if h := v.volumeOf(fmt.Sprintf("data-db%d-0", i)).Holdings; len(h) > 1 || len(h) == 1 && (h[0].Idle || len(h[0].By) > 0) {
				t.Fatalf("a volume is held as %+v", h)
			}
		}
	})
}
