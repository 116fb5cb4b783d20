// Command stub is what a stub image has under the name of every command that
// manifests call. The first process of a container becomes the program that
// serves; every other one, such as an exec probe or a hook, succeeds at once. It
// is no part of the product.
//
// Probes run within their container's limits, and manifests allow as little as a
// hundredth of a cpu and a second: so it does next to nothing.
package main

import (
	"os"
	"strconv"
	"syscall"

	"github.com/tallyman-dev/tallyman/test/corpus/stacks/plan"
)

func main() {
	if !first() {
		return
	}
	err := syscall.Exec(plan.Server, os.Args, os.Environ())
	os.Stderr.WriteString("stub: " + plan.Server + ": " + err.Error() + "\n")
	os.Exit(1)
}

// first reports whether this is the first process of its container: that has
// number 1, or another root than number 1, in the process namespace of a pod or
// of the machine. Then a socket's name tells, which only the first can take.
func first() bool {
	if os.Getpid() == 1 {
		return true
	}
	var own, one syscall.Stat_t
	if syscall.Stat("/", &own) != nil {
		return false
	}
	if syscall.Stat("/proc/1/root/", &one) == nil && one.Dev == own.Dev && one.Ino == own.Ino {
		return false
	}
	return take("stub-" + strconv.FormatUint(own.Dev, 16))
}

// take binds an abstract socket for as long as the process lives, whatever
// program it becomes. Where that cannot be asked, nobody has it.
func take(name string) bool {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return true
	}
	return syscall.Bind(fd, &syscall.SockaddrUnix{Name: "@" + name}) != syscall.EADDRINUSE
}
