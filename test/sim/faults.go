package sim

import (
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// event lets one thing happen: a revision, or a fault.
func (w *world) event() error {
	m := pick(w.rng, w.nodes...)
	n := w.rng.IntN(100)
	if n < 35 {
		if w.rng.IntN(4) == 0 && len(w.repo.order) > 2 {
			w.revert()
		} else {
			w.revise()
		}
		return nil
	}
	w.result.Faults++
	switch {
	case n < 50:
		w.exitSome(m)
	case n < 58:
		w.flapSome(m)
	case n < 63:
		return w.restartAgent(m)
	case n < 66:
		return w.toggleAgent(m)
	case n < 73:
		return w.restartServer()
	case n < 77:
		return w.toggleServer()
	case n < 79:
		return w.changeSource()
	case n < 84:
		w.toggleSilence(m)
	case n < 88:
		w.toggleRuntime(m)
	case n < 91:
		w.togglePulls(m)
	case n < 93:
		w.toggleLatency(m)
	case n < 96:
		w.toggleRepository()
	case n < 98:
		return w.rebootSome(m)
	default:
		w.loseContainer(m)
	}
	return nil
}

// exitSome ends containers from inside.
func (w *world) exitSome(m *machine) {
	for _, c := range m.runtime.running() {
		if w.rng.IntN(3) == 0 {
			w.note("container %s exits", c.ID)
			w.disturb()
			w.witness.report(m.runtime.Exit(c.ID, int32(w.rng.IntN(2)), false))
		}
	}
}

// flapSome lets readiness probes fail for a while, or succeed again.
func (w *world) flapSome(m *machine) {
	for _, c := range m.runtime.running() {
		if w.rng.IntN(3) == 0 {
			unready := w.rng.IntN(2) == 0
			w.note("probe of %s fails: %v", c.Pod, unready)
			m.runtime.flap(nodes.UID(c.Pod), unready)
		}
	}
}

func (w *world) restartAgent(m *machine) error {
	if m.agent == nil {
		return m.powerOn()
	}
	m.killAgent()
	w.pause()
	return m.startAgent()
}

func (w *world) toggleAgent(m *machine) error {
	if m.agent == nil {
		return m.powerOn()
	}
	m.killAgent()
	return nil
}

// restartServer, sometimes without its record: then the nodes must have been
// connected for as long as it takes them to keep their ledger.
func (w *world) restartServer() error {
	if w.serving() == nil {
		return w.startServer()
	}
	lose := w.store == nil && w.connected() && w.calm() > 30*time.Second && w.rng.IntN(2) == 0 && w.witness.toldAll()
	w.killServer()
	if lose {
		if err := w.loseRecord(); err != nil {
			return err
		}
	}
	w.pause()
	return w.startServer()
}

func (w *world) toggleServer() error {
	if w.serving() == nil {
		return w.startServer()
	}
	w.killServer()
	return nil
}

// changeSource lets the server follow another branch.
func (w *world) changeSource() error {
	if w.store != nil {
		w.election()
		return nil
	}
	w.killServer()
	w.source = pick(w.rng, "embedded main .", "embedded other .")
	return w.startServer()
}

func (w *world) toggleSilence(m *machine) {
	w.disturb()
	if m.line.isSilent() {
		w.note("line of %s speaks again", m.name)
		m.line.speak()
		return
	}
	w.note("line of %s goes silent", m.name)
	m.line.silence(true, true)
}

func (w *world) toggleRuntime(m *machine) {
	w.disturb()
	m.down = !m.down
	w.note("runtime of %s down: %v", m.name, m.down)
	switch {
	case m.down && w.result.Faults%2 == 0:
		m.runtime.CrashInChange()
	case m.down:
		m.runtime.Crash()
	default:
		m.runtime.Recover()
	}
}

func (w *world) togglePulls(m *machine) {
	m.noPull = !m.noPull
	w.note("pulls of %s fail: %v", m.name, m.noPull)
	m.runtime.pulls(!m.noPull)
}

func (w *world) toggleLatency(m *machine) {
	w.disturb()
	latency := pick(w.rng, time.Millisecond, 100*time.Millisecond, 2*time.Second)
	w.note("line of %s takes %v", m.name, latency)
	m.line.slow(latency)
}

func (w *world) toggleRepository() {
	w.repoBroken = !w.repoBroken
	w.note("repository unreachable: %v", w.repoBroken)
	w.repo.breakDown(w.repoBroken)
}

func (w *world) rebootSome(m *machine) error {
	m.down = false
	return m.reboot()
}

func (w *world) loseContainer(m *machine) {
	if running := m.runtime.running(); len(running) > 0 {
		c := pick(w.rng, running...)
		w.note("container %s vanishes", c.ID)
		w.disturb()
		m.runtime.Lose(c.ID)
	}
}

// connected reports whether the server and every agent are up and may talk. On a
// line that takes a second no heartbeat is answered in time, and no session lasts.
func (w *world) connected() bool {
	s := w.serving()
	if s == nil || s.host != nil && s.host.held.isShut() {
		return false
	}
	for _, m := range w.nodes {
		if m.agent == nil || m.down || m.line.isSilent() || m.line.takes() >= time.Second || m.line.held.isShut() || !w.witness.sees(m.name) {
			return false
		}
	}
	return true
}

// heal ends all faults.
func (w *world) heal() error {
	w.note("faults end")
	for _, m := range w.nodes {
		m.runtime.steady()
		m.runtime.Publish(badImage, imageOf(badImage))
		m.runtime.Recover()
		m.down = false
		m.line.speak()
		m.line.slow(time.Millisecond)
		m.line.held.set(false)
		m.keeper.revive()
		m.runtime.pace.drag(0)
		if m.agent == nil {
			if err := m.powerOn(); err != nil {
				return err
			}
		}
	}
	w.repo.breakDown(false)
	w.relieve()
	if head := w.repo.head(); !head.valid && (w.witness.truth() == nil || w.store != nil && w.store.undecided()) {
		w.push(head.intent.clone(), "valid") // or there is nothing to converge to
	}
	if w.store == nil && w.serving() == nil {
		return w.startServer()
	}
	w.healServers()
	return nil
}

// relieve pushes a revision that fits on the nodes when the newest may not.
func (w *world) relieve() {
	if w.shape.cpu > 1 {
		return
	}
	i := w.repo.head().intent.clone()
	for k, v := range i.workloads {
		v.cpu = 0
		i.workloads[k] = v
	}
	w.pushConfirmed(i, "relieve") // what it has from the newest may have been held
}
