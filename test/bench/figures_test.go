//go:build e2e

package bench

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// figure is one entry of build/bench.json. Value, Bar and Yardstick are in Unit.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Bar is what Value should reach; nil for a figure that is only told.
	Bar *float64 `json:"bar"`
	// Better is "lower" or "higher".
	Better string `json:"better"`
	// Yardstick is what something plain took in the same run, Ratio is Value to
	// it; nil when there is nothing to compare with.
	Yardstick *float64 `json:"yardstick"`
	Ratio     *float64 `json:"ratio"`
}

// met tells whether the bar is reached.
func (f figure) met() bool {
	if f.Bar == nil {
		return true
	}
	if f.Better == "higher" {
		return f.Value >= *f.Bar
	}
	return f.Value <= *f.Bar
}

// lower makes a figure that should not exceed its bar.
func lower(name string, value float64, unit string, bar float64) figure {
	return figure{Name: name, Value: value, Unit: unit, Bar: &bar, Better: "lower"}
}

// higher makes a figure that should reach its bar.
func higher(name string, value float64, unit string, bar float64) figure {
	return figure{Name: name, Value: value, Unit: unit, Bar: &bar, Better: "higher"}
}

// told makes a figure without a bar.
func told(name string, value float64, unit string) figure {
	return figure{Name: name, Value: value, Unit: unit, Better: "lower"}
}

// beside adds what the yardstick took.
func (f figure) beside(yardstick float64) figure {
	ratio := f.Value / yardstick
	f.Yardstick, f.Ratio = &yardstick, &ratio
	return f
}

// figures of one run, in the order they were measured.
type figures struct{ list []figure }

func (all *figures) add(t *testing.T, f figure) {
	t.Helper()
	all.list = append(all.list, f)
	t.Logf("%s: %.4g %s", f.Name, f.Value, f.Unit)
}

// write puts the figures into build/bench.json and prints them as a table. Those
// of a part of the benchmarks take the place of earlier ones of the same names.
func (all *figures) write(t *testing.T) {
	t.Helper()
	path := filepath.Join(machine.Root(t), "build", "bench.json")
	var list []figure
	if part := strings.Contains(flag.Lookup("test.run").Value.String(), "/"); part {
		list = earlier(t, path)
	}
	for _, f := range all.list {
		if i := slices.IndexFunc(list, func(o figure) bool { return o.Name == f.Name }); i >= 0 {
			list[i] = f
		} else {
			list = append(list, f)
		}
	}
	content, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(content, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s:\n%s", path, table(list))
}

func earlier(t *testing.T, path string) []figure {
	t.Helper()
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var list []figure
	if err == nil {
		err = json.Unmarshal(content, &list)
	}
	if err != nil {
		t.Fatalf("%s: %v; remove it", path, err)
	}
	return list
}

func table(list []figure) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "figure\tvalue\tbar\tyardstick\tratio\tmet\t")
	for _, f := range list {
		met := "yes"
		if !f.met() {
			met = "NO"
		}
		if f.Bar == nil {
			met = ""
		}
		fmt.Fprintf(w, "%s\t%.4g %s\t%s\t%s\t%s\t%s\t\n", f.Name, f.Value, f.Unit, number(f.Bar), number(f.Yardstick), number(f.Ratio), met)
	}
	w.Flush()
	return b.String()
}

func number(n *float64) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("%.4g", *n)
}

// median of measurements; they are shown, too.
func median(t *testing.T, what string, all []time.Duration) time.Duration {
	t.Helper()
	sorted := slices.Sorted(slices.Values(all))
	t.Logf("%s: median %s of %v", what, round(sorted[len(sorted)/2]), rounded(all))
	return sorted[len(sorted)/2]
}

func medianOf(all []float64) float64 { return slices.Sorted(slices.Values(all))[len(all)/2] }

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func rounded(all []time.Duration) []time.Duration {
	out := make([]time.Duration, len(all))
	for i, d := range all {
		out[i] = round(d)
	}
	return out
}
