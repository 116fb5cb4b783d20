package admission

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
)

// list reads pairs of resource and amount.
func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func object(kind, name string, value runtime.Object) *desired.Object {
	return &desired.Object{Key: desired.Key{Kind: kind, Namespace: "shop", Name: name}, From: desired.Place{File: "rules.yaml", Line: 1}, Value: value}
}

func limitRange(name string, items ...corev1.LimitRangeItem) *desired.Object {
	return object("LimitRange", name, &corev1.LimitRange{Spec: corev1.LimitRangeSpec{Limits: items}})
}

func container(name string, requests, limits corev1.ResourceList) corev1.Container {
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits}}
}

func deployment(name string, containers ...corev1.Container) Template {
	t := &corev1.PodTemplateSpec{Spec: corev1.PodSpec{Containers: containers}}
	return Template{Object: desired.Key{Group: "apps", Kind: "Deployment", Namespace: "shop", Name: name}, Meta: &t.ObjectMeta, Spec: &t.Spec, Path: "spec.template.spec"}
}

func rulesOf(t *testing.T, objects ...*desired.Object) *Rules {
	t.Helper()
	known := map[desired.Key]bool{}
	for _, o := range objects {
		known[o.Key] = true
	}
	r, findings := NewRules(objects, known, desired.DefaultSettings())
	if len(findings) > 0 {
		t.Fatalf("the rules themselves are wrong: %v", findings)
	}
	return r
}

func messages(findings []Finding) []string {
	var out []string
	for _, f := range findings {
		out = append(out, f.Field+": "+f.Message)
	}
	return out
}

func TestLimitRangeDefaults(t *testing.T) {
	r := rulesOf(
		t,
		limitRange("a", corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Default: list("cpu", "500m"), DefaultRequest: list("cpu", "100m", "memory", "64Mi")}),
		limitRange("b", corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Default: list("cpu", "9", "memory", "1Gi")}),
		limitRange("c", corev1.LimitRangeItem{Type: corev1.LimitTypePod, Default: list("cpu", "9")}),
	)
	template := deployment("web", container("bare", nil, nil), container("limited", nil, list("memory", "32Mi")), container("set", list("cpu", "1", "memory", "1Mi"), list("cpu", "2", "memory", "2Mi")))
	template.Spec.InitContainers = []corev1.Container{container("init", list("cpu", "1m"), nil)}
	if !r.Changes(template) {
		t.Error("the rules do not see that they change the template")
	}
	if findings, limited := r.Complete(template); len(findings) > 0 || !limited {
		t.Errorf("findings %v, limited %v", findings, limited)
	}
	want := []corev1.Container{
		container("bare", list("cpu", "100m", "memory", "64Mi"), list("cpu", "500m", "memory", "1Gi")),
		container("limited", list("cpu", "100m", "memory", "32Mi"), list("cpu", "500m", "memory", "32Mi")),
		container("set", list("cpu", "1", "memory", "1Mi"), list("cpu", "2", "memory", "2Mi")),
	}
	if diff := cmp.Diff(want, template.Spec.Containers); diff != "" {
		t.Errorf("containers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]corev1.Container{container("init", list("cpu", "1m", "memory", "64Mi"), list("cpu", "500m", "memory", "1Gi"))}, template.Spec.InitContainers); diff != "" {
		t.Errorf("init containers (-want +got):\n%s", diff)
	}
	const said = "LimitRanger plugin set: cpu, memory request for container bare; cpu limit for container bare; cpu request for container limited; cpu limit for container limited; " +
		"memory request for init container init; cpu limit for init container init; memory limit for container bare; memory limit for init container init"
	if got := template.Meta.Annotations[desired.LimitAnnotation]; got != said {
		t.Errorf("annotation %q, want %q", got, said)
	}
	again := template.Spec.DeepCopy()
	if _, limited := r.Complete(template); limited || !cmp.Equal(again, template.Spec) {
		t.Error("a second time changes something")
	}
	notes := r.LimitNotes([]desired.Key{template.Object})
	if got := messages(notes); len(got) != 2 || notes[0].Object.Name != "a" || notes[1].Object.Name != "b" || got[0] != "spec.limits: gives containers of Deployment web their requests or limits" {
		t.Errorf("notes: %v", got)
	}
}

// Of pods that are made once it is noted what was filled in, so that they can
// be compared as they are written, whatever rules hold today.
func TestWhatIsFilledInIsKnown(t *testing.T) {
	account := object("ServiceAccount", "default", &corev1.ServiceAccount{ImagePullSecrets: []corev1.LocalObjectReference{{Name: "registry"}}})
	strict := rulesOf(t, account, priorityClass("normal", 10, true, corev1.PreemptNever), limitRange("a", corev1.LimitRangeItem{
		Type: corev1.LimitTypeContainer, Default: list("cpu", "500m", "example.com/gpu", "1"), DefaultRequest: list("memory", "1Gi"),
	}))
	template := func() Template {
		job := deployment("web", container("a", nil, list("memory", "2Gi")), container("b", list("cpu", "1m"), list("cpu", "2m")))
		job.Spec.InitContainers = []corev1.Container{container("a", nil, nil)}
		job.Meta.Annotations = map[string]string{"own": "kept"}
		job.Once = true
		return job
	}
	written, completed := template(), template()
	if findings, _ := strict.Complete(completed); len(findings) > 0 {
		t.Fatal(findings)
	}
	if cmp.Equal(written.Spec, completed.Spec) {
		t.Fatal("nothing was filled in")
	}
	spec, annotations := desired.AsWritten(completed.Spec, completed.Meta.Annotations)
	if !equality.Semantic.DeepEqual(spec, written.Spec) || !maps.Equal(annotations, written.Meta.Annotations) {
		t.Errorf("as written (-want +got):\n%s", cmp.Diff(written.Spec, spec))
	}
	// Whoever writes the note himself does not hide what he writes.
	forged := template()
	forged.Meta.Annotations[desired.FilledAnnotation] = "containers/b/limits/cpu"
	loose := rulesOf(t)
	if !loose.Changes(forged) {
		t.Error("a forged note is not looked at")
	}
	if loose.Complete(forged); forged.Meta.Annotations[desired.FilledAnnotation] != "" {
		t.Error("a forged note stays")
	}
}

