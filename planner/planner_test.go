package planner

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

func TestGuard(t *testing.T) {
	many := func(n int) []runtime.Object {
		out := []runtime.Object{namespace("default"), namespace("other")}
		for i := range n {
			out = append(out, configMap(fmt.Sprint("c", i), nil))
		}
		return out
	}
	inOther := deployment("web", 1)
	inOther.Namespace = "other"
	tests := map[string]struct {
		before, after []runtime.Object
		message       string
		source        string
		why           string
		confirm       string
	}{
		"few":                       {before: many(40), after: many(35)},
		"at the bound of objects":   {before: many(40), after: many(30)},
		"many but a small share":    {before: many(200), after: many(189)},
		"many":                      {before: many(40), after: many(29), why: "11 of 40 of kind ConfigMap", confirm: "Tally-Confirm: delete 11"},
		"many, confirmed":           {before: many(40), after: many(29), message: "clean up\n\nTally-Confirm: delete 11"},
		"many, wrong number":        {before: many(40), after: many(29), message: "clean up\n\nTally-Confirm: delete 12", why: "11 of 40", confirm: "Tally-Confirm: delete 11"},
		"everything":                {before: many(1), after: nil, why: "everything in force (3 objects)", confirm: "Tally-Confirm: delete 3"},
		"another source":            {before: many(5), after: many(4), source: "elsewhere", why: "changed from embedded to elsewhere", confirm: "Tally-Confirm: delete 1"},
		"another source, confirmed": {before: many(5), after: many(4), source: "elsewhere", message: "move\n\nTally-Confirm: delete 1"},
		"another source, a change":  {before: many(5), after: append(many(4), configMap("c4", map[string]string{"a": "1"})), source: "elsewhere", why: "1 object would be changed and none deleted", confirm: "Tally-Confirm: delete 0"},
		"a change, confirmed":       {before: many(5), after: append(many(4), configMap("c4", map[string]string{"a": "1"})), source: "elsewhere", message: "move\n\nTally-Confirm: delete 0"},
		"another source, new only":  {before: many(5), after: many(6), source: "elsewhere"},
		"another source, the same":  {before: many(5), after: many(5), source: "elsewhere"},
		"a namespace with pods":     {before: append(many(1), inOther), after: []runtime.Object{namespace("default"), configMap("c0", nil)}, why: "the Namespace other would be deleted with 1 running pod in it", confirm: "Tally-Confirm: delete 2"},
		"an empty namespace":        {before: many(1), after: []runtime.Object{namespace("default"), configMap("c0", nil)}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1")
			w.push(test.before...)
			w.settle()
			if test.source != "" {
				w.source = test.source
			}
			in := w.s.InForce().Revision().SHA
			p := w.pushWith(test.message, test.after...)
			switch {
			case test.why == "" && p.Hold != nil:
				t.Fatalf("held: %s", p.Hold.Why)
			case test.why == "":
				return
			case p.Hold == nil:
				t.Fatal("not held")
			}
			if !strings.Contains(p.Hold.Why, test.why) || p.Hold.Confirm != test.confirm {
				t.Errorf("held because %q, confirm with %q", p.Hold.Why, p.Hold.Confirm)
			}
			if w.s.InForce().Revision().SHA != in || len(p.Actions)+len(p.Decisions) > 0 {
				t.Errorf("a held revision changed something: %v", p.Actions)
			}
			if w.s.Overview(w.now).Held == nil {
				t.Error("the overview does not show the hold")
			}
			if p := w.push(test.before...); p.Hold != nil && test.source == "" || w.s.Overview(w.now).Held != p.Hold {
				t.Error("the earlier content does not release the hold")
			}
		})
	}
}

// TestGuardAfterRestart: the record's inventory is enough to hold a deletion.
func TestGuardAfterRestart(t *testing.T) {
	for _, withRecord := range []bool{true, false} {
		w := newWorld(t, "n1")
		w.push(deployment("web", 2), configMap("a", nil))
		w.settle()
		w.restart(withRecord)
		w.join("n1")
		p := w.push()
		if p.Hold == nil {
			t.Errorf("record %v: deletion of everything is not held", withRecord)
		}
		if got := len(w.pods("web")); got != 2 {
			t.Errorf("record %v: %d pods stay, want 2", withRecord, got)
		}
	}
}

