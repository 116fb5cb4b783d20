package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/client"
	"github.com/tallyman-dev/tallyman/status/report"
)

// connection says how a client command finds the server.
type connection struct {
	runDir    string
	server    string
	tokenFile string
}

func (c *connection) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.runDir, "run-dir", "/run/tallyman", "run directory of the local server")
	f.StringVar(&c.server, "server", "", "address of a server elsewhere, e.g. https://host:7480")
	f.StringVar(&c.tokenFile, "token-file", "", "file with that server's token")
}

func (c *connection) open() (*client.Client, error) {
	if c.server == "" {
		i := instance{runDir: c.runDir}
		return client.New(client.Options{Socket: i.socket()})
	}
	if c.tokenFile == "" {
		return nil, usageError{errors.New("--server wants --token-file")}
	}
	token, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("--token-file: %w", err)
	}
	return client.New(client.Options{URL: c.server, Token: string(bytes.TrimSpace(token))})
}

func newStatus(s streams) *cobra.Command {
	var c connection
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what runs against what should",
		Long:  "Show what runs against what should. Exit code 3 when something is not healthy.",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			overview, err := c.overview(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				err = printJSON(s, overview)
			} else {
				_, err = io.WriteString(s.out, report.Status(overview, time.Now()))
			}
			if err == nil && !report.Healthy(overview) {
				err = errFindings
			}
			return err
		},
	}
	c.addFlags(cmd)
	addOutput(cmd, &output)
	return cmd
}

func newHistory(s streams) *cobra.Command {
	var c connection
	var output string
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Show recent revisions, their outcome, when and who",
		Args:  usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			overview, err := c.overview(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(s, overview.History)
			}
			_, err = io.WriteString(s.out, report.History(overview.History, time.Now()))
			return err
		},
	}
	c.addFlags(cmd)
	addOutput(cmd, &output)
	return cmd
}

func (c *connection) overview(ctx context.Context) (*nodes.Overview, error) {
	api, err := c.open()
	if err != nil {
		return nil, err
	}
	return api.Overview(ctx)
}

type waitOptions struct {
	connection
	commit  string
	timeout time.Duration
}

func newWait(s streams) *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "wait --commit SHA",
		Short: "Wait until a revision is converged and healthy, or has failed",
		Long: "Wait until a revision is converged and healthy (exit code 0), or has failed, was refused, is held or\n" +
			"superseded, or the time is over (exit code 3).",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runWait(cmd.Context(), s, o) },
	}
	o.addFlags(cmd)
	cmd.Flags().StringVar(&o.commit, "commit", "", "commit id, or the beginning of one (at least 7 digits)")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 5*time.Minute, "how long to wait")
	return cmd
}

// errDone ends a watch.
var errDone = errors.New("done")

func runWait(ctx context.Context, s streams, o waitOptions) error {
	if len(o.commit) < 7 {
		return usageError{errors.New("--commit wants a commit id, or at least its first 7 digits")}
	}
	api, err := o.open()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	fate := report.Fate{Message: "the server has not answered yet"}
	err = api.Watch(ctx, func(overview *nodes.Overview) error {
		fate = report.FateOf(overview, strings.ToLower(o.commit))
		if fate.Done {
			return errDone
		}
		return nil
	})
	switch {
	case fate.Done && fate.Good:
		fmt.Fprintln(s.err, fate.Message)
		return nil
	case fate.Done:
		fmt.Fprintln(s.err, fate.Message)
		return errFindings
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		fmt.Fprintf(s.err, "not after %s: %s\n", o.timeout, fate.Message)
		return errFindings
	}
	return err
}

type logsOptions struct {
	connection
	query client.LogQuery
	since time.Duration
}

func newLogs(s streams) *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs POD",
		Short: "Print a pod's output",
		Long:  "Print a pod's output. POD may be written as NAMESPACE/NAME.",
		Args:  usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.query.Pod = args[0]
			if namespace, name, found := strings.Cut(args[0], "/"); found {
				o.query.Namespace, o.query.Pod = namespace, name
			}
			if o.since > 0 {
				o.query.Since = time.Now().Add(-o.since)
			}
			return runLogs(cmd.Context(), s, o)
		},
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVarP(&o.query.Namespace, "namespace", "n", "default", "namespace of the pod")
	f.StringVarP(&o.query.Container, "container", "c", "", "container, when the pod has several")
	f.BoolVarP(&o.query.Follow, "follow", "f", false, "go on until the container has ended")
	f.BoolVarP(&o.query.Previous, "previous", "p", false, "the run before the current one")
	f.BoolVar(&o.query.Timestamps, "timestamps", false, "put the time before each line")
	f.IntVar(&o.query.Tail, "tail", -1, "begin with this many lines from the end; negative: all")
	f.DurationVar(&o.since, "since", 0, "leave out lines older than this")
	return cmd
}

func runLogs(ctx context.Context, s streams, o logsOptions) error {
	api, err := o.open()
	if err != nil {
		return err
	}
	log, err := api.Logs(ctx, o.query)
	if err != nil {
		return err
	}
	defer log.Close()
	if _, err = io.Copy(s.out, log); ctx.Err() != nil {
		return nil // the reader left
	}
	return err
}
