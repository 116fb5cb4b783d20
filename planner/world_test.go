package planner

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

var (
	epoch      = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	testConfig = Config{SecretKey: []byte("0123456789abcdef"), Location: time.LoadLocation}
)

// world is a small cluster around a planner: a record, nodes that do what
// they are assigned, and a repository. It refuses what must never happen.
type world struct {
	t   fataler
	s   *State
	now time.Time

	record   map[decisionID]nodes.Decision
	machines map[string]*machine
	snapshot *desired.Snapshot
	source   string
	serial   int
	last     *Plan
	// events of all steps so far.
	events []nodes.Event
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

type machine struct {
	name string
	held map[nodes.UID]*nodes.Pod
	// never are those of held that it was told to stop and has not begun.
	never  map[nodes.UID]bool
	status map[nodes.UID]*nodes.PodStatus
	table  *proxy.Table
	ledger []nodes.Decision
	// index tells its addresses from those of others.
	index, nextIP int
	// disk holds the volumes whose data the node has; told are those whose state
	// it has reported.
	disk map[string]*nodes.Volume
	// mounted are the volumes of others that its pods use.
	mounted map[string]*nodes.Volume
	told    map[string]nodes.VolumeStatus
	// measured are the pods whose usage was asked for last.
	measured []nodes.UID
	// disks is the storage behind the machine's CSI driver; nil for none.
	disks  *disks
	driven map[string]*driven
	// cutOff machines hear of nothing.
	cutOff bool
}

func newWorld(t fataler, names ...string) *world {
	w := &world{t: t, s: New(testConfig), now: epoch, record: map[decisionID]nodes.Decision{}, machines: map[string]*machine{}, source: "embedded"}
	for i, name := range names {
		w.machines[name] = &machine{name: name, index: i, held: map[nodes.UID]*nodes.Pod{}, status: map[nodes.UID]*nodes.PodStatus{}, disk: map[string]*nodes.Volume{}}
	}
	for _, name := range names {
		w.join(name)
	}
	return w
}

// pace bounds how often tables are made from now on.
func (w *world) pace(each time.Duration) {
	s := *w.s
	s.config.RoutePace = each
	w.s = &s
}

func info(name string) nodes.Node {
	list := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("500"),
	}
	return nodes.Node{Name: name, Capacity: list, Allocatable: list, OS: "linux", Arch: "amd64"}
}

func (w *world) join(name string) *Plan {
	state := nodes.NodeState{Node: info(name), Ready: true, Since: w.now}
	return w.next(Change{Nodes: []nodes.NodeState{state}, Reports: []nodes.Report{w.machines[name].complete()}})
}

func (m *machine) complete() nodes.Report {
	n := m.info()
	r := nodes.Report{Node: m.name, Complete: true, Info: &n, Ledger: m.ledger}
	if m.table != nil {
		r.Routes = m.table.Generation
	}
	for _, uid := range slices.Sorted(maps.Keys(m.held)) {
		r.Held = append(r.Held, m.held[uid])
		if s := m.status[uid]; s != nil {
			r.Statuses = append(r.Statuses, *s)
		}
	}
	m.told = map[string]nodes.VolumeStatus{}
	for _, name := range slices.Sorted(maps.Keys(m.disk)) {
		status := m.volumeStatus(name)
		status.Held = m.disk[name]
		r.Volumes = append(r.Volumes, status)
	}
	for _, name := range slices.Sorted(maps.Keys(m.mounted)) {
		v := m.mounted[name]
		r.Volumes = append(r.Volumes, nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumeReady, Held: v})
	}
	r.Volumes = append(r.Volumes, m.tellDriven()...)
	return r
}

func (m *machine) volumeStatus(name string) nodes.VolumeStatus {
	v := m.disk[name]
	size := v.Spec.Capacity[corev1.ResourceStorage]
	s := nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumeReady, Capacity: size.Value()}
	if v.Provisioner != nodes.LocalProvisioner {
		s.Source = &corev1.CSIPersistentVolumeSource{Driver: v.Provisioner, VolumeHandle: "handle-of-" + v.Name}
	}
	m.told[name] = s
	return s
}

