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

// bars says why a node is none for a pod, whatever else runs there; an empty
// key means that it is one.
func bars(r *Request, n *Node) refusal {
	switch {
	case r.spec.NodeName != "" && r.spec.NodeName != n.Name():
		return refusal{key: "name", text: "is not the node named in spec.nodeName", detail: " (" + r.spec.NodeName + ")"}
	case n.refuses != "":
		return refusal{key: "refuses " + n.refuses, text: n.refuses}
	case !r.chooses(n):
		return refusal{key: "selector", text: "does not match the pod's node selector or affinity"}
	}
	if taint, hit := shut(r, n); hit && taint.MatchTaint(&unschedulable) {
		return refusal{key: "unschedulable", text: "is unschedulable"}
	} else if hit {
		name := taint.ToString()
		return refusal{key: "taint " + name, text: "has taint " + name}
	}
	return refusal{}
}

// admits is bars without the words.
func admits(r *Request, n *Node) bool {
	if n.refuses != "" || r.spec.NodeName != "" && r.spec.NodeName != n.Name() || !r.chooses(n) {
		return false
	}
	_, hit := shut(r, n)
	return !hit
}

// named reports whether a pod names its node itself. In Kubernetes no scheduler
// sees it: neither terms nor spreads nor NoSchedule taints are asked, a cordon
// included. What its kubelet asks holds: requests, host ports, node selector and
// affinity, NoExecute taints. Others heed its terms all the same.
func (a *asks) named() bool { return a.spec.NodeName != "" }

// shut finds a taint that keeps a pod from a node.
func shut(r *Request, n *Node) (corev1.Taint, bool) {
	if r.named() {
		return untoleratedBy(r, n, corev1.TaintEffectNoExecute)
	}
	return untolerated(r, n)
}

// chooses applies the node selector and the required node affinity.
func (a *asks) chooses(n *Node) bool {
	if !a.choosy {
		return true
	}
	match, err := a.required.Match(n.kube)
	return err == nil && match
}

// crowds says what a node has too little of for a pod.
func crowds(r *Request, n *Node) refusal {
	for _, want := range r.ports {
		if slices.ContainsFunc(n.ports, want.conflicts) {
			q := quantity(int64(want.port), false, "")
			return refusal{key: "port " + q, text: "has no free host port " + q}
		}
	}
	why, _ := n.can.lacks(n.used, r.needs)
	return why
}

// roomy is crowds without the words.
func roomy(r *Request, n *Node) bool {
	for _, want := range r.ports {
		if slices.ContainsFunc(n.ports, want.conflicts) {
			return false
		}
	}
	return n.can.holds(n.used, r.needs)
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

// Eligible reports whether a node is one that a workload with a pod on each
// node is for: whether a pod runs there, and whether one that is there stays. A
// taint that evicts nobody keeps only new ones away: as to Kubernetes' DaemonSet
// controller, of pods that name their node, too.
func Eligible(r *Request, n *Node) (runs, stays bool) {
	if r.spec.NodeName != "" && r.spec.NodeName != n.Name() || !r.chooses(n) {
		return false, false
	}
	if _, hit := untolerated(r, n); hit {
		_, evicts := untoleratedBy(r, n, corev1.TaintEffectNoExecute)
		return false, !evicts
	}
	return true, true
}
