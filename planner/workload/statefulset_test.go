package workload

import (
	"fmt"
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

// ordinals makes a set of a StatefulSet's pods, each written "ordinal",
// "ordinal!" when it is not ready, "ordinal-" when it is leaving or "ordinal+"
// when it has failed.
func ordinals(hash string, pods ...string) *Set {
	s := &Set{Hash: hash, Since: now.Add(-time.Hour)}
	for _, text := range pods {
		var ordinal int
		var state string
		fmt.Sscanf(text, "%d%s", &ordinal, &state)
		p := Pod{
			UID: nodes.UID(fmt.Sprintf("%s/%d", hash, ordinal)), Name: fmt.Sprintf("db-%d", ordinal), Ordinal: ordinal, Phase: corev1.PodRunning,
			Ready: state == "", ReadySince: now.Add(-time.Minute), Created: now.Add(-time.Hour), Leaving: state == "-",
		}
		if state == "+" {
			p.Phase = corev1.PodFailed
		}
		s.Pods = append(s.Pods, p)
	}
	return s
}

// text writes steps as "+hash/ordinal" and "-hash/ordinal".
func text(s Steps) []string {
	var out []string
	for _, c := range s.Creates {
		out = append(out, fmt.Sprintf("+%s/%d", c.Hash, c.Ordinal))
	}
	for _, r := range s.Removes {
		out = append(out, "-"+string(r.UID))
	}
	return out
}

func TestStatefulSet(t *testing.T) {
	parallel := func(s *Stateful) { s.Parallel = true }
	partition := func(n int) func(*Stateful) { return func(s *Stateful) { s.Partition = n } }
	briefly := func(s *Stateful) { s.Deadline = 2 * time.Minute }
	tests := map[string]struct {
		replicas    int
		old, update *Set
		with        []func(*Stateful)
		want        []string
	}{
		"starts the first pod only":                      {3, nil, ordinals("b"), nil, []string{"+b/0"}},
		"waits for a pod that is not ready":              {3, nil, ordinals("b", "0!"), nil, nil},
		"starts the next pod":                            {3, nil, ordinals("b", "0"), nil, []string{"+b/1"}},
		"fills a gap before it goes on":                  {3, nil, ordinals("b", "0", "2"), nil, []string{"+b/1"}},
		"starts all in parallel":                         {3, nil, ordinals("b"), []func(*Stateful){parallel}, []string{"+b/0", "+b/1", "+b/2"}},
		"never makes a second pod of an ordinal":         {2, nil, ordinals("b", "0", "1-"), nil, nil},
		"nor in parallel":                                {2, nil, ordinals("b", "0-", "1-"), []func(*Stateful){parallel}, nil},
		"replaces a pod that has ended":                  {2, nil, ordinals("b", "0", "1+"), nil, []string{"-b/1"}},
		"takes the highest ordinal":                      {1, nil, ordinals("b", "0", "1", "2"), nil, []string{"-b/2"}},
		"takes all in parallel":                          {1, nil, ordinals("b", "0", "1", "2"), []func(*Stateful){parallel}, []string{"-b/2", "-b/1"}},
		"does not shrink while a pod is missing":         {1, nil, ordinals("b", "0!", "1", "2"), nil, nil},
		"takes a condemned pod that is broken":           {1, nil, ordinals("b", "0", "1!"), nil, []string{"-b/1"}},
		"takes a broken one before it goes on":           {1, nil, ordinals("b", "0", "1!", "2!"), nil, []string{"-b/2"}},
		"waits for the one that goes":                    {1, nil, ordinals("b", "0", "1", "2-"), nil, nil},
		"updates from the top":                           {3, ordinals("a", "0", "1", "2"), ordinals("b"), nil, []string{"-a/2"}},
		"updates one at a time":                          {3, ordinals("a", "0", "1"), ordinals("b", "2!"), nil, nil},
		"goes on when the new pod is ready":              {3, ordinals("a", "0", "1"), ordinals("b", "2"), nil, []string{"-a/1"}},
		"keeps the partition":                            {3, ordinals("a", "0", "1"), ordinals("b", "2"), []func(*Stateful){partition(2)}, nil},
		"makes a pod of the partition as it was":         {3, ordinals("a", "1"), ordinals("b", "2"), []func(*Stateful){partition(2)}, []string{"+a/0"}},
		"makes a pod beyond the partition anew":          {3, ordinals("a", "0", "1"), ordinals("b"), []func(*Stateful){partition(2)}, []string{"+b/2"}},
		"updates two with maxUnavailable 2":              {3, ordinals("a", "0", "1", "2"), ordinals("b"), []func(*Stateful){func(s *Stateful) { s.Unavailable = 2 }}, []string{"-a/2", "-a/1"}},
		"leaves OnDelete alone":                          {2, ordinals("a", "0", "1"), ordinals("b"), []func(*Stateful){func(s *Stateful) { s.OnDelete = true }}, nil},
		"makes OnDelete's successor anew":                {2, ordinals("a", "0"), ordinals("b"), []func(*Stateful){func(s *Stateful) { s.OnDelete = true }}, []string{"+b/1"}},
		"waits for a broken pod of a good template":      {2, ordinals("a", "0", "1!"), ordinals("b"), nil, nil},
		"gives it up after half of the deadline":         {2, ordinals("a", "0", "1!"), ordinals("b"), []func(*Stateful){briefly}, []string{"-a/1"}},
		"but not one that the partition keeps":           {2, ordinals("a", "0", "1!"), ordinals("b"), []func(*Stateful){briefly, partition(2)}, nil},
		"nor one of today's template":                    {2, nil, ordinals("b", "0", "1!"), []func(*Stateful){briefly}, nil},
		"replaces a broken pod of a failed update":       {2, ordinals("a", "0", "1!"), ordinals("b"), []func(*Stateful){func(s *Stateful) { s.Proven = "z" }}, []string{"-a/1"}},
		"replaces broken ones first in parallel":         {3, ordinals("a", "0!", "1", "2"), ordinals("b"), []func(*Stateful){parallel}, []string{"-a/0"}},
		"counts from the first ordinal":                  {2, nil, ordinals("b", "5"), []func(*Stateful){func(s *Stateful) { s.Start = 5 }}, []string{"+b/6"}},
		"moves to a new start":                           {2, nil, ordinals("b", "0", "1", "5", "6"), []func(*Stateful){func(s *Stateful) { s.Start = 5 }}, []string{"-b/1"}},
		"takes the double of a pod that is ready":        {1, ordinals("a", "0!"), ordinals("b", "0"), nil, []string{"-a/0"}},
		"keeps what is not available in an update apart": {3, ordinals("a", "0", "1", "2!"), ordinals("b"), []func(*Stateful){parallel}, []string{"-a/2"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := Stateful{Now: now, Name: "db", Replicas: test.replicas, Unavailable: 1, Deadline: DefaultDeadline, Update: test.update, Stable: test.update}
			if test.old != nil {
				s.Old, s.Stable, s.Proven = []*Set{test.old}, test.old, test.old.Hash
			}
			for _, with := range test.with {
				with(&s)
			}
			if diff := cmp.Diff(test.want, text(s.Next())); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStatefulSetSpec(t *testing.T) {
	half := intstr.FromString("50%")
	spec := &appsv1.StatefulSetSpec{
		Replicas: new(int32(5)), PodManagementPolicy: appsv1.ParallelPodManagement, MinReadySeconds: 3,
		Ordinals: &appsv1.StatefulSetOrdinals{Start: 7},
		UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
			Type:          appsv1.RollingUpdateStatefulSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32(2)), MaxUnavailable: &half},
		},
	}
	s := StatefulSet("db", spec)
	want := Stateful{Name: "db", Start: 7, Replicas: 5, Parallel: true, Partition: 2, Unavailable: 2, MinReady: 3 * time.Second, Deadline: DefaultDeadline}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Error(diff)
	}
	tenth := intstr.FromString("10%")
	spec.UpdateStrategy.RollingUpdate.MaxUnavailable = &tenth
	if s := StatefulSet("db", spec); s.Unavailable != 1 {
		t.Errorf("10 %% of 5 pods: %d may be unavailable, not 1", s.Unavailable)
	}
}

func TestStatefulVerdict(t *testing.T) {
	base := Stateful{Now: now, Name: "db", Replicas: 2, Unavailable: 1, Deadline: DefaultDeadline}
	tests := map[string]struct {
		old, update *Set
		with        func(*Stateful)
		health      nodes.Health
		reason      string
		complete    bool
	}{
		"all there":   {nil, ordinals("b", "0", "1"), nil, nodes.Healthy, "", true},
		"one missing": {nil, &Set{Hash: "b", Since: now, Pods: ordinals("b", "0").Pods}, nil, nodes.Progressing, "1 of 2 pods available", false},
		"no progress": {nil, ordinals("b", "0!"), nil, nodes.Degraded, "ProgressDeadlineExceeded: no progress for 10m, 0 of 2 pods available", false},
		"rolling": {
			ordinals("a", "0"), &Set{Hash: "b", Since: now, Pods: ordinals("b", "1").Pods}, nil,
			nodes.Progressing, "1 of 2 updated pods available, 1 old pod still there", false,
		},
		"partitioned": {ordinals("a", "0"), ordinals("b", "1"), func(s *Stateful) { s.Partition = 1 }, nodes.Healthy, "partition 1: 1 pod of an earlier template", true},
		"on delete": {
			ordinals("a", "0", "1"), ordinals("b"), func(s *Stateful) { s.OnDelete = true },
			nodes.Healthy, "update strategy OnDelete: 2 pods of an earlier template", true,
		},
		"one too many": {nil, &Set{Hash: "b", Since: now, Pods: ordinals("b", "0", "1", "2").Pods}, nil, nodes.Progressing, "3 of 2 pods available", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := base
			s.Now = now.Add(time.Hour)
			if test.health == nodes.Progressing {
				s.Now = now
			}
			s.Update, s.Stable = test.update, test.update
			if test.old != nil {
				s.Old, s.Stable = []*Set{test.old}, test.old
			}
			if test.with != nil {
				test.with(&s)
			}
			v := s.Verdict()
			if v.Health != test.health || v.Reason != test.reason || v.Complete != test.complete {
				t.Errorf("%s, %q, complete %v", v.Health, v.Reason, v.Complete)
			}
		})
	}
}

