package admission

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

func priorityClass(name string, value int32, global bool, policy corev1.PreemptionPolicy) *desired.Object {
	c := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, GlobalDefault: global, PreemptionPolicy: &policy}
	return &desired.Object{Key: desired.Key{Group: "scheduling.k8s.io", Kind: "PriorityClass", Name: name}, From: desired.Place{File: "rules.yaml", Line: 1}, Value: c}
}

func TestPriority(t *testing.T) {
	never, lower := corev1.PreemptNever, corev1.PreemptLowerPriority
	high := priorityClass("high", 1000, false, never)
	normal := priorityClass("normal", 10, true, lower)
	number := func(n int32) *int32 { return &n }
	for name, c := range map[string]struct {
		classes []*desired.Object
		spec    corev1.PodSpec
		want    corev1.PodSpec
		refused []string
	}{
		"none": {},
		"none, with the value it has anyway": {
			spec: corev1.PodSpec{Priority: number(0), PreemptionPolicy: &lower},
			want: corev1.PodSpec{Priority: number(0), PreemptionPolicy: &lower},
		},
		"named": {
			classes: []*desired.Object{high, normal},
			spec:    corev1.PodSpec{PriorityClassName: "high"},
			want:    corev1.PodSpec{PriorityClassName: "high", Priority: number(1000), PreemptionPolicy: &never},
		},
		"default": {
			classes: []*desired.Object{high, normal},
			want:    corev1.PodSpec{PriorityClassName: "normal", Priority: number(10), PreemptionPolicy: &lower},
		},
		"built in": {
			spec: corev1.PodSpec{PriorityClassName: "system-node-critical"},
			want: corev1.PodSpec{PriorityClassName: "system-node-critical", Priority: number(2000001000), PreemptionPolicy: &lower},
		},
		"missing": {
			spec:    corev1.PodSpec{PriorityClassName: "high"},
			want:    corev1.PodSpec{PriorityClassName: "high"},
			refused: []string{"spec.template.spec.priorityClassName: no PriorityClass with name high was found"},
		},
		"another value": {
			classes: []*desired.Object{high},
			spec:    corev1.PodSpec{PriorityClassName: "high", Priority: number(5)},
			want:    corev1.PodSpec{PriorityClassName: "high", Priority: number(5)},
			refused: []string{"spec.template.spec.priority: the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name"},
		},
		"another policy": {
			spec:    corev1.PodSpec{PreemptionPolicy: &never},
			want:    corev1.PodSpec{PreemptionPolicy: &never},
			refused: []string{"spec.template.spec.preemptionPolicy: the string value of PreemptionPolicy (Never) must not be provided in pod spec; priority admission controller computed PreemptLowerPriority from the given PriorityClass name"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			template := deployment("web")
			*template.Spec = c.spec
			r := rulesOf(t, c.classes...)
			if len(c.refused) == 0 && !cmp.Equal(c.spec, c.want) && !r.Changes(template) {
				t.Error("the rules do not see that they change the template")
			}
			findings, _ := r.Complete(template)
			if got := messages(findings); !slices.Equal(got, c.refused) {
				t.Errorf("refused %q, want %q", got, c.refused)
			}
			if diff := cmp.Diff(c.want, *template.Spec); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestSecondDefaultPriority(t *testing.T) {
	lower := corev1.PreemptLowerPriority
	classes := []*desired.Object{priorityClass("a", 20, true, lower), priorityClass("b", 10, true, lower)}
	r, findings := NewRules(classes, nil, desired.DefaultSettings())
	if got := messages(findings); !slices.Equal(got, []string{"globalDefault: PriorityClass a is already marked as default. Only one default can exist"}) || findings[0].Object.Name != "b" {
		t.Errorf("findings %v", findings)
	}
	template := deployment("web")
	if r.Complete(template); template.Spec.PriorityClassName != "b" {
		t.Errorf("the class is %q, want the one with the lower value", template.Spec.PriorityClassName)
	}
}

func TestServiceAccounts(t *testing.T) {
	account := func(name string, secrets ...string) *desired.Object {
		a := &corev1.ServiceAccount{}
		for _, s := range secrets {
			a.ImagePullSecrets = append(a.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
		}
		return object("ServiceAccount", name, a)
	}
	for name, c := range map[string]struct {
		accounts []*desired.Object
		spec     corev1.PodSpec
		secrets  []string
		refused  []string
	}{
		"default needs no object": {spec: corev1.PodSpec{ServiceAccountName: "default"}},
		"default, written":        {accounts: []*desired.Object{account("default", "registry")}, secrets: []string{"registry"}},
		"its own secrets win": {
			accounts: []*desired.Object{account("robot", "registry")},
			spec:     corev1.PodSpec{ServiceAccountName: "robot", ImagePullSecrets: []corev1.LocalObjectReference{{Name: "mine"}}},
			secrets:  []string{"mine"},
		},
		"missing": {
			spec:    corev1.PodSpec{ServiceAccountName: "robot"},
			refused: []string{`spec.template.spec.serviceAccountName: there is no ServiceAccount "robot" in namespace shop`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			template := deployment("web")
			*template.Spec = c.spec
			r := rulesOf(t, c.accounts...)
			findings, _ := r.Complete(template)
			if got := messages(findings); !slices.Equal(got, c.refused) {
				t.Errorf("refused %q, want %q", got, c.refused)
			}
			var secrets []string
			for _, s := range template.Spec.ImagePullSecrets {
				secrets = append(secrets, s.Name)
			}
			if !slices.Equal(secrets, c.secrets) {
				t.Errorf("image pull secrets %q, want %q", secrets, c.secrets)
			}
		})
	}
}

func TestRuntimeClass(t *testing.T) {
	class := &nodev1.RuntimeClass{
		Overhead: &nodev1.Overhead{PodFixed: list("cpu", "250m")},
		Scheduling: &nodev1.Scheduling{
			NodeSelector: map[string]string{"sandbox": "yes"},
			Tolerations:  []corev1.Toleration{{Key: "sandbox", Operator: corev1.TolerationOpExists}},
		},
	}
	r := rulesOf(t, &desired.Object{Key: desired.Key{Group: "node.k8s.io", Kind: "RuntimeClass", Name: "gvisor"}, Value: class})
	name := func(s string) *string { return &s }
	own := corev1.Toleration{Key: "gpu", Operator: corev1.TolerationOpExists}
	covered := corev1.Toleration{Key: "sandbox", Operator: corev1.TolerationOpEqual, Value: "x", Effect: corev1.TaintEffectNoSchedule}
	for title, c := range map[string]struct {
		spec, want corev1.PodSpec
		refused    []string
	}{
		"none": {},
		"filled in": {
			spec: corev1.PodSpec{RuntimeClassName: name("gvisor"), NodeSelector: map[string]string{"disk": "ssd"}, Tolerations: []corev1.Toleration{own, covered}},
			want: corev1.PodSpec{
				RuntimeClassName: name("gvisor"), NodeSelector: map[string]string{"disk": "ssd", "sandbox": "yes"},
				Tolerations: []corev1.Toleration{own, class.Scheduling.Tolerations[0]}, Overhead: list("cpu", "250m"),
			},
		},
		"missing": {
			spec:    corev1.PodSpec{RuntimeClassName: name("kata")},
			want:    corev1.PodSpec{RuntimeClassName: name("kata")},
			refused: []string{`spec.template.spec.runtimeClassName: pod rejected: RuntimeClass "kata" not found`},
		},
		"another overhead": {
			spec: corev1.PodSpec{RuntimeClassName: name("gvisor"), Overhead: list("cpu", "1"), NodeSelector: map[string]string{"sandbox": "no"}},
			want: corev1.PodSpec{RuntimeClassName: name("gvisor"), Overhead: list("cpu", "1"), NodeSelector: map[string]string{"sandbox": "no"}, Tolerations: class.Scheduling.Tolerations},
			refused: []string{
				"spec.template.spec.overhead: pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
				"spec.template.spec.nodeSelector[sandbox]: conflict: runtimeClass.scheduling.nodeSelector[sandbox] = yes; pod.spec.nodeSelector[sandbox] = no",
			},
		},
		"overhead without a class": {
			spec:    corev1.PodSpec{Overhead: list("cpu", "1")},
			want:    corev1.PodSpec{Overhead: list("cpu", "1")},
			refused: []string{"spec.template.spec.overhead: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"},
		},
	} {
		t.Run(title, func(t *testing.T) {
			template := deployment("web")
			*template.Spec = *c.spec.DeepCopy()
			findings, _ := r.Complete(template)
			if got := messages(findings); !slices.Equal(got, c.refused) {
				t.Errorf("refused %q, want %q", got, c.refused)
			}
			if diff := cmp.Diff(c.want, *template.Spec); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestBudgets(t *testing.T) {
	budget := func(name string, labels map[string]string) *desired.Object {
		return object("PodDisruptionBudget", name, &policyv1.PodDisruptionBudget{Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}}})
	}
	web := deployment("web")
	web.Meta.Labels = map[string]string{"app": "web", "tier": "front"}
	got := CheckBudgets([]*desired.Object{
		budget("a", map[string]string{"app": "web"}), budget("b", map[string]string{"tier": "front"}), budget("c", map[string]string{"app": "db"}),
	}, []Template{web})
	want := []string{
		"spec.selector: the pods of Deployment shop/web have more than one PodDisruptionBudget, and Kubernetes evicts no such pod",
		"spec.selector: the selector matches no pod of this revision",
	}
	if diff := cmp.Diff(want, messages(got)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
