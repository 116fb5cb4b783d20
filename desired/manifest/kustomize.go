package manifest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/api/types"

	"github.com/tallyman-dev/tallyman/desired"
)

// build is the outcome of one kustomization. Immutable: it is remembered.
type build struct {
	result *parsed
	// read are the files that it is made of.
	read map[string]bool
	// observed is what it saw of the tree: while a tree shows the same, the
	// outcome is the same.
	observed []observation
}

// build renders every root: the kustomizations below the followed path that no
// other one there refers to.
func (l *Loader) build(ctx context.Context, tree fs.FS, s *survey) ([]*build, error) {
	roots := s.roots(ctx, tree)
	builds := make([]*build, 0, len(roots))
	for _, root := range roots {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := l.buildRoot(ctx, tree, root)
		if err != nil {
			return nil, fmt.Errorf("build kustomization %s: %w", root, err)
		}
		builds = append(builds, b)
	}
	return builds, ctx.Err()
}

// roots finds the kustomizations to build, sorted.
func (s *survey) roots(ctx context.Context, tree fs.FS) []string {
	if len(s.kustomizations) == 0 {
		return nil
	}
	refers := map[string][]string{}
	referred := map[string]bool{}
	view := newView(ctx, tree)
	for dir := range s.kustomizations {
		k, err := view.kustomization(dir)
		if err != nil {
			continue // building it says why
		}
		if k.Kind == "Component" {
			referred[dir] = true // never built alone
		}
		for _, p := range k.directories() {
			if target := path.Join(dir, p); target != dir {
				refers[dir] = append(refers[dir], target)
				referred[target] = true
			}
		}
	}
	var roots []string
	reached := map[string]bool{}
	var reach func(dir string)
	reach = func(dir string) {
		if !reached[dir] {
			reached[dir] = true
			for _, next := range refers[dir] {
				reach(next)
			}
		}
	}
	for _, dir := range sortedKeys(s.kustomizations) {
		if !referred[dir] {
			roots = append(roots, dir)
			reach(dir)
		}
	}
	s.stranded(reached)
	return roots
}

// stranded reports kustomizations that no root leads to.
func (s *survey) stranded(reached map[string]bool) {
	for _, dir := range sortedKeys(s.kustomizations) {
		if reached[dir] {
			continue
		}
		s.problems = append(s.problems, desired.Problem{
			Severity: desired.Error, Code: "kustomize", File: path.Join(dir, s.kustomizations[dir]),
			Message: "no kustomization that is built leads here: it is a component that nobody uses, or part of a circle",
			Hint:    "refer to it from a kustomization, or remove it",
		})
	}
}

// unused notes the manifests beside a kustomization that it does not list.
func (s *survey) unused(builds []*build) []desired.Problem {
	if len(s.kustomizations) == 0 {
		return nil
	}
	read := map[string]bool{}
	for _, b := range builds {
		for p := range b.read {
			read[p] = true
		}
	}
	var notes []desired.Problem
	for _, f := range s.files {
		if dir, owned := s.owner(f.path); owned && !read[f.path] {
			notes = append(notes, desired.Problem{
				Severity: desired.Note, Code: "unused-file", File: f.path,
				Message: "the file is not applied: no kustomization lists it",
				Hint:    "list it in " + path.Join(dir, s.kustomizations[dir]),
			})
		}
	}
	return notes
}

