package manifest

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// compatibilityHead opens the page.
const compatibilityHead = `# What works, and what does not

Every kind and every field of Kubernetes' API is in one of four classes. None is
silently ignored: what does not simply work is said on push, on the status page
and by ` + "`tally validate`" + `.

| class | what happens | code |
|---|---|---|
| works | as Kubernetes documents it | |
| no effect | accepted; there is nothing here for it to do | ` + "`no-effect`" + `, a note |
| not enforced | accepted; what it asks for does not happen | ` + "`not-enforced`" + `, a warning |
| unsupported | the revision is rejected; with ` + "`unsupported: warn`" + ` in the ` + "`Cluster`" + ` object it passes, and the kind or field is left out | ` + "`unsupported`" + `, an error or a warning |

A value that asks for nothing beyond what happens anyway, Kubernetes' default
mostly, is never reported. This page is printed from the tables that the program
decides by: do not edit it, run ` + "`go generate ./desired/manifest`" + `.

## Kinds

| kind | API version | class | why |
|---|---|---|---|
`

// versionsHead opens the table of versions.
const versionsHead = `
### Other versions

An object in another version of its API than the one above is converted as
Kubernetes converted it, with the defaults that the other version had, and a note
(` + "`converted`" + `) says so if Kubernetes no longer recommends that version.

| kind | API version | also read |
|---|---|---|
`

// TriedBegin and TriedEnd enclose the section of the page on other people's
// manifests, which is not printed from the tables but written by make corpus.
const (
	TriedBegin = "<!-- tried: written by make corpus -->"
	TriedEnd   = "<!-- end of tried -->"
)

// WriteCompatibility prints the manual's page on what works, from the tables.
// tried is what is kept between TriedBegin and TriedEnd.
func WriteCompatibility(w io.Writer, tried string) error {
	b := bufio.NewWriter(w)
	b.WriteString(compatibilityHead)
	kinds := kindRules()
	slices.SortStableFunc(kinds, func(a, b kindRule) int { return cmp.Compare(rank(a.status), rank(b.status)) })
	for _, k := range kinds {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", k.kind, k.apiVersion(), k.status, k.reason)
	}
	b.WriteString("\nKinds that are not listed, custom resources among them, are unsupported.\n")
	writeVersions(b)
	b.WriteString("\n## Fields\n\n")
	b.WriteString("Of the kinds that work. Fields that are not listed below a field that works, work.\n")
	t := newFieldTable()
	shared := t.writeShared(b)
	for _, k := range kinds {
		if k.status == Works {
			t.writeKind(b, k.kind, reflect.TypeOf(k.make()).Elem(), shared)
		}
	}
	fmt.Fprintf(b, "\n%s%s%s\n", TriedBegin, tried, TriedEnd)
	return b.Flush()
}

// writeVersions lists the API versions that are converted, those of a kind in one line.
func writeVersions(b *bufio.Writer) {
	b.WriteString(versionsHead)
	var order []string
	from := map[string][]string{}
	for _, v := range versions() {
		to := v.kind + " | " + v.to
		if from[to] == nil {
			order = append(order, to)
		}
		from[to] = append(from[to], v.apiVersion())
	}
	for _, to := range order {
		fmt.Fprintf(b, "| %s | %s |\n", to, strings.Join(from[to], ", "))
	}
}

// row is one line of the table of fields.
type row struct {
	path string
	rule fieldRule
}

// sharedTypes are printed once, under a heading of their own.
func sharedTypes() []struct {
	title string
	of    reflect.Type
} {
	return []struct {
		title string
		of    reflect.Type
	}{
		{"metadata", reflect.TypeFor[metav1.ObjectMeta]()},
		{"Pods (spec of a Pod, spec.template.spec of a workload)", reflect.TypeFor[corev1.PodSpec]()},
	}
}

func (t *fieldTable) writeShared(b *bufio.Writer) map[reflect.Type]bool {
	shared := map[reflect.Type]bool{}
	for _, s := range sharedTypes() {
		shared[s.of] = true
	}
	for _, s := range sharedTypes() {
		t.writeTable(b, s.title, t.rows(s.of, "", shared, true))
	}
	return shared
}

func (t *fieldTable) writeKind(b *bufio.Writer, kind string, of reflect.Type, shared map[reflect.Type]bool) {
	t.writeTable(b, kind, t.rows(of, "", shared, true))
}

func (t *fieldTable) writeTable(b *bufio.Writer, title string, rows []row) {
	fmt.Fprintf(b, "\n### %s\n\n| field | class | why |\n|---|---|---|\n", title)
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(rank(a.rule.status), rank(b.rule.status)) })
	var works []string
	for _, r := range rows {
		if r.rule.status == Works {
			works = append(works, "`"+r.path+"`")
		}
	}
	fmt.Fprintf(b, "| %s | works | |\n", strings.Join(works, " "))
	for _, r := range rows {
		if r.rule.status != Works {
			fmt.Fprintf(b, "| `%s` | %s | %s%s |\n", r.path, r.rule.status, r.rule.reason, exceptions(r.rule))
		}
	}
}

func rank(s Status) int { return slices.Index([]Status{Works, NoEffect, NotEnforced, Unsupported}, s) }

func exceptions(f fieldRule) string {
	if f.harmless == "" {
		return ""
	}
	return " (not reported: `" + strings.Join(strings.Fields(f.harmless), "`, `") + "`)"
}

// rows lists the fields of a type and of what is below it.
func (t *fieldTable) rows(of reflect.Type, at string, shared map[reflect.Type]bool, top bool) []row {
	rule := t.rules[of]
	if isLeaf(of) || shared[of] && !top {
		return nil
	}
	var out []row
	for _, f := range namedFields(of) {
		decided, _ := rule.rule(f.name)
		path := join(at, f.name) + brackets(f.of)
		out = append(out, row{path: path, rule: decided})
		if decided.status == Works {
			out = append(out, t.rows(element(f.of), path, shared, false)...)
		}
	}
	return out
}

func brackets(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Slice && element(t).Kind() == reflect.Struct {
		return "[]"
	}
	return ""
}

// namedField is a field by its name in JSON.
type namedField struct {
	name string
	of   reflect.Type
}

// namedFields lists the fields of a struct in the order of their declaration,
// those of embedded structs among them.
func namedFields(of reflect.Type) []namedField {
	var out []namedField
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Type == reflect.TypeFor[metav1.TypeMeta](), name == "-":
		case name == "" && f.Anonymous:
			out = append(out, namedFields(f.Type)...)
		case name != "":
			out = append(out, namedField{name, f.Type})
		}
	}
	return out
}
