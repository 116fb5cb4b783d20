package keeper

import (
	"io"
	"os"
	"time"
)

const (
	// maxMessages bounds the file of the keeper's own messages, in bytes: it is in
	// memory, beside what the keeper must be able to write.
	maxMessages = 1 << 20
	// sayAgain is the pause before what goes wrong all the time is said again.
	sayAgain = time.Minute
)

// Messages writes to a file, which begins anew when it is 1 MiB large; to what is
// no regular file it writes without a bound.
func Messages(f *os.File) io.Writer { return messages{f} }

type messages struct{ *os.File }

func (m messages) Write(text []byte) (int, error) {
	if info, err := m.Stat(); err == nil && info.Mode().IsRegular() && info.Size()+int64(len(text)) > maxMessages {
		if err := m.Truncate(0); err != nil {
			return 0, err
		}
	}
	return m.File.Write(text)
}

// seldom keeps what goes wrong all the time from being all that is said.
type seldom struct {
	next  time.Duration
	times int
}

// again notes that something has gone wrong once more. It returns how often that
// was since it was said last, and 0 when it is too early to say it again.
func (s *seldom) again(now time.Duration) (times int) {
	s.times++
	if now < s.next {
		return 0
	}
	times = s.times
	s.times, s.next = 0, now+sayAgain
	return times
}
