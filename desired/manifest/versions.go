package manifest

import (
	"fmt"

	appsv1beta1 "k8s.io/api/apps/v1beta1"
	appsv1beta2 "k8s.io/api/apps/v1beta2"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1beta1 "k8s.io/api/batch/v1beta1"
	coordinationv1beta1 "k8s.io/api/coordination/v1beta1"
	discoveryv1beta1 "k8s.io/api/discovery/v1beta1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	nodev1alpha1 "k8s.io/api/node/v1alpha1"
	nodev1beta1 "k8s.io/api/node/v1beta1"
	policyv1beta1 "k8s.io/api/policy/v1beta1"
	rbacv1alpha1 "k8s.io/api/rbac/v1alpha1"
	rbacv1beta1 "k8s.io/api/rbac/v1beta1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	storagev1alpha1 "k8s.io/api/storage/v1alpha1"
	storagev1beta1 "k8s.io/api/storage/v1beta1"
	apiextensionsv1beta1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/extensions/install" // registers types, defaults and conversions

	"github.com/tallyman-dev/tallyman/desired"
)

// version is another version in which a kind may be written. Objects are
// converted to the version of the table of kinds, by Kubernetes' own code where
// it still has it, with the defaults that the version had.
type version struct {
	group, version, kind string
	make                 func() runtime.Object
	// to is the API version of the table of kinds.
	to string
	// convert gives an object of the version to; nil means Kubernetes' scheme.
	// What it is given has the defaults of its version, or none at all.
	convert func(runtime.Object) (runtime.Object, error)
	// served versions are as good as the one of the table: no note is made.
	served bool
}

func (v version) apiVersion() string { return v.group + "/" + v.version }

const (
	batchGroup       = "batch"
	autoscalingGroup = "autoscaling"
	schedulingGroup  = "scheduling.k8s.io"
	nodeGroup        = "node.k8s.io"
)

