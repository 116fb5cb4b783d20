// Package plan is what a stub image says to the program in it: the ports to
// listen on and the command lines that end by themselves.
package plan

import (
	"slices"
	"strings"
)

// Path of the plan in an image, Program that of the stub and Server that of the
// program which the stub becomes.
const (
	Path    = "/.stub/plan.json"
	Program = "/.stub/stub"
	Server  = "/.stub/serve"
)

// Plan of one image.
type Plan struct {
	// TCP and UDP are ports, sorted.
	TCP []int `json:"tcp,omitempty"`
	UDP []int `json:"udp,omitempty"`
	// Once are command lines that end at once, successfully.
	Once []Once `json:"once,omitempty"`
	// Gives are the programs that a container of the image, which ends by itself,
	// puts into a volume for others to run. Their folders are there where the
	// volume is.
	Gives []string `json:"gives,omitempty"`
}

// Once is one command line that ends.
type Once struct {
	// Line begins with Program where the image's own entry point is meant.
	Line []string `json:"line"`
	// Jobs are those whose pods end, where others with the same line go on; none
	// where all end.
	Jobs []string `json:"jobs,omitempty"`
}

// Ends reports whether a command line is one of those that end at once, in a pod
// with this host name. What manifests leave to be filled in, $(NAME), fits
// everything. A script is called with its interpreter in front.
func (p *Plan) Ends(args []string, host string) bool {
	return slices.ContainsFunc(p.Once, func(o Once) bool {
		if len(o.Jobs) > 0 && !slices.ContainsFunc(o.Jobs, func(job string) bool { return podOf(job, host) }) {
			return false
		}
		return slices.EqualFunc(o.Line, args, fits) || len(args) > 1 && slices.EqualFunc(o.Line, args[1:], fits)
	})
}

// podOf reports whether a host name is that of a Job's pod, with one word behind
// the Job's name, and that of a Deployment's has two.
func podOf(job, host string) bool {
	word, ok := strings.CutPrefix(host, job+"-")
	return ok && !strings.Contains(word, "-")
}

// fits compares one word of a manifest with what came of it.
func fits(pattern, word string) bool {
	for {
		before, rest, found := strings.Cut(pattern, "$(")
		tail, ok := strings.CutPrefix(word, before)
		if !ok {
			return false
		}
		_, after, closed := strings.Cut(rest, ")")
		if !found || !closed {
			return pattern == word
		}
		if after == "" {
			return true
		}
		next, _, _ := strings.Cut(after, "$(")
		i := strings.Index(tail, next)
		if i < 0 {
			return false
		}
		pattern, word = after, tail[i:]
	}
}
