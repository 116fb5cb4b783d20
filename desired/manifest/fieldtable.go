package manifest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// fieldTable finds the fields of an object that do not simply work. Immutable.
type fieldTable struct {
	rules map[reflect.Type]typeRule
	plans map[reflect.Type]*plan
}

// plan is how to walk one type: only where there is something to find.
type plan struct {
	fields []planned
}

type planned struct {
	index int
	name  string
	rule  fieldRule
	// harmless are the JSON values that are not reported.
	harmless []string
	// below is nil when there is nothing to find below.
	below *plan
	// embedded fields have no name of their own in JSON.
	embedded bool
}

func newFieldTable() *fieldTable {
	t := &fieldTable{rules: map[reflect.Type]typeRule{}, plans: map[reflect.Type]*plan{}}
	for _, r := range fieldRules() {
		t.rules[r.of] = r
	}
	for _, k := range decidedKinds() {
		of := reflect.TypeOf(k.make()).Elem()
		t.plans[of] = t.compile(of)
	}
	return t
}

// element strips pointers, slices and maps off a type.
func element(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	return t
}

// isLeaf reports whether a type is written as one value.
func isLeaf(t reflect.Type) bool {
	return t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(unmarshalerType)
}

// compile makes the plan of a type, nil when nothing can be found in it.
func (t *fieldTable) compile(of reflect.Type) *plan {
	if isLeaf(of) || of == reflect.TypeFor[metav1.TypeMeta]() {
		return nil
	}
	return t.plan(of, t.rules[of])
}

func (t *fieldTable) plan(of reflect.Type, rule typeRule) *plan {
	p := &plan{}
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" && f.Anonymous && element(f.Type) != reflect.TypeFor[metav1.TypeMeta]() {
			if below := t.plan(f.Type, rule); below != nil {
				p.fields = append(p.fields, planned{index: i, below: below, embedded: true})
			}
			continue
		}
		if name == "" || name == "-" {
			continue
		}
		decided, _ := rule.rule(name)
		step := planned{index: i, name: name, rule: decided, harmless: strings.Fields(decided.harmless)}
		if decided.status == Works {
			if step.below = t.compile(element(f.Type)); step.below == nil {
				continue
			}
		}
		p.fields = append(p.fields, step)
	}
	if len(p.fields) == 0 {
		return nil
	}
	return p
}

// report says which fields of an object, as written, do not simply work.
func (t *fieldTable) report(src *source, object any) []desired.Problem {
	v := reflect.ValueOf(object).Elem()
	p := t.plans[v.Type()]
	if p == nil {
		return nil
	}
	w := &fieldWalk{src: src}
	w.walk(v, p, "")
	return w.problems
}

type fieldWalk struct {
	src      *source
	problems []desired.Problem
}

func (w *fieldWalk) walk(v reflect.Value, p *plan, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			w.walk(v.Elem(), p, path)
		}
	case reflect.Slice:
		for i := range v.Len() {
			w.walk(v.Index(i), p, fmt.Sprintf("%s[%d]", path, i))
		}
	case reflect.Struct:
		for i := range p.fields {
			w.visit(v.Field(p.fields[i].index), &p.fields[i], path)
		}
	}
}

func (w *fieldWalk) visit(v reflect.Value, f *planned, path string) {
	if v.IsZero() {
		return
	}
	if f.embedded {
		w.walk(v, f.below, path)
		return
	}
	at := join(path, f.name)
	if f.rule.status == Works {
		w.walk(v, f.below, at)
		return
	}
	if len(w.problems) >= maxFileProblems || f.isHarmless(v) {
		return
	}
	w.problems = append(w.problems, w.src.problem(severityOf(f.rule.status), codeOf(f.rule.status), at, sentence(f.rule), ""))
}

// isHarmless compares a value with those that ask for nothing.
func (f *planned) isHarmless(v reflect.Value) bool {
	if k := v.Kind(); (k == reflect.Slice || k == reflect.Map) && v.Len() == 0 {
		return true
	}
	if len(f.harmless) == 0 {
		return false
	}
	data, err := json.Marshal(v.Interface())
	return err == nil && slices.Contains(f.harmless, string(data))
}

func severityOf(s Status) desired.Severity {
	switch s {
	case NoEffect:
		return desired.Note
	case NotEnforced:
		return desired.Warning
	}
	return desired.Error
}

func codeOf(s Status) string {
	switch s {
	case NoEffect:
		return "no-effect"
	case NotEnforced:
		return "not-enforced"
	}
	return "unsupported"
}

func sentence(f fieldRule) string {
	switch f.status {
	case NoEffect:
		return "has no effect here: " + f.reason
	case NotEnforced:
		return "is accepted but not enforced: " + f.reason
	}
	return "is not supported: " + f.reason
}