// TestLostRecordLateNode: a snapshot that came before any node spoke is held
// when the node's ledger shows that it would delete everything.
func TestLostRecordLateNode(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2))
	w.settle()
	w.restart(false)
	w.push(configMap("other", nil))
	p := w.join("n1")
	if p.Hold == nil || w.s.InForce() != nil {
		t.Fatalf("hold %v, in force %v", p.Hold, w.s.InForce())
	}
	if len(p.Assignments) > 0 || len(w.pods("web")) != 2 {
		t.Fatal("what the node runs was not kept")
	}
}

func TestConfigRolls(t *testing.T) {
	steady := func(d *appsDeployment) { d.Annotations = map[string]string{restartAnnotation: "false"} }
	asFile := func(d *appsDeployment) {
		d.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}}
		d.Spec.Template.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/etc/app"}}
	}
	subPath := func(d *appsDeployment) {
		asFile(d)
		d.Spec.Template.Spec.Containers[0].VolumeMounts[0].SubPath = "a"
	}
	oneKey := func(d *appsDeployment) {
		d.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}, Key: "a"}}}}
	}
	tests := map[string]struct {
		options []option
		changed map[string]string
		rolls   bool
	}{
		"envFrom":               {[]option{envFrom("conf")}, map[string]string{"a": "2", "b": "1"}, true},
		"envFrom, switched off": {[]option{envFrom("conf"), steady}, map[string]string{"a": "2", "b": "1"}, false},
		"file":                  {[]option{asFile}, map[string]string{"a": "2", "b": "1"}, false},
		"subPath":               {[]option{subPath}, map[string]string{"a": "2", "b": "1"}, true},
		"the key that is read":  {[]option{oneKey}, map[string]string{"a": "2", "b": "1"}, true},
		"another key":           {[]option{oneKey}, map[string]string{"a": "1", "b": "2"}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "n1")
			w.push(deployment("web", 2, test.options...), configMap("conf", map[string]string{"a": "1", "b": "1"}))
			w.settle()
			before := w.uids("web")
			p := w.push(deployment("web", 2, test.options...), configMap("conf", test.changed))
			if len(p.Assignments) != 1 || len(p.Assignments[0].Configs) != 1 || string(p.Assignments[0].Configs[0].Data["a"]) != test.changed["a"] {
				t.Fatalf("the node does not get the new content: %+v", p.Assignments)
			}
			if says := strings.Contains(p.Difference[0].Reason, "pods roll"); says != test.rolls && name != "another key" {
				t.Errorf("the difference says %q", p.Difference[0].Reason)
			}
			w.settle()
			if rolled := !cmp.Equal(before, w.uids("web")); rolled != test.rolls {
				t.Errorf("rolled: %v, want %v", rolled, test.rolls)
			}
		})
	}
}

// TestHandlerRolls: pods run by the handler of their RuntimeClass, and roll when
// the class has another.
func TestHandlerRolls(t *testing.T) {
	byClass := func(d *appsDeployment) { d.Spec.Template.Spec.RuntimeClassName = new("safe") }
	bare := barePod("bare", "app:1")
	bare.Spec.RuntimeClassName = new("safe")
	w := newWorld(t, "n1")
	push := func(handler string) *Plan {
		return w.push(deployment("web", 2, byClass), deployment("plain", 1), bare, runtimeClassOf(handler))
	}
	handlers := func(name string) (found []string) {
		for _, p := range w.pods(name) {
			found = append(found, p.Template.RuntimeHandler)
		}
		return found
	}
	push("kata")
	w.settle()
	web, plain, alone := w.uids("web"), w.uids("plain"), w.uids("bare")
	if !slices.Equal(handlers("web"), []string{"kata", "kata"}) || !slices.Equal(handlers("plain"), []string{""}) {
		t.Fatalf("handlers %q and %q", handlers("web"), handlers("plain"))
	}
	w.restart(true)
	w.join("n1")
	push("kata")
	w.settle()
	if !slices.Equal(w.uids("web"), web) {
		t.Error("the same handler rolled the pods")
	}
	p := push("runsc")
	if d := p.Difference; len(d) != 1 || d[0].Op != Replace || d[0].Reason != "pods roll that run by it: Deployment default/web, Pod default/bare" {
		t.Errorf("difference %+v", d)
	}
	w.settle()
	if !slices.Equal(handlers("web"), []string{"runsc", "runsc"}) || !slices.Equal(w.uids("plain"), plain) {
		t.Errorf("handlers %q; plain %v, before %v", handlers("web"), w.uids("plain"), plain)
	}
	if !slices.Equal(handlers("bare"), []string{"runsc"}) || slices.Equal(w.uids("bare"), alone) {
		t.Errorf("bare pod with handler %q: %v, before %v", handlers("bare"), w.uids("bare"), alone)
	}
}

