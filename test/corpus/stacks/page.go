package stacks

import (
	"fmt"
	"os"
	"strings"

	"github.com/tallyman-dev/tallyman/desired/manifest"
)

const (
	pageBegin = "<!-- whole applications -->\n"
	pageEnd   = "<!-- end of whole applications -->\n"
)

// section is what the manual says about the results.
func section(results []Result) string {
	var b strings.Builder
	converged := 0
	for _, r := range results {
		if r.Failed == "" {
			converged++
		}
	}
	b.WriteString(pageBegin)
	fmt.Fprintf(&b, "\n### Whole applications\n\n%d directories, each pushed as it is to a machine of its own on real containers, with one stub program in place of all\n"+
		"images: it must converge, its services must answer through address and name, the same commit again must change nothing, and\n"+
		"removing it, confirmed to the guard, must leave nothing. The node claims %s.\n", len(results), "`"+Capacity+"`")
	fmt.Fprintf(&b, "Directories that write one object several times are pushed in several revisions.\n\n"+
		"**%d of %d converge** (%.1f %%).\n", converged, len(results), 100*float64(converged)/float64(max(1, len(results))))
	if converged < len(results) {
		b.WriteString("\n| directory | step | reason |\n|---|---|---|\n")
		for _, r := range results {
			if r.Failed != "" {
				fmt.Fprintf(&b, "| %s | %s | %s |\n", r.Name, r.Failed, cell(r.Reason))
			}
		}
	}
	b.WriteString("\n" + pageEnd)
	return b.String()
}

// cell is text that fits into a table: one line, not too long.
func cell(text string) string {
	text = strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "`", "'").Replace(text)
	if letters := []rune(text); len(letters) > 300 {
		text = string(letters[:299]) + "…"
	}
	return text
}

// WritePage puts the results at the end of the page's section on other people's
// manifests, in the place of earlier ones.
func WritePage(page string, results []Result) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	before, after, ok := strings.Cut(string(text), manifest.TriedEnd)
	if !ok {
		return fmt.Errorf("write the results: %s has no place for them: run go generate ./desired/manifest", page)
	}
	if old, rest, had := strings.Cut(before, pageBegin); had {
		_, rest, _ = strings.Cut(rest, pageEnd)
		before = old + rest
	}
	whole := before + section(results) + manifest.TriedEnd + after
	if err := os.WriteFile(page, []byte(whole), 0o644); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}
