package registry

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/tallyman-dev/tallyman/nodes"
)

// maxEvents bounds the events of one node that wait for the loop; the oldest go first.
const maxEvents = 1000

// maxReady is how many inputs are held out to the loop at once: it takes those
// that are there in one step, and without them would make a step of each.
const maxReady = 256

// inputs is a queue with one place a node: what a node says while its place is
// taken is merged into it. The first in line are held out already, and no longer
// merged.
type inputs struct {
	out  chan Input
	wake chan struct{}

	mu sync.Mutex
	// guarded by mu
	order  []string
	places map[string]Input
}

func newInputs() *inputs {
	return &inputs{out: make(chan Input, maxReady), wake: make(chan struct{}, 1), places: map[string]Input{}}
}

// run moves inputs to the channel until ctx ends.
func (q *inputs) run(ctx context.Context) {
	for {
		in, ok := q.take()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-q.wake:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case q.out <- in:
		}
	}
}

func (q *inputs) add(node string, in Input) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if waiting, taken := q.places[node]; taken {
		q.places[node] = merge(waiting, in)
		return
	}
	q.places[node] = in
	q.order = append(q.order, node)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *inputs) take() (Input, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.order) == 0 {
		return Input{}, false
	}
	node := q.order[0]
	q.order = q.order[1:]
	in := q.places[node]
	delete(q.places, node)
	return in, true
}

// merge gives an input that says the same as a and then b.
func merge(a, b Input) Input {
	out := Input{Node: a.Node, Report: mergeReports(a.Report, b.Report), Events: mergeEvents(a.Events, b.Events)}
	if b.Node != nil {
		out.Node = b.Node
	}
	return out
}

func mergeReports(a, b *nodes.Report) *nodes.Report {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	out := &nodes.Report{
		Node: a.Node, Local: a.Local || b.Local, Complete: a.Complete, Info: a.Info, Images: a.Images, Routes: max(a.Routes, b.Routes),
		Held: a.Held, Left: a.Left, Ledger: a.Ledger,
		Gone:   unionUIDs(a.Gone, b.Gone),
		Fenced: unionUIDs(a.Fenced, b.Fenced),
		Events: mergeEvents(a.Events, b.Events),
		Usage:  overlay(a.Usage, b.Usage, func(u *nodes.Usage) nodes.UID { return u.Pod }),
	}
	if b.Info != nil {
		out.Info = b.Info
	}
	if b.Images != nil {
		out.Images = b.Images
	}
	if b.Complete {
		out.Complete, out.Statuses = true, b.Statuses
		out.Held, out.Left, out.Ledger, out.Routes, out.Volumes = b.Held, b.Left, b.Ledger, b.Routes, b.Volumes
		out.Fenced = b.Fenced
		return out
	}
	out.Statuses, out.Volumes = mergeStatuses(a.Statuses, b), mergeVolumes(a.Volumes, b.Volumes)
	if len(b.Gone) > 0 {
		out.Left = slices.DeleteFunc(slices.Clone(out.Left), func(uid nodes.UID) bool { return slices.Contains(b.Gone, uid) })
	}
	if len(b.Gone) > 0 && len(out.Held) > 0 {
		out.Held = slices.DeleteFunc(slices.Clone(out.Held), func(p *nodes.Pod) bool {
			return slices.Contains(b.Gone, p.UID)
		})
	}
	return out
}

// mergeStatuses puts b's statuses over a's and drops those of pods that b
// reports gone.
func mergeStatuses(a []nodes.PodStatus, b *nodes.Report) []nodes.PodStatus {
	out := overlay(a, b.Statuses, func(s *nodes.PodStatus) nodes.UID { return s.UID })
	if len(b.Gone) == 0 {
		return out
	}
	gone := make(map[nodes.UID]bool, len(b.Gone))
	for _, uid := range b.Gone {
		gone[uid] = true
	}
	return slices.DeleteFunc(out, func(s nodes.PodStatus) bool { return gone[s.UID] })
}

// mergeVolumes puts b's statuses over a's. What the node holds of a volume is
// only in complete reports, and stays.
func mergeVolumes(a, b []nodes.VolumeStatus) []nodes.VolumeStatus {
	type volume struct{ name, uid string }
	key := func(s *nodes.VolumeStatus) volume { return volume{s.Name, s.UID} }
	before := make(map[volume]*nodes.VolumeStatus, len(a))
	for i := range a {
		before[key(&a[i])] = &a[i]
	}
	out := overlay(a, b, key)
	for i := range out {
		if old := before[key(&out[i])]; old != nil {
			out[i].Held, out[i].Source = cmp.Or(out[i].Held, old.Held), cmp.Or(out[i].Source, old.Source)
		}
	}
	return out
}

// overlay puts b's entries over those of a with the same key; new ones follow.
func overlay[T any, K comparable](a, b []T, key func(*T) K) []T {
	at := make(map[K]int, len(a)+len(b))
	out := slices.Clone(a)
	for i := range out {
		at[key(&out[i])] = i
	}
	for i := range b {
		k := key(&b[i])
		if j, found := at[k]; found {
			out[j] = b[i]
			continue
		}
		at[k] = len(out)
		out = append(out, b[i])
	}
	return out
}

func unionUIDs(a, b []nodes.UID) []nodes.UID {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

func mergeEvents(a, b []nodes.Event) []nodes.Event {
	out := slices.Concat(a, b)
	return out[max(0, len(out)-maxEvents):]
}
