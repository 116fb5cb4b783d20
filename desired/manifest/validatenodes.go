package manifest

import (
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install" // registers types, defaults and conversions
	coordinationvalidation "k8s.io/kubernetes/pkg/apis/coordination/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	_ "k8s.io/kubernetes/pkg/apis/node/install" // registers types, defaults and conversions
	nodevalidation "k8s.io/kubernetes/pkg/apis/node/validation"
)

// validateNode names taints by where they stand; Kubernetes says metadata.taints.
func validateNode(v runtime.Object) (field.ErrorList, error) {
	errs, err := through(v, func(n *core.Node) field.ErrorList { return corevalidation.ValidateNode(n) })
	for _, e := range errs {
		if rest, found := strings.CutPrefix(e.Field, "metadata.taints"); found {
			e.Field = "spec.taints" + rest
		}
	}
	return errs, err
}

func validateRuntimeClass(v runtime.Object) (field.ErrorList, error) {
	return through(v, nodevalidation.ValidateRuntimeClass)
}

func validateLease(v runtime.Object) (field.ErrorList, error) {
	return through(v, coordinationvalidation.ValidateLease)
}
