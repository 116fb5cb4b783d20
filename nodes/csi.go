package nodes

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// DriverKey names a CSIDriver object. A node gets it as a Config whose Data has
// one entry, DriverSpec.
func DriverKey(driver string) desired.Key {
	return desired.Key{Group: "storage.k8s.io", Kind: "CSIDriver", Name: driver}
}

// DriverSpec is the name under which a CSIDriver's Config has its spec, as JSON.
const DriverSpec = "spec"

// Secrets that a StorageClass may name for its driver, SnapshotterSecret a
// VolumeSnapshotClass: the middle of the parameters csi.storage.k8s.io/<this>-secret-name and -secret-namespace.
const (
	ProvisionerSecret       = "provisioner"
	ControllerPublishSecret = "controller-publish"
	NodeStageSecret         = "node-stage"
	NodePublishSecret       = "node-publish"
	ControllerExpandSecret  = "controller-expand"
	NodeExpandSecret        = "node-expand"
	SnapshotterSecret       = "snapshotter"
)

// DriverSecrets are all of them.
func DriverSecrets() []string {
	return []string{ProvisionerSecret, ControllerPublishSecret, NodeStageSecret, NodePublishSecret, ControllerExpandSecret, NodeExpandSecret, SnapshotterSecret}
}

// SecretParameters are the names of the parameters that name a Secret.
func SecretParameters(which string) (name, namespace string) {
	return "csi.storage.k8s.io/" + which + "-secret-name", "csi.storage.k8s.io/" + which + "-secret-namespace"
}

// SecretIn is the Secret that parameters name for one purpose; nil for none.
func SecretIn(parameters map[string]string, which string) *corev1.SecretReference {
	name, namespace := SecretParameters(which)
	if parameters[name] == "" || parameters[namespace] == "" {
		return nil
	}
	return &corev1.SecretReference{Name: parameters[name], Namespace: parameters[namespace]}
}

// Driver is the CSI driver behind the volume; empty for none.
func (v *Volume) Driver() string {
	switch {
	case v.Provisioner == LocalProvisioner:
		return ""
	case v.Spec.CSI != nil:
		return v.Spec.CSI.Driver
	}
	return v.Provisioner
}

// DriverConfigs are the objects that a node needs to use the volume through its
// driver: the CSIDriver and Secrets. None for a volume without a driver.
func (v *Volume) DriverConfigs() []desired.Key {
	var refs []*corev1.SecretReference
	driver := ""
	if s := v.Spec.CSI; s != nil {
		driver = s.Driver
		refs = append(refs, s.ControllerPublishSecretRef, s.NodeStageSecretRef, s.NodePublishSecretRef, s.ControllerExpandSecretRef, s.NodeExpandSecretRef)
	}
	if v.Provisioner != "" && v.Provisioner != LocalProvisioner {
		driver = v.Provisioner
		for _, which := range DriverSecrets() {
			refs = append(refs, SecretIn(v.Parameters, which))
		}
	}
	if driver == "" {
		return nil
	}
	keys := []desired.Key{DriverKey(driver)}
	for _, r := range refs {
		if r != nil && r.Name != "" {
			keys = append(keys, desired.Key{Kind: "Secret", Namespace: r.Namespace, Name: r.Name})
		}
	}
	return keys
}
