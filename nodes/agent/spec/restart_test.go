package spec

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

func TestRestartsFollowRuleThenContainerThenPod(t *testing.T) {
	rule := func(operator corev1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) corev1.ContainerRestartRule {
		return corev1.ContainerRestartRule{
			Action:    corev1.ContainerRestartRuleActionRestart,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: operator, Values: codes},
		}
	}
	never, onFailure, always := new(corev1.ContainerRestartPolicyNever), new(corev1.ContainerRestartPolicyOnFailure), new(corev1.ContainerRestartPolicyAlways)
	for name, c := range map[string]struct {
		pod   corev1.RestartPolicy
		own   *corev1.ContainerRestartPolicy
		rules []corev1.ContainerRestartRule
		code  int32
		want  bool
	}{
		"the pod's: always":      {corev1.RestartPolicyAlways, nil, nil, 0, true},
		"the pod's: never":       {corev1.RestartPolicyNever, nil, nil, 1, false},
		"the pod's: on failure":  {corev1.RestartPolicyOnFailure, nil, nil, 0, false},
		"own never":              {corev1.RestartPolicyAlways, never, nil, 1, false},
		"own always":             {corev1.RestartPolicyNever, always, nil, 0, true},
		"own on failure, failed": {corev1.RestartPolicyNever, onFailure, nil, 1, true},
		"rule fits":              {corev1.RestartPolicyNever, never, []corev1.ContainerRestartRule{rule(corev1.ContainerRestartRuleOnExitCodesOpIn, 42)}, 42, true},
		"rule does not fit":      {corev1.RestartPolicyNever, never, []corev1.ContainerRestartRule{rule(corev1.ContainerRestartRuleOnExitCodesOpIn, 42)}, 1, false},
		"rule about all others":  {corev1.RestartPolicyNever, never, []corev1.ContainerRestartRule{rule(corev1.ContainerRestartRuleOnExitCodesOpNotIn, 42)}, 1, true},
		"second rule fits":       {corev1.RestartPolicyNever, never, []corev1.ContainerRestartRule{rule(corev1.ContainerRestartRuleOnExitCodesOpIn, 7), rule(corev1.ContainerRestartRuleOnExitCodesOpIn, 42)}, 42, true},
	} {
		container := &corev1.Container{RestartPolicy: c.own, RestartPolicyRules: c.rules}
		if got := Restarts(&corev1.PodSpec{RestartPolicy: c.pod}, container, c.code); got != c.want {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

// TestFirstRuleThatFitsRestartsAll: later rules are not asked.
func TestFirstRuleThatFitsRestartsAll(t *testing.T) {
	rule := func(action corev1.ContainerRestartRuleAction, codes ...int32) corev1.ContainerRestartRule {
		return corev1.ContainerRestartRule{
			Action:    action,
			ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: codes},
		}
	}
	const one, all = corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers
	c := &corev1.Container{RestartPolicyRules: []corev1.ContainerRestartRule{rule(one, 1, 2), rule(all, 2, 3)}}
	for code, want := range map[int32]bool{0: false, 1: false, 2: false, 3: true} {
		if got := RestartsAll(c, code); got != want {
			t.Errorf("exit code %d: %t, want %t", code, got, want)
		}
	}
}

func TestEnvFile(t *testing.T) {
	const text = "# comment\n\n  A='one'\nB='two\nlines' # after\nC= 'spaced'\r\nD='last'"
	for name, want := range map[string]string{"A": "one", "B": "two\nlines", "C": "", "D": "last", "E": ""} {
		if got, err := envFile(text, name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"A":         "missing '='",
		"='x'":      "empty variable name",
		"A ='x'":    "space before '='",
		"A=x":       "single quotes",
		"A='x\ny":   "line 1: the single quote is not closed",
		"A='x' y":   "text after the closing quote",
		"A='x'\nBC": "line 2: missing '='",
	} {
		if _, err := envFile(text, "Z"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestKernelHostname(t *testing.T) {
	for name, c := range map[string]struct {
		spec corev1.PodSpec
		want string
		err  string
	}{
		"the pod's name":      {corev1.PodSpec{}, "web-1", ""},
		"short":               {corev1.PodSpec{Hostname: "a", Subdomain: "b"}, "a", ""},
		"full":                {corev1.PodSpec{Hostname: "a", Subdomain: "b", SetHostnameAsFQDN: new(true)}, "a.b.shop.svc.cluster.local", ""},
		"no subdomain":        {corev1.PodSpec{Hostname: "a", SetHostnameAsFQDN: new(true)}, "a", ""},
		"overridden":          {corev1.PodSpec{Hostname: "a", Subdomain: "b", HostnameOverride: new("c.example.org")}, "c.example.org", ""},
		"longer than allowed": {corev1.PodSpec{Hostname: strings.Repeat("a", 50), Subdomain: "b", SetHostnameAsFQDN: new(true)}, "", "75 characters, the kernel takes 64"},
	} {
		p := &nodes.Pod{Namespace: "shop", Name: "web-1", Template: &nodes.Template{Spec: c.spec}}
		got, err := KernelHostname(p, "cluster.local")
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
