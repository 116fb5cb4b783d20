package manifest

import (
	"bytes"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

//go:generate go test -run TestCompatibilityPage -update .

var update = flag.Bool("update", false, "rewrite docs/compatibility.md")

const compatibilityPage = "../../docs/compatibility.md"

func TestCompatibilityPage(t *testing.T) {
	page, err := os.ReadFile(compatibilityPage)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), TriedBegin)
	tried, _, found := strings.Cut(rest, TriedEnd)
	if !found {
		tried = "\n"
	}
	var b bytes.Buffer
	if err := WriteCompatibility(&b, tried); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(compatibilityPage, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		page = b.Bytes()
	}
	if !bytes.Equal(page, b.Bytes()) {
		t.Errorf("%s is not what the tables say: run go generate ./desired/manifest", compatibilityPage)
	}
}

// Every field of every kind that works, or is to work, is decided, and every
// decision is about a field that exists.
func TestEveryFieldIsDecided(t *testing.T) {
	table := newFieldTable()
	reached := map[reflect.Type]bool{}
	var walk func(of reflect.Type, path string)
	walk = func(of reflect.Type, path string) {
		if isLeaf(of) || reached[of] {
			return
		}
		reached[of] = true
		rule, ok := table.rules[of]
		if !ok {
			t.Errorf("%s: type %s is undecided", path, of)
			return
		}
		for _, f := range namedFields(of) {
			decided, ok := rule.rule(f.name)
			if !ok {
				t.Errorf("%s.%s (%s) is undecided", path, f.name, of)
			}
			if ok && decided.status != Works && decided.reason == "" {
				t.Errorf("%s.%s: no reason", path, f.name)
			}
			if decided.status == Works {
				walk(element(f.of), path+"."+f.name)
			}
		}
	}
	for _, k := range kindRules() {
		if k.make == nil {
			continue
		}
		if _, begun := table.rules[reflect.TypeOf(k.make()).Elem()]; !begun && k.status != Works {
			continue
		}
		walk(reflect.TypeOf(k.make()).Elem(), k.kind)
	}
	for of := range table.rules {
		if !reached[of] {
			t.Errorf("the rule about %s decides nothing", of)
		}
	}
}

func TestNoFieldIsDecidedTwice(t *testing.T) {
	types := map[reflect.Type]bool{}
	for _, r := range fieldRules() {
		if types[r.of] {
			t.Errorf("%s is decided twice", r.of)
		}
		types[r.of] = true
		exists := map[string]bool{}
		for _, f := range namedFields(r.of) {
			exists[f.name] = true
		}
		seen := map[string]bool{}
		names := r.works
		for _, f := range r.other {
			names += " " + f.names
		}
		for name := range strings.FieldsSeq(names) {
			if seen[name] {
				t.Errorf("%s.%s is decided twice", r.of, name)
			}
			if !exists[name] {
				t.Errorf("%s.%s does not exist", r.of, name)
			}
			seen[name] = true
		}
	}
}

func TestKindsAreDistinctAndExplained(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range kindRules() {
		id := k.apiVersion() + " " + k.kind
		if seen[id] {
			t.Errorf("%s is decided twice", id)
		}
		seen[id] = true
		if k.status != Works && k.reason == "" {
			t.Errorf("%s: no reason", id)
		}
		if k.make == nil {
			continue
		}
		if _, ok := k.make().(metav1.Object); !ok {
			t.Errorf("%s has no metadata", id)
		}
	}
}
