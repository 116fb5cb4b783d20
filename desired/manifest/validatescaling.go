package manifest

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install" // registers types, defaults and conversions
	autoscalingvalidation "k8s.io/kubernetes/pkg/apis/autoscaling/validation"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
)

// validateHorizontalPodAutoscaler applies the rules for new objects: at least
// one replica, and a group for every target but a ReplicationController.
func validateHorizontalPodAutoscaler(v runtime.Object) (field.ErrorList, error) {
	type reference = autoscalingvalidation.CrossVersionObjectReferenceValidationOptions
	return through(v, func(a *autoscaling.HorizontalPodAutoscaler) field.ErrorList {
		return autoscalingvalidation.ValidateHorizontalPodAutoscaler(a, autoscalingvalidation.HorizontalPodAutoscalerSpecValidationOptions{
			MinReplicasLowerBound:           1,
			ScaleTargetRefValidationOptions: reference{AllowEmptyAPIGroup: a.Spec.ScaleTargetRef.Kind == "ReplicationController"},
			ObjectMetricsValidationOptions:  reference{AllowEmptyAPIGroup: true},
		})
	})
}

func validateResourceQuota(v runtime.Object) (field.ErrorList, error) {
	return through(v, corevalidation.ValidateResourceQuota)
}

func validateLimitRange(v runtime.Object) (field.ErrorList, error) {
	return through(v, corevalidation.ValidateLimitRange)
}
