package manifest

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	podopts "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/batch"
	_ "k8s.io/kubernetes/pkg/apis/batch/install" // registers types, defaults and conversions
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
)

func validateStatefulSet(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(s *apps.StatefulSet) field.ErrorList {
		return appsvalidation.ValidateStatefulSet(s, podopts.GetValidationOptionsFromPodTemplate(&s.Spec.Template, nil))
	})
}

func validateDaemonSet(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(s *apps.DaemonSet) field.ErrorList {
		return appsvalidation.ValidateDaemonSet(s, podopts.GetValidationOptionsFromPodTemplate(&s.Spec.Template, nil))
	})
}

func validateControllerRevision(v runtime.Object) (field.ErrorList, error) {
	return through(v, appsvalidation.ValidateControllerRevisionCreate)
}

func validateReplicationController(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(c *core.ReplicationController) field.ErrorList {
		return corevalidation.ValidateReplicationController(c, podopts.GetValidationOptionsFromPodTemplate(c.Spec.Template, nil))
	})
}

func validateJob(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(j *batch.Job) field.ErrorList {
		if j.Spec.ManualSelector == nil || !*j.Spec.ManualSelector {
			selectAsServer(j)
		}
		return batchvalidation.ValidateJob(j, batchvalidation.JobValidationOptions{
			PodValidationOptions:  podopts.GetValidationOptionsFromPodTemplate(&j.Spec.Template, nil),
			RequirePrefixedLabels: true,
		})
	})
}

func validateCronJob(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(c *batch.CronJob) field.ErrorList {
		return batchvalidation.ValidateCronJobCreate(c, podopts.GetValidationOptionsFromPodTemplate(&c.Spec.JobTemplate.Spec.Template, nil))
	})
}
