package loop

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
)

const (
	// progressEvery is how often a push is told about progress at most.
	progressEvery = 300 * time.Millisecond
	// maxLines bounds the problems or progress lines printed at once.
	maxLines = 50
)

// CheckQuery asks whether a revision may be pushed.
type CheckQuery struct {
	SHA      string
	Revision desired.Revision
	// Tree is the whole tree of the revision, which may still be in quarantine.
	Tree fs.FS
	// Branch and Old say where the push goes and what was there.
	Branch, Old string
}

// Check reads a revision that is about to be pushed and writes its problems,
// or what it would do, to w. It changes nothing; what it read is kept, so that
// Advance need not read it again. One check runs at a time.
func (l *Loop) Check(ctx context.Context, q CheckQuery, w io.Writer) (ok bool, err error) {
	if q.Tree == nil {
		return false, errors.New("check push: no tree")
	}
	select {
	case <-l.started:
	case <-ctx.Done():
		return false, fmt.Errorf("check push: the server is still starting: %w", ctx.Err())
	}
	select {
	case l.checking <- struct{}{}:
		defer func() { <-l.checking }()
	case <-ctx.Done():
		return false, fmt.Errorf("check push: %w", ctx.Err())
	}
	rev := q.Revision
	if rev.SHA == "" {
		rev.SHA = q.SHA
	}
	now := l.o.Now().UTC()
	v := l.board.look()
	if v.at.After(now) {
		now = v.at
	}
	found, err := l.loads.get(ctx, rev, v.state.InForce(), false, func() (fs.FS, error) { return q.Tree, nil })
	if err != nil {
		return false, fmt.Errorf("check push: %w", err)
	}
	out := &lines{w: w}
	said, known := splitNotes(found.problems, v.state.InForce())
	out.problems(said)
	if known > 0 {
		out.printf("note: %s as before; tally status lists them", plural(known, "more note"))
	}
	if found.snapshot == nil {
		out.printf("refused: %s; the branch has not moved", plural(countErrors(found.problems), "problem"))
		return false, out.err
	}
	_, plan := planner.Next(v.state, planner.Change{Snapshot: found.snapshot, Source: l.o.SourceName}, now)
	if out.err == nil {
		out.err = plan.Text(w)
	}
	return true, out.err
}

// Follow writes the progress of a revision that the branch was moved to, until
// it has converged, failed, been refused, held or superseded, or ctx ends. It
// returns an error only when it can't go on telling.
func (l *Loop) Follow(ctx context.Context, sha string, w io.Writer) error {
	out := &lines{w: w}
	told := map[desired.Key]string{}
	var next time.Time
	stalled := ""
	for {
		v, changed := l.board.watch()
		if v.sync.State == "stalled" && v.sync.Message != stalled {
			stalled = v.sync.Message
			out.printf("stalled: %s", stalled)
		}
		e, seen := v.entry(sha)
		if seen && verdict(out, v, e) {
			return out.err
		}
		var later <-chan time.Time
		if seen && v.inForce(sha) {
			if wait := time.Until(next); wait > 0 {
				later = time.After(wait)
			} else if out.progress(v.state.Progress(), told) {
				next = time.Now().Add(progressEvery)
			}
		}
		if out.err != nil {
			return out.err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-later:
		}
	}
}

// verdict writes how a revision ended and reports whether it has.
func verdict(out *lines, v *view, e nodes.HistoryEntry) bool {
	switch e.Outcome {
	case nodes.OutcomeConverged:
		took := fmt.Sprintf("converged in %.1f s", e.Ended.Sub(e.Seen).Seconds())
		if e.Message != "" {
			took += "; " + e.Message
		}
		out.printf("%s", took)
	case nodes.OutcomeFailed:
		out.printf("failed: %s", e.Message)
		out.printf("what runs is kept as it is; push a correction or revert (git revert %s)", e.Revision.Short())
	case nodes.OutcomeSuperseded:
		out.printf("%s", e.Message)
	case nodes.OutcomeRejected:
		if v.rejected != nil && v.rejected.Revision.SHA == e.Revision.SHA {
			out.problems(v.rejected.Problems)
		}
		out.printf("refused: %s; the last good revision stays in force", e.Message)
	case nodes.OutcomeHeld:
		out.printf("held: %s", e.Message)
		if v.held != nil && v.held.Revision.SHA == e.Revision.SHA {
			out.printf("to confirm, push a commit whose message ends with the line %q", v.held.Confirm)
		}
	default:
		return false
	}
	return true
}

// lines writes whole lines and keeps the first error.
type lines struct {
	w   io.Writer
	err error
}

func (l *lines) printf(format string, args ...any) {
	if l.err == nil {
		_, l.err = io.WriteString(l.w, printable(fmt.Sprintf(format, args...))+"\n")
	}
}

// printable keeps a line one line: what repositories and programs say goes to
// a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' && c != '\t' || c >= 0x7f && c < 0xa0 || c >= 0x202a && c <= 0x202e || c >= 0x2066 && c <= 0x2069 {
			return '\uFFFD'
		}
		return c
	}, s)
}

// splitNotes leaves out the notes that the revision in force carries too, and
// counts them: whoever pushes has read them. A line that moved is no news.
func splitNotes(problems []desired.Problem, inForce *desired.Snapshot) (said []desired.Problem, known int) {
	if inForce == nil {
		return problems, 0
	}
	before := map[desired.Problem]bool{}
	for _, p := range inForce.Problems() {
		p.Line, p.Document = 0, 0
		before[p] = true
	}
	for _, p := range problems {
		q := p
		q.Line, q.Document = 0, 0
		if p.Severity == desired.Note && before[q] {
			known++
			continue
		}
		said = append(said, p)
	}
	return said, known
}

// problems writes errors first, the rest of them counted, and what is said of
// many places of a file once.
func (l *lines) problems(problems []desired.Problem) {
	problems = desired.Fold(problems)
	printed := 0
	for _, severity := range []desired.Severity{desired.Error, desired.Warning, desired.Note} {
		for _, p := range problems {
			if p.Severity != severity {
				continue
			}
			if printed++; printed <= maxLines {
				l.printf("%s: %s", severity, p)
			}
		}
	}
	if printed > maxLines {
		l.printf("… and %d more", printed-maxLines)
	}
}

// progress writes the lines that differ from what was told.
func (l *lines) progress(now []planner.WorkloadProgress, told map[desired.Key]string) bool {
	printed := 0
	for _, p := range now {
		if told[p.Object] == p.Line {
			continue
		}
		told[p.Object] = p.Line
		if printed++; printed <= maxLines {
			l.printf("%s", p.Line)
		}
	}
	if printed > maxLines {
		l.printf("… and %d more", printed-maxLines)
	}
	return printed > 0
}