// tendVolumes makes and deletes what the newest assignment asks for.
func (m *machine) tendVolumes() []nodes.VolumeStatus {
	var out []nodes.VolumeStatus
	for _, name := range slices.Sorted(maps.Keys(m.disk)) {
		v := m.disk[name]
		before, told := m.told[name]
		switch size := v.Spec.Capacity[corev1.ResourceStorage]; {
		case v.Delete:
			delete(m.disk, name)
			delete(m.told, name)
			out = append(out, nodes.VolumeStatus{Name: v.Name, UID: v.UID, Phase: nodes.VolumeGone})
		case !told || before.Capacity != size.Value():
			out = append(out, m.volumeStatus(name))
		}
	}
	return out
}

// next takes one step and lets the nodes and the record take over its plan.
func (w *world) next(c Change) *Plan {
	w.t.Helper()
	before := w.s
	s, p := Next(w.s, c, w.now)
	w.s, w.last = s, p
	w.events = append(w.events, p.Events...)
	for _, d := range p.Decisions {
		id := decisionID{d.Kind, d.Key}
		if d.Value == nil {
			delete(w.record, id)
		} else {
			w.record[id] = d
		}
	}
	for i := range p.Assignments {
		w.assign(&p.Assignments[i])
	}
	if p.Routes != nil {
		if before.routes != nil && p.Routes.Generation <= before.routes.Generation {
			w.t.Fatalf("route generation went from %d to %d", before.routes.Generation, p.Routes.Generation)
		}
	}
	for _, m := range w.machines {
		m.keep(w.s, p.Decisions)
	}
	w.checkReachable(before)
	return p
}

// checkReachable: when a revision is said to be converged, every live node
// routes to every pod that serves.
func (w *world) checkReachable(before *State) {
	if was, _ := before.Settled(); was && before.snapshot == w.s.snapshot {
		return
	}
	if converged, _ := w.s.Settled(); !converged {
		return
	}
	w.t.Helper()
	for _, m := range w.machines {
		if n, _ := w.s.nodes.Get(m.name); !n.live() {
			continue
		}
		for _, g := range entries(w.s.groups) {
			for _, p := range g.pods {
				served := p.serving() && w.s.answersFor(g) && len(w.s.servicesOf(p.Namespace, p.AllLabels())) > 0
				if n, _ := w.s.nodes.Get(p.Node); served && n.live() && !m.routesTo(p) {
					w.t.Fatalf("converged, and node %s does not route to pod %s", m.name, p.Name)
				}
			}
		}
	}
}

// keep is the ledger of a node that is connected.
func (m *machine) keep(s *State, decisions []nodes.Decision) {
	if n, _ := s.nodes.Get(m.name); !n.live() {
		return
	}
	for _, d := range decisions {
		if d.Kind == nodes.PodDecision {
			continue
		}
		m.ledger = slices.DeleteFunc(slices.Clone(m.ledger), func(o nodes.Decision) bool { return o.Kind == d.Kind && o.Key == d.Key })
		if d.Value != nil {
			m.ledger = append(m.ledger, d)
		}
	}
}

func (w *world) assign(a *nodes.Assignment) {
	w.t.Helper()
	m := w.machines[a.Node]
	if m == nil || m.cutOff { // it does not hear of it
		return
	}
	m.measured = a.Measured
	seen := map[nodes.UID]bool{}
	for _, p := range a.Pods {
		if p.Node != a.Node || p.Template == nil || p.Template.Hash != p.TemplateHash {
			w.t.Fatalf("assignment of %s holds a pod that isn't right: %+v", a.Node, p)
		}
		seen[p.UID] = true
		switch {
		case p.Stop == nil && m.never[p.UID]:
			w.t.Fatalf("assignment of %s begins pod %s/%s, which was told to stop", a.Node, p.Namespace, p.Name)
		case p.Stop != nil && m.held[p.UID] == nil:
			m.neverBegins(p.UID)
		}
		m.held[p.UID] = p
	}
	m.mounted = map[string]*nodes.Volume{}
	m.assignDriven(a.Volumes)
	for _, v := range a.Volumes {
		if m.disks != nil && v.Provisioner == disksDriver {
			continue
		}
		if v.Provisioner == "" {
			m.mounted[v.Name] = v
		}
		if v.Provisioner != "" && (v.Made || m.disk[v.Name] != nil || !v.Delete) {
			if v.Made && m.disk[v.Name] == nil {
				w.t.Fatalf("volume %s was made and node %s has nothing of it", v.Name, a.Node)
			}
			m.disk[v.Name] = v
		}
	}
	for uid, p := range m.held {
		if !seen[uid] {
			w.t.Fatalf("pod %s/%s vanished from the assignment of %s without having been stopped", p.Namespace, p.Name, a.Node)
		}
	}
}

