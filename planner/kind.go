package planner

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// kind is what one kind of workloads does in its own way: one file each. The
// rules by which pods come and go are package workload's; a kind brings them
// together with a group. A kind has no state.
type kind interface {
	// template is what pods of an object are made from; ok is false for an
	// object that has no pods of its own.
	template(o *desired.Object) (t podTemplate, ok bool)
	// stamp are the labels that tell the pods of one template from those of
	// another; they are added to the template and don't count when templates are
	// compared. Nil for none.
	stamp(workload desired.Key, hash string) map[string]string
	// owner names the controller of the pods of a template: the object itself,
	// or one between it and them.
	owner(workload desired.Key, hash string) desired.Key
	// identify gives a new pod what is its own: labels, hostname, claims. Name
	// and ordinal are set.
	identify(g *group, p *nodes.Pod)
	// paused reports whether a changed template is to wait in Git.
	paused(o *desired.Object) bool

	// frozen says why nothing may be done about a group's pods now; empty when
	// all may be.
	frozen(s *State, g *group) string
	// reconcile does what is to be done next.
	reconcile(st *step, g *group)
	// assess says how a group is doing, and if it waits for something else than
	// its verdict says, for what.
	assess(st *step, g *group) (v workload.Verdict, waits string)
	// history is how many templates without pods are kept besides the current
	// one.
	history(g *group) int

	// summary says in a few words what a new object is.
	summary(o *desired.Object) string
	// change says what a changed object means for its pods. Fields that
	// Kubernetes holds immutable are this kind's to carry out; Replace tells
	// that the object's pods go before new ones come.
	change(was, is *desired.Object) (op Op, reason string)
}

// kinds are the workloads, by group and kind.
var kinds = map[schemaKind]kind{
	{"apps", kindDeployment}: deployments{},
	{"apps", kindReplicaSet}: replicaSets{},
	{"", kindPod}:            barePods{},

	{"apps", kindStatefulSet}:       statefulSets{},
	{"apps", kindDaemonSet}:         daemonSets{},
	{"", kindReplicationController}: replicaSets{},
	{"batch", kindJob}:              jobs{},
	{"batch", kindCronJob}:          cronJobs{},
}

type schemaKind struct{ group, kind string }

// isWorkload reports whether objects with this key have pods.
func isWorkload(k desired.Key) bool {
	_, ok := kinds[schemaKind{k.Group, k.Kind}]
	return ok
}

// kind of a group. A record of a later version may have groups of kinds that
// are not known here: nothing is in Git for them, their pods only end.
func (g *group) kind() kind {
	if k, ok := kinds[schemaKind{g.key.Group, g.key.Kind}]; ok {
		return k
	}
	return barePods{}
}

// podTemplate is the pod template of an object in Git.
type podTemplate struct {
	labels, annotations map[string]string
	spec                *corev1.PodSpec
	// own are the object's annotations.
	own map[string]string
	// steady is set when changed configuration is no reason for new pods.
	steady bool
}

func templateOf(t *corev1.PodTemplateSpec, own map[string]string) podTemplate {
	return podTemplate{labels: t.Labels, annotations: t.Annotations, spec: &t.Spec, own: own}
}

// plain is what most kinds have in common.
type plain struct{}

func (plain) stamp(desired.Key, string) map[string]string      { return nil }
func (plain) owner(workload desired.Key, _ string) desired.Key { return workload }
func (plain) identify(*group, *nodes.Pod)                      {}
func (plain) paused(*desired.Object) bool                      { return false }
func (plain) history(*group) int                               { return 0 }
func (plain) frozen(s *State, g *group) string                 { return s.frozen(g) }

// announceLate says once that a rollout makes no progress.
func (st *step) announceLate(g *group, v *workload.Verdict) {
	if v.Late && !g.verdict.Late && g.current != nil && !g.current.complete {
		owner := g.owner(g.current)
		st.event(g.key, true, "ProgressDeadlineExceeded", owner.Kind+" \""+owner.Name+"\" has timed out progressing.")
	}
}

// deadline is how long an object without a field for it may make no progress.
func deadline(o *desired.Object) time.Duration {
	if meta, ok := o.Value.(metav1.Object); ok {
		if d, err := desired.ProgressDeadline(meta.GetAnnotations()); err == nil && d > 0 {
			return d
		}
	}
	return workload.DefaultDeadline
}

func replicas(p *int32) int32 { return valueOr(p, 1) }

func valueOr(p *int32, fallback int32) int32 {
	if p == nil {
		return fallback
	}
	return *p
}

func images(spec *corev1.PodSpec) string {
	var names []string
	for i := range spec.Containers {
		names = append(names, spec.Containers[i].Image)
	}
	return strings.Join(names, ", ")
}

func workloadChange(wasReplicas, isReplicas int32, was, is *corev1.PodTemplateSpec) string {
	var parts []string
	if wasReplicas != isReplicas {
		parts = append(parts, fmt.Sprintf("%d → %s", wasReplicas, count(int(isReplicas), "replica")))
	}
	if change := templateChange(was, is); change != "" {
		parts = append(parts, fmt.Sprintf("%s, %s to roll", change, count(int(isReplicas), "pod")))
	}
	if len(parts) == 0 {
		return "no pod is touched"
	}
	return strings.Join(parts, "; ")
}

// templateChange names what differs between two templates; empty when nothing does.
func templateChange(was, is *corev1.PodTemplateSpec) string {
	before, annotations := desired.AsWritten(&was.Spec, was.Annotations)
	after, today := desired.AsWritten(&is.Spec, is.Annotations)
	if equality.Semantic.DeepEqual(before, after) && maps.Equal(was.Labels, is.Labels) && maps.Equal(annotations, today) {
		return ""
	}
	var parts []string
	for i := range is.Spec.Containers {
		c := &is.Spec.Containers[i]
		j := slices.IndexFunc(was.Spec.Containers, func(o corev1.Container) bool { return o.Name == c.Name })
		if j >= 0 && was.Spec.Containers[j].Image != c.Image {
			parts = append(parts, fmt.Sprintf("image %s → %s", was.Spec.Containers[j].Image, c.Image))
		}
	}
	if len(parts) == 0 {
		return "new template"
	}
	return strings.Join(parts, ", ")
}
