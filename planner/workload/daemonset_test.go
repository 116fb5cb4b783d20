package workload

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
)

// daemons makes a set of a DaemonSet's pods, each written as its node, with
// "!" when it is not ready, "-" when it is leaving, "+" when it has failed.
func daemons(hash string, pods ...string) *Set {
	s := &Set{Hash: hash, Since: now.Add(-time.Hour)}
	for i, text := range pods {
		node, state := text[:1], text[1:]
		p := Pod{
			UID: nodes.UID(hash + "/" + node), Name: "d-" + hash + node, Node: node, Phase: corev1.PodRunning, Ordinal: NoOrdinal,
			Ready: state == "", ReadySince: now.Add(-time.Minute), Created: now.Add(-time.Hour), Incarnation: uint64(i), Leaving: state == "-",
		}
		if hash > "a" {
			p.Created = now.Add(-time.Minute)
		}
		if state == "+" {
			p.Phase = corev1.PodFailed
		}
		s.Pods = append(s.Pods, p)
	}
	return s
}

// daemonNodes reads "x" as a node for the pods, "x~" as one where pods only
// stay, "x/" as one that is not for them, "x?" as a silent one.
func daemonNodes(list ...string) []DaemonNode {
	var out []DaemonNode
	for _, text := range list {
		n := DaemonNode{Name: text[:1], Runs: true, Stays: true}
		switch text[1:] {
		case "~":
			n.Runs = false
		case "/":
			n.Runs, n.Stays = false, false
		case "?":
			n.Silent = true
		}
		out = append(out, n)
	}
	return out
}

func daemonText(s Steps) []string {
	var out []string
	for _, c := range s.Creates {
		out = append(out, "+"+c.Hash+"/"+c.Node)
	}
	for _, r := range s.Removes {
		out = append(out, "-"+string(r.UID))
	}
	slices.Sort(out)
	return out
}

func rolling(surge, unavailable string) *appsv1.DaemonSetSpec {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	return &appsv1.DaemonSetSpec{UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
		Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &s, MaxUnavailable: &u},
	}}
}

