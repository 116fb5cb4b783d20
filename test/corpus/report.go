package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// report holds everything that was tried.
type report struct {
	documents []outcome
	builds    []built
	fixtures  []fixture
}

// group says which bar a document falls under.
type group string

const (
	// current documents are of built-in kinds and accepted by Kubernetes.
	current group = "current"
	// unenforced are those of Ingress, IngressClass and NetworkPolicy among them.
	unenforced group = "unenforced"
	// removed documents are in API versions that Kubernetes has removed.
	removed group = "removed"
	// wrong documents are refused by Kubernetes.
	wrong group = "wrong"
	// custom documents are custom resources.
	custom group = "custom"
	// other documents are patches and tools' configuration, which nobody applies.
	other group = "other"
)

func (o outcome) group() group {
	switch {
	case o.category == "builtin-removed" || o.category == "builtin-prerelease":
		return removed
	case o.category == "crd":
		return custom
	case o.category != "builtin-ga":
		return other
	case !o.accepted():
		return wrong
	case slices.Contains([]string{"Ingress", "IngressClass", "NetworkPolicy"}, o.kind):
		return unenforced
	}
	return current
}

// tally counts the documents of one group and one source.
type tally struct{ total, works, noEffect, notEnforced, rejected, placed, sameField int }

func (c *tally) add(o outcome) {
	c.total++
	switch o.class {
	case works:
		c.works++
	case noEffect:
		c.noEffect++
	case notEnforced:
		c.notEnforced++
	case rejected:
		c.rejected++
	}
	if o.placed {
		c.placed++
	}
	if o.sameField {
		c.sameField++
	}
}

func (r report) count(keep func(outcome) bool) tally {
	var c tally
	for _, o := range r.documents {
		if keep(o) {
			c.add(o)
		}
	}
	return c
}

