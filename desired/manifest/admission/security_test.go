package admission

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

func namespace(labels map[string]string) *desired.Object {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: labels}}
	return &desired.Object{Key: desired.Key{Kind: "Namespace", Name: "shop"}, Value: n}
}

func judged(t *testing.T, settings desired.Settings, labels map[string]string, template Template) []string {
	t.Helper()
	var objects []*desired.Object
	if labels != nil {
		objects = append(objects, namespace(labels))
	}
	r, findings := NewRules(objects, nil, settings)
	var out []string
	for _, f := range append(findings, r.Judge(template)...) {
		out = append(out, string(f.Severity)+" "+f.Field+": "+f.Message)
	}
	return out
}

func TestPodSecurity(t *testing.T) {
	yes := true
	privileged := deployment("web", corev1.Container{Name: "ok"}, corev1.Container{Name: "root", SecurityContext: &corev1.SecurityContext{Privileged: &yes}})
	privileged.Spec.HostPID = true
	const (
		pid        = "spec.template.spec.hostPID"
		field      = "spec.template.spec.containers[1].securityContext.privileged"
		namespaces = "host namespaces (hostPID=true)"
		container  = `privileged (container "root" must not set securityContext.privileged=true)`
	)
	enforce := func(level string) desired.Settings {
		s := desired.DefaultSettings()
		s.EnforcePodSecurity = level
		return s
	}
	label := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m["pod-security.kubernetes.io/"+pairs[i]] = pairs[i+1]
		}
		return m
	}
	refusedBaseline := []string{
		"error " + pid + `: violates PodSecurity "baseline:latest": ` + namespaces,
		"error " + field + `: violates PodSecurity "baseline:latest": ` + container,
	}
	warnedBaseline := []string{"warning " + pid + `: would violate PodSecurity "baseline:latest": ` + namespaces + ", " + container}
	for name, c := range map[string]struct {
		settings desired.Settings
		labels   map[string]string
		want     []string
	}{
		"nothing said":                     {settings: enforce("privileged"), want: warnedBaseline},
		"other labels":                     {settings: enforce("privileged"), labels: map[string]string{"team": "a"}, want: warnedBaseline},
		"a namespace that wants it so":     {settings: enforce("privileged"), labels: label("enforce", "privileged")},
		"the same against the cluster":     {settings: enforce("baseline"), labels: label("enforce", "privileged")},
		"enforced by the cluster":          {settings: enforce("baseline"), want: refusedBaseline},
		"enforced by the label":            {settings: enforce("privileged"), labels: label("enforce", "baseline"), want: refusedBaseline},
		"warned by the label":              {settings: enforce("privileged"), labels: label("warn", "baseline"), want: warnedBaseline},
		"audited":                          {settings: enforce("privileged"), labels: label("audit", "baseline"), want: []string{"note " + warnedBaseline[0][len("warning "):]}},
		"an older version":                 {settings: enforce("privileged"), labels: label("warn", "baseline", "warn-version", "v1.20"), want: []string{"warning " + pid + `: would violate PodSecurity "baseline:v1.20": ` + namespaces + ", " + container}},
		"warned beyond what is enforced":   {settings: enforce("privileged"), labels: label("enforce", "privileged", "warn", "baseline"), want: warnedBaseline},
		"a level that there is not":        {settings: enforce("privileged"), labels: label("warn", "strict"), want: []string{`error metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: "strict": must be one of privileged, baseline, restricted`}},
		"a version that there is not":      {settings: enforce("privileged"), labels: label("enforce", "privileged", "enforce-version", "1.20"), want: []string{`error metadata.labels[pod-security.kubernetes.io/enforce-version]: Invalid value: "1.20": must be "latest" or "v1.x"`}},
		"refused and warned, said once":    {settings: enforce("baseline"), labels: label("warn", "baseline"), want: refusedBaseline},
		"enforced by cluster, said to all": {settings: enforce("baseline"), labels: map[string]string{"team": "a"}, want: refusedBaseline},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, judged(t, c.settings, c.labels, privileged)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// Every reason that the library can give leads to the field that it is about.
func TestPodSecurityFields(t *testing.T) {
	yes, root, unmasked := true, int64(0), corev1.UnmaskedProcMount
	in := func(s *corev1.SecurityContext) corev1.PodSpec {
		return corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}, InitContainers: []corev1.Container{{Name: "i", SecurityContext: s}}}
	}
	of := func(s *corev1.PodSecurityContext) corev1.PodSpec {
		return corev1.PodSpec{SecurityContext: s, Containers: []corev1.Container{{Name: "c"}}}
	}
	const context = "spec.template.spec.securityContext."
	const init = "spec.template.spec.initContainers[0].securityContext."
	for field, spec := range map[string]corev1.PodSpec{
		"spec.template.spec.hostIPC":             {HostIPC: true},
		"spec.template.spec.volumes[1].hostPath": {Volumes: []corev1.Volume{{Name: "a"}, {Name: "b", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}}}},
		"spec.template.spec.containers[0].ports": {Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{HostPort: 80}}}}},
		"spec.template.spec.containers[0]": {Containers: []corev1.Container{{Name: "c", LivenessProbe: &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Host: "10.0.0.1"}},
		}}}},
		context + "sysctls":                    of(&corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.msgmax"}}}),
		context + "seccompProfile":             of(&corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: "Unconfined"}}),
		context + "seLinuxOptions":             of(&corev1.PodSecurityContext{SELinuxOptions: &corev1.SELinuxOptions{User: "u"}}),
		context + "appArmorProfile":            of(&corev1.PodSecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: "Unconfined"}}),
		context + "windowsOptions.hostProcess": of(&corev1.PodSecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{HostProcess: &yes}}),
		init + "privileged":                    in(&corev1.SecurityContext{Privileged: &yes}),
		init + "procMount":                     in(&corev1.SecurityContext{ProcMount: &unmasked}),
		init + "capabilities.add":              in(&corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}}),
		init + "seLinuxOptions":                in(&corev1.SecurityContext{SELinuxOptions: &corev1.SELinuxOptions{User: "u"}}),
	} {
		template := deployment("web")
		*template.Spec = spec
		r := rulesOf(t)
		if got := r.Judge(template); len(got) != 1 || got[0].Field != field {
			t.Errorf("want one finding at %s, got %v", field, messages(got))
		}
	}
	strict := deployment("web", corev1.Container{Name: "c"})
	strict.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &root}
	settings := desired.DefaultSettings()
	settings.EnforcePodSecurity = "restricted"
	r, _ := NewRules(nil, nil, settings)
	var fields []string
	for _, f := range r.Judge(strict) {
		fields = append(fields, f.Field)
	}
	const only = "spec.template.spec.containers[0].securityContext."
	if want := []string{only + "allowPrivilegeEscalation", only + "capabilities", only + "runAsNonRoot", context + "runAsUser", only + "seccompProfile"}; !slices.Equal(fields, want) {
		t.Errorf("restricted: %q, want %q", fields, want)
	}
}
