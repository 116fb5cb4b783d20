package observed

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	eventLifetime    = time.Hour
	eventsPerObject  = 32
	eventsAltogether = 10_000
)

// eventKey names an event by everything but its times and count.
type eventKey [16]byte

func (k eventKey) place() Place { return Place{Part: PartEvents, Key: hex.EncodeToString(k[:])} }

func keyOf(e nodes.Event) eventKey {
	e.First, e.Last, e.Count = time.Time{}, time.Time{}, 0
	encoded, err := json.Marshal(e)
	if err != nil {
		panic("a plain struct of strings does not encode: " + err.Error())
	}
	sum := sha256.Sum256(encoded)
	return eventKey(sum[:16])
}

// events are the living events in the order of their last occurrence. The
// store's mutex guards them.
type events struct {
	now    func() time.Time
	order  *list.List // of *eventNode, the longest quiet first
	byKey  map[eventKey]*list.Element
	object map[desired.Key]map[eventKey]bool
}

type eventNode struct {
	key   eventKey
	event nodes.Event
}

func newEvents(now func() time.Time) *events {
	return &events{
		now:    now,
		order:  list.New(),
		byKey:  map[eventKey]*list.Element{},
		object: map[desired.Key]map[eventKey]bool{},
	}
}

// add puts e in and notes in changed what must be written.
func (v *events) add(e nodes.Event, changed behind) {
	e.Count = max(1, e.Count)
	if e.Last.IsZero() {
		e.Last = v.now()
	}
	if e.First.IsZero() {
		e.First = e.Last
	}
	key := keyOf(e)
	if old := v.byKey[key]; old != nil {
		known := old.Value.(*eventNode)
		e.First = known.event.First
		e.Count += known.event.Count
		if known.event.Last.After(e.Last) {
			e.Last = known.event.Last
		}
		known.event = e
		v.sink(old)
	} else {
		v.insert(key, e)
	}
	changed[key.place()] = e
	for len(v.object[e.Object]) > eventsPerObject {
		v.drop(v.oldestOf(e.Object), changed)
	}
	for v.order.Len() > eventsAltogether {
		v.drop(v.order.Front(), changed)
	}
}

// restore puts back what the backend holds, in any order.
func (v *events) restore(e nodes.Event) { v.insert(keyOf(e), e) }

func (v *events) insert(key eventKey, e nodes.Event) {
	element := v.order.PushBack(&eventNode{key, e})
	v.byKey[key] = element
	if v.object[e.Object] == nil {
		v.object[e.Object] = map[eventKey]bool{}
	}
	v.object[e.Object][key] = true
	v.sink(element)
}

// sink moves an element to its place by Last; almost always that is the end.
func (v *events) sink(element *list.Element) {
	last := element.Value.(*eventNode).event.Last
	v.order.MoveToBack(element)
	for before := element.Prev(); before != nil; before = element.Prev() {
		if !before.Value.(*eventNode).event.Last.After(last) {
			return
		}
		v.order.MoveBefore(element, before)
	}
}

func (v *events) oldestOf(object desired.Key) *list.Element {
	var oldest *list.Element
	for key := range v.object[object] {
		element := v.byKey[key]
		e := element.Value.(*eventNode)
		if oldest == nil || compareAge(e, oldest.Value.(*eventNode)) < 0 {
			oldest = element
		}
	}
	return oldest
}

func compareAge(a, b *eventNode) int {
	if c := a.event.Last.Compare(b.event.Last); c != 0 {
		return c
	}
	return bytes.Compare(a.key[:], b.key[:])
}

func (v *events) drop(element *list.Element, changed behind) {
	dropped := element.Value.(*eventNode)
	v.order.Remove(element)
	delete(v.byKey, dropped.key)
	delete(v.object[dropped.event.Object], dropped.key)
	if len(v.object[dropped.event.Object]) == 0 {
		delete(v.object, dropped.event.Object)
	}
	changed[dropped.key.place()] = nil
}

// expire drops what has been quiet for too long.
func (v *events) expire(changed behind) {
	limit := v.now().Add(-eventLifetime)
	for first := v.order.Front(); first != nil; first = v.order.Front() {
		if first.Value.(*eventNode).event.Last.After(limit) {
			return
		}
		v.drop(first, changed)
	}
}

func (v *events) of(object desired.Key) []nodes.Event {
	limit := v.now().Add(-eventLifetime)
	var out []nodes.Event
	for key := range v.object[object] {
		if e := v.byKey[key].Value.(*eventNode).event; e.Last.After(limit) {
			out = append(out, e)
		}
	}
	return out
}