// TestDrains: out of the routes, then stopped, then forgotten.
func TestDrains(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	w.push(deployment("web", 2), serviceFor("web"))
	w.settle()
	p := w.push(deployment("web", 1), serviceFor("web"))
	if p.Routes == nil || len(p.Routes.Services[0].Ports[0].Endpoints) != 1 || len(p.Assignments) != 0 {
		t.Fatalf("the pod should leave the routes and still run: %+v", p)
	}
	if want := w.now.Add(drainPatience); !p.Wake.Equal(want) {
		t.Fatalf("wakes at %v, want %v", p.Wake, want)
	}
	if p := w.next(Change{Reports: []nodes.Report{w.route("n1")}}); len(p.Assignments) != 0 {
		t.Fatal("stopped before every node had the routes")
	}
	p = w.next(Change{Reports: []nodes.Report{w.route("n2")}})
	if len(p.Assignments) != 1 || p.Actions[0].Verb != "stop" {
		t.Fatalf("not stopped when every node had the routes: %+v", p.Actions)
	}
}

func TestDrainGivesUpAfterASecond(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2), serviceFor("web"))
	w.settle()
	p := w.push(deployment("web", 1), serviceFor("web"))
	w.now = p.Wake
	if p = w.next(Change{}); len(p.Actions) != 1 || p.Actions[0].Verb != "stop" {
		t.Fatalf("not stopped after a second: %v", p.Actions)
	}
}

func TestBarePod(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(barePod("job", "app:1"))
	w.settle()
	m, first := w.machines["n1"], w.pods("job")[0]
	s := m.setReady(first.UID, false, w.now)
	s.Phase, s.Containers = corev1.PodSucceeded, nil
	m.status[first.UID] = &s
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{s}}}})
	if converged, _ := w.s.Settled(); !converged || len(w.pods("job")) != 1 {
		t.Fatal("a pod that succeeded should stay as it is")
	}
	p := w.push(barePod("job", "app:2"))
	if p.Difference[0].Op != Replace || len(w.pods("job")) != 0 {
		t.Fatalf("a changed pod should be replaced: %+v", p.Difference)
	}
	w.settle()
	if now := w.pods("job")[0]; now.UID == first.UID || now.Name != "job" || now.Template.Spec.Containers[0].Image != "app:2" {
		t.Fatalf("the new pod is %+v", now.Pod)
	}
}

// TestPodIsResizedInPlace: a bare pod goes on when a node can change it while
// it runs, and is replaced otherwise.
func TestPodIsResizedInPlace(t *testing.T) {
	w := newWorld(t, "n1")
	sized := func(cpu, image string) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: image}}}}
		p.APIVersion, p.Kind, p.Namespace, p.Name = "v1", "Pod", "default", "job"
		if cpu != "" {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
		}
		return p
	}
	w.push(sized("100m", "app:1"))
	w.settle()
	first := w.pods("job")[0]
	w.push(sized("200m", "app:1"))
	w.settle()
	now := w.pods("job")[0]
	request := now.Template.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU]
	if now.UID != first.UID || request.String() != "200m" || now.TemplateHash == first.TemplateHash {
		t.Fatalf("the pod is %+v", now.Pod)
	}
	if p := w.next(Change{}); len(p.Waiting) > 0 || len(p.Actions) > 0 {
		t.Errorf("something is left to do: %+v", p)
	}
	for _, change := range []*corev1.Pod{sized("", "app:1"), sized("200m", "app:2"), sized("1000", "app:2")} {
		before := w.pods("job")[0].UID
		w.push(change)
		for _, p := range w.pods("job") {
			if p.UID == before && p.Stop == nil && p.leaving == "" {
				t.Errorf("the pod goes on, although it cannot become %+v", change.Spec.Containers[0])
			}
		}
		if change.Spec.Containers[0].Resources.Requests.Cpu().Value() < 1000 {
			w.settle()
		}
	}
}

