package plan_test

import (
	"testing"

	"github.com/tallyman-dev/tallyman/test/corpus/stacks/plan"
)

func TestEnds(t *testing.T) {
	p := plan.Plan{Once: [][]string{{plan.Program}, {"sh", "-c", "sleep 5"}, {"cp", "$(FROM)/a", "/to-$(A)-$(B)"}}}
	for name, c := range map[string]struct {
		args []string
		want bool
	}{
		"the entry point":         {[]string{plan.Program}, true},
		"the same words":          {[]string{"sh", "-c", "sleep 5"}, true},
		"fewer words":             {[]string{"sh", "-c"}, false},
		"another word":            {[]string{"sh", "-c", "sleep 6"}, false},
		"a script":                {[]string{"/bin/sh", "cp", "x/a", "/to-1-2"}, true},
		"filled in":               {[]string{"cp", "/from/a", "/to-1-2"}, true},
		"filled in with nothing":  {[]string{"cp", "/a", "/to--"}, true},
		"filled in, another rest": {[]string{"cp", "/from/b", "/to-1-2"}, false},
		"another beginning":       {[]string{"cp", "/from/a", "/at-1-2"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := p.Ends(c.args); got != c.want {
				t.Errorf("Ends(%q) = %t", c.args, got)
			}
		})
	}
}
