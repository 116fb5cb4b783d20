package sim

import (
	"time"
)

// anyEvent lets one thing happen, of those that the world may suffer.
func (w *world) anyEvent() error {
	if w.fleet != nil {
		w.fleet.jumpServer(w)
	}
	if w.store != nil && w.chance.IntN(3) == 0 {
		w.election()
		return nil
	}
	if w.tended != nil && w.tended.rng.IntN(3) == 0 {
		w.result.Faults++
		return w.tend()
	}
	if w.fleet == nil || !w.fleet.fenced && w.fleet.rng.IntN(5) < 3 || w.fleet.rng.IntN(5) == 0 {
		return w.event()
	}
	w.result.Faults++
	if w.fleet.fenced {
		time.Sleep(time.Duration(w.fleet.rng.IntN(8000)) * time.Millisecond)
	}
	return w.fleet.event(w)
}

// event is a fault of a data centre.
func (f *fleet) event(w *world) error {
	m := pick(f.rng, w.nodes...)
	switch n := f.rng.IntN(100); {
	case n < 15:
		w.deafen(m, f.rng.IntN(2) == 0)
	case n < 30:
		f.partition(w)
	case n < 40:
		w.note("line of %s is cut", m.name)
		w.disturb()
		m.line.cut()
	case n < 52:
		m.stop(!m.line.held.isShut())
	case n < 64:
		return w.togglePower(m)
	case n < 72:
		return f.forget(w, m)
	case n < 80:
		return f.dieBetween(w)
	case f.fenced:
		return w.restartServer()
	case n < 88:
		slow := pick(f.rng, 0, 3, 30)
		w.note("machine %s takes %d times as long", m.name, slow)
		w.disturb()
		m.runtime.pace.drag(int64(slow))
	case n < 96:
		f.jump(w, m)
	case n < 98:
		i := w.repo.head().intent.clone()
		f.time(i)
		w.push(i, "other times")
	default:
		return w.toggleServer()
	}
	return nil
}

// deafen breaks one direction of a machine's line.
func (w *world) deafen(m *machine, up bool) {
	w.note("line of %s loses what is said: by the agent %v, by the server %v", m.name, up, !up)
	w.disturb()
	m.line.silence(up, !up)
}

// partition silences the machines of a zone, most of all or all of them, or
// ends every silence.
func (f *fleet) partition(w *world) {
	w.disturb()
	what, zone := f.rng.IntN(6), f.zone(f.rng.IntN(f.zones))
	for i, m := range w.nodes {
		switch {
		case what < 3:
			m.line.speak()
		case what == 3 && f.zone(i) == zone, what == 4 && f.rng.IntN(3) > 0, what == 5:
			w.note("line of %s goes silent", m.name)
			m.line.silence(true, true)
		}
	}
	if what < 3 {
		w.note("no line is silent")
	}
}

func (w *world) togglePower(m *machine) error {
	if m.off {
		return m.powerOn()
	}
	m.powerOff()
	return nil
}

// forget loses an agent's store, of a machine that runs on or of one that is
// replaced by another with nothing on its disk.
func (f *fleet) forget(w *world, m *machine) error {
	if m.buried {
		return nil // its store is lost when it comes back
	}
	replaced := f.rng.IntN(2) == 0 && !w.extras.storage
	if replaced && !m.off {
		m.powerOff()
	} else {
		m.killAgent()
	}
	if err := m.loseStore(); err != nil {
		return err
	}
	if replaced {
		m.runtime.wipe()
	}
	w.pause()
	return m.powerOn()
}

// dieBetween has the server die in the midst of handing over what it has
// recorded, when it decides something soon.
func (f *fleet) dieBetween(w *world) error {
	if w.serving() == nil {
		return w.startServer()
	}
	if w.store != nil {
		w.election()
		return nil
	}
	dies := w.serving().hands.dieAfter(f.rng.IntN(4))
	w.revise()
	select {
	case <-dies:
		w.note("server dies while it hands over")
	case <-time.After(10 * time.Second):
	}
	w.killServer()
	w.pause()
	return w.startServer()
}

// clocksDiffer reports whether machines' wall clocks are wrong.
func (w *world) clocksDiffer() bool { return w.fleet != nil && w.fleet.clocks }

// jumpServer sets the wall clock of a server, now and then.
func (f *fleet) jumpServer(w *world) {
	if !f.clocks || f.jumps.IntN(5) > 0 {
		return
	}
	w.result.Faults++
	if len(w.hosts) == 0 {
		w.note("clock of the server is wrong by %v", w.wall.jump(f.jumps))
		return
	}
	h := pick(f.jumps, w.hosts...)
	w.note("clock of server %s is wrong by %v", h.name, h.wall.jump(f.jumps))
}

// jump sets a machine's wall clock; processes that start see it.
func (f *fleet) jump(w *world, m *machine) {
	if !f.clocks {
		return
	}
	m.skew = pick(f.rng, 0, -3*time.Second, 3*time.Second)
	w.note("clock of %s is wrong by %v", m.name, m.skew)
}
