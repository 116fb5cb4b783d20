package keeper

import (
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes/boottime"
)

const (
	// chunk is how much is looked at in one go.
	chunk = 256 << 10
	// scratchCount is how many pipes are worked on at the same moment.
	scratchCount = 2
	// patience is how long an unfinished line waits in its pipe for its end;
	// then it is written as a part.
	patience = time.Second
)

// stream is one pipe on its way into a log file.
//
// It keeps nothing in memory between two turns. A turn looks at what the pipe
// holds with tee(2), which takes nothing out, writes the lines that are whole,
// and only then takes them out. So whatever happens to this process, a line is
// in the pipe or in the file.
type stream struct {
	name, id string
	pipe     *os.File
	file     *file
	scratch  chan *scratch
	log      *slog.Logger

	// stopping is set once: run then drains the pipe and returns.
	stopping atomic.Bool
	// over, set before stopping, has an unfinished last line written too.
	over atomic.Bool

	// trouble and drops belong to run; dropped are the bytes that it has not told
	// of yet.
	trouble, drops seldom
	dropped        int
}

// scratch is what a turn works with; made when first needed.
type scratch struct {
	reader, writer int
	// read holds a copy of the pipe's content, lines what becomes of it.
	read, lines []byte
}

func (s *stream) stop(over bool) {
	s.over.Store(over)
	s.stopping.Store(true)
	_ = s.pipe.SetReadDeadline(time.Unix(1, 0)) // wakes run
}

// run reads until it is stopped.
func (s *stream) run() {
	raw, err := s.pipe.SyscallConn()
	if err != nil {
		s.log.Error("log pipe not read", "container", s.id, "stream", s.name, "error", err)
		return
	}
	waiting := 0 // bytes of an unfinished line that stay in the pipe
	for {
		var deadline time.Time
		if waiting > 0 {
			deadline = time.Now().Add(patience)
		}
		_ = s.pipe.SetReadDeadline(deadline)
		if s.stopping.Load() {
			s.turn(raw.Control, s.over.Load(), 'F')
			return
		}
		err := raw.Read(func(fd uintptr) bool {
			held, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			return err != nil || held > waiting
		})
		switch {
		case s.stopping.Load():
		case err == nil:
			waiting = s.turn(raw.Control, false, 'P')
		case errors.Is(err, os.ErrDeadlineExceeded):
			waiting = s.turn(raw.Control, true, 'P')
		default:
			s.log.Error("log pipe not read any more", "container", s.id, "stream", s.name, "error", err)
			return
		}
	}
}

// turn moves what the pipe holds into the file and returns how many bytes of an
// unfinished line it left. With flush that line is written as well, under tag.
func (s *stream) turn(control func(func(uintptr)) error, flush bool, tag byte) (left int) {
	w := <-s.scratch
	defer func() { s.scratch <- w }()
	err := control(func(fd uintptr) {
		for {
			held, err := w.look(int(fd))
			if err != nil {
				s.unread(err)
				return
			}
			var used int
			w.lines, used = appendLines(w.lines[:0], held, s.name, time.Now(), flush && len(held) < chunk, tag)
			if used == 0 {
				left = len(held)
				return
			}
			if err := s.file.write(w.lines); err != nil {
				s.drop(used, err) // better a hole in the log than a container that blocks on it
			}
			w.take(int(fd), used)
		}
	})
	if err != nil {
		s.unread(err)
	}
	return left
}

// drop says that lines are not in the log. A full disk drops those of every turn.
func (s *stream) drop(bytes int, err error) {
	s.dropped += bytes
	if times := s.drops.again(boottime.Now()); times > 0 {
		s.log.Error("log lines dropped", "container", s.id, "stream", s.name, "times", times, "bytes", s.dropped, "error", err)
		s.dropped = 0
	}
}

func (s *stream) unread(err error) {
	if times := s.trouble.again(boottime.Now()); times > 0 {
		s.log.Error("log pipe not read", "container", s.id, "stream", s.name, "times", times, "error", err)
	}
}

// look copies what a pipe holds, leaving it there.
func (w *scratch) look(fd int) ([]byte, error) {
	if w.read == nil {
		if err := w.open(); err != nil {
			return nil, err
		}
	}
	n, err := unix.Tee(fd, w.writer, len(w.read), unix.SPLICE_F_NONBLOCK)
	if errors.Is(err, unix.EAGAIN) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("tee", err)
	}
	for have := 0; have < int(n); {
		m, err := unix.Read(w.reader, w.read[have:n])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("read", err)
		}
		have += m
	}
	return w.read[:n], nil
}

func (w *scratch) open() error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return os.NewSyscallError("pipe", err)
	}
	w.reader, w.writer = ends[0], ends[1]
	_, _ = unix.FcntlInt(uintptr(w.writer), unix.F_SETPIPE_SZ, pipeSize) // smaller means more turns
	w.read = make([]byte, chunk)
	return nil
}

// take removes the first n bytes from a pipe that holds at least as many; the
// copy that look made is overwritten.
func (w *scratch) take(fd, n int) {
	for n > 0 {
		m, err := unix.Read(fd, w.read[:min(n, len(w.read))])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || m == 0 {
			return
		}
		n -= m
	}
}
