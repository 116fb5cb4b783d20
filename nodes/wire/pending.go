package wire

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/tallyman-dev/tallyman/nodes"
)

// maxPendingEvents bounds the events that wait for a connection; the oldest go first.
const maxPendingEvents = 1000

// pending merges the reports that are still to send. Its size is bounded by
// the pods that the node has, whatever the server does.
type pending struct {
	wake chan struct{}

	mu       sync.Mutex
	info     *nodes.Node
	images   *nodes.Images
	routes   uint64
	statuses map[nodes.UID]nodes.PodStatus
	order    []nodes.UID
	gone     []nodes.UID
	isGone   map[nodes.UID]bool
	events   []nodes.Event
	volumes  map[volumeKey]nodes.VolumeStatus
	usage    map[nodes.UID]nodes.Usage
	fenced   map[nodes.UID]bool
}

// volumeKey tells volumes apart: a name may come back with another uid.
type volumeKey struct{ name, uid string }

func (k volumeKey) compare(o volumeKey) int {
	return cmp.Or(strings.Compare(k.name, o.name), strings.Compare(k.uid, o.uid))
}

func newPending() *pending {
	return &pending{
		wake:     make(chan struct{}, 1),
		statuses: map[nodes.UID]nodes.PodStatus{},
		isGone:   map[nodes.UID]bool{},
		volumes:  map[volumeKey]nodes.VolumeStatus{},
		usage:    map[nodes.UID]nodes.Usage{},
		fenced:   map[nodes.UID]bool{},
	}
}

// add merges r: the newest status of a pod wins, gone is for ever.
func (p *pending) add(r nodes.Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Info != nil {
		p.info = r.Info
	}
	if r.Images != nil {
		p.images = r.Images
	}
	p.routes = max(p.routes, r.Routes)
	for _, s := range r.Statuses {
		if p.isGone[s.UID] {
			continue
		}
		if _, waiting := p.statuses[s.UID]; !waiting {
			p.order = append(p.order, s.UID)
		}
		p.statuses[s.UID] = s
	}
	for _, uid := range r.Gone {
		delete(p.statuses, uid)
		if !p.isGone[uid] {
			p.isGone[uid] = true
			p.gone = append(p.gone, uid)
		}
	}
	for _, v := range r.Volumes {
		p.volumes[volumeKey{v.Name, v.UID}] = v
	}
	for _, u := range r.Usage {
		p.usage[u.Pod] = u
	}
	for _, uid := range r.Fenced {
		p.fenced[uid] = true
	}
	p.events = append(p.events, r.Events...)
	if excess := len(p.events) - maxPendingEvents; excess > 0 {
		p.events = append([]nodes.Event(nil), p.events[excess:]...)
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take empties p; ok is false when there was nothing.
func (p *pending) take(node string) (r nodes.Report, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r = nodes.Report{Node: node, Info: p.info, Images: p.images, Routes: p.routes, Gone: p.gone, Events: p.events}
	for _, uid := range p.order {
		if s, still := p.statuses[uid]; still {
			r.Statuses = append(r.Statuses, s)
			delete(p.statuses, uid)
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(p.volumes), volumeKey.compare) {
		r.Volumes = append(r.Volumes, p.volumes[key])
	}
	for _, uid := range slices.Sorted(maps.Keys(p.usage)) {
		r.Usage = append(r.Usage, p.usage[uid])
	}
	r.Fenced = slices.Sorted(maps.Keys(p.fenced))
	p.info, p.images, p.routes, p.order, p.gone, p.events = nil, nil, 0, nil, nil, nil
	clear(p.isGone)
	clear(p.volumes)
	clear(p.usage)
	clear(p.fenced)
	return r, r.Info != nil || r.Images != nil || r.Routes != 0 || len(r.Statuses)+len(r.Gone)+len(r.Events)+len(r.Volumes)+len(r.Usage)+len(r.Fenced) > 0
}

// forgetState drops what the complete report of a new session will tell anew.
// Ends and events stay: the complete report does not repeat them.
func (p *pending) forgetState() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.info, p.images, p.routes, p.order = nil, nil, 0, nil
	clear(p.statuses)
	clear(p.volumes)
	clear(p.fenced)
}
