package manifest

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/tallyman-dev/tallyman/desired"
)

// FuzzParse checks, of any file, that parsing ends, that its problems are
// placed within it, and that what is accepted survives being written again.
func FuzzParse(f *testing.F) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, c := range cases {
		archive, err := txtar.ParseFile(c)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			f.Add(file.Data)
		}
	}
	f.Add([]byte("\xef\xbb\xbfa: &a [*a]\n---\r\n--- # c\n... \n%YAML 1.1\n---\n{}"))
	f.Add([]byte("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ntype: &x kubernetes.io/tls\ndata: {a: *x}"))
	r := newRules()
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		lines := 1
		for _, b := range data {
			if b == '\n' {
				lines++
			}
		}
		p := r.parseFile("f.yaml", data)
		for _, problem := range p.problems {
			checkPrintable(t, problem)
			if problem.File != "f.yaml" || problem.Line < 0 || problem.Line > lines+1 {
				t.Errorf("misplaced in %d lines: %+v", lines, problem)
			}
		}
		if !desired.Rejected(p.problems) {
			for _, e := range p.entries {
				if e.custom == nil {
					rewrite(t, r, e)
				}
			}
		}
	})
}

// rewrite reads an accepted object again from its normal form.
func rewrite(t *testing.T, r *rules, e *entry) {
	text, err := json.Marshal(e.object.Value)
	if err != nil {
		t.Fatal(err)
	}
	again := r.parseFile("f.json", text)
	if desired.Rejected(again.problems) || len(again.entries) != 1 {
		t.Fatalf("accepted, but not when written again: %s\n%v", text, again.problems)
	}
	if a, b := e.object.Fingerprint, again.entries[0].object.Fingerprint; a != b {
		t.Errorf("the fingerprint changes when written again: %s, %s\n%s", a, b, text)
	}
}
