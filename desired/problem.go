package desired

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity says what a Problem does to its revision.
type Severity string

const (
	// Error refuses the revision.
	Error Severity = "error"
	// Warning lets it pass, said on push and page.
	Warning Severity = "warning"
	// Note is worth knowing and needs no action.
	Note Severity = "note"
)

// Problem is one thing wrong, or worth saying, about a revision. Its JSON form
// is an outward contract (tally validate -o json).
type Problem struct {
	Severity Severity `json:"severity"`
	// Code is a stable word for programs, e.g. "unknown-field", "invalid",
	// "duplicate", "unsupported", "not-enforced", "no-effect", "missing-secret".
	Code string `json:"code"`
	File string `json:"file"`
	// Line counts from 1; 0 when unknown.
	Line int `json:"line"`
	// Field is the path inside the object, e.g. "spec.template.spec.containers[0].image".
	Field string `json:"field"`
	// Document counts from 0 within the file, before Lists are taken apart.
	Document int    `json:"document"`
	Message  string `json:"message"`
	// Hint says what to do next; may be empty.
	Hint string `json:"hint"`
}

// String gives one line: "web.yaml:12: spec.replicas: must be … (hint)".
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(Place{File: p.File, Line: p.Line}.String() + ": ")
	}
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Rejected reports whether problems holds one of severity error.
func Rejected(problems []Problem) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return p.Severity == Error })
}

// SortProblems orders problems by place, then field, code and message, and
// drops exact repetitions. It works in place and returns the shortened slice.
func SortProblems(problems []Problem) []Problem {
	slices.SortFunc(problems, func(a, b Problem) int {
		return cmp.Or(
			strings.Compare(a.File, b.File),
			cmp.Compare(a.Document, b.Document),
			cmp.Compare(a.Line, b.Line),
			strings.Compare(a.Field, b.Field),
			strings.Compare(a.Code, b.Code),
			strings.Compare(a.Message, b.Message),
			strings.Compare(a.Hint, b.Hint),
			strings.Compare(string(a.Severity), string(b.Severity)),
		)
	})
	return slices.Compact(problems)
}

// Fold is problems for people to read: of the notes of a file that say the same
// about several places the first is kept, with the number of the others. Errors
// and warnings are left alone, and so is the order.
func Fold(problems []Problem) []Problem {
	type saying struct{ file, code, message, hint string }
	first := map[saying]int{}
	more := map[int]int{}
	var out []Problem
	for _, p := range problems {
		k := saying{p.File, p.Code, p.Message, p.Hint}
		i, said := first[k]
		if p.Severity == Note && said {
			more[i]++
			continue
		}
		if p.Severity == Note {
			first[k] = len(out)
		}
		out = append(out, p)
	}
	for i, n := range more {
		places := "one more place"
		if n > 1 {
			places = fmt.Sprintf("%d more places", n)
		}
		out[i].Message += "; so in " + places + " of this file"
	}
	return out
}
