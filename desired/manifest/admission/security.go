package admission

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/tallyman-dev/tallyman/desired"
)

// security judges pods by Kubernetes' pod security standards. No namespace and
// no pod is exempt.
type security struct {
	evaluator policy.Evaluator
	// policies of the namespaces that say something; fallback is that of the rest.
	policies map[string]api.Policy
	fallback api.Policy
}

// levelLabels are those with which a namespace chooses for itself.
var levelLabels = [...]string{api.EnforceLevelLabel, api.WarnLevelLabel, api.AuditLevelLabel}

func newSecurity(objects []*desired.Object, settings desired.Settings) (security, []Finding) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil { // the checks of the library contradict one another
		panic("pod security: " + err.Error())
	}
	s := security{evaluator: evaluator, policies: map[string]api.Policy{}, fallback: fallbackPolicy(settings.EnforcePodSecurity)}
	var findings []Finding
	for _, o := range objects {
		n, ok := o.Value.(*corev1.Namespace)
		if !ok {
			continue
		}
		p, errs := api.PolicyToEvaluate(n.Labels, s.defaults(n))
		s.policies[n.Name] = p
		for _, e := range errs {
			findings = append(findings, Finding{Object: o.Key, Severity: desired.Error, Code: "invalid", Field: "metadata.labels" + strings.TrimPrefix(e.Field, "metadata.labels"), Message: e.ErrorBody()})
		}
	}
	return s, findings
}

// fallbackPolicy is that of namespaces that say nothing: where nothing is
// enforced, baseline is worth a warning.
func fallbackPolicy(level string) api.Policy {
	enforced, err := api.ParseLevel(level)
	if err != nil {
		enforced = api.LevelPrivileged // the setting's own problem is reported
	}
	at := func(l api.Level) api.LevelVersion { return api.LevelVersion{Level: l, Version: api.LatestVersion()} }
	p := api.Policy{Enforce: at(enforced), Warn: at(enforced), Audit: at(api.LevelPrivileged)}
	if enforced == api.LevelPrivileged {
		p.Warn = at(api.LevelBaseline)
	}
	return p
}

// defaults are what the labels of a namespace complete. One that names a level
// is warned only as it asks.
func (s security) defaults(n *corev1.Namespace) api.Policy {
	p := s.fallback
	for _, l := range levelLabels {
		if _, ok := n.Labels[l]; ok {
			p.Warn.Level = api.LevelPrivileged
		}
	}
	return p
}

func (s security) policy(namespace string) api.Policy {
	if p, ok := s.policies[namespace]; ok {
		return p
	}
	return s.fallback
}

// checkSecurity refuses pods, and templates whose pods would never come up, for
// what their namespace enforces; one problem a reason. What it warns of or
// audits is one warning, or note, with all reasons.
func (c *completion) checkSecurity() {
	p := c.rules.security.policy(c.Object.Namespace)
	refused := c.violations(p.Enforce)
	for _, v := range refused {
		c.report(desired.Error, "pod-security", v.field, fmt.Sprintf("violates PodSecurity %q: %s", p.Enforce.String(), v.text), c.securityHint(p))
	}
	if len(refused) > 0 {
		return
	}
	warned := c.violations(p.Warn)
	c.mention(desired.Warning, p.Warn, warned, c.securityHint(p))
	if len(warned) == 0 || p.Audit != p.Warn {
		c.mention(desired.Note, p.Audit, c.violations(p.Audit), "")
	}
}

func (c *completion) mention(severity desired.Severity, level api.LevelVersion, found []violation, hint string) {
	if len(found) == 0 {
		return
	}
	texts := make([]string, len(found))
	for i, v := range found {
		texts[i] = v.text
	}
	c.report(severity, "pod-security", found[0].field, fmt.Sprintf("would violate PodSecurity %q: %s", level.String(), strings.Join(texts, ", ")), hint)
}

func (c *completion) securityHint(p api.Policy) string {
	if p != c.rules.security.fallback {
		return "namespace " + c.Object.Namespace + " says so in its labels"
	}
	return fmt.Sprintf("if it must be so, label namespace %s with %s: privileged", c.Object.Namespace, api.EnforceLevelLabel)
}

