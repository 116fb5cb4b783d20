package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/desired/manifest"
)

type validateOptions struct {
	root   string
	path   string
	output string
}

func newValidate(s streams) *cobra.Command {
	var o validateOptions
	cmd := &cobra.Command{
		Use:   "validate PATH",
		Short: "Check a working tree offline",
		Long: "Check a working tree as a push of it would be checked, without a server.\n" +
			"Exit code 3 when a problem of severity error is found; warnings alone are 0.",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.root = args[0]
			return runValidate(cmd.Context(), s, o)
		},
	}
	cmd.Flags().StringVar(&o.path, "path", ".", "folder below PATH that is followed; kustomizations may reach outside of it")
	addOutput(cmd, &o.output)
	return cmd
}

// runValidate reads the tree below o.root and prints every problem.
func runValidate(ctx context.Context, s streams, o validateOptions) error {
	if err := checkOutput(o.output); err != nil {
		return err
	}
	info, err := os.Stat(o.root)
	if err != nil {
		return usageError{err}
	}
	if !info.IsDir() {
		o.path = filepath.Base(o.root)
		o.root = filepath.Dir(o.root)
	}
	// A root keeps symbolic links from leading out of the tree.
	root, err := os.OpenRoot(o.root)
	if err != nil {
		return err
	}
	defer root.Close()
	result, err := manifest.NewLoader().Validate(ctx, root.FS(), manifest.LoadOptions{Path: o.path})
	if err != nil {
		return fmt.Errorf("read %s: %w", o.root, err)
	}
	if err := printResult(s, o.output, result); err != nil {
		return err
	}
	if desired.Rejected(result.Problems) {
		return errFindings
	}
	return nil
}

func printResult(s streams, output string, r manifest.Result) error {
	if output == "json" {
		return printJSON(s, r)
	}
	for _, p := range desired.Fold(r.Problems) {
		fmt.Fprintf(s.out, "%s: %s\n", p.Severity, p)
	}
	if desired.Rejected(r.Problems) {
		fmt.Fprintln(s.err, "a push of this would be refused")
		return nil
	}
	fmt.Fprintf(s.err, "%d objects, fit to push\n", r.Objects)
	return nil
}

// addOutput adds the flag -o to a command that prints data.
func addOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "text", "text or json")
}

func checkOutput(output string) error {
	if output != "text" && output != "json" {
		return usageError{fmt.Errorf("-o %q: want text or json", output)}
	}
	return nil
}

func printJSON(s streams, value any) error {
	encoder := json.NewEncoder(s.out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}
