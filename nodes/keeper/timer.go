package keeper

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// timer is an alarm on CLOCK_BOOTTIME: it rings in time after a suspension too.
type timer struct{ fd int }

func newTimer() (timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC)
	if err != nil {
		return timer{}, fmt.Errorf("make timer: %w", err)
	}
	return timer{fd}, nil
}

func (t timer) set(at time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(at, 1)))} // 0 would never ring
	if err := unix.TimerfdSettime(t.fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
		return fmt.Errorf("set timer: %w", err)
	}
	return nil
}

func (t timer) wait() error {
	var rings [8]byte
	for {
		if _, err := unix.Read(t.fd, rings[:]); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (t timer) close() { _ = unix.Close(t.fd) }