func TestGatedPodWaitsUntilItsGatesAreGone(t *testing.T) {
	w := newWorld(t, "n1")
	web := deployment("web", 1)
	web.Spec.Template.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}}
	p := w.push(web)
	if len(p.Waiting) == 0 || !strings.Contains(p.Waiting[0].Reason, "SchedulingGated") || w.count("FailedScheduling") != 0 {
		t.Fatalf("waiting %+v, events %+v", p.Waiting, w.events)
	}
	w.next(Change{})
	if w.count("Scheduled") != 0 {
		t.Fatal("a gated pod was placed")
	}
	w.push(deployment("web", 1))
	w.settle()
	if w.count("Scheduled") != 1 {
		t.Errorf("without gates: events %+v", w.events)
	}
}

func TestUnplaceableWaitsAndIsTriedAgain(t *testing.T) {
	w := newWorld(t, "n1")
	needy := deployment("web", 1)
	needy.Spec.Template.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	p := w.push(needy)
	if w.count("FailedScheduling") != 1 || len(p.Waiting) == 0 || !strings.Contains(p.Waiting[0].Reason, "0/1 nodes fit: 1 does not match") {
		t.Fatalf("waiting %+v, events %+v", p.Waiting, w.events)
	}
	w.next(Change{})
	if w.count("FailedScheduling") != 1 {
		t.Error("the refusal is said again without a change")
	}
	n := info("n1")
	n.Labels = map[string]string{"disk": "ssd"}
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Info: &n}}})
	w.settle()
}

// TestWhatIsFilledInReplacesNoPod changes what admission filled in of a bare
// pod, and then what is written.
func TestWhatIsFilledInReplacesNoPod(t *testing.T) {
	w := newWorld(t, "n1")
	of := func(image, cpu string) *corev1.Pod {
		p := barePod("job", image)
		if cpu != "" {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
			p.Annotations = map[string]string{
				desired.FilledAnnotation: "containers/" + p.Spec.Containers[0].Name + "/requests/cpu", desired.LimitAnnotation: "LimitRanger plugin set: cpu " + cpu,
			}
		}
		return p
	}
	w.push(of("app:1", ""))
	w.settle()
	first := w.uids("job")
	for _, cpu := range []string{"1", "2", ""} {
		p := w.push(of("app:1", cpu))
		w.settle()
		if len(p.Difference) != 1 || p.Difference[0].Op != Update || !slices.Equal(w.uids("job"), first) {
			t.Errorf("with %q filled in: pods %q, before %q, difference %+v", cpu, w.uids("job"), first, p.Difference)
		}
	}
	p := w.push(of("app:2", "1"))
	w.settle()
	if p.Difference[0].Op != Replace || slices.Equal(w.uids("job"), first) {
		t.Errorf("a pod that is written anew stays: %+v", p.Difference)
	}
}

// TestHigherPriorityIsPlacedFirst makes room for one pod of three: the one of
// highest priority gets it, though it was made last.
func TestHigherPriorityIsPlacedFirst(t *testing.T) {
	w := newWorld(t, "n1")
	of := func(name string, priority *int32) *appsv1.Deployment {
		d := deployment(name, 1)
		d.Spec.Template.Spec.Priority = priority
		d.Spec.Template.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("16")}
		return d
	}
	low, high := int32(-1), int32(1000)
	w.push(of("a-low", &low), of("b-none", nil), of("c-high", &high))
	placed := func() (names []string) {
		for _, name := range []string{"a-low", "b-none", "c-high"} {
			for _, p := range w.pods(name) {
				if p.Node != "" {
					names = append(names, name)
				}
			}
		}
		return names
	}
	if got := placed(); !slices.Equal(got, []string{"c-high"}) {
		t.Fatalf("placed %q, want the pod of highest priority alone", got)
	}
	w.push(of("a-low", &low), of("b-none", nil))
	for w.turn() {
		w.now = w.now.Add(time.Millisecond)
	}
	if got := placed(); !slices.Equal(got, []string{"b-none"}) {
		t.Fatalf("placed %q, want the next of those that wait", got)
	}
}

func (w *world) count(reason string) int {
	n := 0
	for _, e := range w.events {
		if e.Reason == reason {
			n++
		}
	}
	return n
}

