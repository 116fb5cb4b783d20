package stacks

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Result is what became of one stack.
type Result struct {
	Name string
	// Took is the time from the first push to the end, whole tenths of a second.
	Took time.Duration
	// Failed is the step that did not succeed: "push", "converge", "second look",
	// "services" or "removal"; empty when all went well.
	Failed string
	// Reason is one line.
	Reason string
	// Kubernetes is why it would fail in Kubernetes too, on this machine; empty
	// when it would not.
	Kubernetes string
}

// source is the part of the corpus that a stack comes from.
func (r Result) source() string {
	source, _, _ := strings.Cut(r.Name, "/")
	return source
}

// String gives one line.
func (r Result) String() string {
	switch {
	case r.Failed == "":
		return r.Name + ": converged"
	case r.Kubernetes != "":
		return fmt.Sprintf("%s: %s: %s (in Kubernetes too: %s)", r.Name, r.Failed, r.Reason, r.Kubernetes)
	}
	return fmt.Sprintf("%s: %s: %s", r.Name, r.Failed, r.Reason)
}

// Summary tells how many converged, and each reason of the others.
func Summary(results []Result) string {
	var b strings.Builder
	c := count(results)
	for _, r := range results {
		if r.Failed != "" {
			fmt.Fprintf(&b, "%s\n", r)
		}
	}
	fmt.Fprintf(&b, "%d of %d stacks converged, %d cannot in Kubernetes either, in %s", c.converged, c.all, c.excused, c.took.Round(time.Second))
	return b.String()
}

// tally counts results.
type tally struct {
	all, converged, excused int
	took                    time.Duration
}

func count(results []Result) tally {
	var t tally
	for _, r := range results {
		t.all++
		t.took += r.Took
		switch {
		case r.Failed == "":
			t.converged++
		case r.Kubernetes != "":
			t.excused++
		}
	}
	return t
}

// heading of the table in which results are kept.
var heading = []string{"directory", "seconds", "failed", "reason", "in Kubernetes too"}

// Write keeps results as a table of tab-separated values.
func Write(path string, results []Result) error {
	rows := [][]string{heading}
	for _, r := range results {
		rows = append(rows, []string{r.Name, strconv.FormatFloat(r.Took.Seconds(), 'f', 1, 64), r.Failed, r.Reason, r.Kubernetes})
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	defer file.Close()
	table := csv.NewWriter(file)
	table.Comma = '\t'
	if err := table.WriteAll(rows); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}

// ReadResults reads what Write kept, nothing where it never did.
func ReadResults(path string) ([]Result, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read earlier results: %w", err)
	}
	defer file.Close()
	table := csv.NewReader(file)
	table.Comma, table.FieldsPerRecord = '\t', len(heading)
	rows, err := table.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read earlier results: %w", err)
	}
	var results []Result
	for _, row := range rows[min(1, len(rows)):] {
		took, err := strconv.ParseFloat(row[1], 64)
		if err != nil {
			return nil, fmt.Errorf("read earlier results: %s: %w", row[0], err)
		}
		results = append(results, Result{Name: row[0], Took: time.Duration(took * float64(time.Second)), Failed: row[2], Reason: row[3], Kubernetes: row[4]})
	}
	return results, nil
}

// Part is one of several runs that together try all stacks, one after the other.
type Part struct{ Number, Of int }

// ParsePart reads "2/8", the second of eight; empty is the only one.
func ParsePart(text string) (Part, error) {
	if text == "" {
		return Part{1, 1}, nil
	}
	number, of, _ := strings.Cut(text, "/")
	n, err1 := strconv.Atoi(number)
	m, err2 := strconv.Atoi(of)
	if err1 != nil || err2 != nil || n < 1 || n > m {
		return Part{}, fmt.Errorf("%q is no part: write 2/8 for the second of eight", text)
	}
	return Part{n, m}, nil
}

// of takes the stacks of the part.
func (p Part) of(all []*Stack) []*Stack {
	return all[len(all)*(p.Number-1)/p.Of : len(all)*p.Number/p.Of]
}

// Merge puts newer results in the place of older ones, in the order of all stacks.
// It leaves out stacks that there are no more.
func Merge(all []*Stack, older, newer []Result) []Result {
	known := map[string]Result{}
	for _, r := range slices.Concat(older, newer) {
		known[r.Name] = r
	}
	var merged []Result
	for _, s := range all {
		if r, ok := known[s.Name]; ok {
			merged = append(merged, r)
		}
	}
	return merged
}
