// Package guide follows the manual's guides on machines of a test, word by word,
// as their reader would.
//
// A guide's indented blocks are commands. A comment above each says where they
// run, and how:
//
//	<!-- on: first, second -->               on these machines, one after the other
//	<!-- on: first, until it works -->       again and again until it exits with 0
//	<!-- shown -->                           only to look at
//
// A comment may stand for what happens otherwise:
//
//	<!-- brought: key, from a to b, c -->    somebody brings files of /root along
//	<!-- lost: first -->                     the machine dies, and is back with a new disk
package guide

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// step is something that a guide does or that befalls it.
type step struct {
	on []string
	// lost machines are replaced, brought are files of the machine from; in both
	// cases there is no text.
	lost    bool
	brought []string
	from    string
	// patient steps are repeated until they work.
	patient bool
	text    string
}

// marked is a block with the comment above it, if there is one, or a comment
// that stands for itself.
var marked = regexp.MustCompile(`(?m)^<!-- lost: (.*) -->$|^<!-- brought: (.*), from (.*) to (.*) -->$|(?:^<!-- (.*) -->\n\n?)?((?:^    .*\n(?:\n+(?:    ))?)+)`)

// read returns the steps of a page. A block without a word is a mistake, for
// nobody would try it.
func read(file string) ([]step, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var steps []step
	for _, found := range marked.FindAllStringSubmatch(string(content), -1) {
		lost, brought, from, to, where, block := found[1], found[2], found[3], found[4], found[5], found[6]
		switch {
		case lost != "":
			steps = append(steps, step{on: strings.Split(lost, ", "), lost: true})
			continue
		case brought != "":
			steps = append(steps, step{on: strings.Split(to, ", "), brought: strings.Fields(brought), from: from})
			continue
		case where == "shown":
			continue
		}
		s := step{text: strings.TrimSuffix(strings.ReplaceAll("\n"+block, "\n    ", "\n"), "\n")[1:]}
		on, runs := strings.CutPrefix(where, "on: ")
		if !runs {
			return nil, fmt.Errorf("nothing says where this runs:\n%s", s.text)
		}
		on, s.patient = strings.CutSuffix(on, ", until it works")
		s.on = strings.Split(on, ", ")
		steps = append(steps, s)
	}
	if len(steps) == 0 {
		return nil, fmt.Errorf("no steps")
	}
	return steps, nil
}
