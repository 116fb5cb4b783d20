// Command corpus tries Tallyman on a collection of other people's manifests and
// compares with what Kubernetes itself says of them. It prints the numbers, and
// writes them into the manual's page on what works.
//
// The collection is a directory that is no part of the project:
//
//	manifests/          files, in one directory for each source
//	verdicts.tsv        path, document, apiVersion, kind, name, category, verdict and
//	                    reason: what Kubernetes' own code says of each document
//	rendered/kustomize/ what kustomize makes of the roots in kustomize-results.tsv
//
// It ends with an error when something that must hold for every input does not:
// a crash, an outcome that takes too long, a document that is dropped without a
// word, a field that is lost, kustomize output that differs.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/tallyman-dev/tallyman/desired/manifest"
	"github.com/tallyman-dev/tallyman/test/corpus/stacks"
)

func main() {
	dir := flag.String("corpus", "", "directory of the collection")
	page := flag.String("page", "", "page to write the numbers into; empty for none")
	list := flag.Bool("list", false, "list every document that is not treated as Kubernetes treats it")
	flag.Parse()
	if *dir == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: corpus -corpus DIR [-page FILE] [-list]")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Stdout, *dir, *page, *list); err != nil {
		fmt.Fprintln(os.Stderr, "corpus:", err)
		os.Exit(1)
	}
}

// run tries everything and reports to w.
func run(ctx context.Context, w io.Writer, dir, page string, list bool) error {
	trial := newTrial(dir)
	verdicts, err := readVerdicts(filepath.Join(dir, "verdicts.tsv"))
	if err != nil {
		return err
	}
	documents, err := trial.documents(ctx, verdicts)
	if err != nil {
		return err
	}
	builds, err := trial.builds(ctx)
	if err != nil {
		return err
	}
	fixtures, err := trial.fixtures(ctx)
	if err != nil {
		return err
	}
	r := report{documents: documents, builds: builds, fixtures: fixtures}
	section := r.section()
	fmt.Fprint(w, section)
	if list {
		r.list(w)
	}
	if page != "" {
		if err := insert(page, section); err != nil {
			return err
		}
	}
	return errors.Join(trial.broken...)
}

// insert puts the section between the marks of a page, before what is there about
// whole applications, which are tried apart.
func insert(page, section string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), manifest.TriedBegin)
	old, after, closed := strings.Cut(rest, manifest.TriedEnd)
	if !ok || !closed {
		return fmt.Errorf("%s has no place for the numbers: run go generate ./desired/manifest", page)
	}
	var b bytes.Buffer
	b.WriteString(before + manifest.TriedBegin + "\n" + section + stacks.Section(old) + manifest.TriedEnd + after)
	return os.WriteFile(page, b.Bytes(), 0o644)
}
