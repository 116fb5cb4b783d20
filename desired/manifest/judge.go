package manifest

import (
	"fmt"
	"slices"

	"github.com/tallyman-dev/tallyman/desired"
)

// findings is what the files of a revision gave, put together.
type findings struct {
	entries  []*entry
	problems []desired.Problem
	// touched are the texts in which lines were looked up.
	touched map[*text]bool
}

func (f *findings) add(p *parsed) {
	f.entries = append(f.entries, p.entries...)
	f.problems = append(f.problems, p.problems...)
}

// report places a problem of an object within its file.
func (f *findings) report(e *entry, severity desired.Severity, code, field, message, hint string) {
	if len(f.problems) > maxProblems {
		return // sorted counts them as one
	}
	if e.src.text != nil {
		if f.touched == nil {
			f.touched = map[*text]bool{}
		}
		f.touched[e.src.text] = true
	}
	f.problems = append(f.problems, e.src.problem(severity, code, field, message, hint))
}

// sorted gives the problems as they are returned, never nil, at most
// maxProblems: errors are kept before warnings, warnings before notes.
func (f *findings) sorted() []desired.Problem {
	for t := range f.touched {
		t.forget()
	}
	f.touched = nil
	all := desired.SortProblems(f.problems)
	if len(all) > maxProblems {
		all = cut(all)
	}
	if all == nil {
		all = []desired.Problem{}
	}
	return all
}

func cut(all []desired.Problem) []desired.Problem {
	rank := func(p desired.Problem) int {
		return slices.Index([]desired.Severity{desired.Error, desired.Warning, desired.Note}, p.Severity)
	}
	kept := slices.Clone(all)
	slices.SortStableFunc(kept, func(a, b desired.Problem) int { return rank(a) - rank(b) })
	rest := kept[maxProblems]
	kept = append(kept[:maxProblems:maxProblems], desired.Problem{
		Severity: rest.Severity, Code: "more", Message: fmt.Sprintf("%d or more further problems are not listed", len(all)-maxProblems),
	})
	return desired.SortProblems(kept)
}

// judge applies the rules between objects and makes the snapshot.
func (l *Loader) judge(found *findings, rev desired.Revision, o LoadOptions) *desired.Snapshot {
	found.define()
	w := newWorld(found)
	config := w.settings()
	w.admit(l.rules, config)
	w.checkReferences()
	w.checkBindings(config)
	w.checkServices(config)
	w.checkAnnotations()
	w.checkSysctls()
	w.checkStorage()
	w.checkSizes()
	w.checkMachines()
	if o.Previous != nil {
		w.checkImmutable(config, o.Previous)
	}
	w.soften(config, o.Lenient)
	found.problems = desired.SortProblems(found.problems)
	if desired.Rejected(found.problems) {
		return nil
	}
	objects := make([]*desired.Object, 0, len(w.objects))
	for _, e := range w.objects {
		objects = append(objects, e.object)
	}
	return desired.NewSnapshot(rev, config, objects, found.sorted())
}

// world is all objects of a revision, by what the rules look for.
type world struct {
	found *findings
	// objects are those with distinct keys, in the order they were read.
	objects []*entry
	// known holds every key that is written somewhere, decoded or not.
	known map[desired.Key]*entry
	pods  podIndex
}

func newWorld(found *findings) *world {
	w := &world{found: found, known: make(map[desired.Key]*entry, len(found.entries))}
	for _, e := range found.entries {
		if first, double := w.known[e.key]; double && e.key.Name != "" {
			w.duplicate(first, e)
			continue
		}
		w.known[e.key] = e
		if e.object != nil {
			w.objects = append(w.objects, e)
		}
	}
	w.pods = indexPods(w.objects)
	return w
}

// duplicate names both places.
func (w *world) duplicate(first, second *entry) {
	field, what, hint := "metadata.name", second.key.String()+" is also written in ", "rename or remove one of them"
	if second.key == desired.ClusterKey {
		field, what, hint = "kind", "there is a second Cluster object in ", "keep one"
	}
	w.found.report(second, desired.Error, "duplicate", field, what+where(first), hint)
	w.found.report(first, desired.Error, "duplicate", field, what+where(second), hint)
}

// where is the place of an object in a message.
func where(e *entry) string {
	if e.object != nil {
		return printable(e.object.From.String())
	}
	return printable(e.src.file)
}

// settings are those of the Cluster object, if any.
func (w *world) settings() desired.Settings {
	if e := w.known[desired.ClusterKey]; e != nil && e.object != nil {
		if c, ok := e.object.Value.(*desired.Cluster); ok {
			s, _ := settings(c) // its problems were reported when it was read
			return s
		}
	}
	return desired.DefaultSettings()
}

// soften turns errors into warnings where the settings or the caller say so.
func (w *world) soften(config desired.Settings, lenient bool) {
	broken := map[desired.Place]bool{}
	for _, e := range w.found.entries {
		if e.broken {
			broken[desired.Place{File: e.src.file, Document: e.src.document}] = true
		}
	}
	for i := range w.found.problems {
		p := &w.found.problems[i]
		if p.Severity != desired.Error {
			continue
		}
		unsupported := p.Code == "unsupported" || p.Code == "missing-definition"
		if unsupported && config.WarnUnsupported || lenient && survivable(p.Code) && !broken[desired.Place{File: p.File, Document: p.Document}] {
			p.Severity = desired.Warning
		}
	}
}

// survivable reports whether an error of this code leaves a usable object.
func survivable(code string) bool {
	switch code {
	case "syntax", "unreadable", "too-large", "kustomize", "not-a-manifest", "removed-version", "unknown-kind", tooManyPods:
		return false
	}
	return true
}