// violation is one reason, in Kubernetes' words, and the field it lies in.
type violation struct{ field, text string }

func (c *completion) violations(level api.LevelVersion) []violation {
	var out []violation
	for _, r := range c.rules.security.evaluator.EvaluatePod(level, c.Meta, c.Spec) {
		if r.Allowed {
			continue
		}
		text := r.ForbiddenReason
		if r.ForbiddenDetail != "" {
			text += " (" + r.ForbiddenDetail + ")"
		}
		out = append(out, violation{c.culprit(level, r.ForbiddenReason), text})
	}
	return out
}

// reasonFields are the fields that the checks look at, by the reasons they
// give: in the pod's specification and in a container; empty for none.
var reasonFields = map[string]struct{ pod, container string }{
	"host namespaces":                   {pod: "hostNetwork"},
	"hostPath volumes":                  {pod: "volumes"},
	"restricted volume types":           {pod: "volumes"},
	"forbidden sysctls":                 {pod: "securityContext.sysctls"},
	"hostPort":                          {container: "ports"},
	"privileged":                        {container: "securityContext.privileged"},
	"procMount":                         {container: "securityContext.procMount"},
	"probe or lifecycle host":           {},
	"non-default capabilities":          {container: "securityContext.capabilities.add"},
	"unrestricted capabilities":         {container: "securityContext.capabilities"},
	"allowPrivilegeEscalation != false": {container: "securityContext.allowPrivilegeEscalation"},
	"runAsNonRoot != true":              {pod: "securityContext.runAsNonRoot", container: "securityContext.runAsNonRoot"},
	"runAsUser=0":                       {pod: "securityContext.runAsUser", container: "securityContext.runAsUser"},
	"seLinuxOptions":                    {pod: "securityContext.seLinuxOptions", container: "securityContext.seLinuxOptions"},
	"seccompProfile":                    {pod: "securityContext.seccompProfile", container: "securityContext.seccompProfile"},
	"forbidden AppArmor profile":        {pod: "securityContext.appArmorProfile", container: "securityContext.appArmorProfile"},
	"hostProcess":                       {pod: "securityContext.windowsOptions.hostProcess", container: "securityContext.windowsOptions.hostProcess"},
}

// culprit finds the field behind a reason: the pod's own, when it is there
// without any container, else that of the first container that has it alone.
func (c *completion) culprit(level api.LevelVersion, reason string) string {
	reason = singular(reason)
	fields := reasonFields[reason]
	bare := *c.Spec
	bare.Containers, bare.InitContainers, bare.EphemeralContainers = nil, nil, nil
	if c.gives(level, &bare, reason) {
		return c.podField(fields.pod)
	}
	for _, k := range containers(c.Spec) {
		alone := bare
		alone.Containers = []corev1.Container{*k.Container}
		if c.gives(level, &alone, reason) {
			return strings.TrimSuffix("."+k.path+"."+fields.container, ".")
		}
	}
	return ""
}

func (c *completion) gives(level api.LevelVersion, spec *corev1.PodSpec, reason string) bool {
	for _, r := range c.rules.security.evaluator.EvaluatePod(level, c.Meta, spec) {
		if !r.Allowed && singular(r.ForbiddenReason) == reason {
			return true
		}
	}
	return false
}

// singular undoes the one plural that depends on how much is wrong.
func singular(reason string) string {
	if reason == "forbidden AppArmor profiles" {
		return "forbidden AppArmor profile"
	}
	return reason
}

// podField points at one namespace or volume where there is one to point at.
func (c *completion) podField(field string) string {
	switch field {
	case "":
		return ""
	case "hostNetwork":
		for _, f := range []struct {
			name string
			set  bool
		}{{"hostNetwork", c.Spec.HostNetwork}, {"hostPID", c.Spec.HostPID}, {"hostIPC", c.Spec.HostIPC}} {
			if f.set {
				return "." + f.name
			}
		}
	case "volumes":
		for i := range c.Spec.Volumes {
			if c.Spec.Volumes[i].HostPath != nil {
				return fmt.Sprintf(".volumes[%d].hostPath", i)
			}
		}
	}
	return "." + field
}
