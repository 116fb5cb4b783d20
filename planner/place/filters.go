package place

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	scheduling "k8s.io/component-helpers/scheduling/corev1"
)

// Port is a port of the node that a pod claims.
type Port struct {
	protocol corev1.Protocol
	ip       string
	port     int32
}

// conflicts reports whether two pods can't have these ports on one node.
func (p Port) conflicts(o Port) bool {
	if p.port != o.port || p.protocol != o.protocol {
		return false
	}
	return p.ip == o.ip || p.ip == "0.0.0.0" || o.ip == "0.0.0.0"
}

func hostPorts(spec *corev1.PodSpec) []Port {
	var ports []Port
	add := func(containers []corev1.Container, keep func(*corev1.Container) bool) {
		for i := range containers {
			for _, p := range containers[i].Ports {
				if p.HostPort == 0 || !keep(&containers[i]) {
					continue
				}
				port := Port{protocol: p.Protocol, ip: p.HostIP, port: p.HostPort}
				if port.protocol == "" {
					port.protocol = corev1.ProtocolTCP
				}
				if port.ip == "" || port.ip == "::" {
					port.ip = "0.0.0.0"
				}
				if !slices.Contains(ports, port) {
					ports = append(ports, port)
				}
			}
		}
	}
	add(spec.Containers, func(*corev1.Container) bool { return true })
	add(spec.InitContainers, func(c *corev1.Container) bool {
		return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
	return ports
}

// fits says why a node can't take the pod; an empty key means that it can.
func fits(r *Request, n *Node, company *company) refusal {
	switch {
	case r.spec.NodeName != "" && r.spec.NodeName != n.Name():
		return refusal{key: "name", text: "is not the node named in spec.nodeName", detail: " (" + r.spec.NodeName + ")"}
	case n.refuses != "":
		return refusal{key: "refuses " + n.refuses, text: n.refuses}
	}
	if match, err := r.required.Match(n.kube); err != nil || !match {
		return refusal{key: "selector", text: "does not match the pod's node selector or affinity"}
	}
	if taint, hit := untolerated(r, n); hit && taint.MatchTaint(&unschedulable) {
		return refusal{key: "unschedulable", text: "is unschedulable"}
	} else if hit {
		name := taint.ToString()
		return refusal{key: "taint " + name, text: "has taint " + name}
	}
	for _, want := range r.ports {
		if slices.ContainsFunc(n.ports, want.conflicts) {
			q := quantity(int64(want.port), false, "")
			return refusal{key: "port " + q, text: "has no free host port " + q}
		}
	}
	if why, lacks := n.can.lacks(n.used, r.needs); lacks {
		return why
	}
	if company != nil {
		return company.refuses(n)
	}
	return refusal{}
}

func untolerated(r *Request, n *Node) (corev1.Taint, bool) {
	return untoleratedBy(r, n, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
}

// untoleratedBy finds a taint with one of some effects that a pod does not
// tolerate.
func untoleratedBy(r *Request, n *Node, effects ...corev1.TaintEffect) (corev1.Taint, bool) {
	if len(n.kube.Spec.Taints) == 0 {
		return corev1.Taint{}, false
	}
	return scheduling.FindMatchingUntoleratedTaint(klog.Logger{}, n.kube.Spec.Taints, r.spec.Tolerations, func(t *corev1.Taint) bool {
		if t.Key == corev1.TaintNodeMemoryPressure && !r.bestEffort {
			return false // Kubernetes gives such pods a toleration
		}
		return slices.Contains(effects, t.Effect)
	}, false)
}

// score prefers, in this order: what the manifest prefers, by weight; then
// nodes that are already in use, so that others can be emptied.
func score(r *Request, n *Node, company *company) int64 {
	total := int64(0)
	if r.preferred != nil {
		total += r.preferred.Score(n.kube) * 1000
	}
	if company != nil {
		total += company.score(n) * 1000
	}
	for _, t := range n.kube.Spec.Taints {
		if t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(r, t) {
			total -= 1000
		}
	}
	return total + share(n.used.cpu+r.needs.cpu, n.can.cpu) + share(n.used.memory+r.needs.memory, n.can.memory)
}

func tolerates(r *Request, t corev1.Taint) bool {
	_, hit := scheduling.FindMatchingUntoleratedTaint(klog.Logger{}, []corev1.Taint{t}, r.spec.Tolerations, nil, false)
	return !hit
}

// share is used of can in hundredths.
func share(used, can int64) int64 {
	if can <= 0 {
		return 0
	}
	return int64(float64(used) / float64(can) * 100)
}
