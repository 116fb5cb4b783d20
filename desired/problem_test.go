package desired

import (
	"fmt"
	"slices"
	"testing"
)

func TestFold(t *testing.T) {
	note := func(file string, line int, message string) Problem {
		return Problem{Severity: Note, Code: "no-effect", File: file, Line: line, Field: fmt.Sprint("f", line), Message: message}
	}
	warning := note("a.yaml", 9, "careful")
	warning.Severity = Warning
	given := []Problem{
		note("a.yaml", 1, "nothing"), note("a.yaml", 2, "nothing"), note("a.yaml", 3, "else"), note("a.yaml", 4, "nothing"), note("a.yaml", 5, "else"),
		warning, warning, note("b.yaml", 1, "nothing"),
	}
	before := slices.Clone(given)
	var got []string
	for _, p := range Fold(given) {
		got = append(got, p.String())
	}
	want := []string{
		"a.yaml:1: f1: nothing; so in 2 more places of this file", "a.yaml:3: f3: else; so in one more place of this file",
		"a.yaml:9: f9: careful", "a.yaml:9: f9: careful", "b.yaml:1: f1: nothing",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !slices.Equal(given, before) {
		t.Error("the problems that were given have changed")
	}
}
