package manifest

import (
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	flowv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

const (
	rbacGroup       = "rbac.authorization.k8s.io"
	networkingGroup = "networking.k8s.io"
	storageGroup    = "storage.k8s.io"
	snapshotGroup   = "snapshot.storage.k8s.io"
	admissionGroup  = "admissionregistration.k8s.io"
	flowGroup       = "flowcontrol.apiserver.k8s.io"

	noAPIWrites       = "nothing changes objects through an API here, so there is nothing to admit, limit or authorise"
	noSnapshotDrivers = "only snapshots that are taken here are known yet, not those that a storage driver has"
	noRights          = "pods can ask no API for anything here, so rights decide nothing"
	isRequest         = "it is a request to an API server, not an object"
	controllersWrite  = "controllers write it, people do not, and nothing here reads it"
)

// kindRules is the table of kinds. What is not in it is unsupported.
func kindRules() []kindRule {
	return slices.Concat(
		workloadKinds(), configurationKinds(), storageKinds(), networkKinds(), scalingKinds(), limitKinds(),
		accessKinds(), admissionKinds(), formerAdmissionKinds(), nodeKinds(), definitionKinds(), tallymanKinds(), unreadKinds(),
	)
}

// decidedKinds are those whose every field is decided in the table of fields.
func decidedKinds() []kindRule {
	return slices.DeleteFunc(kindRules(), func(k kindRule) bool { return k.status != Works })
}

func workloadKinds() []kindRule {
	return []kindRule{
		{kind: "Pod", version: "v1", status: Works, make: fresh[corev1.Pod], validate: validatePod},
		{kind: "ReplicaSet", group: "apps", version: "v1", status: Works, make: fresh[appsv1.ReplicaSet], validate: validateReplicaSet},
		{kind: "Deployment", group: "apps", version: "v1", status: Works, make: fresh[appsv1.Deployment], validate: validateDeployment},
		{kind: "StatefulSet", group: "apps", version: "v1", status: Works, make: fresh[appsv1.StatefulSet], validate: validateStatefulSet},
		{kind: "DaemonSet", group: "apps", version: "v1", status: Works, make: fresh[appsv1.DaemonSet], validate: validateDaemonSet},
		{kind: "ReplicationController", version: "v1", status: Works, make: fresh[corev1.ReplicationController], validate: validateReplicationController},
		{kind: "Job", group: "batch", version: "v1", status: Works, make: fresh[batchv1.Job], validate: validateJob},
		{kind: "CronJob", group: "batch", version: "v1", status: Works, make: fresh[batchv1.CronJob], validate: validateCronJob},
		{kind: "PodTemplate", version: "v1", status: NoEffect, reason: "no controller reads it, as in Kubernetes", make: fresh[corev1.PodTemplate], validate: validatePodTemplate},
		{kind: "ControllerRevision", group: "apps", version: "v1", status: NoEffect, reason: controllersWrite, make: fresh[appsv1.ControllerRevision], validate: validateControllerRevision},
	}
}

func configurationKinds() []kindRule {
	return []kindRule{
		{kind: "Namespace", version: "v1", status: Works, clusterScoped: true, make: fresh[corev1.Namespace], validate: validateNamespace},
		{kind: "ConfigMap", version: "v1", status: Works, make: fresh[corev1.ConfigMap], validate: validateConfigMap},
		{kind: "Secret", version: "v1", status: Works, make: fresh[corev1.Secret], validate: validateSecret},
	}
}

func storageKinds() []kindRule {
	return []kindRule{
		{kind: "PersistentVolumeClaim", version: "v1", status: Works, make: fresh[corev1.PersistentVolumeClaim], validate: validatePersistentVolumeClaim},
		{kind: "PersistentVolume", version: "v1", status: Works, clusterScoped: true, make: fresh[corev1.PersistentVolume], validate: validatePersistentVolume},
		{kind: "StorageClass", group: storageGroup, version: "v1", status: Works, clusterScoped: true, make: fresh[storagev1.StorageClass], validate: validateStorageClass},
		{kind: "CSIDriver", group: storageGroup, version: "v1", status: Works, clusterScoped: true, make: fresh[storagev1.CSIDriver], validate: validateCSIDriver},
		{kind: "VolumeSnapshot", group: snapshotGroup, version: "v1", status: Works, make: fresh[snapshotv1.VolumeSnapshot], validate: validateVolumeSnapshot},
		{kind: "VolumeSnapshotClass", group: snapshotGroup, version: "v1", status: Works, clusterScoped: true, make: fresh[snapshotv1.VolumeSnapshotClass], validate: validateVolumeSnapshotClass},
		{kind: "VolumeSnapshotContent", group: snapshotGroup, version: "v1", status: Unsupported, reason: noSnapshotDrivers, clusterScoped: true},
		{kind: "VolumeAttributesClass", group: storageGroup, version: "v1", status: NoEffect, reason: "volumes keep the attributes that they were made with", clusterScoped: true, make: fresh[storagev1.VolumeAttributesClass], validate: validateVolumeAttributesClass},
		{kind: "CSINode", group: storageGroup, version: "v1", status: NoEffect, reason: controllersWrite, clusterScoped: true, make: fresh[storagev1.CSINode], validate: validateCSINode},
		{kind: "CSIStorageCapacity", group: storageGroup, version: "v1", status: NoEffect, reason: controllersWrite, make: fresh[storagev1.CSIStorageCapacity], validate: validateCSIStorageCapacity},
		{kind: "VolumeAttachment", group: storageGroup, version: "v1", status: NoEffect, reason: controllersWrite, clusterScoped: true, make: fresh[storagev1.VolumeAttachment], validate: validateVolumeAttachment},
	}
}

func networkKinds() []kindRule {
	return []kindRule{
		{kind: "Service", version: "v1", status: Works, make: fresh[corev1.Service], validate: validateService},
		{kind: "Endpoints", version: "v1", status: Works, make: fresh[corev1.Endpoints], validate: validateEndpoints},
		{kind: "EndpointSlice", group: "discovery.k8s.io", version: "v1", status: Works, make: fresh[discoveryv1.EndpointSlice], validate: validateEndpointSlice},
		{kind: "Ingress", group: networkingGroup, version: "v1", status: NotEnforced, reason: "no ingress proxy runs yet: nothing listens for it", make: fresh[networkingv1.Ingress], validate: validateIngress},
		{kind: "IngressClass", group: networkingGroup, version: "v1", status: NotEnforced, reason: "no ingress proxy runs yet", clusterScoped: true, make: fresh[networkingv1.IngressClass], validate: validateIngressClass},
		{kind: "NetworkPolicy", group: networkingGroup, version: "v1", status: NotEnforced, reason: "all pods can reach one another: no traffic is blocked yet", make: fresh[networkingv1.NetworkPolicy], validate: validateNetworkPolicy},
	}
}

func scalingKinds() []kindRule {
	return []kindRule{
		{kind: "HorizontalPodAutoscaler", group: "autoscaling", version: "v2", status: Works, make: fresh[autoscalingv2.HorizontalPodAutoscaler], validate: validateHorizontalPodAutoscaler},
	}
}

func limitKinds() []kindRule {
	return []kindRule{
		{kind: "ResourceQuota", version: "v1", status: Works, make: fresh[corev1.ResourceQuota], validate: validateResourceQuota},
		{kind: "LimitRange", version: "v1", status: Works, make: fresh[corev1.LimitRange], validate: validateLimitRange},
		{kind: "PriorityClass", group: "scheduling.k8s.io", version: "v1", status: Works, clusterScoped: true, make: fresh[schedulingv1.PriorityClass], validate: validatePriorityClass},
		{kind: "PodDisruptionBudget", group: "policy", version: "v1", status: Works, make: fresh[policyv1.PodDisruptionBudget], validate: validatePodDisruptionBudget},
	}
}

func accessKinds() []kindRule {
	return []kindRule{
		{kind: "ServiceAccount", version: "v1", status: Works, make: fresh[corev1.ServiceAccount], validate: validateServiceAccount},
		{kind: "Role", group: rbacGroup, version: "v1", status: NoEffect, reason: noRights, make: fresh[rbacv1.Role], validate: validateRole},
		{kind: "RoleBinding", group: rbacGroup, version: "v1", status: NoEffect, reason: noRights, make: fresh[rbacv1.RoleBinding], validate: validateRoleBinding},
		{kind: "ClusterRole", group: rbacGroup, version: "v1", status: NoEffect, reason: noRights, clusterScoped: true, make: fresh[rbacv1.ClusterRole], validate: validateClusterRole},
		{kind: "ClusterRoleBinding", group: rbacGroup, version: "v1", status: NoEffect, reason: noRights, clusterScoped: true, make: fresh[rbacv1.ClusterRoleBinding], validate: validateClusterRoleBinding},
		{kind: "CertificateSigningRequest", group: "certificates.k8s.io", version: "v1", status: NoEffect, reason: "nothing signs certificates here", clusterScoped: true},
		{kind: "CertificateSigningRequest", group: "certificates.k8s.io", version: "v1beta1", status: NoEffect, reason: "nothing signs certificates here", clusterScoped: true},
	}
}

// formerAdmissionKinds are older versions of kinds without effect. Their content
// is not looked at: linking Kubernetes' code for them costs memory.
func formerAdmissionKinds() []kindRule {
	var out []kindRule
	add := func(group string, kinds []string, versions ...string) {
		for _, version := range versions {
			for _, kind := range kinds {
				out = append(out, kindRule{group: group, version: version, kind: kind, status: NoEffect, reason: noAPIWrites, clusterScoped: true})
			}
		}
	}
	add(admissionGroup, []string{"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"}, "v1beta1")
	add(admissionGroup, []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"}, "v1beta1", "v1alpha1")
	add(flowGroup, []string{"FlowSchema", "PriorityLevelConfiguration"}, "v1beta3", "v1beta2", "v1beta1")
	return out
}

func admissionKinds() []kindRule {
	const podSecurity = "Kubernetes has removed it; the pod-security labels of namespaces took its place"
	return []kindRule{
		{kind: "PodSecurityPolicy", group: "policy", version: "v1beta1", status: NoEffect, reason: podSecurity, clusterScoped: true},
		{kind: "PodSecurityPolicy", group: "extensions", version: "v1beta1", status: NoEffect, reason: podSecurity, clusterScoped: true},
		{kind: "ValidatingWebhookConfiguration", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.ValidatingWebhookConfiguration]},
		{kind: "MutatingWebhookConfiguration", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.MutatingWebhookConfiguration]},
		{kind: "ValidatingAdmissionPolicy", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.ValidatingAdmissionPolicy]},
		{kind: "ValidatingAdmissionPolicyBinding", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.ValidatingAdmissionPolicyBinding]},
		{kind: "MutatingAdmissionPolicy", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.MutatingAdmissionPolicy]},
		{kind: "MutatingAdmissionPolicyBinding", group: admissionGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[admissionv1.MutatingAdmissionPolicyBinding]},
		{kind: "FlowSchema", group: flowGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[flowv1.FlowSchema]},
		{kind: "PriorityLevelConfiguration", group: flowGroup, version: "v1", status: NoEffect, reason: noAPIWrites, clusterScoped: true, make: fresh[flowv1.PriorityLevelConfiguration]},
		{kind: "APIService", group: "apiregistration.k8s.io", version: "v1", status: NoEffect, reason: "no API is served that could be extended", clusterScoped: true},
	}
}

