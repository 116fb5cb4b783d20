package planner

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

func statefulSet(name string, replicas int32, with ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	d := deployment(name, replicas)
	s := &appsv1.StatefulSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"}, ObjectMeta: d.ObjectMeta,
		Spec: appsv1.StatefulSetSpec{
			Replicas: d.Spec.Replicas, Selector: d.Spec.Selector, Template: d.Spec.Template, ServiceName: name,
			PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			UpdateStrategy:      appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType},
		},
	}
	for _, w := range with {
		w(s)
	}
	return s
}

func setImage(image string) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = image }
}

func inParallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }

func partitioned(n int32) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) {
		s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: &n}
	}
}

func headless(name string) *corev1.Service {
	s := serviceFor(name)
	s.Spec.ClusterIP = corev1.ClusterIPNone
	return s
}

// names of the pods of a workload that are not leaving, with their images.
func (w *world) images(name string) []string {
	var out []string
	for _, p := range w.pods(name) {
		out = append(out, p.Name+" "+p.Template.Spec.Containers[0].Image)
	}
	slices.Sort(out)
	return out
}

func TestStatefulSetPods(t *testing.T) {
	w := newWorld(t, "n1")
	set := statefulSet("db", 3)
	set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 4}
	set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	w.push(set, headless("db"))
	if got := w.images("db"); len(got) != 1 || got[0] != "db-4 app:1" {
		t.Fatalf("in order, one pod comes first: %v", got)
	}
	w.settle()
	if diff := cmp.Diff([]string{"db-4 app:1", "db-5 app:1", "db-6 app:1"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
	p := w.pods("db")[1]
	hostname, subdomain := p.HostName()
	if hostname != "db-5" || subdomain != "db" || p.Ordinal != 5 || p.Owner != keyOf(set) {
		t.Errorf("pod %s: hostname %q, subdomain %q, ordinal %d, owner %s", p.Name, hostname, subdomain, p.Ordinal, p.Owner)
	}
	labels := map[string]string{
		"app": "db", "statefulset.kubernetes.io/pod-name": "db-5", "apps.kubernetes.io/pod-index": "5", "controller-revision-hash": "db-" + p.TemplateHash,
	}
	if diff := cmp.Diff(labels, p.AllLabels()); diff != "" {
		t.Error(diff)
	}
	volume := &p.Template.Spec.Volumes[0]
	if volume.Name != "data" || p.Claim(volume) != "data-db-5" {
		t.Errorf("volume %s has the claim %q", volume.Name, p.Claim(volume))
	}
	var hosts []string
	for _, e := range w.s.routes.Services[0].Ports[0].Endpoints {
		hosts = append(hosts, e.Hostname)
	}
	if diff := cmp.Diff([]string{"db-4", "db-5", "db-6"}, hosts); diff != "" {
		t.Error(diff)
	}
}

// TestPodNameService selects one pod by the label that only it has.
func TestPodNameService(t *testing.T) {
	w := newWorld(t, "n1")
	one := serviceFor("first")
	one.Spec.Selector = map[string]string{appsv1.StatefulSetPodNameLabel: "db-0"}
	endpoints := func() []proxy.Endpoint { return w.s.routes.Services[0].Ports[0].Endpoints }
	w.push(statefulSet("db", 2), one)
	w.settle()
	if e := endpoints(); len(e) != 1 || e[0].Pod != "db-0" {
		t.Fatalf("endpoints of the service for db-0: %+v", e)
	}
	w.push(statefulSet("db", 2, setImage("app:2")), one)
	w.settle()
	if e := endpoints(); len(e) != 1 || e[0].Pod != "db-0" {
		t.Fatalf("endpoints after a rollout: %+v", e)
	}
	w.push(statefulSet("db", 0), one)
	w.settle()
	if e := endpoints(); len(e) != 0 {
		t.Fatalf("endpoints without pods: %+v", e)
	}
}

func TestStatefulSetReusesNamesNotIdentities(t *testing.T) {
	w := newWorld(t, "n1")
	seen := map[nodes.UID]string{}
	for _, image := range []string{"app:1", "app:2", "app:1"} {
		w.push(statefulSet("db", 2, setImage(image)))
		w.settle()
		if diff := cmp.Diff([]string{"db-0 " + image, "db-1 " + image}, w.images("db")); diff != "" {
			t.Fatal(diff)
		}
		for _, p := range w.pods("db") {
			if before, again := seen[p.UID]; again {
				t.Fatalf("%s has the uid of %s", p.Name, before)
			}
			seen[p.UID] = p.Name
		}
	}
}

func TestStatefulSetPartition(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(statefulSet("db", 3))
	w.settle()
	w.push(statefulSet("db", 3, setImage("app:2"), partitioned(2)))
	w.settle()
	if diff := cmp.Diff([]string{"db-0 app:1", "db-1 app:1", "db-2 app:2"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
	// A pod that the partition keeps comes back as it was, also after a restart
	// and another template.
	w.restart(true)
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	w.join("n1")
	w.push(statefulSet("db", 3, setImage("app:3"), partitioned(2)))
	w.settle()
	m := w.machines["n1"]
	first := w.pods("db")[slices.IndexFunc(w.pods("db"), func(p *pod) bool { return p.Name == "db-0" })]
	s := m.setReady(first.UID, false, w.now)
	s.Phase = corev1.PodFailed
	m.status[first.UID] = &s
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{s}}}})
	w.settle()
	if diff := cmp.Diff([]string{"db-0 app:1", "db-1 app:1", "db-2 app:3"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
	w.push(statefulSet("db", 3, setImage("app:3")))
	w.settle()
	if diff := cmp.Diff([]string{"db-0 app:3", "db-1 app:3", "db-2 app:3"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
}

// TestStatefulSetForward repairs a rollout that a broken template has stopped.
func TestStatefulSetForward(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(statefulSet("db", 2))
	w.settle()
	soon := func(s *appsv1.StatefulSet) {
		s.Annotations = map[string]string{desired.ProgressDeadlineAnnotation: "60"}
	}
	w.push(statefulSet("db", 2, setImage("broken"), soon))
	m := w.machines["n1"]
	for range 20 {
		var r nodes.Report
		for _, uid := range slices.Sorted(maps.Keys(m.held)) {
			if p := m.held[uid]; p.Stop != nil {
				r.Gone = append(r.Gone, m.gone(uid))
			} else if p.Template.Spec.Containers[0].Image == "broken" && m.status[uid] == nil {
				r.Statuses = append(r.Statuses, m.setReady(uid, false, w.now))
			}
		}
		r.Node, r.Routes = "n1", w.route("n1").Routes
		w.next(Change{Reports: []nodes.Report{r}})
	}
	if diff := cmp.Diff([]string{"db-0 app:1", "db-1 broken"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
	lines := w.s.Progress()
	if len(lines) != 1 || !strings.Contains(lines[0].Line, "0 of 2 updated pods available, 1 old pod still there; pod db-1: CrashLoopBackOff") {
		t.Errorf("progress: %+v", lines)
	}
	w.now = w.now.Add(61 * time.Second)
	w.next(Change{})
	if _, failed := w.s.Settled(); !strings.Contains(failed, "ProgressDeadlineExceeded: no progress for 1m") {
		t.Errorf("the rollout has not failed: %q", failed)
	}
	late := slices.DeleteFunc(slices.Clone(w.events), func(e nodes.Event) bool { return e.Reason != "ProgressDeadlineExceeded" })
	if len(late) != 1 || late[0].Message != `StatefulSet "db" has timed out progressing.` {
		t.Errorf("events: %+v", late)
	}
	w.push(statefulSet("db", 2, setImage("app:2")))
	w.settle()
	if diff := cmp.Diff([]string{"db-0 app:2", "db-1 app:2"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
}

// TestStatefulSetRepair rolls a set whose pods had been good and then broke, in
// order: nobody can delete a pod by hand.
func TestStatefulSetRepair(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(statefulSet("db", 2))
	w.settle()
	m := w.machines["n1"]
	var broken []nodes.PodStatus
	for _, p := range w.pods("db") {
		broken = append(broken, m.setReady(p.UID, false, w.now))
	}
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: broken}}})
	w.push(statefulSet("db", 2, setImage("app:2")))
	w.next(Change{Reports: []nodes.Report{w.route("n1")}})
	if diff := cmp.Diff([]string{"db-0 app:1", "db-1 app:1"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
	const line = "pod db-0 ran well with the template before: it has until 12:05:00 to get ready, then it is replaced; CrashLoopBackOff"
	if lines := w.s.Progress(); len(lines) != 1 || !strings.Contains(lines[0].Line, line) {
		t.Errorf("progress: %+v", lines)
	}
	if until := epoch.Add(5 * time.Minute); !w.last.Wake.Equal(until) {
		t.Fatalf("wakes at %s, not at %s", w.last.Wake, until)
	}
	w.now = w.last.Wake
	w.next(Change{})
	if diff := cmp.Diff([]string{"db-1 app:1"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
	w.settle()
	if diff := cmp.Diff([]string{"db-0 app:2", "db-1 app:2"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
}

func TestStatefulSetImmutableFields(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(statefulSet("db", 2))
	w.settle()
	before := w.uids("db")
	w.push(statefulSet("db", 2, inParallel))
	w.settle()
	if diff := cmp.Diff(before, w.uids("db")); diff != "" {
		t.Fatal(diff)
	}
	plan := w.push(statefulSet("db", 2, inParallel, func(s *appsv1.StatefulSet) { s.Spec.ServiceName = "other" }))
	if d := plan.Difference[0]; d.Op != Update || !strings.Contains(d.Reason, "serviceName changed: the pods are kept and adopted, then roll as far as they differ") {
		t.Errorf("difference: %s", d)
	}
	w.settle()
	for _, p := range w.pods("db") {
		if _, subdomain := p.HostName(); subdomain != "other" {
			t.Errorf("%s has the subdomain %q", p.Name, subdomain)
		}
	}
}

// TestStatefulSetNameTaken keeps a pod from coming into being twice under one
// name.
func TestStatefulSetNameTaken(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(statefulSet("db", 1), barePod("db-0", "app:1"))
	if lines := w.s.Progress(); len(lines) == 0 || !strings.Contains(lines[len(lines)-1].Line, "the name of Pod default/db-0 is that of a Pod in Git") {
		t.Errorf("progress: %+v", lines)
	}
	w.push(statefulSet("db", 1))
	w.settle()
	if diff := cmp.Diff([]string{"db-0 app:1"}, w.images("db")); diff != "" {
		t.Fatal(diff)
	}
	w.push(statefulSet("db", 1), barePod("db-0", "app:1"))
	if lines := w.s.Progress(); len(lines) != 1 || !strings.Contains(lines[0].Line, "Pod default/db-0: a StatefulSet has a pod of this name") {
		t.Errorf("progress: %+v", lines)
	}
	w.push(statefulSet("db", 0), barePod("db-0", "app:1"))
	w.settle()
	if len(w.pods("db")) != 0 || len(w.pods("db-0")) != 1 {
		t.Errorf("the name is free, and the Pod does not take it")
	}
}

func TestClaimTemplates(t *testing.T) {
	set := statefulSet("db", 3)
	if claimTemplatesOf(&desired.Object{Value: set}) != nil {
		t.Error("claim templates of a set that has none")
	}
	set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 2}
	set.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
		WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType,
	}
	want := &claimTemplates{Templates: set.Spec.VolumeClaimTemplates, Start: 2, Replicas: 3, DeleteWhenScaled: true}
	if diff := cmp.Diff(want, claimTemplatesOf(&desired.Object{Value: set})); diff != "" {
		t.Error(diff)
	}
}

// TestStatefulSetUnheardNode loses the record, and hears of one node only: what
// the other one may run is not started anew.
func TestStatefulSetUnheardNode(t *testing.T) {
	w := newWorld(t, "n1", "n2")
	apart := func(s *appsv1.StatefulSet) {
		s.Spec.Template.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{
				Weight: 1, PodAffinityTerm: corev1.PodAffinityTerm{LabelSelector: s.Spec.Selector, TopologyKey: corev1.LabelHostname},
			}},
		}}
	}
	w.push(statefulSet("db", 2, inParallel, apart))
	w.settle()
	before := w.uids("db")
	w.restart(false)
	w.join("n1")
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	if pods := w.pods("db"); len(pods) != 1 {
		t.Fatalf("%d pods are known, want that of n1 alone: %v", len(pods), w.uids("db"))
	}
	if lines := w.s.Progress(); len(lines) != 1 || !strings.Contains(lines[0].Line, "may run on node n2, which has not reported what it runs") {
		t.Errorf("progress: %+v", lines)
	}
	w.join("n2")
	w.settle()
	if diff := cmp.Diff(before, w.uids("db")); diff != "" {
		t.Fatal(diff)
	}
	// A node that comes back without the pod gives its ordinal free.
	w.restart(false)
	w.join("n1")
	w.next(Change{Snapshot: w.snapshot, Source: w.source})
	m := w.machines["n2"]
	for uid := range maps.Clone(m.held) {
		m.gone(uid)
	}
	w.join("n2")
	w.settle()
	if pods := w.images("db"); len(pods) != 2 {
		t.Fatalf("pods: %v", pods)
	}
}

// TestSetTexts is what a push says about StatefulSets and DaemonSets.
func TestSetTexts(t *testing.T) {
	onDelete := func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType }
	daemonOnDelete := func(s *appsv1.DaemonSet) {
		s.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
	}
	claim := func(s *appsv1.StatefulSet) {
		s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	}
	tests := []struct {
		was, is runtime.Object
		want    string
	}{
		{nil, statefulSet("db", 3), "+ StatefulSet default/db: 3 pods, image app:1"},
		{nil, statefulSet("db", 1, claim), "+ StatefulSet default/db: 1 pod, image app:1, 1 claim each"},
		{statefulSet("db", 3), statefulSet("db", 2), "~ StatefulSet default/db: 3 → 2 replicas"},
		{statefulSet("db", 3), statefulSet("db", 3, setImage("app:2")), "~ StatefulSet default/db: image app:1 → app:2, 3 pods to roll"},
		{
			statefulSet("db", 3), statefulSet("db", 3, setImage("app:2"), partitioned(2)),
			"~ StatefulSet default/db: image app:1 → app:2, 1 pod to roll, the first 2 stay (partition)",
		},
		{
			statefulSet("db", 3), statefulSet("db", 3, setImage("app:2"), onDelete),
			"~ StatefulSet default/db: image app:1 → app:2, update strategy OnDelete: pods keep their template until they end",
		},
		{statefulSet("db", 3), statefulSet("db", 3, inParallel), "~ StatefulSet default/db: podManagementPolicy changed: the pods are kept and adopted, then roll as far as they differ"},
		{nil, daemonSet("logs"), "+ DaemonSet default/logs: a pod on each node that matches, image app:1"},
		{daemonSet("logs"), daemonSet("logs", surging), "~ DaemonSet default/logs: no pod is touched"},
		{daemonSet("logs"), daemonSet("logs", daemonImage("app:2")), "~ DaemonSet default/logs: image app:1 → app:2, the pod of each node to roll"},
		{
			daemonSet("logs"), daemonSet("logs", daemonImage("app:2"), daemonOnDelete),
			"~ DaemonSet default/logs: image app:1 → app:2, update strategy OnDelete: pods keep their template until they end",
		},
	}
	for _, test := range tests {
		w := newWorld(t, "n1")
		if test.was != nil {
			w.push(namespace("default"), test.was)
		}
		for _, d := range w.push(namespace("default"), test.is).Difference {
			if got := d.String(); d.Object.Kind != kindNamespace && got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		}
	}
}

// TestAPodWithASuccessorIsNotAdopted: an agent that died before it forgot a pod
// which it had reported gone names it again.
func TestAPodWithASuccessorIsNotAdopted(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(statefulSet("db", 1))
	w.settle()
	m := w.machines["n1"]
	old := w.pods("db")[0]
	w.push(statefulSet("db", 1, setImage("app:2")))
	w.settle()
	r := m.complete()
	r.Held = append(r.Held, old.Pod)
	w.next(Change{Reports: []nodes.Report{r}})
	if _, p := w.s.pod(old.UID); p != nil {
		t.Errorf("%s is a pod again, beside %d of its name", old.UID, len(w.pods("db")))
	}
}
