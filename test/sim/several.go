package sim

import (
	"math/rand/v2"
	"time"
)

// electWithin is how long it takes at most until one of several servers leads that
// can: a term has to run out, and somebody to look.
const electWithin = termOf + 2*time.Second

// drawServers chooses how many servers share the store.
func (w *world) drawServers() {
	w.chance = rand.New(rand.NewPCG(w.o.Seed, 0x5e7e))
	w.store = newShared()
	w.store.unfenced = w.clings()
	for i := range 2 + w.chance.IntN(2) {
		w.hosts = append(w.hosts, newHost(w, i))
	}
}

// clings reports whether servers are to go on when their time is over.
func (w *world) clings() bool { return w.o.Bug != nil && w.o.Bug.Clings }

// election lets something happen to the servers, of those that are several.
func (w *world) election() {
	w.result.Faults++
	w.disturb()
	h := pick(w.chance, w.hosts...)
	if s := w.serving(); s != nil && w.chance.IntN(2) == 0 {
		h = s.host
	}
	switch n := w.chance.IntN(100); {
	case n < 25 && h.life == nil:
		h.start()
	case n < 25:
		h.kill()
	case n < 55:
		h.stop(!h.held.isShut())
	case n < 70:
		h.cut.Store(!h.cut.Load())
		w.note("server %s cut off from the store: %v", h.name, h.cut.Load())
	case n < 80:
		h.mute.Store(!h.mute.Load())
		w.note("server %s hears no answer of the store: %v", h.name, h.mute.Load())
	case n < 90:
		w.store.halt(w.chance.IntN(2) == 0)
		w.note("store: %v", w.store)
	default:
		w.note("servers are well")
		w.healServers()
	}
	time.Sleep(time.Duration(w.chance.IntN(9000)) * time.Millisecond)
}

// healServers ends all faults of several servers and starts those that are down.
func (w *world) healServers() {
	if w.store == nil {
		return
	}
	w.store.halt(false)
	for _, h := range w.hosts {
		h.cut.Store(false)
		h.mute.Store(false)
		h.held.set(false)
		h.start()
	}
	time.Sleep(electWithin)
}
