package manifest

import (
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

const (
	removedVolumes = "Kubernetes has removed or deprecated it in favour of storage drivers"
	noNetworkDisks = "nodes attach no disks over the network themselves; a storage driver can"
)

func storageFields() []typeRule {
	return []typeRule{
		on[corev1.PersistentVolumeClaim]("metadata spec", statusField()),
		on[corev1.PersistentVolumeClaimSpec](
			"accessModes selector resources volumeName storageClassName volumeMode dataSource dataSourceRef",
			noEffect("volumeAttributesClassName", "volumes keep the attributes that they were made with"),
		),
		on[corev1.TypedLocalObjectReference]("apiGroup kind name"),
		on[corev1.TypedObjectReference]("apiGroup kind name", unsupported("namespace", "a claim begins with data of its own namespace")),
		on[snapshotv1.VolumeSnapshot]("metadata spec", statusField()),
		on[snapshotv1.VolumeSnapshotSpec]("source volumeSnapshotClassName"),
		on[snapshotv1.VolumeSnapshotSource]("persistentVolumeClaimName", unsupported("volumeSnapshotContentName", noSnapshotDrivers)),
		on[snapshotv1.VolumeSnapshotClass]("metadata driver deletionPolicy parameters"),
		on[corev1.VolumeResourceRequirements]("limits requests"),
		on[corev1.PersistentVolume]("metadata spec", statusField()),
		on[corev1.PersistentVolumeSpec](
			"capacity hostPath local nfs csi accessModes claimRef storageClassName mountOptions nodeAffinity volumeMode",
			noEffect("persistentVolumeReclaimPolicy", "the data of a volume that the repository describes is never deleted").unless(`"Retain"`),
			noEffect("volumeAttributesClassName", "volumes keep the attributes that they were made with"),
			unsupported("iscsi fc", noNetworkDisks),
			unsupported("gcePersistentDisk awsElasticBlockStore glusterfs rbd cinder cephfs flocker flexVolume azureFile vsphereVolume quobyte azureDisk "+
				"photonPersistentDisk portworxVolume scaleIO storageos", removedVolumes),
		),
		on[corev1.LocalVolumeSource]("path fsType"),
		on[corev1.NFSVolumeSource]("server path readOnly"),
		on[corev1.CSIPersistentVolumeSource]("driver volumeHandle readOnly fsType volumeAttributes controllerPublishSecretRef nodeStageSecretRef nodePublishSecretRef " +
			"controllerExpandSecretRef nodeExpandSecretRef"),
		on[corev1.SecretReference]("name namespace"),
		on[corev1.VolumeNodeAffinity]("required"),
		on[storagev1.StorageClass]("metadata provisioner parameters reclaimPolicy mountOptions allowVolumeExpansion volumeBindingMode allowedTopologies"),
		on[corev1.TopologySelectorTerm]("matchLabelExpressions"),
		on[corev1.TopologySelectorLabelRequirement]("key values"),
		on[storagev1.CSIDriver]("metadata spec"),
		on[storagev1.CSIDriverSpec](
			"attachRequired podInfoOnMount volumeLifecycleModes fsGroupPolicy tokenRequests requiresRepublish serviceAccountTokenInSecrets",
			noEffect("storageCapacity", "a driver that is out of space says so when it is asked for a volume").unless(`false`),
			noEffect("seLinuxMount", "volumes keep the labels they have").unless(`false`),
			noEffect("nodeAllocatableUpdatePeriodSeconds preventPodSchedulingIfMissing", "no limit is counted on the volumes of a node").unless(`false`),
		),
		on[storagev1.TokenRequest]("audience expirationSeconds"),
	}
}
