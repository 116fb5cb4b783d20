package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/tallyman-dev/tallyman/nodes/trim"
)

// upOptions are the flags of tally up: a server's and an agent's.
type upOptions struct {
	instance
	server serverOptions
	node   nodeOptions
}

func newUp(s streams) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run server and agent on this machine",
		Long: "Run server and agent in one process on this machine: follow the repository and make the machine agree with it.\n" +
			"Without --repo the embedded remote is followed: push to http://<--http>/repo.git or to <data-dir>/repo.git.\n" +
			"With --listen other machines may join (tally token create, tally agent), and this one is the first of a cluster.\n" +
			"Every flag also reads TALLY_<NAME> from the environment.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runUp(cmd.Context(), s, o) },
	}
	o.instance.addFlags(cmd.Flags())
	o.server.addFlags(cmd.Flags(), "")
	o.node.addFlags(cmd.Flags())
	return cmd
}

// check finds what is wrong with the flags before anything starts.
func (o *upOptions) check() error {
	if err := o.server.check(); err != nil {
		return err
	}
	if err := o.node.check("up"); err != nil {
		return err
	}
	return o.absolute()
}

// runUp starts the server, then the agent, and ends both when either fails or
// ctx does. Containers, routes and the keeper stay.
func runUp(ctx context.Context, s streams, o upOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	return o.hold(ctx, func(log *slog.Logger) error {
		if isAgent(o.dataDir) {
			return fmt.Errorf("this machine is an agent of a cluster (%s): run tally agent, or tally reset and remove that file", agentKeyFile(o.dataDir))
		}
		key, err := openKey(o.dataDir)
		if err != nil {
			return err
		}
		store, err := key.derive("agent store")
		if err != nil {
			return err
		}
		server, err := newServer(o.instance, o.server, o.node.name, key, log)
		if err != nil {
			return err
		}
		defer server.close()
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return server.run(ctx) })
		group.Go(func() error { return runNode(ctx, o.instance, o.node, store, localLink(server.agentSocket), log) })
		fmt.Fprintf(s.err, "The page is at %s\n", server.link())
		return group.Wait()
	})
}

// hold runs f while the instance's directories are there and locked, and gives
// memory back meanwhile.
func (i *instance) hold(ctx context.Context, f func(log *slog.Logger) error) error {
	log, err := i.logger()
	if err != nil {
		return err
	}
	if err := i.makeDirs(); err != nil {
		return err
	}
	lock, err := i.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	ctx, cancel := context.WithCancel(ctx)
	var trimming sync.WaitGroup
	trimming.Go(func() { trim.Run(ctx) })
	defer trimming.Wait()
	defer cancel()
	return f(log)
}

// runNode runs an agent, and another one when addresses changed.
func runNode(ctx context.Context, i instance, o nodeOptions, store []byte, l *link, log *slog.Logger) error {
	for {
		node, err := newNode(ctx, i, o, store, log)
		if err != nil {
			return err
		}
		err = node.run(ctx, l)
		node.close()
		if !errors.Is(err, errNetworkChanged) {
			return err
		}
	}
}

// needsRoot refuses a command that changes the machine.
func needsRoot(command string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return errors.New("tally " + command + " makes containers, network and iptables rules: run it as root")
}