func (m *machine) neverBegins(uid nodes.UID) {
	if m.never == nil {
		m.never = map[nodes.UID]bool{}
	}
	m.never[uid] = true
}

// route lets a node take over the newest table.
func (w *world) route(name string) nodes.Report {
	w.machines[name].table = w.s.routes
	if w.s.routes == nil {
		return nodes.Report{Node: name}
	}
	return nodes.Report{Node: name, Routes: w.s.routes.Generation}
}

// ready makes a pod run and be ready, as its node would report it.
func (m *machine) setReady(uid nodes.UID, ready bool, now time.Time) nodes.PodStatus {
	s := nodes.PodStatus{UID: uid, Phase: corev1.PodRunning, Started: now, Initialized: true, ContainersReady: ready, Ready: ready, ReadySince: now}
	if old := m.status[uid]; old != nil {
		s.IP = old.IP
	}
	if s.IP == "" {
		m.nextIP++
		s.IP = fmt.Sprintf("10.244.%d.%d", m.index, m.nextIP%250+1)
	}
	if !ready {
		s.Containers = []nodes.ContainerStatus{{Name: "main", State: nodes.Waiting, Reason: "CrashLoopBackOff", Message: "back-off"}}
	}
	m.status[uid] = &s
	return s
}

// gone ends a pod that was told to stop.
func (m *machine) gone(uid nodes.UID) nodes.UID {
	delete(m.held, uid)
	delete(m.never, uid)
	delete(m.status, uid)
	return uid
}

// push puts a revision into the repository and plans it.
func (w *world) push(objects ...runtime.Object) *Plan {
	w.t.Helper()
	return w.pushWith("change", objects...)
}

func (w *world) pushWith(message string, objects ...runtime.Object) *Plan {
	w.t.Helper()
	w.serial++
	w.snapshot = snapshotOf(w.serial, message, objects...)
	return w.next(Change{Snapshot: w.snapshot, Source: w.source})
}

func snapshotOf(serial int, message string, objects ...runtime.Object) *desired.Snapshot {
	return snapshotWith(desired.DefaultSettings(), serial, message, objects...)
}

func snapshotWith(settings desired.Settings, serial int, message string, objects ...runtime.Object) *desired.Snapshot {
	var list []*desired.Object
	for i, v := range objects {
		list = append(list, &desired.Object{Key: keyOf(v), From: desired.Place{File: "all.yaml", Line: i + 1}, Value: v, Fingerprint: string(mustJSON(v))})
	}
	r := desired.Revision{SHA: fmt.Sprintf("%040x", serial), Message: message, Time: epoch}
	return desired.NewSnapshot(r, settings, list, nil)
}

func keyOf(v runtime.Object) desired.Key {
	gvk := v.GetObjectKind().GroupVersionKind()
	meta := v.(metav1.Object)
	return desired.Key{Group: gvk.Group, Kind: gvk.Kind, Namespace: meta.GetNamespace(), Name: meta.GetName()}
}

// settle lets the nodes do everything they are told, with all pods getting
// ready, until nothing more happens.
func (w *world) settle() {
	w.t.Helper()
	for range 200 {
		if !w.turn() {
			if converged, failed := w.s.Settled(); !converged {
				w.t.Fatalf("nothing happens any more, but the cluster has not converged: %q %v", failed, w.s.Progress())
			}
			return
		}
	}
	w.t.Fatalf("the cluster does not settle: %v", w.s.Progress())
}

// turn lets every node do all it can; false when nothing was left to do.
func (w *world) turn() bool {
	w.t.Helper()
	var reports []nodes.Report
	for _, name := range slices.Sorted(maps.Keys(w.machines)) {
		if r, some := w.act(name); some {
			reports = append(reports, r)
		}
	}
	if len(reports) > 0 {
		w.next(Change{Reports: reports})
		return true
	}
	if !w.last.Wake.IsZero() && w.last.Wake.Sub(w.now) < time.Minute {
		w.now = w.last.Wake
		w.next(Change{})
		return true
	}
	return false
}

