package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// clock is a time of day for the tally of one machine alone: its processes ask
// the kernel, the kernel asks the test. A namespace has the other clocks only,
// and the outer machine's time of day belongs to whoever works there.
type clock struct {
	// ahead of the outer machine's, in nanoseconds.
	ahead atomic.Int64
}

// OwnClock gives what StartTally starts from now on a time of day that SetClock
// sets; the clocks that leases go by are as before.
func (m *Machine) OwnClock() {
	m.c.t.Helper()
	if m.clock == nil {
		m.clock = &clock{}
	}
	m.Install(m.c.asking())
}

// SetClock sets the machine's time of day; see OwnClock.
func (m *Machine) SetClock(ahead time.Duration) { m.clock.ahead.Store(int64(ahead)) }

// asking is a tally that asks the kernel for the time. Go's programs read it from
// memory that the kernel maps, unless they do not find the function there.
func (c *Cluster) asking() string {
	c.t.Helper()
	if c.askingTally != "" {
		return c.askingTally
	}
	const function, noFunction = "__vdso_clock_gettime", "__none_clock_gettime"
	content, err := os.ReadFile(machine.Built(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	if !bytes.Contains(content, []byte(function)) {
		c.t.Fatalf("tally does not look for %s: it cannot be given a clock in this way any more", function)
	}
	path := filepath.Join(c.t.TempDir(), "tally")
	if err := os.WriteFile(path, bytes.ReplaceAll(content, []byte(function), []byte(noFunction)), 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.askingTally = path
	return path
}

// filter has the kernel ask about every question for the time of day of this
// thread and of what it starts. The thread must not be used for anything else.
func (k *clock) filter() error {
	const (
		number, firstArgument = 0, 16 // where they are in a system call's description
		load, equal, answer   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	)
	program := []unix.SockFilter{
		{Code: load, K: number},
		{Code: equal, K: unix.SYS_CLOCK_GETTIME, Jf: 3},
		{Code: load, K: firstArgument},
		{Code: equal, K: unix.CLOCK_REALTIME, Jf: 1},
		{Code: answer, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: answer, K: unix.SECCOMP_RET_ALLOW},
	}
	listener, _, code := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})))
	runtime.KeepAlive(program)
	if code != 0 {
		return fmt.Errorf("filter questions for the time: %w", code)
	}
	go k.serve(int(listener))
	return nil
}

// question and response are struct seccomp_notif and seccomp_notif_resp.
type question struct {
	id         uint64
	pid, flags uint32
	number     int32
	arch       uint32
	at         uint64
	args       [6]uint64
}

type response struct {
	id    uint64
	value int64
	code  int32
	flags uint32
}

// serve answers until nobody is left who could ask.
func (k *clock) serve(listener int) {
	defer unix.Close(listener)
	for {
		ready := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(ready, -1); errors.Is(err, unix.EINTR) {
			continue
		}
		if ready[0].Revents&unix.POLLIN == 0 {
			return
		}
		var q question
		if _, _, code := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&q))); code != 0 {
			continue // whoever asked was interrupted, and asks again
		}
		a := response{id: q.id, code: -k.tell(&q)}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a)))
	}
}

// tell writes the time to where the question wants it.
func (k *clock) tell(q *question) (code int32) {
	now := unix.NsecToTimespec(time.Now().UnixNano() + k.ahead.Load())
	size := int(unsafe.Sizeof(now))
	from := []unix.Iovec{{Base: (*byte)(unsafe.Pointer(&now))}}
	from[0].SetLen(size)
	to := []unix.RemoteIovec{{Base: uintptr(q.args[1]), Len: size}}
	if _, err := unix.ProcessVMWritev(int(q.pid), from, to, 0); err != nil {
		return int32(unix.EFAULT)
	}
	return 0
}
