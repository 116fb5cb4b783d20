package planner

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// arrivals are nodes that have not joined yet, each with an address of its own.
func arrivals(n int) []Change {
	out := make([]Change, n)
	for i := range out {
		node := info(fmt.Sprintf("node-%04d", i))
		node.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})}
		out[i] = Change{
			Nodes:   []nodes.NodeState{{Node: node, Ready: true, Since: epoch, Session: 1}},
			Reports: []nodes.Report{{Node: node.Name, Complete: true, Info: &node}},
		}
	}
	return out
}

// BenchmarkJoin5000 has 5,000 nodes join, 500 a second, each in a step of its
// own; every node takes each table over in the 20 ms after it.
func BenchmarkJoin5000(b *testing.B) {
	config := testConfig
	config.RoutePace = 200 * time.Microsecond
	b.ReportAllocs()
	for b.Loop() {
		s, _ := Next(New(config), Change{Snapshot: roomy(0, "nothing yet")}, epoch)
		now, tables := epoch, 0
		var behind []nodes.Report
		for i, c := range arrivals(5000) {
			now = now.Add(2 * time.Millisecond)
			var p *Plan
			if i%10 == 0 {
				c.Reports = append(c.Reports, behind...)
				behind = nil
			}
			s, p = Next(s, c, now)
			if p.Routes == nil {
				continue
			}
			tables++
			behind = behind[:0]
			for name := range keys(s.nodes) {
				behind = append(behind, nodes.Report{Node: name, Routes: p.Routes.Generation})
			}
		}
		b.ReportMetric(float64(tables), "tables")
	}
}

// BenchmarkAcknowledgedBy5000 has one of 5,000 nodes take over the table that
// all have been given.
func BenchmarkAcknowledgedBy5000(b *testing.B) {
	s, _ := Next(New(testConfig), Change{Snapshot: roomy(0, "nothing yet")}, epoch)
	for _, c := range arrivals(5000) {
		s, _ = Next(s, c, epoch)
	}
	c := Change{Reports: []nodes.Report{{Node: "node-2500", Routes: s.routes.Generation}}}
	b.ReportAllocs()
	for b.Loop() {
		Next(s, c, epoch.Add(time.Second))
	}
}
