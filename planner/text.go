package planner

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/tallyman-dev/tallyman/nodes"
)

// signs mark what happens to an object, as diff tools do.
var signs = map[Op]string{Create: "+", Update: "~", Replace: "±", Delete: "-"}

// Text writes what a push prints: what the revision changes and why, then a
// summary; and when the guard holds it, how to confirm it.
func (p *Plan) Text(w io.Writer) error {
	b := bufio.NewWriter(w)
	counts := map[Op]int{}
	for _, d := range p.Difference {
		counts[d.Op]++
		fmt.Fprintln(b, d.String())
		for _, f := range d.Fields {
			fmt.Fprintln(b, "      "+f.String())
		}
	}
	if p.Hold != nil {
		writeHold(b, p.Hold)
	}
	fmt.Fprintln(b, summaryLine(counts))
	return b.Flush()
}

func writeHold(b io.Writer, h *nodes.Hold) {
	fmt.Fprintf(b, "held: %s\n", clean(h.Why))
	for _, k := range h.Deletes {
		fmt.Fprintf(b, "  - %s\n", clean(k.String()))
	}
	fmt.Fprintf(b, "nothing of this revision is applied; to confirm, push a commit whose message ends with the line\n    %s\n", h.Confirm)
}

func summaryLine(counts map[Op]int) string {
	if len(counts) == 0 {
		return "nothing changes"
	}
	return fmt.Sprintf("%d to create, %d to change, %d to replace, %d to delete",
		counts[Create], counts[Update], counts[Replace], counts[Delete])
}

// String gives "~ Deployment default/web: image a → b, 3 pods to roll".
func (d Difference) String() string {
	return clean(fmt.Sprintf("%s %s: %s", signs[d.Op], d.Object, d.Reason))
}

// String gives "path: old → new".
func (f FieldDifference) String() string {
	switch {
	case f.Old == "" && f.New == "":
		return clean(f.Path)
	case f.Old == "":
		return clean(f.Path + ": " + f.New)
	case f.New == "":
		return clean(f.Path + ": " + f.Old + " → (removed)")
	default:
		return clean(f.Path + ": " + f.Old + " → " + f.New)
	}
}

// String gives "start Pod default/web-… on node1: why".
func (a Action) String() string {
	text := a.Verb + " " + a.Object.String()
	if a.Node != "" {
		text += " on " + a.Node
	}
	if a.Reason != "" {
		text += ": " + a.Reason
	}
	return clean(text)
}

// clean replaces control characters, which a hostile manifest may hold, so
// that none reaches a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}
