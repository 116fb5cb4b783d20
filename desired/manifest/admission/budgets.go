package admission

import (
	"fmt"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tallyman-dev/tallyman/desired"
)

// CheckBudgets notes PodDisruptionBudgets that select no pods, and pods that
// several select: Kubernetes evicts none of those.
func CheckBudgets(objects []*desired.Object, templates []Template) []Finding {
	byNamespace := map[string][]Template{}
	for _, t := range templates {
		byNamespace[t.Object.Namespace] = append(byNamespace[t.Object.Namespace], t)
	}
	var findings []Finding
	first := map[desired.Key]*desired.Object{}
	for _, o := range objects {
		b, ok := o.Value.(*policyv1.PodDisruptionBudget)
		if !ok {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			continue // its own problem is reported
		}
		note := func(code, message, hint string) {
			findings = append(findings, Finding{Object: o.Key, Severity: desired.Note, Code: code, Field: "spec.selector", Message: message, Hint: hint})
		}
		selects := false
		for _, t := range byNamespace[o.Key.Namespace] {
			if !selector.Matches(labels.Set(t.Meta.Labels)) {
				continue
			}
			selects = true
			if other := first[t.Object]; other != nil {
				note("overlap", fmt.Sprintf("the pods of %s have more than one PodDisruptionBudget, and Kubernetes evicts no such pod", t.Object),
					"the other is "+other.Key.Name+" in "+other.From.String())
				continue
			}
			first[t.Object] = o
		}
		if !selects {
			note("no-pods", "the selector matches no pod of this revision", "")
		}
	}
	return findings
}
