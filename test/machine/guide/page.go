// Package guide follows the manual's guides on machines of a test, word by word,
// as their reader would.
//
// A guide's indented blocks are commands. A comment above each says where they
// run, and how:
//
//	<!-- on: first, second -->               on these machines, one after the other
//	<!-- on: first, until it works -->       again and again until it exits with 0
//	<!-- on: first, goes on -->              one command that is not waited for
//	<!-- file: /etc/default/tally on: a -->  no command, but what a file there says
//	<!-- shown -->                           only to look at
//	<!-- lost: first -->                     (without a block) what befalls a machine:
//	                                         it dies, and is back with a new disk
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
	// lost machines are replaced; then there is no text.
	lost bool
	// patient steps are repeated until they work, endless ones go on.
	patient, endless bool
	// file is where text is to be written; empty when text is commands.
	file string
	text string
}

// marked is a block with the comment above it, if there is one, or a comment
// that stands for itself.
var marked = regexp.MustCompile(`(?m)^<!-- lost: (.*) -->$|(?:^<!-- (.*) -->\n\n?)?((?:^    .*\n(?:\n+(?:    ))?)+)`)

// read returns the steps of a page. A block without a word is a mistake, for
// nobody would try it.
func read(file string) ([]step, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var steps []step
	for _, found := range marked.FindAllStringSubmatch(string(content), -1) {
		lost, where, block := found[1], found[2], found[3]
		if lost != "" {
			steps = append(steps, step{on: strings.Split(lost, ", "), lost: true})
			continue
		}
		if where == "shown" {
			continue
		}
		s := step{text: strings.TrimSuffix(strings.ReplaceAll("\n"+block, "\n    ", "\n"), "\n")[1:]}
		if rest, found := strings.CutPrefix(where, "file: "); found {
			s.file, where, _ = strings.Cut(rest, " ")
		}
		on, runs := strings.CutPrefix(where, "on: ")
		if !runs {
			return nil, fmt.Errorf("nothing says where this runs:\n%s", s.text)
		}
		on, s.patient = strings.CutSuffix(on, ", until it works")
		on, s.endless = strings.CutSuffix(on, ", goes on")
		s.on = strings.Split(on, ", ")
		steps = append(steps, s)
	}
	if len(steps) == 0 {
		return nil, fmt.Errorf("no steps")
	}
	return steps, nil
}