// statefulWorld lets a StatefulSet's rules run against pods that get ready,
// break and go at random.
type statefulWorld struct {
	t      *rapid.T
	rules  Stateful
	sets   map[string]*Set
	serial uint64
	// bad are templates whose pods never get ready.
	bad map[string]bool
}

func (w *statefulWorld) view() *Stateful {
	s := w.rules
	s.Old = nil
	for _, hash := range slices.Sorted(func(yield func(string) bool) {
		for h := range w.sets {
			if !yield(h) {
				return
			}
		}
	}) {
		if w.sets[hash] != s.Update {
			s.Old = append(s.Old, w.sets[hash])
		}
	}
	return &s
}

func (w *statefulWorld) step() Steps {
	s := w.view()
	if s.Settled() {
		w.rules.Stable, s.Stable = s.Update, s.Update
		if s.Replicas > 0 {
			w.rules.Proven, s.Proven = s.Update.Hash, s.Update.Hash
		}
	}
	availableBefore := s.Verdict().Available
	steps := s.Next()
	w.check(s, steps, availableBefore)
	for _, c := range steps.Creates {
		w.serial++
		set := w.sets[c.Hash]
		set.Pods = append(set.Pods, Pod{UID: nodes.UID(fmt.Sprint(w.serial)), Name: c.Name, Ordinal: c.Ordinal, Incarnation: w.serial, Phase: corev1.PodPending, Created: now})
	}
	for _, r := range steps.Removes {
		p := w.find(r.UID)
		p.Leaving, p.Ready = true, false
	}
	return steps
}

