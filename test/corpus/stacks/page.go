package stacks

import (
	"cmp"
	"fmt"
	"os"
	"slices"
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
	b.WriteString(pageBegin)
	fmt.Fprintf(&b, "\n### Whole applications\n\n%d directories, each pushed as it is to a machine of its own on real containers, with one stub program in place of all\n"+
		"images: it must converge, its services must answer through address and name, the same commit again must change nothing, and\n"+
		"removing it, confirmed to the guard, must leave nothing. The node claims %s.\n", len(results), "`"+Capacity+"`")
	b.WriteString("Directories that write one object several times are pushed in several revisions.\n\n" +
		"| source | directories | converge | cannot in Kubernetes either | others | converge |\n|---|---|---|---|---|---|\n")
	for _, source := range sources(results) {
		line(&b, source, slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return r.source() != source }))
	}
	line(&b, "**all**", results)
	writeFailed(&b, results)
	b.WriteString("\n" + pageEnd)
	return b.String()
}

func sources(results []Result) []string {
	var all []string
	for _, r := range results {
		all = append(all, r.source())
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func line(b *strings.Builder, name string, results []Result) {
	c := count(results)
	fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %.1f %% |\n", name, c.all, c.converged, c.excused, c.all-c.converged-c.excused, 100*float64(c.converged)/float64(max(1, c.all)))
}

func writeFailed(b *strings.Builder, results []Result) {
	if c := count(results); c.converged == c.all {
		return
	}
	b.WriteString("\nThose that do not converge. That Kubernetes would not bring one up either, on one node that is this machine, is looked up in its\n" +
		"manifests, for each of the objects that are not ready: more than one pod for a host port, required anti-affinity, profiles that the\n" +
		"node does not have, a claim whose selector fits no volume, a CSI driver that nobody brings, less cpu for a probe's\n" +
		"command than runc itself takes to run one. Of what is refused here, Kubernetes' own validation refuses the same, or its containers wait\n" +
		"for a Secret or ConfigMap that is not in the directory.\n\n" +
		"| directory | step | reason | in Kubernetes |\n|---|---|---|---|\n")
	for _, r := range results {
		if r.Failed != "" {
			fmt.Fprintf(b, "| %s | %s | %s | %s |\n", r.Name, r.Failed, cell(r.Reason), cmp.Or(cell(r.Kubernetes), "should converge"))
		}
	}
}

// cell is text that fits into a table: one line, not too long.
func cell(text string) string {
	text = strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;", "`", "'").Replace(text)
	if letters := []rune(text); len(letters) > 300 {
		text = string(letters[:299]) + "…"
	}
	return text
}

// Section is the one about results in a text; empty if there is none.
func Section(text string) string {
	_, rest, ok := strings.Cut(text, pageBegin)
	section, _, closed := strings.Cut(rest, pageEnd)
	if !ok || !closed {
		return ""
	}
	return pageBegin + section + pageEnd
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
	before = strings.Replace(before, Section(before), "", 1)
	whole := before + section(results) + manifest.TriedEnd + after
	if err := os.WriteFile(page, []byte(whole), 0o644); err != nil {
		return fmt.Errorf("write the results: %w", err)
	}
	return nil
}