func TestDaemonSet(t *testing.T) {
	plain, surging := rolling("0", "1"), rolling("1", "0")
	onDelete := &appsv1.DaemonSetSpec{UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}}
	tests := map[string]struct {
		spec        *appsv1.DaemonSetSpec
		nodes       []DaemonNode
		old, update *Set
		want        []string
	}{
		"a pod on each node":                        {plain, daemonNodes("x", "y", "z/"), nil, daemons("b"), []string{"+b/x", "+b/y"}},
		"none on a silent node":                     {plain, daemonNodes("x", "y?"), nil, daemons("b"), []string{"+b/x"}},
		"a new node gets one":                       {plain, daemonNodes("x", "y"), nil, daemons("b", "x"), []string{"+b/y"}},
		"a node that is no longer for them":         {plain, daemonNodes("x", "y/"), nil, daemons("b", "x", "y"), []string{"-b/y"}},
		"a taint that evicts nobody":                {plain, daemonNodes("x", "y~"), nil, daemons("b", "x", "y"), nil},
		"what is on a silent node stays":            {plain, daemonNodes("x", "y?"), daemons("a", "y"), daemons("b", "x"), nil},
		"waits for the old pod to be gone":          {plain, daemonNodes("x"), daemons("a", "x-"), daemons("b"), nil},
		"updates one node at a time":                {plain, daemonNodes("x", "y"), daemons("a", "x", "y"), daemons("b"), []string{"-a/x"}},
		"waits for the updated pod":                 {plain, daemonNodes("x", "y"), daemons("a", "y"), daemons("b", "x!"), nil},
		"goes on when it is there":                  {plain, daemonNodes("x", "y"), daemons("a", "y"), daemons("b", "x"), []string{"-a/y"}},
		"a node that is replaced counts as missing": {plain, daemonNodes("x", "y"), daemons("a", "x-", "y"), daemons("b"), nil},
		"replaces what is broken at once":           {plain, daemonNodes("x", "y", "z"), daemons("a", "x", "y!", "z!"), daemons("b"), []string{"-a/y", "-a/z"}},
		"updates half of the nodes":                 {rolling("0", "50%"), daemonNodes("w", "x", "y", "z"), daemons("a", "w", "x", "y", "z"), daemons("b"), []string{"-a/w", "-a/x"}},
		"surges one node at a time":                 {surging, daemonNodes("x", "y"), daemons("a", "x", "y"), daemons("b"), []string{"+b/x"}},
		"waits while surging":                       {surging, daemonNodes("x", "y"), daemons("a", "x", "y"), daemons("b", "x!"), nil},
		"the old one goes when the new one serves":  {surging, daemonNodes("x", "y"), daemons("a", "x", "y"), daemons("b", "x"), []string{"+b/y", "-a/x"}},
		"surges beside broken ones at once":         {surging, daemonNodes("x", "y", "z"), daemons("a", "x!", "y!", "z"), daemons("b"), []string{"+b/x", "+b/y", "+b/z"}},
		"gives up an old pod that broke":            {surging, daemonNodes("x"), daemons("a", "x!"), daemons("b", "x!"), []string{"-a/x"}},
		"does not wait for leaving ones":            {surging, daemonNodes("x"), daemons("a", "x-"), daemons("b"), []string{"+b/x"}},
		"OnDelete leaves them alone":                {onDelete, daemonNodes("x", "y"), daemons("a", "x"), daemons("b"), []string{"+b/y"}},
		"a failed pod is replaced":                  {plain, daemonNodes("x"), nil, daemons("b", "x+"), []string{"-b/x"}},
		"one pod a node, the one that serves":       {plain, daemonNodes("x"), daemons("a", "x!"), daemons("b", "x"), []string{"-a/x"}},
		"one pod a node, the updated one":           {plain, daemonNodes("x"), daemons("a", "x"), daemons("b", "x"), []string{"-a/x"}},
		"one pod a node, the old one while it may":  {plain, daemonNodes("x", "y"), daemons("a", "x"), daemons("b", "x!", "y!"), []string{"-b/x"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := DaemonSet(test.spec)
			d.Now, d.Nodes, d.Update = now, test.nodes, test.update
			if test.old != nil {
				d.Old = []*Set{test.old}
			}
			steps, _, _ := d.Next()
			if diff := cmp.Diff(test.want, daemonText(steps)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestDaemonBackoff lets the pod of one node fail again and again.
func TestDaemonBackoff(t *testing.T) {
	d := DaemonSet(rolling("0", "1"))
	d.Nodes, d.Update, d.Now = daemonNodes("x"), daemons("b", "x+"), now
	var waits []time.Duration
	for range 13 {
		from := d.Now
		steps, failures, wake := d.Next()
		if len(steps.Removes) == 0 {
			d.Now = wake
			steps, failures, _ = d.Next()
		}
		if len(steps.Removes) != 1 {
			t.Fatalf("the failed pod stays: %+v", steps)
		}
		waits = append(waits, d.Now.Sub(from))
		d.Failures = failures
	}
	want := []time.Duration{0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900}
	for i := range want {
		want[i] *= time.Second
	}
	if diff := cmp.Diff(want, waits); diff != "" {
		t.Error(diff)
	}
	d.Now = d.Now.Add(2*maxBackoff + time.Second)
	if _, failures, _ := d.Next(); failures["x"].Count != 1 {
		t.Errorf("a node without failures for long does not start anew: %+v", failures)
	}
}

func TestDaemonVerdict(t *testing.T) {
	tests := map[string]struct {
		nodes       []DaemonNode
		old, update *Set
		health      nodes.Health
		reason      string
	}{
		"all there":      {daemonNodes("x", "y"), nil, daemons("b", "x", "y"), nodes.Healthy, ""},
		"one silent":     {daemonNodes("x", "y?"), nil, daemons("b", "x", "y!"), nodes.Healthy, "1 node silent"},
		"none matches":   {daemonNodes("x/"), nil, daemons("b"), nodes.Healthy, "no node matches its node selector, affinity and tolerations"},
		"rolling":        {daemonNodes("x", "y"), daemons("a", "y"), &Set{Hash: "b", Since: now, Pods: daemons("b", "x").Pods}, nodes.Progressing, "1 of 2 updated pods available, 1 old pod still there"},
		"late":           {daemonNodes("x", "y"), nil, daemons("b", "x!"), nodes.Degraded, "ProgressDeadlineExceeded: no progress for 10m, 0 of 2 pods available"},
		"kept elsewhere": {daemonNodes("x", "y~"), nil, daemons("b", "x", "y"), nodes.Healthy, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := DaemonSet(rolling("0", "1"))
			d.Now, d.Nodes, d.Update = now.Add(time.Hour), test.nodes, test.update
			if test.health == nodes.Progressing {
				d.Now = now
			}
			if test.old != nil {
				d.Old = []*Set{test.old}
			}
			if v := d.Verdict(); v.Health != test.health || v.Reason != test.reason {
				t.Errorf("%s, %q", v.Health, v.Reason)
			}
		})
	}
}

// TestDaemonProperties runs a DaemonSet's rules against nodes that come, go
// and break their pods at random.
func TestDaemonProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		strategies := []*appsv1.DaemonSetSpec{rolling("0", "1"), rolling("0", "50%"), rolling("1", "0"), rolling("50%", "0")}
		w := &daemonWorld{t: t, spec: rapid.SampledFrom(strategies).Draw(t, "strategy"), sets: map[string]*Set{"a": {Hash: "a"}, "b": {Hash: "b"}, "c": {Hash: "c"}}, update: "a", nodes: daemonNodes("w", "x", "y", "z")}
		for range rapid.IntRange(10, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 9:
				w.spec = rapid.SampledFrom(strategies).Draw(t, "strategy")
			case 0:
				w.update = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "template")
			case 1:
				i := rapid.IntRange(0, 3).Draw(t, "node")
				state := rapid.SampledFrom([]string{"", "~", "/", "?"}).Draw(t, "state")
				w.nodes[i] = daemonNodes(w.nodes[i].Name + state)[0]
			default:
				w.someone()
			}
			// Much may have happened when the planner looks again.
			if rapid.IntRange(0, 2).Draw(t, "looks") > 0 {
				w.step()
			}
		}
		w.nodes = daemonNodes("w", "x", "y", "z")
		for range 100 {
			w.calm()
			if w.step().Empty() && w.view().Verdict().Complete {
				return
			}
		}
		t.Fatalf("does not get there: %+v", w.view().Verdict())
	})
}