// versions are those that people's repositories still hold.
func versions() []version {
	return []version{
		{group: "extensions", version: "v1beta1", kind: "Deployment", to: "apps/v1", make: fresh[extensionsv1beta1.Deployment]},
		{group: "extensions", version: "v1beta1", kind: "DaemonSet", to: "apps/v1", make: fresh[extensionsv1beta1.DaemonSet]},
		{group: "extensions", version: "v1beta1", kind: "ReplicaSet", to: "apps/v1", make: fresh[extensionsv1beta1.ReplicaSet]},
		{group: "extensions", version: "v1beta1", kind: "Ingress", to: "networking.k8s.io/v1", make: fresh[extensionsv1beta1.Ingress]},
		{group: "extensions", version: "v1beta1", kind: "NetworkPolicy", to: "networking.k8s.io/v1", make: fresh[extensionsv1beta1.NetworkPolicy]},
		{group: "apps", version: "v1beta1", kind: "Deployment", to: "apps/v1", make: fresh[appsv1beta1.Deployment]},
		{group: "apps", version: "v1beta1", kind: "StatefulSet", to: "apps/v1", make: fresh[appsv1beta1.StatefulSet]},
		{group: "apps", version: "v1beta1", kind: "ControllerRevision", to: "apps/v1", make: fresh[appsv1beta1.ControllerRevision]},
		{group: "apps", version: "v1beta2", kind: "Deployment", to: "apps/v1", make: fresh[appsv1beta2.Deployment]},
		{group: "apps", version: "v1beta2", kind: "StatefulSet", to: "apps/v1", make: fresh[appsv1beta2.StatefulSet]},
		{group: "apps", version: "v1beta2", kind: "DaemonSet", to: "apps/v1", make: fresh[appsv1beta2.DaemonSet]},
		{group: "apps", version: "v1beta2", kind: "ReplicaSet", to: "apps/v1", make: fresh[appsv1beta2.ReplicaSet]},
		{group: "apps", version: "v1beta2", kind: "ControllerRevision", to: "apps/v1", make: fresh[appsv1beta2.ControllerRevision]},
		{group: batchGroup, version: "v1beta1", kind: "CronJob", to: "batch/v1", make: fresh[batchv1beta1.CronJob]},
		{group: batchGroup, version: "v2alpha1", kind: "CronJob", to: "batch/v1", make: fresh[batchv1beta1.CronJob]},
		{group: autoscalingGroup, version: "v1", kind: "HorizontalPodAutoscaler", to: "autoscaling/v2", served: true, make: fresh[autoscalingv1.HorizontalPodAutoscaler]},
		{group: autoscalingGroup, version: "v2beta1", kind: "HorizontalPodAutoscaler", to: "autoscaling/v2", make: fresh[autoscalerV2beta1], convert: convertAutoscaler},
		{group: autoscalingGroup, version: "v2beta2", kind: "HorizontalPodAutoscaler", to: "autoscaling/v2", make: fresh[autoscalingv2.HorizontalPodAutoscaler], convert: same},
		{group: networkingGroup, version: "v1beta1", kind: "Ingress", to: "networking.k8s.io/v1", make: fresh[networkingv1beta1.Ingress]},
		{group: networkingGroup, version: "v1beta1", kind: "IngressClass", to: "networking.k8s.io/v1", make: fresh[networkingv1beta1.IngressClass]},
		{group: "policy", version: "v1beta1", kind: "PodDisruptionBudget", to: "policy/v1", make: fresh[policyv1beta1.PodDisruptionBudget]},
		{group: rbacGroup, version: "v1beta1", kind: "Role", to: "rbac.authorization.k8s.io/v1", make: fresh[rbacv1beta1.Role]},
		{group: rbacGroup, version: "v1beta1", kind: "RoleBinding", to: "rbac.authorization.k8s.io/v1", make: fresh[rbacv1beta1.RoleBinding]},
		{group: rbacGroup, version: "v1beta1", kind: "ClusterRole", to: "rbac.authorization.k8s.io/v1", make: fresh[rbacv1beta1.ClusterRole]},
		{group: rbacGroup, version: "v1beta1", kind: "ClusterRoleBinding", to: "rbac.authorization.k8s.io/v1", make: fresh[rbacv1beta1.ClusterRoleBinding]},
		{group: rbacGroup, version: "v1alpha1", kind: "Role", to: "rbac.authorization.k8s.io/v1", make: fresh[rbacv1alpha1.Role]},
		{group: rbacGroup, version: "v1alpha1", kind: "RoleBinding", to: "rbac.authorization.k8s.io/v1", make: fresh[rbacv1alpha1.RoleBinding]},
		{group: rbacGroup, version: "v1alpha1", kind: "ClusterRole", to: "rbac.authorization.k8s.io/v1", make: fresh[rbacv1alpha1.ClusterRole]},
		{group: rbacGroup, version: "v1alpha1", kind: "ClusterRoleBinding", to: "rbac.authorization.k8s.io/v1", make: fresh[rbacv1alpha1.ClusterRoleBinding]},
		{group: storageGroup, version: "v1beta1", kind: "StorageClass", to: "storage.k8s.io/v1", make: fresh[storagev1beta1.StorageClass]},
		{group: storageGroup, version: "v1beta1", kind: "CSIDriver", to: "storage.k8s.io/v1", make: fresh[storagev1beta1.CSIDriver]},
		{group: storageGroup, version: "v1beta1", kind: "CSINode", to: "storage.k8s.io/v1", make: fresh[storagev1beta1.CSINode]},
		{group: storageGroup, version: "v1beta1", kind: "CSIStorageCapacity", to: "storage.k8s.io/v1", make: fresh[storagev1beta1.CSIStorageCapacity]},
		{group: storageGroup, version: "v1alpha1", kind: "CSIStorageCapacity", to: "storage.k8s.io/v1", make: fresh[storagev1alpha1.CSIStorageCapacity]},
		{group: storageGroup, version: "v1beta1", kind: "VolumeAttachment", to: "storage.k8s.io/v1", make: fresh[storagev1beta1.VolumeAttachment]},
		{group: storageGroup, version: "v1alpha1", kind: "VolumeAttachment", to: "storage.k8s.io/v1", make: fresh[storagev1alpha1.VolumeAttachment]},
		{group: storageGroup, version: "v1beta1", kind: "VolumeAttributesClass", to: "storage.k8s.io/v1", make: fresh[storagev1beta1.VolumeAttributesClass]},
		{group: storageGroup, version: "v1alpha1", kind: "VolumeAttributesClass", to: "storage.k8s.io/v1", make: fresh[storagev1alpha1.VolumeAttributesClass]},
		{group: schedulingGroup, version: "v1beta1", kind: "PriorityClass", to: "scheduling.k8s.io/v1", make: fresh[schedulingv1beta1.PriorityClass]},
		{group: schedulingGroup, version: "v1alpha1", kind: "PriorityClass", to: "scheduling.k8s.io/v1", make: fresh[schedulingv1.PriorityClass], convert: same},
		{group: definitionsGroup, version: "v1beta1", kind: definitionKind, to: "apiextensions.k8s.io/v1", make: fresh[apiextensionsv1beta1.CustomResourceDefinition], convert: convertDefinition},
		{group: "discovery.k8s.io", version: "v1beta1", kind: "EndpointSlice", to: "discovery.k8s.io/v1", make: fresh[discoveryv1beta1.EndpointSlice]},
		{group: nodeGroup, version: "v1beta1", kind: "RuntimeClass", to: "node.k8s.io/v1", make: fresh[nodev1beta1.RuntimeClass]},
		{group: nodeGroup, version: "v1alpha1", kind: "RuntimeClass", to: "node.k8s.io/v1", make: fresh[nodev1alpha1.RuntimeClass]},
		{group: "coordination.k8s.io", version: "v1beta1", kind: "Lease", to: "coordination.k8s.io/v1", make: fresh[coordinationv1beta1.Lease]},
	}
}

