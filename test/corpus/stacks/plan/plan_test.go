package plan_test

import (
	"testing"

	"github.com/tallyman-dev/tallyman/test/corpus/stacks/plan"
)

func TestEnds(t *testing.T) {
	p := plan.Plan{Once: []plan.Once{
		{Line: []string{plan.Program}},
		{Line: []string{"sh", "-c", "sleep 5"}},
		{Line: []string{"cp", "$(FROM)/a", "/to-$(A)-$(B)"}},
		{Line: []string{"both"}, Jobs: []string{"other", "job"}},
	}}
	for name, c := range map[string]struct {
		args []string
		host string
		want bool
	}{
		"the entry point":         {[]string{plan.Program}, "web-1", true},
		"the same words":          {[]string{"sh", "-c", "sleep 5"}, "web-1", true},
		"fewer words":             {[]string{"sh", "-c"}, "web-1", false},
		"another word":            {[]string{"sh", "-c", "sleep 6"}, "web-1", false},
		"a script":                {[]string{"/bin/sh", "cp", "x/a", "/to-1-2"}, "web-1", true},
		"filled in":               {[]string{"cp", "/from/a", "/to-1-2"}, "web-1", true},
		"filled in with nothing":  {[]string{"cp", "/a", "/to--"}, "web-1", true},
		"filled in, another rest": {[]string{"cp", "/from/b", "/to-1-2"}, "web-1", false},
		"a Job's":                 {[]string{"both"}, "job-abcde", true},
		"a Deployment's":          {[]string{"both"}, "job-7fdcb5f9c7-abcde", false},
		"another pod's":           {[]string{"both"}, "web-1", false},
		"another beginning":       {[]string{"cp", "/from/a", "/at-1-2"}, "web-1", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := p.Ends(c.args, c.host); got != c.want {
				t.Errorf("Ends(%q) = %t", c.args, got)
			}
		})
	}
}
