package nodes

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// BuiltinClassName is the StorageClass that is always there, unless Git has one
// of this name.
const BuiltinClassName = "local"

// BuiltinClass is the StorageClass for claims that name none, while Git marks
// none as default. Each call makes another.
func BuiltinClass() *storagev1.StorageClass {
	reclaim, mode, expand := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer, true
	return &storagev1.StorageClass{
		ObjectMeta:           metav1.ObjectMeta{Name: BuiltinClassName},
		Provisioner:          LocalProvisioner,
		ReclaimPolicy:        &reclaim,
		VolumeBindingMode:    &mode,
		AllowVolumeExpansion: &expand,
	}
}

// ServedLocally reports whether the built-in provisioner makes the volumes of a
// provisioner: its own, and those of others that make a directory on one node.
func ServedLocally(provisioner string) bool {
	switch provisioner {
	case LocalProvisioner, "rancher.io/local-path", "k8s.io/minikube-hostpath", "docker.io/hostpath", "microk8s.io/hostpath",
		"openebs.io/local", "kubernetes.io/host-path":
		return true
	}
	return false
}

// StandsForBuiltin reports whether a StorageClass name that Git does not define
// means the built-in class: small clusters bring a default class of this name,
// and manifests for them rely on it.
func StandsForBuiltin(class string) bool {
	switch class {
	case BuiltinClassName, "standard", "local-path", "hostpath", "microk8s-hostpath":
		return true
	}
	return false
}

// IsDefaultClass reports whether a StorageClass is marked as default.
func IsDefaultClass(c *storagev1.StorageClass) bool {
	return c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" ||
		c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true"
}
