package workload

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"github.com/tallyman-dev/tallyman/nodes"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// setOf has some pods that are ready and some that are not.
func setOf(hash string, ready, unready int) *Set {
	s := &Set{Hash: hash, Since: now}
	for i := range ready + unready {
		s.Pods = append(s.Pods, Pod{
			UID: nodes.UID(fmt.Sprint(hash, i)), Name: fmt.Sprint(hash, i), Node: "n", Phase: corev1.PodRunning,
			Ready: i < ready, ReadySince: now.Add(-time.Minute), Created: now.Add(-time.Hour), Incarnation: uint64(i),
		})
	}
	return s
}

// change is the number of pods that steps add to or take from each set.
func change(s Steps) map[string]int {
	out := map[string]int{}
	for _, c := range s.Creates {
		out[c.Hash] += c.Count
	}
	for _, r := range s.Removes {
		out[r.Hash]--
	}
	return out
}

func TestRollout(t *testing.T) {
	tests := map[string]struct {
		rollout Rollout
		want    map[string]int
	}{
		"first rollout":                     {Rollout{Replicas: 3, Surge: 1, Current: setOf("new", 0, 0)}, map[string]int{"new": 3}},
		"scale up":                          {Rollout{Replicas: 5, Surge: 1, Current: setOf("new", 3, 0)}, map[string]int{"new": 2}},
		"scale down":                        {Rollout{Replicas: 2, Surge: 1, Current: setOf("new", 5, 0)}, map[string]int{"new": -3}},
		"to zero":                           {Rollout{Replicas: 0, Surge: 1, Current: setOf("new", 2, 1), Old: []*Set{setOf("old", 2, 0)}}, map[string]int{"new": -3, "old": -2}},
		"converged":                         {Rollout{Replicas: 3, Surge: 1, Current: setOf("new", 3, 0)}, map[string]int{}},
		"25% of 10 begins":                  {Rollout{Replicas: 10, Surge: 3, Unavailable: 2, Current: setOf("new", 0, 0), Old: []*Set{setOf("old", 10, 0)}}, map[string]int{"new": 5, "old": -2}},
		"new ones not ready yet":            {Rollout{Replicas: 10, Surge: 3, Unavailable: 2, Current: setOf("new", 0, 5), Old: []*Set{setOf("old", 8, 0)}}, map[string]int{}},
		"one new one ready":                 {Rollout{Replicas: 10, Surge: 3, Unavailable: 2, Current: setOf("new", 1, 4), Old: []*Set{setOf("old", 8, 0)}}, map[string]int{"new": 1, "old": -1}},
		"no surge takes one first":          {Rollout{Replicas: 3, Unavailable: 1, Current: setOf("new", 0, 0), Old: []*Set{setOf("old", 3, 0)}}, map[string]int{"new": 1, "old": -1}},
		"no unavailability adds one first":  {Rollout{Replicas: 3, Surge: 1, Current: setOf("new", 0, 0), Old: []*Set{setOf("old", 3, 0)}}, map[string]int{"new": 1}},
		"broken old pods go at once":        {Rollout{Replicas: 3, Surge: 1, Unavailable: 1, Current: setOf("new", 0, 1), Old: []*Set{setOf("old", 2, 1)}}, map[string]int{"new": 1, "old": -1}},
		"oldest set first":                  {Rollout{Replicas: 4, Unavailable: 1, Current: setOf("new", 0, 0), Old: []*Set{setOf("a", 2, 0), setOf("b", 2, 0)}}, map[string]int{"a": -1, "new": 1}},
		"recreate waits":                    {Rollout{Replicas: 3, Unavailable: 3, Recreate: true, Current: setOf("new", 0, 0), Old: []*Set{setOf("old", 3, 0)}}, map[string]int{"old": -3}},
		"recreate starts":                   {Rollout{Replicas: 3, Unavailable: 3, Recreate: true, Current: setOf("new", 0, 0), Old: []*Set{setOf("old", 0, 0)}}, map[string]int{"new": 3}},
		"paused scales what is there":       {Rollout{Replicas: 5, Surge: 1, Paused: true, Old: []*Set{setOf("old", 3, 0)}}, map[string]int{"old": 2}},
		"paused rolls nothing":              {Rollout{Replicas: 3, Surge: 1, Paused: true, ScaledMax: 4, Current: setOf("new", 1, 0), Old: []*Set{setOf("old", 3, 0)}}, map[string]int{}},
		"proportional growth":               {Rollout{Replicas: 20, Surge: 3, Unavailable: 2, Paused: true, ScaledMax: 13, Current: setOf("new", 0, 5), Old: []*Set{setOf("old", 8, 0)}}, map[string]int{"new": 4, "old": 6}},
		"proportional shrinking":            {Rollout{Replicas: 5, Surge: 2, Unavailable: 1, Paused: true, ScaledMax: 13, Current: setOf("new", 0, 5), Old: []*Set{setOf("old", 8, 0)}}, map[string]int{"new": -2, "old": -4}},
		"shrinking keeps what is available": {Rollout{Replicas: 3, Surge: 1, Paused: true, ScaledMax: 13, Current: setOf("new", 0, 11), Old: []*Set{setOf("old", 2, 0)}}, map[string]int{"new": -9}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.rollout.Now = now
			if diff := cmp.Diff(test.want, change(test.rollout.Next())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRecreateWaitsForLeavingPods(t *testing.T) {
	old := setOf("old", 1, 0)
	old.Pods[0].Leaving = true
	r := Rollout{Now: now, Replicas: 1, Recreate: true, Unavailable: 1, Current: setOf("new", 0, 0), Old: []*Set{old}}
	if s := r.Next(); !s.Empty() || s.Waits != "1 old pod must stop before new ones start (strategy Recreate)" {
		t.Errorf("%+v", s)
	}
}

func TestEndedPodsAreReplacedInTheirSet(t *testing.T) {
	current := setOf("new", 3, 0)
	current.Pods[1].Phase = corev1.PodFailed
	r := Rollout{Now: now, Replicas: 3, Surge: 1, Current: current}
	s := r.Next()
	if len(s.Removes) != 1 || s.Removes[0].UID != current.Pods[1].UID || len(s.Creates) != 1 || s.Creates[0].Count != 1 {
		t.Errorf("%+v", s)
	}
}

func TestMinReadySeconds(t *testing.T) {
	current := setOf("new", 1, 0)
	current.Pods[0].ReadySince = now.Add(-5 * time.Second)
	r := Rollout{Now: now, Replicas: 1, Surge: 1, MinReady: 10 * time.Second, Deadline: time.Hour, Current: current, Old: []*Set{setOf("old", 1, 0)}}
	if s := r.Next(); !s.Empty() {
		t.Errorf("a pod that was ready for too short a time counts: %+v", s)
	}
	if v := r.Verdict(); v.Ready != 2 || v.Available != 1 || !v.Wake.Equal(now.Add(5*time.Second)) {
		t.Errorf("%+v", v)
	}
	r.Now = now.Add(5 * time.Second)
	if diff := cmp.Diff(map[string]int{"old": -1}, change(r.Next())); diff != "" {
		t.Error(diff)
	}
}

// TestAvailableGoesLast: neither cost nor a crowded node makes an available
// pod go before one that is ready for too short a time.
func TestAvailableGoesLast(t *testing.T) {
	current := setOf("new", 3, 0)
	current.Pods[0].ReadySince, current.Pods[0].Node, current.Pods[0].Cost = now, "other", 5
	r := Rollout{Now: now, Replicas: 2, Surge: 1, MinReady: time.Second, Current: current}
	if s := r.Next(); len(s.Removes) != 1 || s.Removes[0].UID != current.Pods[0].UID {
		t.Errorf("%+v", s)
	}
}

func TestRemovalOrder(t *testing.T) {
	base := Pod{Node: "n", Phase: corev1.PodRunning, Ready: true, ReadySince: now, Created: now}
	with := func(change func(*Pod)) Pod {
		p := base
		change(&p)
		return p
	}
	tests := map[string]Pod{
		"unassigned":        with(func(p *Pod) { p.Node = "" }),
		"pending":           with(func(p *Pod) { p.Phase = corev1.PodPending }),
		"not ready":         with(func(p *Pod) { p.Ready = false }),
		"cheap":             with(func(p *Pod) { p.Cost = -1 }),
		"ready for shorter": with(func(p *Pod) { p.ReadySince = now.Add(time.Second) }),
		"restarted":         with(func(p *Pod) { p.Restarts = 1 }),
		"newer":             with(func(p *Pod) { p.Created = now.Add(time.Second) }),
	}
	for name, first := range tests {
		t.Run(name, func(t *testing.T) {
			first.UID, base.UID = "z-first", "a-base"
			other := base
			if got := removalOrder([]*Pod{&other, &first}); got[0].UID != "z-first" {
				t.Error("goes last")
			}
		})
	}
}

func TestLimits(t *testing.T) {
	tests := []struct {
		surge, unavailable string
		replicas           int
		wantS, wantU       int
	}{
		{"25%", "25%", 10, 3, 2},
		{"25%", "25%", 1, 1, 0},
		{"25%", "25%", 3, 1, 0},
		{"0", "25%", 3, 0, 1},
		{"0", "1", 3, 0, 1},
		{"50%", "0", 5, 3, 0},
		{"2", "100%", 4, 2, 4},
		{"0%", "0%", 4, 0, 1},
		{"1", "9", 2, 1, 2},
	}
	for _, test := range tests {
		s, u := intstr.Parse(test.surge), intstr.Parse(test.unavailable)
		gotS, gotU := Limits(&appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u}, test.replicas)
		if gotS != test.wantS || gotU != test.wantU {
			t.Errorf("%+v gives %d, %d", test, gotS, gotU)
		}
	}
}

func TestVerdict(t *testing.T) {
	troubled := setOf("new", 0, 1)
	troubled.Pods[0].Why = "ImagePullBackOff: no such image"
	tests := map[string]struct {
		rollout Rollout
		later   time.Duration
		health  nodes.Health
		reason  string
	}{
		"healthy":     {Rollout{Replicas: 2, Surge: 1, Current: setOf("new", 2, 0)}, 0, nodes.Healthy, ""},
		"progressing": {Rollout{Replicas: 3, Surge: 1, Current: troubled, Old: []*Set{setOf("old", 3, 0)}}, 0, nodes.Progressing, "0 of 3 updated pods available, 3 old pods still there; pod new0: ImagePullBackOff: no such image"},
		"late":        {Rollout{Replicas: 3, Surge: 1, Current: troubled, Old: []*Set{setOf("old", 3, 0)}}, time.Minute, nodes.Degraded, "ProgressDeadlineExceeded: no progress for 1m, 0 of 3 updated pods available, 3 old pods still there; pod new0: ImagePullBackOff: no such image"},
		"fell back":   {Rollout{Replicas: 2, Surge: 1, WasComplete: true, Current: setOf("new", 1, 1)}, 0, nodes.Degraded, "MinimumReplicasUnavailable: 1 of 2 pods available"},
		"paused":      {Rollout{Replicas: 2, Surge: 1, Paused: true, Old: []*Set{setOf("old", 2, 0)}}, 0, nodes.Suspended, "paused: 0 of 2 updated pods available, 2 old pods still there"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.rollout.Now, test.rollout.Deadline = now.Add(test.later), time.Minute
			v := test.rollout.Verdict()
			if v.Health != test.health || v.Reason != test.reason {
				t.Errorf("%s: %s", v.Health, v.Reason)
			}
			if v.Late != (test.later > 0) {
				t.Errorf("late: %v", v.Late)
			}
		})
	}
}

// TestBounds is invariant 4 for any mixture of sets.
func TestBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		small := rapid.IntRange(0, 8)
		r := Rollout{Now: now, Replicas: small.Draw(t, "replicas"), Surge: small.Draw(t, "surge"), ScaledMax: small.Draw(t, "max"), Paused: rapid.Bool().Draw(t, "paused")}
		r.Unavailable = min(r.Replicas, small.Draw(t, "unavailable"))
		if r.Surge == 0 && r.Unavailable == 0 {
			r.Unavailable = 1
		}
		r.Current = setOf("new", small.Draw(t, "ready"), small.Draw(t, "unready"))
		for i := range rapid.IntRange(0, 3).Draw(t, "old sets") {
			r.Old = append(r.Old, setOf(fmt.Sprint("old", i), small.Draw(t, "ready"), small.Draw(t, "unready")))
		}
		if r.Paused && rapid.Bool().Draw(t, "new template") {
			r.Current = nil
		}
		r.MinReady = time.Second
		for _, s := range r.sets() {
			for i := range s.Pods {
				s.Pods[i].Node, s.Pods[i].Cost = rapid.SampledFrom([]string{"a", "b"}).Draw(t, "node"), small.Draw(t, "cost")
				if rapid.IntRange(0, 3).Draw(t, "fresh") == 0 {
					s.Pods[i].ReadySince = now
				}
			}
		}
		steps := r.Next()
		live, available, taken := 0, 0, 0
		ready := map[nodes.UID]bool{}
		for _, s := range r.sets() {
			live += len(s.Pods)
			for _, p := range s.Pods {
				ready[p.UID] = r.available(&p)
				if ready[p.UID] {
					available++
				}
			}
		}
		for _, s := range steps.Removes {
			live--
			if ready[s.UID] {
				available--
				taken++
			}
		}
		created := 0
		for _, s := range steps.Creates {
			created += s.Count
		}
		if live+created > r.max() {
			t.Fatalf("%d pods, %d allowed", live+created, r.max())
		}
		if taken > 0 && available < r.Replicas-r.Unavailable {
			t.Fatalf("%d available pods taken, %d left of %d − %d", taken, available, r.Replicas, r.Unavailable)
		}
	})
}

// TestNodesClockAheadHangsNoRollout: a node's clock says when a pod got ready,
// and only minReadySeconds asks for it.
func TestNodesClockAheadHangsNoRollout(t *testing.T) {
	for _, c := range []struct {
		minReady time.Duration
		want     map[string]int
	}{
		{0, map[string]int{"old": -3}},
		{time.Second, map[string]int{}},
	} {
		ahead := setOf("new", 3, 0)
		for i := range ahead.Pods {
			ahead.Pods[i].ReadySince = now.Add(time.Hour)
		}
		r := Rollout{Now: now, Replicas: 3, Surge: 3, MinReady: c.minReady, Current: ahead, Old: []*Set{setOf("old", 3, 0)}}
		if diff := cmp.Diff(c.want, change(r.Next())); diff != "" {
			t.Errorf("minReadySeconds of %s: %s", c.minReady, diff)
		}
		if v := r.Verdict(); c.minReady == 0 && v.Available != 6 {
			t.Errorf("without minReadySeconds: %+v", v)
		}
	}
}
