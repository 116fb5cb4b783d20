package report

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// Clean makes text from outside safe to show on one line: what could steer a
// terminal or turn the reading order is replaced visibly, white space becomes
// one space.
func Clean(s string) string {
	if !strings.ContainsFunc(s, unsafe) {
		return s
	}
	return strings.TrimSpace(strings.Map(replace, s))
}

// CleanLines is Clean for text of several lines.
func CleanLines(s string) string {
	return strings.TrimRight(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return replace(r)
	}, strings.ReplaceAll(s, "\r\n", "\n")), "\n ")
}

// unsafe are control characters, and the invisible ones that change how the
// text around them reads.
func unsafe(r rune) bool {
	if ' ' <= r && r <= '~' {
		return false
	}
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) ||
		unicode.Is(unicode.Cs, r) || unicode.Is(unicode.Co, r) || r == unicode.ReplacementChar || r == '\ufeff' || r == '\u200b'
}

func replace(r rune) rune {
	switch {
	case r == '\n' || r == '\t' || r == '\r':
		return ' '
	case unsafe(r):
		return unicode.ReplacementChar
	}
	return r
}

// Duration in one unit, as people say it: "2.3 s", "45 s", "3 min", "5 h", "12 d".
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// Age is how long ago t was, seen from now; "–" for the zero time.
func Age(t, now time.Time) string {
	if t.IsZero() {
		return "–"
	}
	d := now.Sub(t)
	if d < 10*time.Second {
		return fmt.Sprintf("%d s", int(max(0, d).Seconds()))
	}
	return Duration(d)
}

// Took is how long a revision took until its outcome; "–" while it is open.
func Took(h nodes.HistoryEntry) string {
	if h.Ended.IsZero() || h.Seen.IsZero() {
		return "–"
	}
	return Duration(h.Ended.Sub(h.Seen))
}

// Signature says who answers for a revision.
func Signature(r desired.Revision) string {
	switch {
	case r.Signer != "":
		return "signed by " + Clean(r.Signer)
	case r.Signed:
		return "signed, not verified"
	}
	return "not signed"
}

// PodState is the one word that kubectl shows for a pod, and why.
func PodState(p *nodes.PodOverview) (word, why string) {
	s := &p.Status
	if p.Stopping {
		return "Terminating", Clean(s.Message)
	}
	for _, c := range append(s.Init[:len(s.Init):len(s.Init)], s.Containers...) {
		if c.State == nodes.Waiting && c.Reason != "" && c.Reason != "PodInitializing" {
			return Clean(c.Reason), Clean(c.Message)
		}
		if c.State == nodes.Terminated && c.Reason != "" && c.Reason != "Completed" && !s.Done() {
			return Clean(c.Reason), Clean(c.Message)
		}
	}
	switch {
	case s.Reason != "" && !s.Ready:
		return Clean(s.Reason), Clean(s.Message)
	case s.Phase == "":
		return "Pending", Clean(s.Message)
	case s.Phase == "Running" && !s.Ready:
		return "NotReady", Clean(s.Message)
	}
	return Clean(string(s.Phase)), Clean(s.Message)
}