func TestProgressDeadline(t *testing.T) {
	w := newWorld(t, "n1")
	d := deployment("web", 1)
	seconds := int32(60)
	d.Spec.ProgressDeadlineSeconds = &seconds
	p := w.push(d)
	if _, failed := w.s.Settled(); failed != "" {
		t.Fatalf("failed at once: %s", failed)
	}
	w.now = p.Wake
	w.next(Change{})
	if _, failed := w.s.Settled(); !strings.Contains(failed, "ProgressDeadlineExceeded") {
		t.Fatalf("failed = %q", failed)
	}
	if w.count("ProgressDeadlineExceeded") != 1 {
		t.Error("no event")
	}
	w.settle()
}

func TestHistoryLimit(t *testing.T) {
	w := newWorld(t, "n1")
	limit := int32(2)
	for i := range 5 {
		d := deployment("web", 1, image(fmt.Sprint("app:", i)))
		d.Spec.RevisionHistoryLimit = &limit
		w.push(d)
		w.settle()
	}
	sets := 0
	for id := range w.record {
		if id.kind == kindOfSet {
			sets++
		}
	}
	if sets != 3 {
		t.Fatalf("%d sets are recorded, want the current one and 2 before it", sets)
	}
}

func TestPausedWaits(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2))
	w.settle()
	w.push(deployment("web", 3, image("app:2"), paused))
	w.settle()
	for _, p := range w.pods("web") {
		if p.Template.Spec.Containers[0].Image != "app:1" {
			t.Fatal("a paused Deployment rolled")
		}
	}
	if len(w.pods("web")) != 3 {
		t.Fatal("a paused Deployment did not scale")
	}
	w.push(deployment("web", 3, image("app:2")))
	w.settle()
	if w.pods("web")[0].Template.Spec.Containers[0].Image != "app:2" {
		t.Fatal("a resumed Deployment did not roll")
	}
}

// TestSelectorChangeKeepsOldPods: the old pods serve until new ones can.
func TestSelectorChangeKeepsOldPods(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2))
	w.settle()
	d := deployment("web", 2)
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "new"}}
	d.Spec.Template.Labels = map[string]string{"app": "new"}
	w.push(d)
	old := 0
	for _, p := range w.pods("web") {
		if p.Template.Labels["app"] == "web" {
			old++
		}
	}
	if old != 2 {
		t.Fatalf("%d old pods are left, want 2 until new ones are available", old)
	}
	w.settle()
}

// TestHashOnlyNames: a record whose hash is not the one computed today, and
// whose template lacks a default of today, rolls nothing.
func TestHashOnlyNames(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2))
	w.settle()
	before := w.uids("web")
	w.restart(true)
	config := testConfig
	config.Default = func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSClusterFirst }
	w.s.config = config
	d := deployment("web", 2)
	d.Spec.Template.Spec.DNSPolicy = corev1.DNSClusterFirst
	w.join("n1")
	w.push(d)
	w.settle()
	if diff := cmp.Diff(before, w.uids("web")); diff != "" {
		t.Fatalf("a new default rolled the pods:\n%s", diff)
	}
}

// TestPodsRequestWhatTheyAreLimitedTo: the defaults of pods are in a template as
// its pods have it, and one that was stored without them rolls nothing.
func TestPodsRequestWhatTheyAreLimitedTo(t *testing.T) {
	w := newWorld(t, "n1")
	limited := func() *appsDeployment {
		return deployment("web", 2, func(d *appsDeployment) {
			d.Spec.Template.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
		})
	}
	w.push(limited())
	w.settle()
	before := w.uids("web")
	w.restart(true)
	w.s.config.Default = func(s *corev1.PodSpec) {
		for i := range s.Containers {
			s.Containers[i].Resources.Requests = maps.Clone(s.Containers[i].Resources.Limits)
		}
	}
	w.join("n1")
	w.push(limited())
	w.settle()
	if diff := cmp.Diff(before, w.uids("web")); diff != "" {
		t.Fatalf("the default of pods rolled them:\n%s", diff)
	}
	changed := limited()
	changed.Spec.Template.Spec.Containers[0].Image = "app:2"
	w.push(changed, autoscaler("web", kindDeployment, 1, 6))
	w.settle()
	p := w.pods("web")[0]
	if cpu := p.Template.Spec.Containers[0].Resources.Requests.Cpu(); cpu.MilliValue() != 100 || len(changed.Spec.Template.Spec.Containers[0].Resources.Requests) != 0 {
		t.Errorf("pods request %s", cpu)
	}
	w.burn("web", 100)
	w.expectPods("web", 4)
}

