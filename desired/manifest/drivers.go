package manifest

import (
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// checkDrivers looks for what the volumes of storage drivers need: Secrets, and
// a CSIDriver object that allows inline volumes.
func (u *storageUse) checkDrivers() {
	for _, e := range u.objects {
		switch v := e.object.Value.(type) {
		case *storagev1.StorageClass:
			u.classSecrets(e, v.Parameters, nodes.DriverSecrets()...)
			continue
		case *snapshotv1.VolumeSnapshotClass:
			u.classSecrets(e, v.Parameters, nodes.SnapshotterSecret)
			continue
		case *corev1.PersistentVolume:
			if v.Spec.CSI != nil {
				u.volumeSecrets(e, v.Spec.CSI)
			}
			continue
		}
		if t, ok := templateOf(e.object); ok {
			u.inlineVolumes(e, t)
		}
	}
}

// classSecrets looks for the Secrets that a class names for its driver. Names
// with words to be filled in are known only with a claim or a snapshot.
func (u *storageUse) classSecrets(e *entry, parameters map[string]string, secrets ...string) {
	for _, which := range secrets {
		if r := nodes.SecretIn(parameters, which); r != nil && !strings.Contains(r.Name+r.Namespace, "${") {
			name, _ := nodes.SecretParameters(which)
			u.driverSecret(e, "parameters["+name+"]", r)
		}
	}
}

func (u *storageUse) volumeSecrets(e *entry, s *corev1.CSIPersistentVolumeSource) {
	u.driverSecret(e, "spec.csi.controllerPublishSecretRef", s.ControllerPublishSecretRef)
	u.driverSecret(e, "spec.csi.nodeStageSecretRef", s.NodeStageSecretRef)
	u.driverSecret(e, "spec.csi.nodePublishSecretRef", s.NodePublishSecretRef)
	u.driverSecret(e, "spec.csi.controllerExpandSecretRef", s.ControllerExpandSecretRef)
	u.driverSecret(e, "spec.csi.nodeExpandSecretRef", s.NodeExpandSecretRef)
}

func (u *storageUse) driverSecret(e *entry, field string, r *corev1.SecretReference) {
	if r == nil || r.Name == "" {
		return
	}
	if _, known := u.known[desired.Key{Kind: "Secret", Namespace: r.Namespace, Name: r.Name}]; !known {
		u.found.report(e, desired.Warning, "missing-secret", field,
			fmt.Sprintf("there is no Secret %q in namespace %s: the driver's volumes wait for it", r.Name, r.Namespace), "add it")
	}
}

// inlineVolumes warns of pods that would wait for ever, as in Kubernetes.
func (u *storageUse) inlineVolumes(e *entry, t podTemplate) {
	for i := range t.spec.Volumes {
		s := t.spec.Volumes[i].CSI
		if s == nil {
			continue
		}
		field, name := fmt.Sprintf("%s.volumes[%d].csi.driver", t.path, i), s.Driver
		switch modes, known := u.inlineModes(name); {
		case !known:
			u.found.report(e, desired.Warning, "missing-csidriver", field,
				fmt.Sprintf("there is no CSIDriver %q: inline volumes need one that lists Ephemeral among volumeLifecycleModes, and the pod waits", name), "add it")
		case !slices.Contains(modes, storagev1.VolumeLifecycleEphemeral):
			u.found.report(e, desired.Warning, "missing-csidriver", field,
				fmt.Sprintf("CSIDriver %q does not list Ephemeral among volumeLifecycleModes: the pod waits", name), "list it there, or use a claim")
		}
	}
}

func (u *storageUse) inlineModes(driver string) ([]storagev1.VolumeLifecycleMode, bool) {
	e, known := u.known[nodes.DriverKey(driver)]
	if !known || e.object == nil {
		return []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}, known // its own problem is reported
	}
	d, ok := e.object.Value.(*storagev1.CSIDriver)
	if !ok {
		return nil, true
	}
	return d.Spec.VolumeLifecycleModes, true
}
