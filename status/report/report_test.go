package report

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/status/statustest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func held() *nodes.Overview {
	o := statustest.Healthy()
	o.Held = &nodes.Hold{
		Revision: statustest.Revision("c0ffee123", "Remove the old shop", time.Minute),
		Deletes:  []desired.Key{{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: "web"}},
		Why:      "it would delete 14 objects, more than 10 and 10 % of a kind", Confirm: "Tally-Confirm: delete 14",
	}
	return o
}

func TestStatus(t *testing.T) {
	for name, o := range map[string]*nodes.Overview{
		"healthy.txt":  statustest.Healthy(),
		"troubled.txt": statustest.Troubled(),
		"held.txt":     held(),
		"stateful.txt": statustest.Stateful(),
		"new.txt":      {Sync: nodes.Sync{Repo: "embedded", Branch: "main", State: "waiting", Message: "nothing was pushed yet"}},
	} {
		golden(t, name, Status(o, statustest.Now))
	}
}

func TestHistory(t *testing.T) {
	golden(t, "history.txt", History(statustest.Healthy().History, statustest.Now))
	if got := History(nil, statustest.Now); got != "no revision was seen yet\n" {
		t.Errorf("empty history: %q", got)
	}
}

func TestVerdictTakesTheWorst(t *testing.T) {
	change := func(f func(o *nodes.Overview)) *nodes.Overview {
		o := statustest.Healthy()
		f(o)
		return o
	}
	tests := map[string]struct {
		o    *nodes.Overview
		want Level
	}{
		"all well":  {statustest.Healthy(), Good},
		"degraded":  {statustest.Troubled(), Bad},
		"suspended": {change(func(o *nodes.Overview) { o.Objects[0].Health = nodes.Suspended }), Good},
		"silent node": {change(func(o *nodes.Overview) {
			o.Nodes[0].Ready = false
		}), Bad},
		"failed rollout": {change(func(o *nodes.Overview) { o.Outcome = nodes.OutcomeFailed }), Bad},
		"held":           {held(), Attention},
		"unreachable":    {change(func(o *nodes.Overview) { o.Sync.State = "unreachable" }), Attention},
		"progressing":    {change(func(o *nodes.Overview) { o.Objects[0].Health = nodes.Progressing }), Working},
		"not converged":  {change(func(o *nodes.Overview) { o.Plan.Converged = false }), Working},
		"nothing pushed": {&nodes.Overview{}, Working},
		"degraded before rejected": {change(func(o *nodes.Overview) {
			o.Rejected = &nodes.Rejection{}
			o.Objects[0].Health = nodes.Degraded
		}), Bad},
	}
	for name, test := range tests {
		if got := Judge(test.o); got.Level != test.want || got.Short == "" || got.Sentence == "" {
			t.Errorf("%s: %+v, want level %d", name, got, test.want)
		}
		if Healthy(test.o) != (test.want == Good) {
			t.Errorf("%s: healthy %v", name, Healthy(test.o))
		}
	}
}

func TestWorkloadsHoldEveryPodOnce(t *testing.T) {
	for _, o := range []*nodes.Overview{statustest.Healthy(), statustest.Troubled(), orphans()} {
		seen := map[desired.Key]int{}
		for _, w := range Workloads(o) {
			for _, p := range w.AllPods() {
				seen[p.Key]++
			}
		}
		for _, object := range o.Objects {
			if object.Key.Kind == "Pod" && seen[object.Key] != 1 {
				t.Errorf("%v is shown %d times", object.Key, seen[object.Key])
			}
		}
	}
}

// orphans has a bare pod, one that names itself its owner, and pods and a set whose owners are gone.
func orphans() *nodes.Overview {
	pod := func(name string, owner desired.Key) nodes.ObjectHealth {
		return nodes.ObjectHealth{Key: desired.Key{Kind: "Pod", Namespace: "a", Name: name}, Owner: owner, Pod: &nodes.PodOverview{}}
	}
	gone := desired.Key{Group: "apps", Kind: "Deployment", Namespace: "a", Name: "gone"}
	set := desired.Key{Group: "apps", Kind: "ReplicaSet", Namespace: "a", Name: "gone-1"}
	return &nodes.Overview{Objects: []nodes.ObjectHealth{
		pod("bare", desired.Key{}), pod("own", desired.Key{Kind: "Pod", Namespace: "a", Name: "own"}),
		pod("lost", gone),
		{Key: set, Owner: gone},
		pod("left", set),
	}}
}

func TestWorstComesFirst(t *testing.T) {
	var got []string
	for _, w := range Workloads(statustest.Troubled()) {
		got = append(got, string(w.Health)+" "+w.Key.Name)
	}
	want := []string{"degraded payments", "progressing catalog", "healthy grafana", "healthy web"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNothingSteersATerminal(t *testing.T) {
	hostile := "a\x1b[2Jb\rc\nd\x00e\u202ef\u2066g\u009bh\u2028i\ufeffj"
	o := statustest.Troubled()
	o.InForce.Message, o.InForce.Author, o.Sync.Message, o.Nodes[0].Name = hostile, hostile, hostile, hostile
	o.Rejected.Problems[0].Message, o.Problems[0].Hint = hostile, hostile
	o.Plan.Waiting[0].Reason, o.Services[0].Key.Name = hostile, hostile
	for i := range o.Objects {
		o.Objects[i].Reason, o.Objects[i].Key.Name = hostile, o.Objects[i].Key.Name+hostile
	}
	o.History[0].Message = hostile
	text := Status(o, statustest.Now) + History(o.History, statustest.Now)
	for _, bad := range []string{"\x1b", "\r", "\x00", "\u202e", "\u2066", "\u009b", "\u2028", "\ufeff"} {
		if strings.Contains(text, bad) {
			t.Errorf("%q got through", bad)
		}
	}
	if got := CleanLines("a\r\n\tb\x1b[1m\n"); got != "a\n\tb\ufffd[1m" {
		t.Errorf("lines: %q", got)
	}
	if got := Clean("plain → text"); got != "plain → text" {
		t.Errorf("plain text became %q", got)
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 2340 * time.Millisecond: "2.3 s", 45 * time.Second: "45 s", 3 * time.Minute: "3 min",
		5 * time.Hour: "5 h", 50 * time.Hour: "2 d",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
