package planner

import (
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// budget is a PodDisruptionBudget as preemption asks it.
type budget struct {
	namespace string
	selector  labels.Selector
	// allowed is how many of its pods may go now.
	allowed int
}

func (b *budget) covers(p *pod) bool {
	return p.Namespace == b.namespace && b.selector.Matches(labels.Set(p.AllLabels()))
}

// budgets are those in force. One that selects everything by an empty selector
// is left aside, as Kubernetes' preemption does.
func (st *step) budgets() (list []budget) {
	for _, o := range st.snapshot.Kind(kindBudget) {
		v, ok := o.Value.(*policyv1.PodDisruptionBudget)
		if !ok {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(v.Spec.Selector)
		if err != nil || selector.Empty() {
			continue
		}
		b := budget{namespace: o.Key.Namespace, selector: selector}
		b.allowed = st.allowed(&b, &v.Spec)
		list = append(list, b)
	}
	return list
}

// allowed is how many pods serve beyond those that must.
func (st *step) allowed(b *budget, spec *policyv1.PodDisruptionBudgetSpec) int {
	expected, serving := 0, 0
	for _, g := range entries(st.groups) {
		covered := 0
		for _, p := range g.pods {
			if p.leaving != "" || p.Stop != nil || p.done() || !b.covers(p) {
				continue
			}
			covered++
			if p.serving() {
				serving++
			}
		}
		if size, ok := scalable(g.object); ok && covered > 0 {
			covered = int(size)
		}
		expected += covered
	}
	return max(0, serving-mustServe(spec, expected))
}

// mustServe rounds as Kubernetes does. Validation has refused what is no number.
func mustServe(spec *policyv1.PodDisruptionBudgetSpec, expected int) int {
	if spec.MaxUnavailable != nil {
		most, err := intstr.GetScaledValueFromIntOrPercent(spec.MaxUnavailable, expected, true)
		if err != nil {
			return expected
		}
		return max(0, expected-most)
	}
	if spec.MinAvailable == nil {
		return 0
	}
	least, err := intstr.GetScaledValueFromIntOrPercent(spec.MinAvailable, expected, true)
	if err != nil {
		return expected
	}
	return least
}

// overBudget parts pods into those whose going would break a budget, if those
// before them go, and the others.
func overBudget(list []*pod, budgets []budget) (over, within []*pod) {
	left := make([]int, len(budgets))
	for i := range budgets {
		left[i] = budgets[i].allowed
	}
	for _, p := range list {
		breaks := false
		for i := range budgets {
			if budgets[i].covers(p) {
				left[i]--
				breaks = breaks || left[i] < 0
			}
		}
		if breaks {
			over = append(over, p)
		} else {
			within = append(within, p)
		}
	}
	return over, within
}
