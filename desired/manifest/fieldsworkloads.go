package manifest

import (
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

func setFields() []typeRule {
	return []typeRule{
		on[appsv1.StatefulSet]("metadata spec", statusField()),
		on[appsv1.StatefulSetSpec]("replicas selector template serviceName podManagementPolicy updateStrategy revisionHistoryLimit " +
			"minReadySeconds volumeClaimTemplates persistentVolumeClaimRetentionPolicy ordinals"),
		on[appsv1.StatefulSetUpdateStrategy]("type rollingUpdate"),
		on[appsv1.RollingUpdateStatefulSetStrategy]("partition maxUnavailable"),
		on[appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy]("whenDeleted whenScaled"),
		on[appsv1.StatefulSetOrdinals]("start"),
		on[appsv1.DaemonSet]("metadata spec", statusField()),
		on[appsv1.DaemonSetSpec]("selector template updateStrategy minReadySeconds revisionHistoryLimit"),
		on[appsv1.DaemonSetUpdateStrategy]("type rollingUpdate"),
		on[appsv1.RollingUpdateDaemonSet]("maxUnavailable maxSurge"),
		on[corev1.ReplicationController]("metadata spec", statusField()),
		on[corev1.ReplicationControllerSpec]("replicas minReadySeconds selector template"),
	}
}

func jobFields() []typeRule {
	return []typeRule{
		on[batchv1.Job]("metadata spec", statusField()),
		on[batchv1.JobSpec](
			"parallelism completions activeDeadlineSeconds podFailurePolicy successPolicy backoffLimit backoffLimitPerIndex maxFailedIndexes selector manualSelector "+
				"template ttlSecondsAfterFinished completionMode suspend podReplacementPolicy",
			unsupported("managedBy", "there is no other controller that would run it").unless(`"kubernetes.io/job-controller"`),
		),
		on[batchv1.PodFailurePolicy]("rules"),
		on[batchv1.PodFailurePolicyRule]("action onExitCodes onPodConditions"),
		on[batchv1.PodFailurePolicyOnExitCodesRequirement]("containerName operator values"),
		on[batchv1.PodFailurePolicyOnPodConditionsPattern]("type status"),
		on[batchv1.SuccessPolicy]("rules"),
		on[batchv1.SuccessPolicyRule]("succeededIndexes succeededCount"),
		on[batchv1.CronJob]("metadata spec", statusField()),
		on[batchv1.CronJobSpec]("schedule timeZone startingDeadlineSeconds concurrencyPolicy suspend jobTemplate successfulJobsHistoryLimit failedJobsHistoryLimit"),
		on[batchv1.JobTemplateSpec]("metadata spec"),
	}
}