func (w *statefulWorld) find(uid nodes.UID) *Pod {
	for _, s := range w.sets {
		for i := range s.Pods {
			if s.Pods[i].UID == uid {
				return &s.Pods[i]
			}
		}
	}
	w.t.Fatalf("no pod %s", uid)
	return nil
}

func (w *statefulWorld) check(s *Stateful, steps Steps, availableBefore int) {
	there := map[int]int{}
	for _, set := range w.sets {
		for _, p := range set.Pods {
			there[p.Ordinal]++
		}
	}
	for _, c := range steps.Creates {
		if there[c.Ordinal] > 0 {
			w.t.Fatalf("a second pod of ordinal %d", c.Ordinal)
		}
		if c.Ordinal < s.Start || c.Ordinal >= s.Start+s.Replicas || c.Name != fmt.Sprintf("db-%d", c.Ordinal) {
			w.t.Fatalf("created %s with ordinal %d of %d+%d", c.Name, c.Ordinal, s.Start, s.Replicas)
		}
		if s.protected(c.Ordinal) && s.Stable != nil && c.Hash != s.Stable.Hash {
			w.t.Fatalf("ordinal %d of the partition is made from %s, not %s", c.Ordinal, c.Hash, s.Stable.Hash)
		}
	}
	if !s.Parallel && len(steps.Creates) > 1 {
		w.t.Fatalf("%d pods created at once in order", len(steps.Creates))
	}
	updated, available := 0, availableBefore
	for _, r := range steps.Removes {
		p := w.find(r.UID)
		inRange := p.Ordinal >= s.Start && p.Ordinal < s.Start+s.Replicas
		if inRange && p.Ready && !p.done() {
			updated++
			available--
			if s.protected(p.Ordinal) {
				w.t.Fatalf("took ordinal %d, which the partition keeps", p.Ordinal)
			}
		}
	}
	if updated > s.Unavailable {
		w.t.Fatalf("took %d available pods at once, %d may be missing", updated, s.Unavailable)
	}
}

