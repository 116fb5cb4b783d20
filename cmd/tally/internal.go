package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tallyman-dev/tallyman/nodes/keeper"
	"github.com/tallyman-dev/tallyman/sync/remote"
)

// newGitCredential makes the command that git asks for the token.
func newGitCredential(s streams) *cobra.Command {
	var i instance
	var hosts []string
	cmd := &cobra.Command{
		Use:   "git-credential get|store|erase",
		Short: "Give git the access token of the server on this machine",
		Long: "Give git the access token of the server on this machine. Tell git to ask:\n" +
			"  git config --global credential.http://127.0.0.1:7480.helper '!tally git-credential'",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return remote.CredentialHelper(args[0], bufio.NewReader(s.in), s.out, remote.CredentialOptions{TokenFile: i.token(), Hosts: hosts})
		},
	}
	cmd.Flags().StringVar(&i.runDir, "run-dir", "/run/tallyman", "run directory of the local server")
	cmd.Flags().StringSliceVar(&hosts, "host", []string{"127.0.0.1:7480", "localhost:7480", "[::1]:7480"}, "hosts that the token is for, with port")
	return cmd
}

// newHook makes the command that the embedded remote's hooks run.
func newHook(s streams) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:    "hook NAME",
		Short:  "Run by the hooks of the embedded remote",
		Hidden: true,
		Args:   usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			code := remote.RunHook(cmd.Context(), args[0], remote.HookOptions{
				Socket: socket, Stdin: s.in, Stdout: s.out, Stderr: s.err, Environ: os.Environ(),
			})
			if code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "", "socket of the server")
	return cmd
}

// newKeeper makes the command that the agent starts and that outlives it.
func newKeeper(streams) *cobra.Command {
	var i instance
	var watchdog string
	cmd := &cobra.Command{
		Use:    "keeper",
		Short:  "Hold log pipes, serve names and end fenced pods while the agent is away; started by the agent",
		Hidden: true,
		Args:   usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := i.loggerTo(keeper.Messages(os.Stderr))
			if err != nil {
				return err
			}
			if err := i.absolute(); err != nil {
				return err
			}
			if err := keeper.Run(cmd.Context(), keeper.Options{RunDir: i.runDir, Watchdog: watchdog, Log: log}); err != nil {
				return fmt.Errorf("keeper: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&watchdog, "watchdog", "", "device to hold while pods are fenced")
	i.addFlags(cmd.Flags())
	return cmd
}

// newPause makes the first process of a pod whose containers share their
// processes: it waits, and reaps what is orphaned.
func newPause(streams) *cobra.Command {
	return &cobra.Command{
		Use:    "pause",
		Short:  "Hold a shared process namespace; started by the agent",
		Hidden: true,
		Args:   usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			children := make(chan os.Signal, 1)
			signal.Notify(children, syscall.SIGCHLD)
			for {
				select {
				case <-cmd.Context().Done():
					return nil
				case <-children:
					for {
						if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
							break
						}
					}
				}
			}
		},
	}
}