func nodeKinds() []kindRule {
	return []kindRule{
		{kind: "Node", version: "v1", status: Works, clusterScoped: true, make: fresh[corev1.Node], validate: validateNode},
		{kind: "RuntimeClass", group: "node.k8s.io", version: "v1", status: Works, clusterScoped: true, make: fresh[nodev1.RuntimeClass], validate: validateRuntimeClass},
		{kind: "Lease", group: "coordination.k8s.io", version: "v1", status: NoEffect, reason: controllersWrite, make: fresh[coordinationv1.Lease], validate: validateLease},
	}
}

func tallymanKinds() []kindRule {
	return []kindRule{
		{kind: "Cluster", group: desired.ClusterKey.Group, version: "v1alpha1", status: Works, clusterScoped: true, make: fresh[desired.Cluster], validate: validateCluster},
	}
}

// unreadKinds are refused by name alone.
func unreadKinds() []kindRule {
	no := func(group, version, reason string, kinds ...string) []kindRule {
		var out []kindRule
		for _, kind := range kinds {
			out = append(out, kindRule{group: group, version: version, kind: kind, status: Unsupported, reason: reason})
		}
		return out
	}
	return slices.Concat(
		no("", "v1", "controllers write it, people do not", "Event", "Binding", "ComponentStatus"),
		no("events.k8s.io", "v1", "controllers write it, people do not", "Event"),
		no(networkingGroup, "v1", "the addresses of services are set in the Cluster object", "ServiceCIDR", "IPAddress"),
		no("authentication.k8s.io", "v1", isRequest, "TokenReview", "TokenRequest", "SelfSubjectReview"),
		no("authorization.k8s.io", "v1", isRequest, "SubjectAccessReview", "LocalSubjectAccessReview", "SelfSubjectAccessReview", "SelfSubjectRulesReview"),
		no("policy", "v1", isRequest, "Eviction"),
		no("autoscaling", "v1", isRequest, "Scale"),
		no("resource.k8s.io", "v1", "devices are not allocated dynamically", "ResourceClaim", "ResourceClaimTemplate", "DeviceClass", "ResourceSlice"),
	)
}
