// Command demo runs a cluster on this machine and deploys examples-repo to it
// by a git push, then says what to try. "demo start" is make demo, "demo stop"
// is make demo-stop, which leaves nothing behind.
//
// Everything it starts is its own: a containerd, a registry and a tally with
// directories below build/demo and /run/tallyman-demo. It makes no change to
// services of the machine.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// Addresses of the demo, all on loopback.
const (
	registryAddress = "127.0.0.1:7490"
	pageAddress     = "127.0.0.1:7480"
)

// demo knows where everything is.
type demo struct {
	source string // the root of the sources
	dir    string // build/demo: data, logs, the clone
	run    string // sockets and mounts: short, for a socket's path is at most 107 bytes
	tally  string // the built binary
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	d, err := newDemo()
	if err != nil {
		return err
	}
	if len(args) != 1 {
		return fmt.Errorf("usage: demo start|stop")
	}
	switch args[0] {
	case "start":
		return d.start(ctx)
	case "stop":
		return d.stop(ctx)
	}
	return fmt.Errorf("usage: demo start|stop")
}

func newDemo() (*demo, error) {
	source, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(source, "examples-repo")); err != nil {
		return nil, fmt.Errorf("run this from the root of the sources, by make demo: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("containers, network and iptables need root: run sudo make demo")
	}
	return &demo{
		source: source,
		dir:    filepath.Join(source, "build", "demo"),
		run:    "/run/tallyman-demo",
		tally:  filepath.Join(source, "build", "tally"),
	}, nil
}

func (d *demo) start(ctx context.Context) error {
	if err := d.stop(ctx); err != nil {
		return fmt.Errorf("clear an earlier demo: %w", err)
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"check that the addresses are free", d.checkAddresses},
		{"start containerd", d.startContainerd},
		{"start a registry on " + registryAddress, d.startRegistry},
		{"build the example program into an image and push it to the registry", d.pushImages},
		{"start tally up", d.startTally},
		{"make a repository from examples-repo and push it", d.push},
		{"wait until all is healthy", d.wait},
		{"fetch every service", d.fetchAll},
	} {
		fmt.Printf("── %s\n", step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w\nLogs are in %s; make demo-stop clears everything", step.what, err, d.dir)
		}
	}
	return d.explain()
}

func (d *demo) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

func (d *demo) socket(name string) string { return filepath.Join(d.run, name) }

// tallyArgs are the flags that every command of the demo's instance needs.
func (d *demo) tallyArgs(command string, more ...string) []string {
	args := []string{command, "--data-dir", d.path("data"), "--run-dir", d.socket("tally")}
	return append(args, more...)
}
