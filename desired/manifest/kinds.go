package manifest

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	flowv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
)

// Status says what becomes of a kind or a field.
type Status string

const (
	// Works means that it does what Kubernetes documents.
	Works Status = "works"
	// NoEffect means that it is accepted and there is nothing here for it to do.
	NoEffect Status = "no effect"
	// NotEnforced means that it is accepted, but what it asks for does not happen (yet).
	NotEnforced Status = "not enforced"
	// Unsupported means that the revision is rejected, unless the Cluster object
	// says otherwise.
	Unsupported Status = "unsupported"
)

// kindRule decides one kind.
type kindRule struct {
	group, version, kind string
	status               Status
	// reason says why, for every status but Works.
	reason string
	// clusterScoped kinds have no namespace.
	clusterScoped bool
	// make gives an empty object of the API type; nil for kinds whose content
	// nobody looks at.
	make func() runtime.Object
	// validate checks a defaulted object; nil when decoding is all there is.
	validate validator
}

func (k kindRule) apiVersion() string {
	if k.group == "" {
		return k.version
	}
	return k.group + "/" + k.version
}

const (
	rbacGroup         = "rbac.authorization.k8s.io"
	networkingGroup   = "networking.k8s.io"
	storageGroup      = "storage.k8s.io"
	admissionGroup    = "admissionregistration.k8s.io"
	flowGroup         = "flowcontrol.apiserver.k8s.io"
	notYet            = "not yet; it comes with a later release"
	noAPIWrites       = "nothing changes objects through an API here, so there is nothing to admit, limit or authorise"
	noServiceAccounts = "containers get no credentials for an API, so accounts and their rights decide nothing"
)

// kindRules is the table of kinds. What is not in it is unsupported.
func kindRules() []kindRule {
	return slices.Concat(workingKinds(), inertKinds(), unsupportedKinds())
}

func workingKinds() []kindRule {
	return []kindRule{
		{kind: "Namespace", version: "v1", status: Works, clusterScoped: true, make: fresh[corev1.Namespace], validate: validateNamespace},
		{kind: "Pod", version: "v1", status: Works, make: fresh[corev1.Pod], validate: validatePod},
		{kind: "ReplicaSet", group: "apps", version: "v1", status: Works, make: fresh[appsv1.ReplicaSet], validate: validateReplicaSet},
		{kind: "Deployment", group: "apps", version: "v1", status: Works, make: fresh[appsv1.Deployment], validate: validateDeployment},
		{kind: "ConfigMap", version: "v1", status: Works, make: fresh[corev1.ConfigMap], validate: validateConfigMap},
		{kind: "Secret", version: "v1", status: Works, make: fresh[corev1.Secret], validate: validateSecret},
		{kind: "Service", version: "v1", status: Works, make: fresh[corev1.Service], validate: validateService},
		{kind: "Endpoints", version: "v1", status: Works, make: fresh[corev1.Endpoints], validate: validateEndpoints},
		{kind: "EndpointSlice", group: "discovery.k8s.io", version: "v1", status: Works, make: fresh[discoveryv1.EndpointSlice], validate: validateEndpointSlice},
		{kind: "Cluster", group: desired.ClusterKey.Group, version: "v1alpha1", status: Works, clusterScoped: true, make: fresh[desired.Cluster], validate: validateCluster},
	}
}

func inertKinds() []kindRule {
	return []kindRule{
		{kind: "Role", group: rbacGroup, version: "v1", status: NoEffect, reason: noServiceAccounts, make: fresh[rbacv1.Role], validate: validateRole},
		{kind: "RoleBinding", group: rbacGroup, version: "v1", status: NoEffect, reason: noServiceAccounts, make: fresh[rbacv1.RoleBinding], validate: validateRoleBinding},
		{kind: "ClusterRole", group: rbacGroup, version: "v1", status: NoEffect, reason: noServiceAccounts, clusterScoped: true, make: fresh[rbacv1.ClusterRole], validate: validateClusterRole},
		{kind: "ClusterRoleBinding", group: rbacGroup, version: "v1", status: NoEffect, reason: noServiceAccounts, clusterScoped: true, make: fresh[rbacv1.ClusterRoleBinding], validate: validateClusterRoleBinding},
		{kind: "ServiceAccount", version: "v1", status: NoEffect, reason: noServiceAccounts + "; write imagePullSecrets into the pods", make: fresh[corev1.ServiceAccount], validate: validateServiceAccount},
		{kind: "PodTemplate", version: "v1", status: NoEffect, reason: "no controller reads it, as in Kubernetes", make: fresh[corev1.PodTemplate], validate: validatePodTemplate},
		{kind: "PriorityClass", group: "scheduling.k8s.io", version: "v1", status: NoEffect, reason: "pods do not preempt one another", clusterScoped: true, make: fresh[schedulingv1.PriorityClass], validate: validatePriorityClass},
		{kind: "PodDisruptionBudget", group: "policy", version: "v1", status: NoEffect, reason: "nothing evicts pods here", make: fresh[policyv1.PodDisruptionBudget], validate: validatePodDisruptionBudget},
		{kind: "ValidatingWebhookConfiguration", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.ValidatingWebhookConfiguration]},
		{kind: "MutatingWebhookConfiguration", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.MutatingWebhookConfiguration]},
		{kind: "ValidatingAdmissionPolicy", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.ValidatingAdmissionPolicy]},
		{kind: "ValidatingAdmissionPolicyBinding", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.ValidatingAdmissionPolicyBinding]},
		{kind: "FlowSchema", group: flowGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[flowv1.FlowSchema]},
		{kind: "PriorityLevelConfiguration", group: flowGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[flowv1.PriorityLevelConfiguration]},
		{kind: "APIService", group: "apiregistration.k8s.io", version: "v1", status: NoEffect, reason: "no API is served that could be extended", clusterScoped: true},
		{kind: "Ingress", group: networkingGroup, version: "v1", status: NotEnforced, reason: "no ingress proxy runs yet: nothing listens for it", make: fresh[networkingv1.Ingress], validate: validateIngress},
		{kind: "IngressClass", group: networkingGroup, version: "v1", status: NotEnforced, reason: "no ingress proxy runs yet", clusterScoped: true, make: fresh[networkingv1.IngressClass], validate: validateIngressClass},
		{kind: "NetworkPolicy", group: networkingGroup, version: "v1", status: NotEnforced, reason: "all pods can reach one another: no traffic is blocked yet", make: fresh[networkingv1.NetworkPolicy], validate: validateNetworkPolicy},
	}
}

