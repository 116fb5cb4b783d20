package keeper

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inheritEnv names the descriptors that a keeper hands to the binary that
// takes its place: the listening socket, then the log pipes and the sockets at
// which names are served.
const inheritEnv = "TALLY_KEEPER_INHERIT"

// replacement is a binary to execute in this process's place.
type replacement struct {
	Path string   `json:"path"`
	Args []string `json:"args"`
}

// inheritance is what a predecessor in the same process left open. The pipes
// are only held until they have been opened anew, so that nothing in them is lost.
type inheritance struct {
	listener *os.File
	pipes    []*os.File
	names    []*os.File
}

// inheritedFiles takes over what the environment names, once.
func inheritedFiles() inheritance {
	var in inheritance
	for i, text := range strings.Split(os.Getenv(inheritEnv), ",") {
		fd, err := strconv.Atoi(text)
		if err != nil {
			continue
		}
		unix.CloseOnExec(fd)
		file := os.NewFile(uintptr(fd), "inherited")
		switch {
		case i == 0:
			in.listener = file
		case isSocket(fd):
			in.names = append(in.names, file)
		default:
			in.pipes = append(in.pipes, file)
		}
	}
	_ = os.Unsetenv(inheritEnv)
	return in
}

func isSocket(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// close closes all but the sockets for names, which are somebody else's.
func (in inheritance) close() {
	if in.listener != nil {
		in.listener.Close()
	}
	for _, pipe := range in.pipes {
		pipe.Close()
	}
}

// succeed has Run end and execute another binary, once no log is being written.
// A disk that hangs may keep one waiting for any time; until it is over all else
// goes on. Executed meanwhile, the kernel would end the threads that guard the
// fences, and wait for the one that hangs. The newest binary asked for counts.
func (s *server) succeed(next replacement) {
	if s.next.Swap(&next) != nil {
		return // the logs are being ended
	}
	go func() {
		s.halted <- s.logs.halt()
		s.end()
	}()
}

// execute puts another binary in this process's place. It returns only when
// that could not be done; the process ends then, and the agent starts another.
// Fences are guarded until the last instant.
func (s *server) execute(next replacement, listener *net.UnixListener) error {
	socket, err := listener.File()
	if err != nil {
		return fmt.Errorf("keeper: hand over the socket: %w", err)
	}
	var fds []string
	for _, file := range slices.Concat([]*os.File{socket}, <-s.halted, s.dns.Sockets()) {
		if _, err := unix.FcntlInt(file.Fd(), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keeper: hand over a descriptor: %w", err)
		}
		fds = append(fds, strconv.Itoa(int(file.Fd())))
	}
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, inheritEnv+"=") })
	env = append(env, inheritEnv+"="+strings.Join(fds, ","))
	s.log.Info("keeper hands over to another binary", "path", next.Path)
	err = s.fences.between(func() error { return unix.Exec(next.Path, next.Args, env) })
	return fmt.Errorf("keeper: execute %s: %w", next.Path, err)
}

// identity tells binaries apart: the same file, unchanged, has the same one.
func identity(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	return fmt.Sprintf("%d:%d:%d:%d", st.Dev, st.Ino, st.Size, st.Mtim.Nano()), nil
}
