// Command stub stands in for the programs of images that nobody here has: it
// listens where manifests say that the image does, answers HTTP with 200 and
// gRPC health checks with SERVING, accepts TCP, sends UDP back, and is found
// under the name of every command that manifests call. It is no part of the
// product.
//
// The first process of a container serves until it is asked to end, unless the
// plan lists its command line as one that ends by itself (init containers and
// Jobs); every other process, such as an exec probe, succeeds at once.
package main

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tallyman-dev/tallyman/test/corpus/stacks/plan"
)

func main() {
	if !first() {
		return
	}
	p, err := plan.Read()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stub:", err)
		os.Exit(1)
	}
	if p.Ends(os.Args) {
		fmt.Println("stub: done:", strings.Join(os.Args, " "))
		return
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGWINCH)
	for _, port := range p.TCP {
		go func() { report(serveTCP(port)) }()
	}
	for _, port := range p.UDP {
		go func() { report(serveUDP(port)) }()
	}
	fmt.Println("stub: serving", p.TCP, p.UDP, "as", strings.Join(os.Args, " "))
	<-asked
}

// report tells why a port is not served. Two containers of one pod may both
// have been given it: then the first one answers.
func report(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "stub:", err)
	}
}

// first reports whether this is the first process of its container. Where the
// pod shares its process namespace, a socket's name tells, which only the first
// can take: it is that of the container's own root file system.
func first() bool {
	if os.Getpid() == 1 {
		return true
	}
	if exe, err := os.Readlink("/proc/1/exe"); err == nil && exe == plan.Program {
		return false
	}
	l, err := net.Listen("unix", "@stub-"+container())
	if errors.Is(err, syscall.EADDRINUSE) {
		return false
	}
	keep = l
	return true
}

// keep holds the name for as long as the process lives.
var keep net.Listener

// container names this container by the mount of its root.
func container() string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Sprint(os.Getpid())
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == "/" {
			h := fnv.New64a()
			h.Write([]byte(fields[len(fields)-1]))
			return fmt.Sprintf("%x", h.Sum64())
		}
	}
	return fmt.Sprint(os.Getpid())
}