func (r report) sources() []string {
	set := map[string]bool{}
	for _, o := range r.documents {
		set[o.source()] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// section is what the manual says.
func (r report) section() string {
	var b strings.Builder
	b.WriteString(`
## Tried on other people's manifests

` + "`make corpus CORPUS=DIR`" + ` reads a collection of manifests that people have written
for Kubernetes, every document alone, and compares with what Kubernetes' own code
says of it. References to other objects, which a document that is read alone must
miss, are not counted. This section is what it wrote last.

`)
	r.writeAccepted(&b)
	r.writeRejected(&b)
	r.writeRest(&b)
	r.writeReasons(&b)
	r.writeBuilds(&b)
	return b.String()
}

func (r report) writeAccepted(b *strings.Builder) {
	b.WriteString("### Documents of built-in kinds that Kubernetes accepts\n\n")
	b.WriteString("| source | documents | accepted | of these with parts that have no effect | or are not enforced | rejected | accepted |\n|---|---|---|---|---|---|---|\n")
	line := func(name string, keep func(outcome) bool) {
		c := r.count(keep)
		fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %d | %s |\n", name, c.total, c.total-c.rejected, c.noEffect, c.notEnforced, c.rejected, percent(c.total-c.rejected, c.total))
	}
	for _, s := range r.sources() {
		line(s, func(o outcome) bool { return o.group() == current && o.source() == s })
	}
	line("**all**", func(o outcome) bool { return o.group() == current })
	b.WriteString("\nCounted apart:\n\n| | documents | accepted | rejected |\n|---|---|---|---|\n")
	for _, g := range []struct {
		name string
		of   group
	}{{"Ingress, IngressClass and NetworkPolicy, not enforced", unenforced}, {"API versions that Kubernetes has removed, converted or without effect", removed}} {
		c := r.count(func(o outcome) bool { return o.group() == g.of })
		fmt.Fprintf(b, "| %s | %d | %d | %d |\n", g.name, c.total, c.total-c.rejected, c.rejected)
	}
}

func (r report) writeRejected(b *strings.Builder) {
	b.WriteString("\n### Documents of built-in kinds that Kubernetes rejects\n\n")
	b.WriteString("| source | documents | rejected | with file, line and field | with the field that Kubernetes names | rejected |\n|---|---|---|---|---|---|\n")
	line := func(name string, keep func(outcome) bool) {
		c := r.count(keep)
		fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %s |\n", name, c.total, c.rejected, c.placed, c.sameField, percent(c.rejected, c.total))
	}
	for _, s := range r.sources() {
		line(s, func(o outcome) bool { return o.group() == wrong && o.source() == s })
	}
	line("**all**", func(o outcome) bool { return o.group() == wrong })
}

func (r report) writeRest(b *strings.Builder) {
	c := r.count(func(o outcome) bool { return o.group() == custom })
	d := r.count(func(o outcome) bool { return o.group() == other })
	fmt.Fprintf(b, "\nBesides, %d custom resources, of which %d lack nothing but their definition, which is another document, "+
		"and %d patches and files of tools, which are read for the sake of trying alone.\n", c.total, c.total-c.rejected, d.total)
}

func (r report) writeReasons(b *strings.Builder) {
	b.WriteString("\n### Why documents that Kubernetes accepts are rejected\n\n| reason | documents |\n|---|---|\n")
	counts := map[string]int{}
	for _, o := range r.documents {
		if o.class == rejected && (o.group() == current || o.group() == unenforced || o.group() == removed) {
			for _, reason := range o.reasons {
				counts[reason]++
			}
		}
	}
	reasons := slices.SortedFunc(maps.Keys(counts), func(x, y string) int { return cmp.Or(counts[y]-counts[x], strings.Compare(x, y)) })
	for _, reason := range reasons {
		fmt.Fprintf(b, "| `%s` | %d |\n", reason, counts[reason])
	}
	if len(reasons) == 0 {
		b.WriteString("| none | 0 |\n")
	}
}

func (r report) writeBuilds(b *strings.Builder) {
	var built, equal, both, only int
	for _, k := range r.builds {
		switch {
		case k.reference == "ok":
			built++
			if k.equal {
				equal++
			}
		case k.refusal != "":
			both++
		default:
			only++
		}
	}
	fmt.Fprintf(b, "\n### Kustomizations\n\nOf %d roots that kustomize builds, %d give the same objects here. Of those that it does not build, or only by "+
		"fetching something, %d are refused here too and %d are built.\n", built, equal, both, only)
	var read, whole int
	for _, f := range r.fixtures {
		if f.read {
			read++
			if f.same && len(f.lost) == 0 {
				whole++
			}
		}
	}
	fmt.Fprintf(b, "\n### Round trip\n\nOf Kubernetes' own fixtures, objects with every field set, %d are of kinds that snapshots hold; %d of them lose "+
		"nothing on the way through defaults, conversion and normal form, and are the same from JSON and YAML.\n\n", read, whole)
}

func percent(part, whole int) string {
	if whole == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

// list prints every document that is not treated as Kubernetes treats it.
func (r report) list(w io.Writer) {
	for _, o := range r.documents {
		g := o.group()
		switch {
		case g == wrong && o.class != rejected:
			fmt.Fprintf(w, "accepted, but Kubernetes says %q: %s document %d: %s %s\n", o.reason, o.path, o.document, o.kind, o.name)
		case g == wrong && !o.sameField:
			fmt.Fprintf(w, "rejected for %v, Kubernetes for %q: %s document %d: %s %s\n", o.reasons, o.reason, o.path, o.document, o.kind, o.name)
		case o.class == rejected && (g == current || g == unenforced || g == removed):
			fmt.Fprintf(w, "rejected for %v: %s document %d: %s %s %s\n", o.reasons, o.path, o.document, o.apiVersion, o.kind, o.name)
		}
	}
	for _, k := range r.builds {
		if (k.reference == "ok") != (k.refusal == "") {
			fmt.Fprintf(w, "%s: kustomize says %s, here: %s\n", k.root, k.reference, cmp.Or(k.refusal, "built"))
		}
	}
}