type daemonWorld struct {
	t        *rapid.T
	spec     *appsv1.DaemonSetSpec
	nodes    []DaemonNode
	sets     map[string]*Set
	update   string
	failures map[string]Failures
	serial   uint64
}

func (w *daemonWorld) view() *Daemon {
	d := DaemonSet(w.spec)
	d.Now, d.Nodes, d.Update, d.Failures = now, w.nodes, w.sets[w.update], w.failures
	for _, hash := range slices.Sorted(maps.Keys(w.sets)) {
		if hash != w.update {
			d.Old = append(d.Old, w.sets[hash])
		}
	}
	return &d
}

func (w *daemonWorld) step() Steps {
	d := w.view()
	steps, failures, _ := d.Next()
	w.check(d, steps)
	w.failures = failures
	for _, c := range steps.Creates {
		w.serial++
		w.sets[c.Hash].Pods = append(w.sets[c.Hash].Pods, Pod{
			UID: nodes.UID(fmt.Sprint(w.serial)), Aim: c.Node, Incarnation: w.serial, Phase: corev1.PodPending, Created: now,
		})
	}
	for _, r := range steps.Removes {
		p := w.find(r.UID)
		p.Leaving, p.Ready = true, false
	}
	return steps
}

func (w *daemonWorld) all() []*Pod {
	var all []*Pod
	for _, hash := range slices.Sorted(maps.Keys(w.sets)) {
		for i := range w.sets[hash].Pods {
			all = append(all, &w.sets[hash].Pods[i])
		}
	}
	return all
}

func (w *daemonWorld) find(uid nodes.UID) *Pod {
	for _, p := range w.all() {
		if p.UID == uid {
			return p
		}
	}
	w.t.Fatalf("no pod %s", uid)
	return nil
}

func (w *daemonWorld) check(d *Daemon, steps Steps) {
	at := map[string]DaemonNode{}
	for _, n := range w.nodes {
		at[n.Name] = n
	}
	surge, unavailable := d.Limits()
	goes := map[nodes.UID]bool{}
	for _, r := range steps.Removes {
		if at[w.find(r.UID).Aim].Silent {
			w.t.Fatalf("took a pod of the silent node %s", w.find(r.UID).Aim)
		}
		goes[r.UID] = true
	}
	living, leaving, served, serves := map[string]int{}, map[string]int{}, map[string]bool{}, map[string]bool{}
	for _, p := range w.all() {
		switch {
		case p.Leaving, goes[p.UID]:
			leaving[p.Aim]++
			served[p.Aim] = served[p.Aim] || p.Ready
		case !p.done():
			living[p.Aim]++
			serves[p.Aim] = serves[p.Aim] || p.Ready
		}
	}
	for _, c := range steps.Creates {
		if !at[c.Node].Runs || at[c.Node].Silent {
			w.t.Fatalf("a pod for %+v", at[c.Node])
		}
		if surge == 0 && living[c.Node]+leaving[c.Node] > 0 || living[c.Node] > 1 {
			w.t.Fatalf("another pod for node %s, which has %d and %d leaving", c.Node, living[c.Node], leaving[c.Node])
		}
	}
	taken, without := 0, 0
	for _, n := range w.nodes {
		switch {
		case !n.Runs:
		case n.Silent, !serves[n.Name]:
			without++
		}
		if n.Runs && served[n.Name] && !serves[n.Name] {
			taken++
		}
	}
	if taken > 0 && without > unavailable {
		w.t.Fatalf("left %d nodes without a pod that serves, %d of them by its own doing; %d may be", without, taken, unavailable)
	}
}

func (w *daemonWorld) someone() {
	all := w.all()
	if len(all) == 0 {
		return
	}
	p := all[rapid.IntRange(0, len(all)-1).Draw(w.t, "pod")]
	switch {
	case p.Leaving:
		for _, s := range w.sets {
			s.Pods = slices.DeleteFunc(s.Pods, func(o Pod) bool { return o.UID == p.UID })
		}
	case rapid.IntRange(0, 9).Draw(w.t, "fate") == 0:
		p.Node, p.Phase, p.Ready = p.Aim, corev1.PodFailed, false
	case !p.done():
		p.Node, p.Phase, p.Ready = p.Aim, corev1.PodRunning, rapid.IntRange(0, 3).Draw(w.t, "ready") > 0
	}
}

func (w *daemonWorld) calm() {
	w.failures = nil
	for _, s := range w.sets {
		s.Pods = slices.DeleteFunc(s.Pods, func(p Pod) bool { return p.Leaving })
		for i := range s.Pods {
			if p := &s.Pods[i]; !p.done() {
				p.Node, p.Phase, p.Ready = p.Aim, corev1.PodRunning, true
			}
		}
	}
}