func unsupportedKinds() []kindRule {
	no := func(group, version, reason string, kinds ...string) []kindRule {
		var out []kindRule
		for _, kind := range kinds {
			out = append(out, kindRule{group: group, version: version, kind: kind, status: Unsupported, reason: reason})
		}
		return out
	}
	return slices.Concat(
		no("apps", "v1", notYet, "StatefulSet", "DaemonSet"),
		no("batch", "v1", notYet, "Job", "CronJob"),
		no("autoscaling", "v2", notYet, "HorizontalPodAutoscaler"),
		no("", "v1", notYet, "PersistentVolumeClaim", "PersistentVolume", "ReplicationController", "ResourceQuota", "LimitRange"),
		no(storageGroup, "v1", notYet, "StorageClass"),
		no(storageGroup, "v1", "storage drivers do not run here", "CSIDriver", "CSINode", "CSIStorageCapacity", "VolumeAttachment", "VolumeAttributesClass"),
		no("apiextensions.k8s.io", "v1", "there is no API to extend and no controller to act on custom resources", "CustomResourceDefinition"),
		no("apps", "v1", "controllers write it, people do not", "ControllerRevision"),
		no("", "v1", "nodes join with tally agent; they are not written", "Node"),
		no("", "v1", "controllers write it, people do not", "Event", "Binding", "ComponentStatus"),
		no("coordination.k8s.io", "v1", "controllers write it, people do not", "Lease"),
		no("events.k8s.io", "v1", "controllers write it, people do not", "Event"),
		no("certificates.k8s.io", "v1", "nothing signs certificates here", "CertificateSigningRequest"),
		no("node.k8s.io", "v1", "one container runtime serves all pods", "RuntimeClass"),
		no(networkingGroup, "v1", "the addresses of services are set in the Cluster object", "ServiceCIDR", "IPAddress"),
		no("resource.k8s.io", "v1", "devices are not allocated dynamically", "ResourceClaim", "ResourceClaimTemplate", "DeviceClass", "ResourceSlice"),
	)
}

// fresh makes an empty API object.
func fresh[T any, P interface {
	*T
	runtime.Object
}]() runtime.Object {
	return P(new(T))
}

// lookUp finds the rule of a kind. When there is none, or none in this version,
// it says so, with a hint.
func (r *rules) lookUp(apiVersion, kind string) (rule kindRule, code, message, hint string) {
	if k, ok := r.kinds[apiVersion+" "+kind]; ok {
		return k, "", "", ""
	}
	same := r.byName[kind]
	group, _, _ := strings.Cut(apiVersion, "/")
	if !strings.Contains(apiVersion, "/") {
		group = ""
	}
	if len(same) > 0 && isBuiltin(group) {
		return kindRule{}, "removed-version", fmt.Sprintf("there is no %s in %s (any more)", kind, apiVersion),
			"write apiVersion: " + same[0].apiVersion()
	}
	if group == desired.ClusterKey.Group {
		return kindRule{}, "unknown-kind", fmt.Sprintf("there is no %s in %s", kind, apiVersion), "the only kind of tallyman.dev/v1alpha1 is Cluster"
	}
	if isBuiltin(group) {
		return kindRule{}, "unknown-kind", fmt.Sprintf("there is no %s in %s", kind, apiVersion), suggest(kind, r.byName)
	}
	return kindRule{}, "unsupported", fmt.Sprintf("%s of %s is a custom resource, and no controller here acts on it", kind, apiVersion), ""
}

// isBuiltin reports whether a group is one of Kubernetes' own.
func isBuiltin(group string) bool {
	if group == "gateway.networking.k8s.io" || strings.HasSuffix(group, ".x-k8s.io") {
		return false
	}
	switch group {
	case "", "apps", "batch", "autoscaling", "policy", "extensions":
		return true
	}
	return strings.HasSuffix(group, ".k8s.io") && strings.Count(group, ".") <= 3
}

var _ runtime.Object = (*metav1.PartialObjectMetadata)(nil)
