package manifest

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install" // registers types, defaults and conversions
	coordinationvalidation "k8s.io/kubernetes/pkg/apis/coordination/validation"
	_ "k8s.io/kubernetes/pkg/apis/node/install" // registers types, defaults and conversions
	nodevalidation "k8s.io/kubernetes/pkg/apis/node/validation"
)

func validateRuntimeClass(v runtime.Object) (field.ErrorList, error) {
	return through(v, nodevalidation.ValidateRuntimeClass)
}

func validateLease(v runtime.Object) (field.ErrorList, error) {
	return through(v, coordinationvalidation.ValidateLease)
}