// TestRecreatedWorkloadHasNewIdentities: uids are never used twice.
func TestRecreatedWorkloadHasNewIdentities(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 1), configMap("a", nil))
	w.settle()
	before := w.uids("web")
	w.push(configMap("a", nil))
	w.settle()
	if w.s.groups.Len() != 0 || len(w.record) == 0 {
		t.Fatal("the deleted workload is still there")
	}
	w.now = w.now.Add(time.Second)
	w.push(deployment("web", 1), configMap("a", nil))
	w.settle()
	if cmp.Equal(before, w.uids("web")) {
		t.Fatal("a uid was used twice")
	}
}

// TestSecretsStayHidden: no plan, decision or difference holds a value.
func TestSecretsStayHidden(t *testing.T) {
	secret := func(value string) *corev1.Secret {
		return &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Data: map[string][]byte{"password": []byte(value)}}
	}
	reads := func(d *appsDeployment) {
		d.Spec.Template.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}}
	}
	applied := func(value string) *corev1.Secret {
		s := secret(value)
		s.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": `{"stringData":{"password":"` + value + `"}}`}
		return s
	}
	w := newWorld(t, "n1")
	w.push(deployment("web", 1, reads), secret("hunter1"))
	first := w.push(deployment("web", 1, reads), applied("hunter2")) // the annotations are new
	w.settle()
	p := w.push(deployment("web", 1, reads), applied("hunter3"))
	var text strings.Builder
	for _, plan := range []*Plan{first, p} {
		if err := plan.Text(&text); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range w.record {
		text.Write(d.Value)
	}
	text.Write(mustJSON(w.s.Overview(w.now)))
	text.Write(mustJSON(first.Difference))
	text.Write(mustJSON(p.Difference))
	for _, hidden := range []string{"hunter", "aHVudGVy"} {
		if strings.Contains(text.String(), hidden) {
			t.Fatalf("%q is shown", hidden)
		}
	}
	if got := string(p.Assignments[0].Configs[0].Data["password"]); got != "hunter3" {
		t.Fatalf("the node got %q", got)
	}
}

// TestDeterministic: the same inputs give the same plan, byte for byte.
func TestDeterministic(t *testing.T) {
	run := func() string {
		w := newWorld(t, "n1", "n2")
		var out strings.Builder
		for i := range 3 {
			objects := large(20)
			objects[i] = deployment("app-0", 3, image(fmt.Sprint("app:", i)))
			out.Write(mustJSON(w.push(objects[i:]...)))
			w.settle()
			out.Write(mustJSON(w.last))
			out.Write(mustJSON(w.s.Overview(w.now)))
		}
		return out.String()
	}
	first := run()
	for range 5 {
		if diff := cmp.Diff(first, run()); diff != "" {
			t.Fatalf("two runs differ:\n%s", diff)
		}
	}
}

// TestOldStatesStay: Next changes nothing of the state that it is given.
func TestOldStatesStay(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 3), serviceFor("web"))
	w.settle()
	old, then := w.s, w.now
	before := mustJSON(old.Overview(then))
	w.push(deployment("web", 5, image("app:2")))
	w.settle()
	if diff := cmp.Diff(string(before), string(mustJSON(old.Overview(then)))); diff != "" {
		t.Fatalf("an earlier state has changed:\n%s", diff)
	}
}

// TestPausedFindsItsTemplateAgain: the template that waits may become the
// running one again without a change of the Deployment itself.
func TestPausedFindsItsTemplateAgain(t *testing.T) {
	w := newWorld(t, "n1")
	before, after := configMap("conf", map[string]string{"a": "1"}), configMap("conf", map[string]string{"a": "2"})
	d := deployment("web", 1, envFrom("conf"))
	w.push(d, before)
	w.settle()
	held := deployment("web", 1, envFrom("conf"), paused)
	w.push(held, after)
	w.settle()
	g, _ := w.s.groups.Get(keyOf(held))
	if g.current != nil {
		t.Fatalf("the changed template has come into force: %+v", g.current)
	}
	w.push(held, before)
	w.settle()
	if g, _ = w.s.groups.Get(keyOf(held)); g.current == nil || !g.current.complete {
		t.Errorf("current template %+v, want the one that the pods have", g.current)
	}
}
