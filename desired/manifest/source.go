package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/tallyman-dev/tallyman/desired"
)

// source is one object as it is written: where, and the text to find lines in.
type source struct {
	file     string
	document int
	// line of the text's first line within the file, from 1; 0 when the object
	// was generated and has no lines.
	line int
	text *text
	// prefix leads from the document to the object, e.g. "items[3]"; empty for
	// the document itself.
	prefix string
}

// place is where the object begins.
func (s *source) place() desired.Place {
	return desired.Place{File: s.file, Line: s.lineOf(""), Document: s.document}
}

// lineOf finds the line of a field of the object, or of what encloses it.
func (s *source) lineOf(field string) int {
	if s.line == 0 {
		return 0
	}
	if s.prefix == "" && field == "" {
		return s.line + s.text.first
	}
	at := s.text.locate(join(s.prefix, field))
	if at == 0 {
		return s.line + s.text.first
	}
	return s.line + at - 1
}

func (s *source) problem(severity desired.Severity, code, field, message, hint string) desired.Problem {
	return desired.Problem{
		Severity: severity, Code: code, File: s.file, Line: s.lineOf(field), Document: s.document,
		Field: quotePath(join(s.prefix, field)), Message: clip(message), Hint: clip(hint),
	}
}

// join puts two field paths together.
func join(prefix, field string) string {
	switch {
	case prefix == "":
		return field
	case field == "" || field[0] == '[':
		return prefix + field
	}
	return prefix + "." + field
}

// clip makes a message one line of printable characters of bounded length.
func clip(message string) string {
	if len(message) > maxMessage {
		cut := maxMessage
		for cut > 0 && !utf8.RuneStart(message[cut]) {
			cut--
		}
		message = message[:cut] + "…"
	}
	return printable(message)
}

// quotePath does the same for a field path, which may hold names of the user's.
func quotePath(field string) string { return clip(field) }

// printable escapes what could confuse a terminal or a log.
func printable(s string) string {
	if strings.IndexFunc(s, unsafeRune) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n':
			b.WriteString("; ")
		case unsafeRune(r):
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unsafeRune(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }

// refusedFile is the outcome of a file that cannot be taken apart at all.
func refusedFile(file, code, message, hint string) *parsed {
	return &parsed{file: file, problems: []desired.Problem{{
		Severity: desired.Error, Code: code, File: file, Message: clip(message), Hint: hint,
	}}}
}

// bound shortens the problems of one file.
func bound(file string, problems []desired.Problem) []desired.Problem {
	if len(problems) <= maxFileProblems {
		return problems
	}
	rest := len(problems) - maxFileProblems
	severity := desired.Note
	for _, p := range problems[maxFileProblems:] {
		if p.Severity == desired.Error {
			severity = desired.Error
		}
	}
	return append(problems[:maxFileProblems:maxFileProblems], desired.Problem{
		Severity: severity, Code: "more", File: file,
		Message: fmt.Sprintf("%d more problems in this file are not listed", rest),
	})
}

// once keeps the first of the remarks that are made once a file.
func once(problems []desired.Problem) []desired.Problem {
	said := map[string]bool{}
	return slices.DeleteFunc(problems, func(p desired.Problem) bool {
		if p.Code != "secret-in-clear" {
			return false
		}
		again := said[p.File]
		said[p.File] = true
		return again
	})
}
