// Command serve stands in for the programs of images that nobody here has: it
// listens where manifests say that the image does, answers HTTP with 200 and
// gRPC health checks with SERVING, accepts TCP and sends UDP back, until it is
// asked to end, unless the plan lists its command line as one that ends by
// itself (init containers and Jobs). It is no part of the product.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tallyman-dev/tallyman/test/corpus/stacks/plan"
)

func main() {
	p, err := read()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stub:", err)
		os.Exit(1)
	}
	host, err := os.Hostname()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stub:", err)
		os.Exit(1)
	}
	if p.Ends(os.Args, host) {
		if err := give(p.Gives); err != nil {
			fmt.Fprintln(os.Stderr, "stub:", err)
			os.Exit(1)
		}
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

// read gives the plan of the image that this process runs in.
func read() (*plan.Plan, error) {
	text, err := os.ReadFile(plan.Path)
	if err != nil {
		return nil, err
	}
	p := &plan.Plan{}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("%s: %w", plan.Path, err)
	}
	return p, nil
}

// give puts the stub into the volumes of this container under the names by which
// others call it.
func give(programs []string) error {
	for _, to := range programs {
		if _, err := os.Stat(filepath.Dir(to)); errors.Is(err, fs.ErrNotExist) {
			continue // a volume of another container
		}
		text, err := os.ReadFile(plan.Program)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, text, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// report tells why a port is not served. Two containers of one pod may both
// have been given it: then the first one answers.
func report(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "stub:", err)
	}
}
