package workload

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// match is what a podFailurePolicy says of a failed pod.
type match struct {
	// action is empty when no rule matches: the failure counts.
	action batchv1.PodFailurePolicyAction
	// message is set with FailJob.
	message string
}

// matchFailure finds the first rule that matches a pod.
func matchFailure(policy *batchv1.PodFailurePolicy, p *JobPod) match {
	if policy == nil {
		return match{}
	}
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		if why := ruleMatches(rule, p); why != "" {
			return match{rule.Action, fmt.Sprintf("%s matching %s rule at index %d", why, rule.Action, i)}
		}
	}
	return match{}
}

// ruleMatches says what of the pod matches, empty when nothing does.
func ruleMatches(rule *batchv1.PodFailurePolicyRule, p *JobPod) string {
	if rule.OnExitCodes != nil {
		if c := exitMatches(rule.OnExitCodes, p.Status); c != nil {
			return fmt.Sprintf("Container %s for pod %s failed with exit code %d", c.Name, p.Name, c.ExitCode)
		}
		return ""
	}
	for _, have := range conditions(p) {
		for _, want := range rule.OnPodConditions {
			if have.Type == want.Type && have.Status == want.Status {
				return fmt.Sprintf("Pod %s has condition %s", p.Name, have.Type)
			}
		}
	}
	return ""
}

// exitMatches finds a container that ended as asked for: the main ones first,
// then the init containers.
func exitMatches(want *batchv1.PodFailurePolicyOnExitCodesRequirement, s *nodes.PodStatus) *nodes.ContainerStatus {
	if s == nil {
		return nil
	}
	for _, list := range [][]nodes.ContainerStatus{s.Containers, s.Init} {
		for i := range list {
			c := &list[i]
			if c.State != nodes.Terminated || c.ExitCode == 0 || want.ContainerName != nil && *want.ContainerName != c.Name {
				continue
			}
			in := slices.Contains(want.Values, c.ExitCode)
			if in == (want.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return c
			}
		}
	}
	return nil
}

// disruptions are the reasons with which an agent ends pods for the node's
// sake, not for anything that they did.
var disruptions = []string{"Evicted"}

// conditions are the pod's as Kubernetes would show them.
func conditions(p *JobPod) []corev1.PodCondition {
	state := func(t corev1.PodConditionType, is bool) corev1.PodCondition {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse}
		if is {
			c.Status = corev1.ConditionTrue
		}
		return c
	}
	s := p.Status
	if s == nil {
		s = &nodes.PodStatus{}
	}
	out := []corev1.PodCondition{
		state(corev1.PodScheduled, p.Node != ""),
		state(corev1.PodInitialized, s.Initialized),
		state(corev1.ContainersReady, s.ContainersReady),
		state(corev1.PodReady, s.Ready),
	}
	// A pod that the Job itself takes away is counted before it leaves.
	if p.Leaving || slices.Contains(disruptions, s.Reason) {
		out = append(out, state(corev1.DisruptionTarget, true))
	}
	return out
}

// successPolicy ends an Indexed Job as soon as the indexes that matter have
// succeeded.
func (s *jobStep) successPolicy() *Finish {
	if s.Spec.SuccessPolicy == nil || !s.indexed() || s.completed.Len() == 0 {
		return nil
	}
	for i := range s.Spec.SuccessPolicy.Rules {
		if s.succeeded(&s.Spec.SuccessPolicy.Rules[i]) {
			return &Finish{Complete: true, Reason: batchv1.JobReasonSuccessPolicy, Message: fmt.Sprintf("Matched rules at index %d", i)}
		}
	}
	return nil
}

func (s *jobStep) succeeded(rule *batchv1.SuccessPolicyRule) bool {
	if rule.SucceededIndexes == nil {
		return rule.SucceededCount != nil && s.completed.Len() >= int(*rule.SucceededCount)
	}
	wanted := ParseIndexes(*rule.SucceededIndexes, s.completions())
	least := wanted.Len()
	if rule.SucceededCount != nil {
		least = int(*rule.SucceededCount)
	}
	return wanted.Len() > 0 && wanted.Common(s.completed) >= least
}
