package planner

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// statefulSets have pods with ordinals, names that stay and claims of their
// own.
type statefulSets struct{ plain }

func (statefulSets) spec(o *desired.Object) *appsv1.StatefulSetSpec {
	return &o.Value.(*appsv1.StatefulSet).Spec
}

// template has, besides what stands in Git, the subdomain of the governing
// service and a volume for each claim template, which wins over one of its
// name; whose claim that is, each pod knows.
func (k statefulSets) template(o *desired.Object) (podTemplate, bool) {
	v := o.Value.(*appsv1.StatefulSet)
	t := templateOf(&v.Spec.Template, v.Annotations)
	spec := *t.spec
	spec.Subdomain = v.Spec.ServiceName
	if len(v.Spec.VolumeClaimTemplates) > 0 {
		spec.Volumes = claimVolumes(v.Spec.VolumeClaimTemplates, spec.Volumes)
	}
	t.spec = &spec
	return t, true
}

func claimVolumes(templates []corev1.PersistentVolumeClaim, others []corev1.Volume) []corev1.Volume {
	var out []corev1.Volume
	for i := range templates {
		name := templates[i].Name
		out = append(out, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	for _, v := range others {
		if !slices.ContainsFunc(templates, func(c corev1.PersistentVolumeClaim) bool { return c.Name == v.Name }) {
			out = append(out, v)
		}
	}
	return out
}

func (statefulSets) stamp(workload desired.Key, hash string) map[string]string {
	return map[string]string{appsv1.ControllerRevisionHashLabelKey: workload.Name + "-" + hash}
}

func (k statefulSets) identify(g *group, p *nodes.Pod) {
	p.Hostname = p.Name
	p.Labels = map[string]string{appsv1.StatefulSetPodNameLabel: p.Name, appsv1.PodIndexLabel: strconv.Itoa(p.Ordinal)}
	for _, c := range k.spec(g.object).VolumeClaimTemplates {
		if p.Claims == nil {
			p.Claims = map[string]string{}
		}
		p.Claims[c.Name] = claimName(c.Name, g.key.Name, p.Ordinal)
	}
}

// history is kept beside the templates that pods have.
func (k statefulSets) history(g *group) int {
	return int(valueOr(k.spec(g.object).RevisionHistoryLimit, 10))
}

func (k statefulSets) rules(st *step, g *group) workload.Stateful {
	s := workload.StatefulSet(g.key.Name, k.spec(g.object))
	s.Deadline = deadline(g.object)
	r := st.rollout(g, workload.Rollout{})
	s.Now, s.Revised, s.Update, s.Old, s.WasComplete = r.Now, r.Revised, r.Current, r.Old, r.WasComplete
	s.Stable, s.Proven, s.Unheard = s.Update, g.proven, st.unheard(g)
	for _, set := range s.Old {
		if set.Hash == g.stable {
			s.Stable = set
		}
	}
	return s
}

func (k statefulSets) reconcile(st *step, g *group) {
	s := k.rules(st, g)
	settled := s.Update != nil && s.Settled()
	if g.stable == "" && s.Update != nil || settled {
		g.stable = s.Update.Hash
	}
	if settled && s.Replicas > 0 {
		g.proven = s.Update.Hash
	}
	st.carryOut(g, st.unlessTaken(g, s.Next()))
}

// unlessTaken leaves out the pods whose name a Pod in Git has.
func (st *step) unlessTaken(g *group, steps workload.Steps) workload.Steps {
	steps.Creates = slices.DeleteFunc(steps.Creates, func(c workload.Create) bool {
		_, taken := st.groups.Get(podKey(g.key.Namespace, c.Name))
		if taken {
			steps.Waits = "the name of " + podKey(g.key.Namespace, c.Name).String() + " is that of a Pod in Git; rename one of them"
		}
		return taken
	})
	return steps
}

// freeName looks again at the Pod in Git and at the StatefulSet that may wait
// for a pod's name.
func (st *step) freeName(pod desired.Key) {
	for _, k := range []desired.Key{pod, setOfName(pod)} {
		if _, there := st.groups.Get(k); there {
			st.dirtyGroups[k] = true
		}
	}
}

// ordinalPod reports whether a StatefulSet has a pod of some name.
func (st *step) ordinalPod(k desired.Key) bool {
	g, ok := st.groups.Get(setOfName(k))
	return ok && slices.ContainsFunc(g.pods, func(p *pod) bool { return p.Name == k.Name })
}

// setOfName is the StatefulSet that would call one of its pods so.
func setOfName(pod desired.Key) desired.Key {
	i := max(0, strings.LastIndexByte(pod.Name, '-'))
	return desired.Key{Group: "apps", Kind: kindStatefulSet, Namespace: pod.Namespace, Name: pod.Name[:i]}
}

func podKey(namespace, name string) desired.Key {
	return desired.Key{Kind: kindPod, Namespace: namespace, Name: name}
}

// unheard are the ordinals without a pod that the ledger has on a node which has
// not reported since our start.
func (s *State) unheard(g *group) map[int]string {
	known := make(map[int]bool, len(g.pods))
	for _, p := range g.pods {
		known[p.Ordinal] = true
	}
	var out map[int]string
	for ordinal, name := range g.holders {
		n, _ := s.nodes.Get(name)
		if known[ordinal] || n != nil && n.reported || s.declaredDead(name) {
			continue
		}
		if out == nil {
			out = map[int]string{}
		}
		out[ordinal] = name
	}
	return out
}

// keepHolders notes which node has the pod of each ordinal.
func (st *step) keepHolders(g *group) {
	holders := st.unheard(g)
	for _, p := range g.pods {
		if p.Node != "" {
			if holders == nil {
				holders = map[int]string{}
			}
			holders[p.Ordinal] = p.Node
		}
	}
	if !maps.Equal(holders, g.holders) {
		g.holders = holders
		st.recordWorkload(g)
	}
}

// hearFrom looks again at the StatefulSets of which a node may have had pods, and
// at the claims that those may have used.
func (st *step) hearFrom(node string) {
	for k, g := range entries(st.groups) {
		for _, holder := range g.holders {
			if holder == node {
				st.dirtyGroups[k] = true
			}
		}
	}
	st.releaseHeld(node)
}

func (k statefulSets) assess(st *step, g *group) (workload.Verdict, string) {
	st.keepHolders(g)
	s := k.rules(st, g)
	v := s.Verdict()
	st.announceLate(g, &v)
	if v.Complete {
		return v, ""
	}
	return v, st.unlessTaken(g, s.Next()).Waits
}

func (k statefulSets) summary(o *desired.Object) string {
	spec := k.spec(o)
	text := count(int(replicas(spec.Replicas)), "pod") + ", image " + images(&spec.Template.Spec)
	if n := len(spec.VolumeClaimTemplates); n > 0 {
		text += ", " + count(n, "claim") + " each"
	}
	return text
}

// change takes up what Kubernetes holds immutable as if the StatefulSet had
// been deleted without its pods and made again: they are adopted and roll.
func (k statefulSets) change(was, is *desired.Object) (Op, string) {
	old, new := k.spec(was), k.spec(is)
	var parts []string
	if a, b := replicas(old.Replicas), replicas(new.Replicas); a != b {
		text := fmt.Sprintf("%d → %s", a, count(int(b), "replica"))
		if t := claimTemplatesOf(is); b < a && t != nil && t.DeleteWhenScaled {
			text += fmt.Sprintf(", and the claims of %s end (whenScaled: Delete)", count(int(a-b), "pod"))
		}
		parts = append(parts, text)
	}
	if change := templateChange(&old.Template, &new.Template); change != "" {
		parts = append(parts, change+", "+rolls(new))
	}
	if names := immutableChanges(old, new); len(names) > 0 {
		parts = append(parts, strings.Join(names, ", ")+" changed: the pods are kept and adopted, then roll as far as they differ")
		if slices.Contains(names, claimTemplatesField) {
			parts = append(parts, "claims that are there grow with their template, all else is for new ones")
		}
	}
	if len(parts) == 0 {
		return Update, "no pod is touched"
	}
	return Update, strings.Join(parts, "; ")
}

// rolls says which pods take up a changed template.
func rolls(spec *appsv1.StatefulSetSpec) string {
	s := workload.StatefulSet("", spec)
	kept := min(s.Partition, s.Replicas)
	switch {
	case s.OnDelete:
		return "update strategy OnDelete: pods keep their template until they end"
	case kept > 0:
		return fmt.Sprintf("%s to roll, the first %d stay (partition)", count(s.Replicas-kept, "pod"), kept)
	default:
		return count(s.Replicas, "pod") + " to roll"
	}
}

const claimTemplatesField = "volumeClaimTemplates"

func immutableChanges(old, new *appsv1.StatefulSetSpec) []string {
	differs := map[string]bool{
		"selector":            !reflect.DeepEqual(old.Selector, new.Selector),
		"serviceName":         old.ServiceName != new.ServiceName,
		"podManagementPolicy": old.PodManagementPolicy != new.PodManagementPolicy,
		claimTemplatesField:   !reflect.DeepEqual(old.VolumeClaimTemplates, new.VolumeClaimTemplates),
	}
	maps.DeleteFunc(differs, func(_ string, d bool) bool { return !d })
	return slices.Sorted(maps.Keys(differs))
}

// claimTemplates are what the claims of a workload's pods are made from.
type claimTemplates struct {
	// Templates by the name of the volume: each pod has a claim of each, see
	// claimName.
	Templates []corev1.PersistentVolumeClaim
	// Start and Replicas give the ordinals that are wanted.
	Start, Replicas int
	// DeleteWhenScaled and DeleteWhenDeleted tell whether claims go with their
	// ordinal, or with the workload, or stay.
	DeleteWhenScaled, DeleteWhenDeleted bool
}

// claimTemplatesOf gives the claim templates of an object in Git; nil when it
// has none.
func claimTemplatesOf(o *desired.Object) *claimTemplates {
	v, ok := o.Value.(*appsv1.StatefulSet)
	if !ok || len(v.Spec.VolumeClaimTemplates) == 0 {
		return nil
	}
	t := &claimTemplates{Templates: v.Spec.VolumeClaimTemplates, Replicas: int(replicas(v.Spec.Replicas))}
	if v.Spec.Ordinals != nil {
		t.Start = int(v.Spec.Ordinals.Start)
	}
	if p := v.Spec.PersistentVolumeClaimRetentionPolicy; p != nil {
		t.DeleteWhenScaled = p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
		t.DeleteWhenDeleted = p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	}
	return t
}

// larger is the size that a claim's template asks for today, if it is more than
// the claim does; nil otherwise.
func (t *claimTemplates) larger(c *claim) *resource.Quantity {
	for i := range t.Templates {
		if claimName(t.Templates[i].Name, c.Owner.Name, c.Ordinal) != c.Key.Name {
			continue
		}
		if size := t.Templates[i].Spec.Resources.Requests[corev1.ResourceStorage]; size.Cmp(c.wants.Size()) > 0 {
			return &size
		}
	}
	return nil
}

// claimName is that of the claim which a StatefulSet's pod has of a template.
func claimName(template, set string, ordinal int) string {
	return fmt.Sprintf("%s-%s-%d", template, set, ordinal)
}
