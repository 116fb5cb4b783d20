package manifest

import corev1 "k8s.io/api/core/v1"

func nodeFields() []typeRule {
	return []typeRule{
		on[corev1.Node]("metadata spec", noEffect("status", "its agent says what a node is")),
		on[corev1.NodeSpec](
			"unschedulable taints",
			noEffect("podCIDR podCIDRs", "every node is given a range of spec.network.podCIDR of the Cluster object"),
			noEffect("providerID externalID", "no cloud provider is asked about nodes"),
			noEffect("configSource", "Kubernetes has removed it"),
		),
		on[corev1.Taint]("key value effect",
			noEffect("timeAdded", "it counts from when the taint comes into force")),
	}
}
