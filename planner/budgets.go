package planner

import (
	"iter"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/nodes"
)

// budget is a PodDisruptionBudget as preemption asks it.
type budget struct {
	namespace string
	selector  labels.Selector
	// labels are those that all of its pods have.
	labels map[string]string
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
		b := budget{namespace: o.Key.Namespace, selector: selector, labels: v.Spec.Selector.MatchLabels}
		b.allowed = st.allowed(&b, &v.Spec)
		list = append(list, b)
	}
	return list
}

// allowed is how many pods serve beyond those that must.
func (st *step) allowed(b *budget, spec *policyv1.PodDisruptionBudgetSpec) int {
	expected, serving := st.measure(b, nil)
	return max(0, serving-mustServe(spec, expected))
}

// measure counts the pods of a budget that are expected, and those that serve;
// some may be counted as gone. As in Kubernetes' disruption controller, a
// workload with a scale is expected to have that, and what is on its way out is
// expected still: else each eviction would make room for the next.
func (st *step) measure(b *budget, gone map[nodes.UID]bool) (expected, serving int) {
	for g := range st.groupsOf(b) {
		covered, some := 0, false
		for _, p := range g.pods {
			if p.done() || p.goes() && g.object == nil || !b.covers(p) {
				continue
			}
			some = true
			covered += boolInt(p.lost == "") // another has taken its place
			if n, _ := st.nodes.Get(p.Node); p.serving() && !n.silent() && !gone[p.UID] {
				serving++
			}
		}
		if size, ok := scalable(g.object); ok && some {
			covered = int(size)
		}
		expected += covered
	}
	return expected, serving
}

// groupsOf are the groups that may have pods of a budget.
func (st *step) groupsOf(b *budget) iter.Seq[*group] {
	return func(yield func(*group) bool) {
		if len(b.labels) > 0 {
			for k := range st.groupLabels.all(st.groupLabels.rarest(b.namespace, b.labels)) {
				if g, ok := st.groups.Get(k); ok && !yield(g) {
					return
				}
			}
			return
		}
		for k, g := range entries(st.groups) {
			if k.Namespace == b.namespace && !yield(g) {
				return
			}
		}
	}
}

// protection is a PodDisruptionBudget as evictions ask it.
type protection struct {
	budget
	name string
	spec *policyv1.PodDisruptionBudgetSpec
}

// protections are all that Git has. One with an empty selector covers all pods
// of its namespace, one without any none.
func (st *step) protections() (list []protection) {
	for _, o := range st.snapshot.Kind(kindBudget) {
		v, ok := o.Value.(*policyv1.PodDisruptionBudget)
		if !ok || v.Spec.Selector == nil {
			continue
		}
		if selector, err := metav1.LabelSelectorAsSelector(v.Spec.Selector); err == nil {
			b := budget{namespace: o.Key.Namespace, selector: selector, labels: v.Spec.Selector.MatchLabels}
			list = append(list, protection{budget: b, name: o.Key.Name, spec: &v.Spec})
		}
	}
	return list
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
