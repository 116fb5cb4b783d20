package planner

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/tallyman-dev/tallyman/nodes"
)

// resizeInPlace gives the pods of a group today's template where that differs
// from theirs by no more than a node can change while they run, and the node
// has room for it. The others are replaced by the rules of their kind.
func (st *step) resizeInPlace(g *group) {
	if g.current == nil {
		return
	}
	for _, p := range slices.Clone(g.pods) {
		if p.set == g.current || p.Node == "" || p.leaving != "" || p.Stop != nil || p.done() || p.released || !resizes(p.set, g.current) {
			continue
		}
		n := st.nodeFor(p.Node)
		if n.load.Without(p.request).Holds(g.current.request) {
			st.resize(p, g.current)
		}
	}
}

// resize decides that a pod goes on with another template.
func (st *step) resize(p *pod, to *set) {
	st.unload(p)
	p = st.change(p.UID, func(p *pod) {
		n := *p.Pod
		n.Template, n.TemplateHash = to.template, to.hash
		p.Pod, p.set = &n, to
		p.request = to.request
		if len(n.Labels) > 0 {
			p.request = to.request.WithOwn(n.Labels)
		}
	})
	n := st.nodeFor(p.Node)
	n.pods = n.pods.Set(p.UID, p.Pod)
	n.load = n.load.With(p.request)
	st.nodes = st.nodes.Set(n.Name, n)
	st.dirtyNodes[n.Name] = true
	st.recordPod(p)
	st.act("resize", p.Key(), p.Node, "its resources are changed in place")
}

// resizes reports whether pods of one set can become pods of another while
// they run.
func resizes(was, is *set) bool {
	return was.content == is.content && was.template.RuntimeHandler == is.template.RuntimeHandler && maps.Equal(was.template.Labels, is.template.Labels) &&
		maps.Equal(was.template.Annotations, is.template.Annotations) && resizable(&was.template.Spec, &is.template.Spec)
}

// resizable reports whether two specs differ in cpu and memory of containers
// alone, as Kubernetes allows a running pod to be resized: the class stays, and
// no limit or request is taken away.
func resizable(was, is *corev1.PodSpec) bool {
	if nodes.QoS(was) != nodes.QoS(is) || len(was.Containers) != len(is.Containers) || len(was.InitContainers) != len(is.InitContainers) {
		return false
	}
	old := was.DeepCopy()
	swap := func(old, fresh []corev1.Container, may func(*corev1.Container) bool) bool {
		for i := range old {
			if !may(&old[i]) {
				continue
			}
			for _, lists := range [][2]corev1.ResourceList{
				{old[i].Resources.Limits, fresh[i].Resources.Limits}, {old[i].Resources.Requests, fresh[i].Resources.Requests},
			} {
				if !sameBesides(lists[0], lists[1]) {
					return false
				}
			}
			old[i].Resources.Limits, old[i].Resources.Requests = fresh[i].Resources.Limits, fresh[i].Resources.Requests
		}
		return true
	}
	all := func(*corev1.Container) bool { return true }
	sidecar := func(c *corev1.Container) bool {
		return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	return swap(old.Containers, is.Containers, all) && swap(old.InitContainers, is.InitContainers, sidecar) &&
		equality.Semantic.DeepEqual(old, is)
}

// sameBesides compares all but the amounts of cpu and memory.
func sameBesides(old, fresh corev1.ResourceList) bool {
	for name, q := range old {
		r, found := fresh[name]
		if !found || name != corev1.ResourceCPU && name != corev1.ResourceMemory && q.Cmp(r) != 0 {
			return false
		}
	}
	for name := range fresh {
		if _, found := old[name]; !found && name != corev1.ResourceCPU && name != corev1.ResourceMemory {
			return false
		}
	}
	return true
}
