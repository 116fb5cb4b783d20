package loop

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
)

func TestSplitNotes(t *testing.T) {
	note := desired.Problem{Severity: desired.Note, Code: "secret-in-clear", File: "a.yaml", Line: 2, Message: "in the clear"}
	moved := note
	moved.Line = 7
	other := desired.Problem{Severity: desired.Note, Code: "no-effect", File: "b.yaml", Line: 1, Message: "no effect"}
	warning := desired.Problem{Severity: desired.Warning, Code: "not-enforced", File: "c.yaml", Line: 1, Message: "not enforced"}
	inForce := desired.NewSnapshot(desired.Revision{}, desired.DefaultSettings(), nil, []desired.Problem{note, warning})

	said, known := splitNotes([]desired.Problem{moved, other, warning}, inForce)
	if diff := cmp.Diff([]desired.Problem{other, warning}, said); diff != "" || known != 1 {
		t.Errorf("%d known; said:\n%s", known, diff)
	}
	if said, known := splitNotes([]desired.Problem{note}, nil); len(said) != 1 || known != 0 {
		t.Errorf("without a revision in force: %v, %d known", said, known)
	}
}