// same is for versions whose objects look as those of the table.
func same(o runtime.Object) (runtime.Object, error) { return o, nil }

// into converts an object to the version of its kind's rule.
func (v version) into(o runtime.Object, rule kindRule) (runtime.Object, error) {
	if v.convert != nil {
		return v.convert(o)
	}
	groupKind := schema.GroupKind{Group: v.group, Kind: v.kind}
	internal, err := legacyscheme.Scheme.New(groupKind.WithVersion(runtime.APIVersionInternal))
	if err != nil {
		return nil, fmt.Errorf("convert %s %s: %w", v.apiVersion(), v.kind, err)
	}
	out := rule.make()
	if err := legacyscheme.Scheme.Convert(o, internal, nil); err != nil {
		return nil, fmt.Errorf("convert from %s: %w", v.apiVersion(), err)
	}
	if err := legacyscheme.Scheme.Convert(internal, out, nil); err != nil {
		return nil, fmt.Errorf("convert to %s: %w", v.to, err)
	}
	return out, nil
}

// convert brings an object of another version into that of its kind's rule:
// once as it is written, for what is said of its fields, and once with the
// defaults of its version. Both are nil when it cannot be converted.
func convert(src *source, o runtime.Object, v version, rule kindRule) (written, object runtime.Object, problems []desired.Problem) {
	written, err := v.into(o.DeepCopyObject(), rule)
	if err == nil {
		legacyscheme.Scheme.Default(o)
		object, err = v.into(o, rule)
	}
	if err != nil {
		return nil, nil, []desired.Problem{src.problem(desired.Error, "invalid", "", err.Error(), "")}
	}
	if !v.served {
		problems = append(problems, src.problem(desired.Note, "converted", "apiVersion",
			fmt.Sprintf("%s of %s is read as %s, with the defaults that it had", v.kind, v.apiVersion(), v.to), "write apiVersion: "+v.to))
	}
	return written, object, append(problems, leftOver(src, object.(metav1.Object))...)
}

// leftOvers are the annotations in which Kubernetes keeps what its newer
// versions have no field for.
var leftOvers = [...]struct{ annotation, field string }{
	{"deprecated.deployment.rollback.to", "spec.rollbackTo"},
	{"deprecated.daemonset.template.generation", "spec.templateGeneration"},
}

func leftOver(src *source, object metav1.Object) (problems []desired.Problem) {
	annotations := object.GetAnnotations()
	for _, l := range leftOvers {
		if _, ok := annotations[l.annotation]; ok {
			delete(annotations, l.annotation)
			problems = append(problems, src.problem(desired.Note, "no-effect", l.field, "has no effect here: newer versions have no such field", ""))
		}
	}
	if len(annotations) == 0 {
		object.SetAnnotations(nil)
	}
	return problems
}