// The wording is that of Kubernetes' plugin LimitRanger.
func TestLimitRangeViolations(t *testing.T) {
	item := func(kind corev1.LimitType, least, most, ratio corev1.ResourceList) corev1.LimitRangeItem {
		return corev1.LimitRangeItem{Type: kind, Min: least, Max: most, MaxLimitRequestRatio: ratio}
	}
	const cpu = "spec.template.spec.containers[0].resources."
	for name, c := range map[string]struct {
		item      corev1.LimitRangeItem
		container corev1.Container
		want      []string
	}{
		"within": {
			item:      item("Container", list("cpu", "100m"), list("cpu", "2"), list("cpu", "4")),
			container: container("c", list("cpu", "500m"), list("cpu", "2")),
		},
		"nothing set": {
			item:      item("Container", list("cpu", "100m"), list("cpu", "2"), list("memory", "4")),
			container: container("c", nil, nil),
			want: []string{
				cpu + "requests[cpu]: minimum cpu usage per Container is 100m.  No request is specified",
				cpu + "limits[cpu]: maximum cpu usage per Container is 2.  No limit is specified",
				cpu + "requests[memory]: memory max limit to request ratio per Container is 4, but no request is specified or request is 0",
			},
		},
		"too little": {
			item:      item("Container", list("cpu", "100m"), nil, nil),
			container: container("c", list("cpu", "50m"), list("cpu", "60m")),
			want:      []string{cpu + "requests[cpu]: minimum cpu usage per Container is 100m, but request is 50m"},
		},
		"limit too low": {
			item:      item("Container", list("memory", "1Gi"), nil, nil),
			container: container("c", list("memory", "1Gi"), list("memory", "1Mi")),
			want:      []string{cpu + "limits[memory]: minimum memory usage per Container is 1Gi, but limit is 1Mi"},
		},
		"too much": {
			item:      item("Container", nil, list("cpu", "1", "memory", "1Gi"), nil),
			container: container("c", list("cpu", "3", "memory", "2Gi"), list("cpu", "1", "memory", "4Gi")),
			want: []string{
				cpu + "requests[cpu]: maximum cpu usage per Container is 1, but request is 3",
				cpu + "limits[memory]: maximum memory usage per Container is 1Gi, but limit is 4Gi",
			},
		},
		"ratio": {
			item:      item("Container", nil, nil, list("cpu", "2")),
			container: container("c", list("cpu", "1"), list("cpu", "2500m")),
			want:      []string{cpu + "limits[cpu]: cpu max limit to request ratio per Container is 2, but provided ratio is 2.500000"},
		},
		"ratio without a limit": {
			item:      item("Container", nil, nil, list("cpu", "2")),
			container: container("c", list("cpu", "1"), nil),
			want:      []string{cpu + "limits[cpu]: cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0"},
		},
		"pod": {
			item:      item("Pod", list("cpu", "2"), list("memory", "1Gi"), nil),
			container: container("c", list("cpu", "1"), list("memory", "2Gi")),
			want: []string{
				"spec.template.spec: minimum cpu usage per Pod is 2, but request is 1",
				"spec.template.spec: maximum memory usage per Pod is 1Gi, but limit is 2Gi",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := rulesOf(t, limitRange("limits", c.item))
			var got []string
			for _, f := range r.Judge(deployment("web", c.container)) {
				if f.Code == "limit-range" {
					got = append(got, f.Field+": "+f.Message)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestLimitRangeOfClaims(t *testing.T) {
	r := rulesOf(t, limitRange("limits", corev1.LimitRangeItem{Type: corev1.LimitTypePersistentVolumeClaim, Min: list("storage", "1Gi"), Max: list("storage", "10Gi")}))
	key := desired.Key{Kind: "PersistentVolumeClaim", Namespace: "shop", Name: "data"}
	for _, c := range []struct {
		request string
		want    []string
	}{
		{"5Gi", nil},
		{"1Mi", []string{"spec.resources.requests: minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"}},
		{"11Gi", []string{"spec.resources.requests: maximum storage usage per PersistentVolumeClaim is 10Gi, but request is 11Gi"}},
	} {
		spec := &corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: list("storage", c.request)}}
		if got := messages(r.CheckClaim(key, "spec", spec)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.request, got, c.want)
		}
	}
	if got := r.CheckClaim(desired.Key{Namespace: "other"}, "spec", &corev1.PersistentVolumeClaimSpec{}); len(got) > 0 {
		t.Errorf("another namespace: %v", got)
	}
}
