package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/tallyman-dev/tallyman/desired"
)

// outcome is what becomes of one document here.
type outcome struct {
	verdict
	class class
	// reasons are the errors, by code and what it is about, without repetition.
	reasons []string
	// placed means that an error names a line and a field.
	placed bool
	// sameField means that an error names a field that Kubernetes names too.
	sameField bool
}

// class is one of the ways in which a document can end.
type class string

const (
	works       class = "accepted"
	noEffect    class = "accepted, part of it without effect"
	notEnforced class = "accepted, not enforced"
	rejected    class = "rejected"
)

// documents reads every document that has a verdict.
func (t *trial) documents(ctx context.Context, verdicts []verdict) ([]outcome, error) {
	texts := map[string][][]byte{}
	out := make([]outcome, 0, len(verdicts))
	for _, v := range verdicts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if texts[v.path] == nil {
			data, err := os.ReadFile(filepath.Join(t.dir, "manifests", filepath.FromSlash(v.path)))
			if err != nil {
				return nil, err
			}
			if texts[v.path], err = split(data); err != nil {
				return nil, fmt.Errorf("%s: %w", v.path, err)
			}
		}
		text := find(texts[v.path], v)
		if text == nil {
			t.fault("%s: document %d is not there", v.path, v.document)
			continue
		}
		if v.category == "kustomization" { // builds tries them
			continue
		}
		_, problems := t.read(ctx, v.path, text, false)
		out = append(out, judge(v, problems))
	}
	return out, nil
}

// find gives the text of a document. Files are numbered with or without their
// empty documents, so the kind and name decide.
func find(texts [][]byte, v verdict) []byte {
	fits := func(text []byte) bool {
		var head struct {
			Kind     string `json:"kind"`
			Metadata struct {
				Name any `json:"name"`
			} `json:"metadata"`
		}
		_ = yaml.Unmarshal(text, &head) // what cannot be read does not fit
		name, _ := head.Metadata.Name.(string)
		return head.Kind == v.kind && name == v.name
	}
	if v.document < len(texts) && fits(texts[v.document]) {
		return texts[v.document]
	}
	if i := slices.IndexFunc(texts, fits); i >= 0 {
		return texts[i]
	}
	if v.document < len(texts) {
		return texts[v.document]
	}
	return nil
}

// betweenObjects reports whether a problem is about other objects: a document
// that is read alone always misses them.
func betweenObjects(p desired.Problem) bool {
	return strings.HasPrefix(p.Code, "missing-") && p.Code != "missing-port"
}

func judge(v verdict, problems []desired.Problem) outcome {
	o := outcome{verdict: v, class: works}
	for _, p := range problems {
		switch {
		case betweenObjects(p):
		case p.Severity == desired.Error:
			o.class = rejected
			o.placed = o.placed || p.Line > 0 && p.Field != ""
			o.sameField = o.sameField || p.Field != "" && names(v.reason, p.Field)
			o.reasons = append(o.reasons, about(p))
		case p.Code == "not-enforced" && o.class != rejected:
			o.class = notEnforced
		case p.Code == "no-effect" && o.class == works:
			o.class = noEffect
		}
	}
	slices.Sort(o.reasons)
	o.reasons = slices.Compact(o.reasons)
	return o
}

// names reports whether a reason of Kubernetes is about a field, which it may
// spell as the path of Go's fields.
func names(reason, field string) bool {
	last := field[strings.LastIndexByte(field, '.')+1:]
	last, _, _ = strings.Cut(last, "[")
	return strings.Contains(reason, field) || strings.Contains(reason, last)
}

// about is the class of an error: its code, and the field or kind without what
// is particular to the document.
func about(p desired.Problem) string {
	switch {
	case p.Field == "" || p.Code == "syntax":
		return p.Code
	case p.Field == "kind":
		kind, _, _ := strings.Cut(strings.TrimPrefix(p.Message, "there is no "), " ")
		return p.Code + ": " + kind
	}
	return p.Code + ": " + withoutIndices(p.Field)
}

func withoutIndices(field string) string {
	var b strings.Builder
	depth := 0
	for _, r := range field {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
			b.WriteString("[]")
		case depth == 0:
			b.WriteRune(r)
		}
	}
	return b.String()
}
