package manifest

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podopts "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install" // registers types, defaults and conversions
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install" // registers types, defaults and conversions
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/discovery"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install" // registers types, defaults and conversions
	discoveryvalidation "k8s.io/kubernetes/pkg/apis/discovery/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install" // registers types, defaults and conversions
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install" // registers types, defaults and conversions
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
	"k8s.io/kubernetes/pkg/apis/rbac"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install" // registers types, defaults and conversions
	rbacvalidation "k8s.io/kubernetes/pkg/apis/rbac/validation"
	"k8s.io/kubernetes/pkg/apis/scheduling"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install" // registers types, defaults and conversions
	schedulingvalidation "k8s.io/kubernetes/pkg/apis/scheduling/validation"
)

// validator checks a defaulted object of an API type.
type validator func(versioned runtime.Object) (field.ErrorList, error)

// internal converts an API object to the form that Kubernetes validates.
func internal[T any](versioned runtime.Object, out *T) error {
	if err := legacyscheme.Scheme.Convert(versioned, out, nil); err != nil {
		return fmt.Errorf("convert %T: %w", versioned, err)
	}
	return nil
}

// through makes a validator from a function over the internal type.
func through[T any](versioned runtime.Object, check func(*T) field.ErrorList) (field.ErrorList, error) {
	var o T
	if err := internal(versioned, &o); err != nil {
		return nil, err
	}
	return check(&o), nil
}

func validateNamespace(v runtime.Object) (field.ErrorList, error) {
	return through(v, corevalidation.ValidateNamespace)
}

func validatePod(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(p *core.Pod) field.ErrorList {
		o := podopts.GetValidationOptionsFromPodSpecAndMeta(&p.Spec, nil, &p.ObjectMeta, nil)
		o.ResourceIsPod = true
		if p.Spec.ServiceAccountName == "" {
			p.Spec.ServiceAccountName = "default" // as admission in Kubernetes sets it
		}
		return corevalidation.ValidatePodCreate(p, o)
	})
}

func validatePodTemplate(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(t *core.PodTemplate) field.ErrorList {
		return corevalidation.ValidatePodTemplate(t, podopts.GetValidationOptionsFromPodTemplate(&t.Template, nil))
	})
}

func validateReplicaSet(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(s *apps.ReplicaSet) field.ErrorList {
		return appsvalidation.ValidateReplicaSet(s, podopts.GetValidationOptionsFromPodTemplate(&s.Spec.Template, nil))
	})
}

func validateDeployment(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(d *apps.Deployment) field.ErrorList {
		return appsvalidation.ValidateDeployment(d, podopts.GetValidationOptionsFromPodTemplate(&d.Spec.Template, nil))
	})
}

func validateConfigMap(v runtime.Object) (field.ErrorList, error) {
	return through(v, corevalidation.ValidateConfigMap)
}

func validateSecret(v runtime.Object) (field.ErrorList, error) {
	return through(v, corevalidation.ValidateSecret)
}

func validateService(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(s *core.Service) field.ErrorList {
		local := s.Spec.ExternalTrafficPolicy == core.ServiceExternalTrafficPolicyLocal
		if s.Spec.Type == core.ServiceTypeLoadBalancer && local && s.Spec.HealthCheckNodePort == 0 {
			s.Spec.HealthCheckNodePort = 1 // one is given, as Kubernetes does before it validates
		}
		return corevalidation.ValidateServiceCreate(s)
	})
}

func validateEndpoints(v runtime.Object) (field.ErrorList, error) {
	return through(v, corevalidation.ValidateEndpointsCreate)
}

func validateEndpointSlice(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(s *discovery.EndpointSlice) field.ErrorList {
		return discoveryvalidation.ValidateEndpointSliceCreate(s)
	})
}

func validateServiceAccount(v runtime.Object) (field.ErrorList, error) {
	return through(v, corevalidation.ValidateServiceAccount)
}

func validateRole(v runtime.Object) (field.ErrorList, error) {
	return through(v, rbacvalidation.ValidateRole)
}

func validateRoleBinding(v runtime.Object) (field.ErrorList, error) {
	return through(v, rbacvalidation.ValidateRoleBinding)
}

func validateClusterRole(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(c *rbac.ClusterRole) field.ErrorList {
		return rbacvalidation.ValidateClusterRole(c, rbacvalidation.ClusterRoleValidationOptions{})
	})
}

func validateClusterRoleBinding(v runtime.Object) (field.ErrorList, error) {
	return through(v, rbacvalidation.ValidateClusterRoleBinding)
}

func validatePriorityClass(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(c *scheduling.PriorityClass) field.ErrorList {
		return schedulingvalidation.ValidatePriorityClass(c)
	})
}

func validatePodDisruptionBudget(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(b *policy.PodDisruptionBudget) field.ErrorList {
		return policyvalidation.ValidatePodDisruptionBudget(b, policyvalidation.PodDisruptionBudgetValidationOptions{})
	})
}

func validateIngress(v runtime.Object) (field.ErrorList, error) {
	return through(v, networkingvalidation.ValidateIngressCreate)
}

func validateIngressClass(v runtime.Object) (field.ErrorList, error) {
	return through(v, networkingvalidation.ValidateIngressClass)
}

func validateNetworkPolicy(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(p *networking.NetworkPolicy) field.ErrorList {
		return networkingvalidation.ValidateNetworkPolicy(p, networkingvalidation.NetworkPolicyValidationOptions{})
	})
}

// validateMeta checks the metadata of an object whose content nobody looks at.
func validateMeta(meta *metav1.ObjectMeta, namespaced bool) field.ErrorList {
	name := func(name string, prefix bool) []string {
		if prefix {
			return content.IsPathSegmentPrefix(name)
		}
		return content.IsPathSegmentName(name)
	}
	return corevalidation.ValidateObjectMeta(meta, namespaced, name, field.NewPath("metadata"))
}
