package wire

import (
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
	"github.com/tallyman-dev/tallyman/proxy"
)

// tableDiffs computes what turns one route table into another, once for all
// streams whose agents have the same: with thousands of nodes nearly every
// stream goes from the last table to the newest. Tables are told apart by their
// address, as nobody changes one. Safe for concurrent use.
type tableDiffs struct {
	// part is where messages are split.
	part int

	mu sync.Mutex
	// to is the newest table that was asked for, known are the ways to it.
	// Guarded by mu; what was put in is not changed.
	to    *proxy.Table
	known map[*proxy.Table][]*pb.RouteDelta
}

func newTableDiffs() *tableDiffs { return &tableDiffs{part: maxPart} }

// between gives the messages that turn from into to, without their places in
// a stream. A nil from is an agent that has no table.
func (d *tableDiffs) between(from, to *proxy.Table) []*pb.RouteDelta {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.to != to {
		d.to, d.known = to, map[*proxy.Table][]*pb.RouteDelta{}
	}
	parts := d.known[from]
	if parts == nil {
		parts = tableDiff(from, to, d.part)
		d.known[from] = parts
	}
	return parts
}

// tableDiff walks both tables side by side: they are sorted.
func tableDiff(from, to *proxy.Table, limit int) []*pb.RouteDelta {
	complete := from == nil
	if complete {
		from = &proxy.Table{}
	}
	begin := func() *pb.RouteDelta {
		return &pb.RouteDelta{Complete: complete, Generation: to.Generation, Domain: to.Domain}
	}
	last := begin()
	parts, size := []*pb.RouteDelta{last}, 0
	merge(from.Services, to.Services, (*proxy.Service).Compare, func(old *proxy.Service) {
		last.Gone = append(last.Gone, &pb.ServiceName{Namespace: old.Namespace, Name: old.Name})
	}, func(old, now *proxy.Service) {
		if old != nil && old.Equal(now) {
			return
		}
		message := encodeService(now)
		if size += proto.Size(message); size > limit {
			size, last = 0, begin()
			parts = append(parts, last)
		}
		last.Services = append(last.Services, message)
	})
	merge(pointers(from.Nodes), pointers(to.Nodes), func(a, b *proxy.Node) int { return strings.Compare(a.Name, b.Name) }, func(old *proxy.Node) {
		last.NodesGone = append(last.NodesGone, old.Name)
	}, func(old, now *proxy.Node) {
		if old == nil || *old != *now {
			last.Nodes = append(last.Nodes, encodePeer(*now))
		}
	})
	for _, p := range parts[:len(parts)-1] {
		p.More = true
	}
	return parts
}

// merge walks two sorted lists: gone gets what only the first has, kept what
// the second has, with the first's or nil.
func merge[T any](from, to []*T, compare func(a, b *T) int, gone func(old *T), kept func(old, now *T)) {
	for len(from) > 0 || len(to) > 0 {
		order := 0
		switch {
		case len(from) == 0:
			order = 1
		case len(to) == 0:
			order = -1
		case from[0] != to[0]:
			order = compare(from[0], to[0])
		}
		switch {
		case order < 0:
			gone(from[0])
			from = from[1:]
		case order > 0:
			kept(nil, to[0])
			to = to[1:]
		default:
			kept(from[0], to[0])
			from, to = from[1:], to[1:]
		}
	}
}

func pointers[T any](list []T) []*T {
	out := make([]*T, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}
