package manifest

import (
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
)

const noAutomount = "no token is mounted unasked, for there is no API that it would open; a projected serviceAccountToken volume asks"

func scalingFields() []typeRule {
	return []typeRule{
		on[autoscalingv2.HorizontalPodAutoscaler]("metadata spec", statusField()),
		on[autoscalingv2.HorizontalPodAutoscalerSpec]("scaleTargetRef minReplicas maxReplicas metrics behavior"),
		on[autoscalingv2.CrossVersionObjectReference]("kind name apiVersion"),
		on[autoscalingv2.MetricSpec]("type object pods resource containerResource external"),
		on[autoscalingv2.HorizontalPodAutoscalerBehavior]("scaleUp scaleDown"),
		on[autoscalingv2.HPAScalingRules]("stabilizationWindowSeconds selectPolicy policies tolerance"),
		on[autoscalingv2.HPAScalingPolicy]("type value periodSeconds"),
		on[autoscalingv2.ObjectMetricSource]("describedObject target metric"),
		on[autoscalingv2.PodsMetricSource]("metric target"),
		on[autoscalingv2.ResourceMetricSource]("name target"),
		on[autoscalingv2.ContainerResourceMetricSource]("name target container"),
		on[autoscalingv2.ExternalMetricSource]("metric target"),
		on[autoscalingv2.MetricIdentifier]("name selector"),
		on[autoscalingv2.MetricTarget]("type value averageValue averageUtilization"),
	}
}

func limitFields() []typeRule {
	return []typeRule{
		on[corev1.ResourceQuota]("metadata spec", statusField()),
		on[corev1.ResourceQuotaSpec]("hard scopes scopeSelector"),
		on[corev1.ScopeSelector]("matchExpressions"),
		on[corev1.ScopedResourceSelectorRequirement]("scopeName operator values"),
		on[corev1.LimitRange]("metadata spec"),
		on[corev1.LimitRangeSpec]("limits"),
		on[corev1.LimitRangeItem]("type max min default defaultRequest maxLimitRequestRatio"),
		on[schedulingv1.PriorityClass]("metadata value globalDefault description preemptionPolicy"),
		on[policyv1.PodDisruptionBudget]("metadata spec", statusField()),
		on[policyv1.PodDisruptionBudgetSpec]("minAvailable selector maxUnavailable unhealthyPodEvictionPolicy"),
		on[nodev1.RuntimeClass]("metadata handler overhead scheduling"),
		on[nodev1.Overhead]("podFixed"),
		on[nodev1.Scheduling]("nodeSelector tolerations"),
		on[corev1.ServiceAccount]("metadata imagePullSecrets",
			noEffect("secrets", "pods mount the secrets that they name, whatever their account lists"),
			noEffect("automountServiceAccountToken", noAutomount).unless(`false`)),
	}
}