// buildRoot renders one kustomization, from memory if nothing that it reads has changed.
func (l *Loader) buildRoot(ctx context.Context, tree fs.FS, root string) (*build, error) {
	key := "kustomization\x00" + root
	if b, ok := l.cache.get(key).(*build); ok && stillSees(tree, b.observed) {
		return b, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a build that was given up reads no more
	view := newView(ctx, tree)
	b := &build{result: &parsed{file: root}, read: map[string]bool{}}
	guard := &refusals{view: view, weights: map[string]weight{}}
	guard.check(root, false)
	if len(guard.problems) > 0 {
		b.result.problems = guard.problems
	} else {
		b.note(view) // what refusals looked at, for a build that is given up
		m, err := l.run(ctx, view, root)
		if errors.Is(err, errTooSlow) {
			// Still at work on the view, and perhaps faster another time.
			b.result = refusedFile(view.tagged, "too-large", err.Error(), "split the kustomization, or make it simpler")
			return b, nil
		}
		if errors.Is(err, errBusy) || ctx.Err() != nil {
			return nil, cmp.Or(ctx.Err(), err)
		}
		b.result = l.render(view, root, m, err)
	}
	b.note(view)
	if ctx.Err() == nil {
		l.cache.put(key, b, view.bytes)
	}
	return b, nil
}

// note takes over what was seen of the tree so far.
func (b *build) note(view *view) {
	b.observed = view.observations()
	for _, o := range b.observed {
		if o.file {
			b.read[o.path] = true
		}
	}
}

// render reads what kustomize gave.
func (l *Loader) render(view *view, root string, m resmap.ResMap, err error) *parsed {
	file := view.tagged
	if err != nil {
		return refusedFile(file, "kustomize", buildMessage(err), "kustomize build shows the same locally")
	}
	if m.Size() > maxBuildObjects {
		return refusedFile(file, "too-large", fmt.Sprintf("the kustomization gives more than %d objects", maxBuildObjects), "")
	}
	sources := newOrigins(view, root, file)
	out := &parsed{file: file}
	for _, r := range m.Resources() {
		src := sources.of(r)
		entries, problems := l.rules.parseResource(src, r)
		out.take(entries, problems)
	}
	sources.forget()
	out.problems = bound(file, once(out.problems))
	return out
}

var (
	// errTooSlow is returned by run for a build that takes too long.
	errTooSlow = errors.New("building it takes too long")
	// errBusy is returned by run when there was no turn.
	errBusy = errors.New("an earlier build still runs, which took too long; try again later")
)

// run builds a kustomization. The library keeps state in package variables,
// and heeds no context: a build that takes too long is given up, and is the
// only one at work, with the view, until it ends by itself.
func (l *Loader) run(ctx context.Context, view *view, root string) (resmap.ResMap, error) {
	view.tagged = root
	if name, ok := view.kustomizationFile(root); ok {
		view.tagged = name
	}
	late := time.NewTimer(l.patience)
	defer late.Stop()
	select {
	case l.building <- struct{}{}:
	case <-late.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	late.Reset(l.patience)
	type outcome struct {
		m   resmap.ResMap
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		m, err := kustomize(view, "/"+root)
		<-l.building
		done <- outcome{m, err}
	}()
	select {
	case o := <-done:
		return o.m, o.err
	case <-late.C:
		return nil, fmt.Errorf("%w: more than %s", errTooSlow, l.patience)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// kustomize calls the library, which panics on some input.
func kustomize(view *view, root string) (m resmap.ResMap, err error) {
	defer func() {
		if p := recover(); p != nil {
			m, err = nil, fmt.Errorf("kustomize gave up: %v", p)
		}
	}()
	options := krusty.MakeDefaultOptions()
	options.LoadRestrictions = types.LoadRestrictionsNone // the view ends where the tree does
	options.Reorder = krusty.ReorderOptionUnspecified     // as the kustomize command: sorted, unless the kustomization says how
	return krusty.MakeKustomizer(options).Run(view, root)
}

// parseResource reads one object that kustomize gave.
func (r *rules) parseResource(src *source, from *resource.Resource) (entries []*entry, problems []desired.Problem) {
	defer func() {
		if recover() != nil {
			entries, problems = nil, []desired.Problem{src.problem(desired.Error, "syntax", "", "the object cannot be parsed", "")}
		}
	}()
	if err := stripOrigin(from); err != nil {
		return nil, []desired.Problem{src.problem(desired.Error, "kustomize", "metadata.annotations", err.Error(), "")}
	}
	data, err := from.MarshalJSON()
	if err != nil {
		return nil, []desired.Problem{src.problem(desired.Error, "kustomize", "", err.Error(), "")}
	}
	if deep(data) {
		return nil, []desired.Problem{tooDeep(src)}
	}
	return r.parseObject(src, data, 0)
}

// buildMessage shortens kustomize's chains of causes.
func buildMessage(err error) string {
	message := strings.TrimSpace(err.Error())
	return strings.ReplaceAll(message, "'/", "'")
}

// kustomization is what matters here of a kustomization file.
type kustomization struct {
	Kind          string   `json:"kind"`
	Resources     []string `json:"resources"`
	Bases         []string `json:"bases"`
	Components    []string `json:"components"`
	Generators    []string `json:"generators"`
	Transformers  []string `json:"transformers"`
	Validators    []string `json:"validators"`
	HelmCharts    []any    `json:"helmCharts"`
	HelmInflation []any    `json:"helmChartInflationGenerator"`
	ConfigMaps    []any    `json:"configMapGenerator"`
	Secrets       []any    `json:"secretGenerator"`
	everything    map[string]any
	text          *text
}

// directories are the entries that may be other kustomizations.
func (k *kustomization) directories() []string {
	var out []string
	for _, list := range [][]string{k.Resources, k.Bases, k.Components, k.Generators, k.Transformers, k.Validators} {
		for _, entry := range list {
			if !strings.Contains(entry, "\n") {
				out = append(out, entry)
			}
		}
	}
	return slices.Compact(out)
}
