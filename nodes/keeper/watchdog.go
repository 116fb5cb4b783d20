package keeper

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// watchdogSeconds is how long after its last sign of life the watchdog resets
// the machine: within what the server waits beyond the end of a lease.
const watchdogSeconds = 2

// watchdog is the machine's, held while there are fences. It resets the machine
// when nobody could kill: when the keeper has died and none has followed it, or
// when processes outlive their kill.
type watchdog struct {
	path string // empty for none
	log  *slog.Logger
	fd   int // 0 while it is not held
	said bool
}

// tend holds the watchdog while it is needed, and tells it that all is well
// unless processes are alive that should not be. It reports whether it wants to
// be tended again soon. w may be nil.
func (w *watchdog) tend(needed, alive bool) bool {
	switch {
	case w == nil || w.path == "":
		return false
	case !needed:
		w.release()
		return false
	case w.fd == 0:
		w.open()
	}
	if w.fd != 0 && !alive {
		w.write("\x00")
	}
	return true
}

func (w *watchdog) open() {
	fd, err := unix.Open(w.path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		w.complain("the watchdog can't be opened: a keeper that dies may leave fenced pods running", err)
		return
	}
	w.fd, w.said = fd, false
	err = unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, watchdogSeconds)
	seconds := 0
	if err == nil {
		seconds, err = unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT)
	}
	switch {
	case err != nil:
		w.complain("the watchdog takes no timeout: it may come too late", err)
	case seconds > watchdogSeconds:
		w.log.Warn("the watchdog comes too late", "seconds", seconds, "wanted", watchdogSeconds)
	}
	w.log.Info("the watchdog is held while pods are fenced", "path", w.path)
}

// release closes the watchdog the way that stops it.
func (w *watchdog) release() {
	if w == nil || w.fd == 0 {
		return
	}
	w.write("V")
	_ = unix.Close(w.fd)
	w.fd = 0
}

func (w *watchdog) write(text string) {
	if _, err := unix.Write(w.fd, []byte(text)); err != nil {
		w.complain("write to the watchdog", err)
	}
}

// complain says what went wrong once, not twice a second.
func (w *watchdog) complain(what string, err error) {
	if !w.said {
		w.log.Warn(what, "path", w.path, "error", err)
		w.said = true
	}
}
