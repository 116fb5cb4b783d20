package stacks

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Result is what became of one stack.
type Result struct {
	Name string
	// Revisions is in how many steps it was pushed.
	Revisions int
	// Failed is the step that did not succeed: "push", "converge", "second look",
	// "services" or "removal"; empty when all went well.
	Failed string
	// Reason is one line.
	Reason string
}

// String gives one line.
func (r Result) String() string {
	if r.Failed == "" {
		return r.Name + ": converged"
	}
	return fmt.Sprintf("%s: %s: %s", r.Name, r.Failed, r.Reason)
}

// Summary tells how many converged, and each reason of the others.
func Summary(results []Result) string {
	var b strings.Builder
	converged := 0
	for _, r := range results {
		if r.Failed == "" {
			converged++
		} else {
			fmt.Fprintf(&b, "%s\n", r)
		}
	}
	fmt.Fprintf(&b, "%d of %d stacks converged", converged, len(results))
	return b.String()
}

// Write keeps results as a table of tab-separated values.
func Write(path string, results []Result) error {
	var b strings.Builder
	b.WriteString("directory\tfailed\treason\n")
	for _, r := range results {
		fmt.Fprintf(&b, "%s\t%s\t%s\n", r.Name, r.Failed, strings.NewReplacer("\t", " ", "\n", " ").Replace(r.Reason))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}