// someone lets one pod get ready, break, end or, when it is leaving, go.
func (w *statefulWorld) someone() {
	var all []*Pod
	for _, hash := range []string{"a", "b", "c"} {
		if s := w.sets[hash]; s != nil {
			for i := range s.Pods {
				all = append(all, &s.Pods[i])
			}
		}
	}
	if len(all) == 0 {
		return
	}
	p := all[rapid.IntRange(0, len(all)-1).Draw(w.t, "pod")]
	switch {
	case p.Leaving:
		w.gone(p.UID)
	case rapid.IntRange(0, 9).Draw(w.t, "fate") == 0:
		p.Phase, p.Ready = corev1.PodFailed, false
	default:
		p.Phase, p.Ready = corev1.PodRunning, !w.bad[w.hashOf(p)] && rapid.IntRange(0, 4).Draw(w.t, "ready") > 0
	}
}

func (w *statefulWorld) hashOf(p *Pod) string {
	for hash, s := range w.sets {
		for i := range s.Pods {
			if s.Pods[i].UID == p.UID {
				return hash
			}
		}
	}
	return ""
}

func (w *statefulWorld) gone(uid nodes.UID) {
	for _, s := range w.sets {
		s.Pods = slices.DeleteFunc(s.Pods, func(p Pod) bool { return p.UID == uid })
	}
}

// calm lets everything that can get ready do so, and everything that leaves go.
func (w *statefulWorld) calm() {
	for hash, s := range w.sets {
		s.Pods = slices.DeleteFunc(s.Pods, func(p Pod) bool { return p.Leaving })
		for i := range s.Pods {
			if p := &s.Pods[i]; !p.done() {
				p.Phase, p.Ready = corev1.PodRunning, !w.bad[hash]
			}
		}
	}
}

func TestStatefulProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &statefulWorld{t: t, sets: map[string]*Set{}, bad: map[string]bool{"b": true}}
		for _, hash := range []string{"a", "b", "c"} {
			w.sets[hash] = &Set{Hash: hash}
		}
		w.rules = Stateful{
			Now: now, Name: "db", Parallel: rapid.Bool().Draw(t, "parallel"), Update: w.sets["a"], Stable: w.sets["a"],
			Deadline: DefaultDeadline, Unavailable: rapid.IntRange(1, 3).Draw(t, "unavailable"),
		}
		for range rapid.IntRange(10, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0:
				w.rules.Update = w.sets[rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "template")]
			case 1:
				w.rules.Replicas = rapid.IntRange(0, 5).Draw(t, "replicas")
				w.rules.Start = rapid.IntRange(0, 2).Draw(t, "start")
			case 2:
				w.rules.Partition = rapid.IntRange(0, 3).Draw(t, "partition")
			default:
				w.someone()
			}
			w.step()
		}
		// Whatever happened, a good template without a partition gets there.
		w.rules.Partition, w.rules.Update = 0, w.sets["c"]
		for range 100 {
			w.calm()
			if w.step().Empty() && w.view().Verdict().Complete {
				return
			}
		}
		t.Fatalf("does not get there: %+v", w.view().Verdict())
	})
}
