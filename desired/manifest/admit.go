package manifest

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/desired/manifest/admission"
	"github.com/tallyman-dev/tallyman/nodes"
)

// admit does to the objects of a revision what Kubernetes' admission does to
// them: pods and templates are completed, then all is judged. What was read of
// a file is remembered and shared, so completed objects are copies.
func (w *world) admit(r *rules, config desired.Settings) {
	objects := w.values()
	known := make(map[desired.Key]bool, len(w.known))
	for k := range w.known {
		known[k] = true
	}
	rules, findings := admission.NewRules(objects, known, config)
	w.place(findings)
	w.place(rules.LimitNotes(w.complete(r, rules)))
	objects = w.values()
	var templates []admission.Template
	var uses []admission.Use
	for _, o := range objects {
		t, ok := admissible(o)
		if ok {
			templates = append(templates, t)
			w.place(rules.Judge(t))
		}
		uses = append(uses, use(o, t, w.classOf))
	}
	for _, o := range objects {
		for _, c := range claimsOf(o) {
			w.place(rules.CheckClaim(o.Key, c.path, c.spec))
		}
	}
	w.place(admission.CheckQuotas(objects, uses))
	w.place(admission.CheckBudgets(objects, templates))
}

// values are the objects of the world in its order.
func (w *world) values() []*desired.Object {
	out := make([]*desired.Object, len(w.objects))
	for i, e := range w.objects {
		out[i] = e.object
	}
	return out
}

// place reports what admission found where it is written.
func (w *world) place(findings []admission.Finding) {
	for _, f := range findings {
		if e := w.known[f.Object]; e != nil {
			w.found.report(e, f.Severity, f.Code, f.Field, f.Message, f.Hint)
		}
	}
}

// complete fills in pods and templates, validates them again, as Kubernetes
// does after admission, and gives the objects that a LimitRange changed.
func (w *world) complete(r *rules, rules *admission.Rules) (limited []desired.Key) {
	for i, e := range w.objects {
		if t, ok := admissible(e.object); !ok || !rules.Changes(t) {
			continue
		}
		changed := *e
		object := *e.object
		object.Value = e.object.Value.DeepCopyObject()
		t, _ := admissible(&object)
		findings, byLimits := rules.Complete(t)
		object.Fingerprint = fingerprint(object.Value)
		changed.object = &object
		w.objects[i], w.known[e.key] = &changed, &changed
		w.place(findings)
		if byLimits {
			limited = append(limited, e.key)
		}
		gvk := object.Value.GetObjectKind().GroupVersionKind()
		rule := r.kinds[gvk.GroupVersion().String()+" "+gvk.Kind]
		w.found.problems = append(w.found.problems, r.validate(e.src, rule, object.Value)...)
	}
	return limited
}

// admissible gives the pods of an object in the form that admission takes.
func admissible(o *desired.Object) (admission.Template, bool) {
	t, ok := templateOf(o)
	once := false
	switch o.Value.(type) {
	case *corev1.Pod, *batchv1.Job:
		once = true
	}
	return admission.Template{Object: o.Key, Meta: t.meta, Spec: t.spec, Path: t.path, Once: once}, ok
}

// use is what an object asks of quotas. t is its template, empty for none.
func use(o *desired.Object, t admission.Template, class func(*corev1.PersistentVolumeClaim) string) admission.Use {
	u := admission.Use{Object: o.Key, Resource: resourceOf(o)}
	if t.Spec != nil {
		u.Pods = &t
		u.Replicas, u.Passing = podsOf(o)
	}
	for _, c := range claimsOf(o) {
		count := int64(1)
		if t.Spec != nil {
			count = u.Replicas
		}
		u.Claims = append(u.Claims, admission.Claim{Count: count, Path: c.path, Spec: c.spec, Class: class(c.claim())})
	}
	u.Service, _ = o.Value.(*corev1.Service)
	return u
}

// resourceOf names a kind as quotas do, e.g. "deployments.apps".
func resourceOf(o *desired.Object) string {
	plural, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind{Group: o.Key.Group, Kind: o.Key.Kind})
	return plural.GroupResource().String()
}

// podsOf counts the pods that an object makes at once; passing ones end by
// themselves. A DaemonSet counts once, for how many nodes there are is not
// said in Git.
func podsOf(o *desired.Object) (replicas int64, passing bool) {
	switch v := o.Value.(type) {
	case *corev1.Pod:
		return 1, v.Spec.RestartPolicy != corev1.RestartPolicyAlways
	case *corev1.ReplicationController:
		return number(v.Spec.Replicas), false
	case *appsv1.ReplicaSet:
		return number(v.Spec.Replicas), false
	case *appsv1.Deployment:
		return number(v.Spec.Replicas), false
	case *appsv1.StatefulSet:
		return number(v.Spec.Replicas), false
	case *appsv1.DaemonSet:
		return 1, false
	case *batchv1.Job:
		return parallel(&v.Spec), true
	case *batchv1.CronJob:
		if v.Spec.Suspend != nil && *v.Spec.Suspend {
			return 0, true
		}
		return parallel(&v.Spec.JobTemplate.Spec), true
	}
	return 0, false
}

func number(replicas *int32) int64 {
	if replicas == nil {
		return 1
	}
	return int64(*replicas)
}

// parallel counts the pods that a Job runs at once.
func parallel(s *batchv1.JobSpec) int64 {
	n := number(s.Parallelism)
	if s.Completions != nil {
		n = min(n, int64(*s.Completions))
	}
	if s.Suspend != nil && *s.Suspend {
		n = 0
	}
	return n
}

// claimSpec is a claim that an object is or makes.
type claimSpec struct {
	spec        *corev1.PersistentVolumeClaimSpec
	annotations map[string]string
	path        string
}

func (c claimSpec) claim() *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{Spec: *c.spec}
	claim.Annotations = c.annotations
	return claim
}

// claimsOf lists the claims that an object is, or that it or its pods make.
func claimsOf(o *desired.Object) []claimSpec {
	var out []claimSpec
	switch v := o.Value.(type) {
	case *corev1.PersistentVolumeClaim:
		return []claimSpec{{&v.Spec, v.Annotations, "spec"}}
	case *appsv1.StatefulSet:
		for i := range v.Spec.VolumeClaimTemplates {
			c := &v.Spec.VolumeClaimTemplates[i]
			out = append(out, claimSpec{&c.Spec, c.Annotations, fmt.Sprintf("spec.volumeClaimTemplates[%d].spec", i)})
		}
	}
	t, ok := templateOf(o)
	if !ok {
		return out
	}
	for i := range t.spec.Volumes {
		if e := t.spec.Volumes[i].Ephemeral; e != nil && e.VolumeClaimTemplate != nil {
			c := e.VolumeClaimTemplate
			out = append(out, claimSpec{&c.Spec, c.Annotations, fmt.Sprintf("%s.volumes[%d].ephemeral.volumeClaimTemplate.spec", t.path, i)})
		}
	}
	return out
}

// classOf names the StorageClass of a claim: its own, or the default of the
// revision, the first by name, as the planner chooses it.
func (w *world) classOf(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	var defaults []string
	for _, e := range w.objects {
		if s, ok := e.object.Value.(*storagev1.StorageClass); ok && nodes.IsDefaultClass(s) {
			defaults = append(defaults, s.Name)
		}
	}
	if len(defaults) == 0 {
		return ""
	}
	return slices.Min(defaults)
}