// act has a node do all it can; false when nothing was left to do.
func (w *world) act(name string) (r nodes.Report, some bool) {
	m := w.machines[name]
	r = nodes.Report{Node: name}
	if m.table != w.s.routes {
		r = w.route(name)
	}
	r.Volumes = append(m.tendVolumes(), m.tendDriven()...)
	for _, uid := range slices.Sorted(maps.Keys(m.held)) {
		switch p := m.held[uid]; {
		case p.Stop != nil:
			r.Gone = append(r.Gone, m.gone(uid))
		case m.status[uid] != nil && m.status[uid].Phase == corev1.PodFailed: // its result
		case m.status[uid] == nil || !m.status[uid].Ready:
			staged, ok := m.stage(p)
			if r.Volumes = append(r.Volumes, staged...); !ok {
				continue
			}
			r.Statuses = append(r.Statuses, m.setReady(uid, true, w.now))
		}
	}
	return r, r.Routes != 0 || len(r.Gone)+len(r.Statuses)+len(r.Volumes) > 0
}

// restart loses the server's memory but not its record.
func (w *world) restart(withRecord bool) *Plan {
	w.t.Helper()
	var decisions []nodes.Decision
	for _, id := range slices.SortedFunc(maps.Keys(w.record), func(a, b decisionID) int {
		return slices.Compare([]string{a.kind, a.key}, []string{b.kind, b.key})
	}) {
		decisions = append(decisions, w.record[id])
	}
	w.s = New(w.s.config)
	if !withRecord {
		clear(w.record)
		decisions = nil
	}
	return w.next(Change{Decisions: decisions})
}

// pods of a workload that are not leaving, by name.
func (w *world) pods(name string) []*pod {
	var out []*pod
	for k, g := range entries(w.s.groups) {
		if k.Name == name {
			out = append(out, g.pods...)
		}
	}
	return slices.DeleteFunc(out, func(p *pod) bool { return p.leaving != "" || p.Stop != nil })
}

func (w *world) uids(name string) []string {
	var out []string
	for _, p := range w.pods(name) {
		out = append(out, string(p.UID)+" "+p.Name)
	}
	slices.Sort(out)
	return out
}

type appsDeployment = appsv1.Deployment

type option func(*appsDeployment)

func image(name string) option {
	return func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = name }
}

func strategy(surge, unavailable string) option {
	return func(d *appsv1.Deployment) {
		s, u := intstr.Parse(surge), intstr.Parse(unavailable)
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u}}
	}
}

func paused(d *appsv1.Deployment) { d.Spec.Paused = true }

func recreate(d *appsv1.Deployment) {
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
}

func deployment(name string, replicas int32, options ...option) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	d := &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "app:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
			},
		},
	}
	for _, o := range options {
		o(d)
	}
	return d
}

func serviceFor(name string) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: data,
	}
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func envFrom(name string) option {
	return func(d *appsv1.Deployment) {
		d.Spec.Template.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}}
	}
}

// runtimeClassOf is the RuntimeClass "safe".
func runtimeClassOf(handler string) *nodev1.RuntimeClass {
	return &nodev1.RuntimeClass{
		TypeMeta:   metav1.TypeMeta{APIVersion: "node.k8s.io/v1", Kind: "RuntimeClass"},
		ObjectMeta: metav1.ObjectMeta{Name: "safe"}, Handler: handler,
	}
}

func barePod(name, image string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: image}}},
	}
}

func TestSettles(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 3), serviceFor("web"))
	w.settle()
	if p := w.next(Change{}); !p.Empty() {
		t.Fatalf("a converged cluster gives a plan: %+v", p)
	}
	first := w.uids("web")
	w.push(deployment("web", 3, image("app:2")), serviceFor("web"))
	w.settle()
	w.push(deployment("web", 3), serviceFor("web"))
	w.settle()
	if slices.Equal(first, w.uids("web")) {
		t.Fatal("a rollback gave the pods their old identities")
	}
	g, _ := w.s.groups.Get(keyOf(deployment("web", 3)))
	if len(g.sets) != 2 || g.current.revision != 3 {
		t.Fatalf("a rollback should return to the first of two sets as revision 3: %d sets, revision %d", len(g.sets), g.current.revision)
	}
}
