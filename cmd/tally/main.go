// Command tally is Tallyman's one binary: the server and the node agent, in one
// process (tally up) or apart, the keeper and the hooks that belong to them, and
// the commands that look at a running cluster. The package wires parts together
// and turns outcomes into exit codes; it decides nothing itself.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set at link time.
var version = "unknown"

// Exit codes are an outward contract.
const (
	exitFailed   = 1
	exitUsage    = 2
	exitFindings = 3
)

// errFindings ends a command with exit code 3: problems in the manifests, or a
// cluster that is not healthy. What was found is already on standard output.
var errFindings = errors.New("findings")

// usageError ends a command with exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// exitError ends a command with a code of its own and nothing more to say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// streams are a command's standard streams.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, streams{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, s streams, args []string) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var usage usageError
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFindings):
		return exitFindings
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintf(s.err, "tally: %v\nRun 'tally --help' for the commands.\n", err)
		return exitUsage
	}
	fmt.Fprintf(s.err, "tally: %v\n", err)
	return exitFailed
}

func newRoot(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:           "tally",
		Short:         "A Git repository says what runs; tally makes the machines agree with it",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return readEnvironment(cmd.Flags())
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newUp(s), newServerCommand(s), newAgentCommand(s), newToken(s), newKey(s), newReset(s),
		newValidate(s), newStatus(s), newWait(s), newHistory(s), newLogs(s),
		newVersion(s), newGitCredential(s), newHook(s), newKeeper(s), newPause(s),
	)
	return root
}

// readEnvironment gives every flag that the command line does not set its
// value from TALLY_<NAME>, e.g. TALLY_DATA_DIR for --data-dir.
func readEnvironment(flags *pflag.FlagSet) error {
	var problem error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "TALLY_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, set := os.LookupEnv(name)
		if f.Changed || !set || problem != nil {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			problem = usageError{fmt.Errorf("%s: %w", name, err)}
		}
	})
	return problem
}

// usage turns cobra's complaint about arguments into exit code 2.
func usage(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

func newVersion(s streams) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  usage(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintf(s.out, "tally %s\n", version)
			return nil
		},
	}
}
