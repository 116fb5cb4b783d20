package status

import (
	"reflect"
	"testing"
	"text/template/parse"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/report"
)

// TestTemplatesNameFields wants every name in the templates to be a field of
// what they are given: methods can't be called, and a branch that is rarely
// shown would fail only then.
func TestTemplatesNameFields(t *testing.T) {
	fields := map[string]bool{"Pods": true, "Name": true, "All": true, "Most": true} // of dict
	seen := map[reflect.Type]bool{}
	for _, given := range []any{
		whole{},
		nodes.Overview{},
		report.Verdict{},
		report.Counts{},
		report.Workload{},
		workloadList{},
		storageList{},
		serviceList{},
		historyList{},
		problemList{},
		kindList{},
		objectList{},
		objectDetail{},
		containerDetail{},
		revisionDetail{},
		logDetail{},
		struct { // the verdict, and what is missing
			Counts report.Counts
			What   string
		}{},
	} {
		gather(reflect.TypeOf(given), fields, seen)
	}
	p, err := newPages(files, "test")
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, template := range p.templates.Templates() {
		if template.Tree == nil {
			continue
		}
		each(reflect.ValueOf(template.Tree.Root), func(name string) {
			names++
			if !fields[name] {
				t.Errorf("template %s: .%s is no field", template.Name(), name)
			}
		})
	}
	if names < 300 {
		t.Errorf("only %d names were found", names)
	}
}

// gather adds the fields of a type and of all that it leads to.
func gather(t reflect.Type, fields map[string]bool, seen map[reflect.Type]bool) {
	if seen[t] {
		return
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		gather(t.Elem(), fields, seen)
	case reflect.Struct:
		for i := range t.NumField() {
			fields[t.Field(i).Name] = true
			gather(t.Field(i).Type, fields, seen)
		}
	}
}

// each visits the names after a dot in a part of a template.
func each(v reflect.Value, visit func(name string)) {
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		if v.IsNil() {
			return
		}
		switch node := v.Interface().(type) {
		case *parse.Tree:
			return
		case *parse.FieldNode:
			visitAll(node.Ident, visit)
			return
		case *parse.VariableNode:
			visitAll(node.Ident[1:], visit)
			return
		case *parse.ChainNode:
			visitAll(node.Field, visit)
		}
		each(v.Elem(), visit)
	case reflect.Slice:
		for i := range v.Len() {
			each(v.Index(i), visit)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				each(v.Field(i), visit)
			}
		}
	}
}

func visitAll(names []string, visit func(string)) {
	for _, name := range names {
		visit(name)
	}
}
