package sim

import (
	"time"
)

// hurtKeeper has a machine's keeper die, or stand still together with its agent,
// and not get up before its watchdog, if it has one, resets the machine.
func (w *world) hurtKeeper(m *machine) error {
	if m.off {
		return nil
	}
	what := pick(w.tended.rng, "dies", "dies with its agent", "stands still with its agent")
	w.note("keeper of %s %s; watchdog %v", m.name, what, m.watchdog)
	w.disturb()
	m.keeper.die()
	switch what {
	case "dies with its agent":
		m.killAgent()
	case "stands still with its agent":
		m.stop(true)
	}
	moment := time.Duration(w.tended.rng.Int64N(int64(mostHelpless)))
	switch {
	case m.agent != nil && !m.line.held.isShut():
		time.Sleep(moment / 10) // its agent starts another
		m.keeper.revive()
	case !m.keeper.holds():
		// There is nobody to be killed until the agent is back, and then a keeper is.
	case m.watchdog:
		time.Sleep(watchdogAfter - moment)
		if b := w.o.Bug; b == nil || !b.Tames {
			w.note("watchdog resets %s", m.name)
			return m.reboot()
		}
	default:
		time.Sleep(moment)
		if m.agent == nil {
			return m.startAgent()
		}
		m.stop(false)
	}
	return nil
}

const (
	// watchdogAfter is how long after its last sign of life the watchdog resets the
	// machine.
	watchdogAfter = 2 * time.Second
	// mostHelpless is how long a machine without a watchdog may have neither keeper
	// nor agent while it has fenced pods: the margin of leases covers it.
	mostHelpless = 300 * time.Millisecond
)

// die ends the keeper: nobody kills. What it held is in its file.
func (k *watchman) die() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = true
}

// revive is a keeper that takes over what the last one held. What that missed is
// due at once.
func (k *watchman) revive() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.gone {
		return
	}
	k.gone = false
	for _, h := range k.held {
		k.arm(h, h.Ends)
	}
}

// holds reports whether pods are fenced.
func (k *watchman) holds() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held) > 0
}
