package manifest

import (
	"fmt"
	"slices"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// storageUse is what a revision says about classes and volumes.
type storageUse struct {
	*world
	classes map[string]*storagev1.StorageClass
	// volumes are the classes that PersistentVolumes name; drivers the CSIDrivers.
	volumes, drivers map[string]bool
	defaults         []*entry
}

func (w *world) storageUse() *storageUse {
	u := &storageUse{world: w, classes: map[string]*storagev1.StorageClass{}, volumes: map[string]bool{}, drivers: map[string]bool{}}
	for _, e := range w.objects {
		switch v := e.object.Value.(type) {
		case *storagev1.StorageClass:
			u.classes[v.Name] = v
			if nodes.IsDefaultClass(v) {
				u.defaults = append(u.defaults, e)
			}
		case *corev1.PersistentVolume:
			u.volumes[v.Spec.StorageClassName] = true
		case *storagev1.CSIDriver:
			u.drivers[v.Name] = true
		}
	}
	slices.SortFunc(u.defaults, func(a, b *entry) int { return strings.Compare(a.key.Name, b.key.Name) })
	return u
}

// checkStorage says which claims will wait, and for what.
func (w *world) checkStorage() {
	u := w.storageUse()
	for _, e := range w.objects {
		switch v := e.object.Value.(type) {
		case *storagev1.StorageClass:
			u.class(e, v)
			continue
		case *snapshotv1.VolumeSnapshot:
			u.snapshotSource(e, v)
		}
		for _, c := range claimsOf(e.object) {
			u.claim(e, c)
			u.dataSource(e, c)
		}
	}
	u.checkDrivers()
	if len(u.defaults) < 2 {
		return
	}
	for _, e := range u.defaults[1:] {
		w.found.report(e, desired.Warning, "several-defaults", "metadata.annotations",
			fmt.Sprintf("StorageClass %s is marked as default too, and is the one that claims without a class get", u.defaults[0].key.Name), "mark one")
	}
}

// class judges who makes the volumes of a class.
func (u *storageUse) class(e *entry, c *storagev1.StorageClass) {
	switch p := c.Provisioner; {
	case p == nodes.LocalProvisioner, p == "kubernetes.io/no-provisioner":
	case nodes.ServedLocally(p):
		u.found.report(e, desired.Note, "local-provisioner", "provisioner",
			fmt.Sprintf("%s is served by %s: each volume is on one node", p, nodes.LocalProvisioner), "")
	case u.drivers[p]:
	default:
		u.found.report(e, desired.Warning, "not-enforced", "provisioner",
			fmt.Sprintf("nothing here makes volumes for %s: claims of this class wait, unless a node runs a driver of that name", p),
			"use "+nodes.LocalProvisioner+", or add PersistentVolumes of this class")
	}
}

// claim judges the class that a claim names.
func (u *storageUse) claim(e *entry, c claimSpec) {
	name, written := c.annotations[corev1.BetaStorageClassAnnotation]
	if !written && c.spec.StorageClassName != nil {
		name, written = *c.spec.StorageClassName, true
	}
	if !written || name == "" || u.classes[name] != nil || u.volumes[name] || name == nodes.BuiltinClassName {
		return
	}
	field := c.path + ".storageClassName"
	if nodes.StandsForBuiltin(name) {
		u.found.report(e, desired.Note, "local-provisioner", field,
			fmt.Sprintf("there is no StorageClass %q in the repository; as the default class of a small cluster it is served by %s", name, nodes.LocalProvisioner), "")
		return
	}
	u.found.report(e, desired.Warning, "missing-storageclass", field,
		fmt.Sprintf("there is no StorageClass %q and no PersistentVolume of that class: the claim waits", name),
		"add one (provisioner "+nodes.LocalProvisioner+"), or leave storageClassName out")
}

// replacesVolume reports whether a claim template of a StatefulSet takes the
// place of a volume of its pods, as in Kubernetes.
func replacesVolume(o *desired.Object, volume string) bool {
	set, ok := o.Value.(*appsv1.StatefulSet)
	return ok && slices.ContainsFunc(set.Spec.VolumeClaimTemplates, func(c corev1.PersistentVolumeClaim) bool { return c.Name == volume })
}

// immutableStorage compares a claim, a volume or a class with what is in force:
// the data is there, and made as it was asked for.
func (u *storageUse) immutableStorage(e *entry, old *desired.Object) {
	switch is := e.object.Value.(type) {
	case *corev1.PersistentVolumeClaim:
		if was, ok := old.Value.(*corev1.PersistentVolumeClaim); ok {
			u.fixed(e, claimFields(was, is), "the data of a claim is made as it was first asked for")
			u.size(e, was, is)
		}
	case *corev1.PersistentVolume:
		if was, ok := old.Value.(*corev1.PersistentVolume); ok {
			u.fixed(e, volumeFixtures(was, is), "a volume stays where it is")
		}
	case *snapshotv1.VolumeSnapshot:
		if was, ok := old.Value.(*snapshotv1.VolumeSnapshot); ok {
			u.fixed(e, []fixture{{"spec.source", was.Spec.Source, is.Spec.Source}}, "a snapshot is of what it was taken of")
		}
	case *snapshotv1.VolumeSnapshotClass:
		if was, ok := old.Value.(*snapshotv1.VolumeSnapshotClass); ok {
			u.fixed(e, []fixture{{"driver", was.Driver, is.Driver}, {"parameters", was.Parameters, is.Parameters}, {"deletionPolicy", was.DeletionPolicy, is.DeletionPolicy}},
				"snapshots of the class are taken by what it said")
		}
	case *storagev1.StorageClass:
		if was, ok := old.Value.(*storagev1.StorageClass); ok {
			u.fixed(e, classFields(was, is), "volumes of the class are made by what it said")
		}
	}
}

// fixture is a field that can't change.
type fixture struct {
	field   string
	was, is any
}

func (u *storageUse) fixed(e *entry, fields []fixture, why string) {
	for _, f := range fields {
		if !equality.Semantic.DeepEqual(f.was, f.is) {
			u.found.report(e, desired.Error, "immutable", f.field, "the field cannot change: "+why,
				"put the former value back, or give the object another name")
		}
	}
}

func claimFields(was, is *corev1.PersistentVolumeClaim) []fixture {
	fields := []fixture{
		{"spec.accessModes", was.Spec.AccessModes, is.Spec.AccessModes},
		{"spec.selector", was.Spec.Selector, is.Spec.Selector},
		{"spec.volumeMode", was.Spec.VolumeMode, is.Spec.VolumeMode},
		{"spec.dataSource", was.Spec.DataSource, is.Spec.DataSource},
		{"spec.dataSourceRef", was.Spec.DataSourceRef, is.Spec.DataSourceRef},
		{"spec.storageClassName", was.Spec.StorageClassName, is.Spec.StorageClassName},
		{"metadata.annotations[" + corev1.BetaStorageClassAnnotation + "]", was.Annotations[corev1.BetaStorageClassAnnotation], is.Annotations[corev1.BetaStorageClassAnnotation]},
	}
	if was.Spec.VolumeName != "" { // may be set once, as in Kubernetes
		fields = append(fields, fixture{"spec.volumeName", was.Spec.VolumeName, is.Spec.VolumeName})
	}
	return fields
}

func volumeFixtures(was, is *corev1.PersistentVolume) []fixture {
	fields := []fixture{
		{"spec", was.Spec.PersistentVolumeSource, is.Spec.PersistentVolumeSource},
		{"spec.volumeMode", was.Spec.VolumeMode, is.Spec.VolumeMode},
	}
	if was.Spec.NodeAffinity != nil {
		fields = append(fields, fixture{"spec.nodeAffinity", was.Spec.NodeAffinity, is.Spec.NodeAffinity})
	}
	return fields
}

func classFields(was, is *storagev1.StorageClass) []fixture {
	return []fixture{
		{"provisioner", was.Provisioner, is.Provisioner},
		{"parameters", was.Parameters, is.Parameters},
		{"reclaimPolicy", was.ReclaimPolicy, is.ReclaimPolicy},
		{"volumeBindingMode", was.VolumeBindingMode, is.VolumeBindingMode},
	}
}

// size lets claims grow where their class allows it, and never shrink.
func (u *storageUse) size(e *entry, was, is *corev1.PersistentVolumeClaim) {
	const field = "spec.resources.requests.storage"
	from, to := was.Spec.Resources.Requests[corev1.ResourceStorage], is.Spec.Resources.Requests[corev1.ResourceStorage]
	switch to.Cmp(from) {
	case -1:
		u.found.report(e, desired.Error, "immutable", field, fmt.Sprintf("a claim cannot shrink: it has %s", from.String()), "put the former size back, or give the claim another name")
	case 1:
		if name := u.classOf(is); !u.expands(name) {
			u.found.report(e, desired.Error, "immutable", field, fmt.Sprintf("volumes of class %q cannot grow", name), "set allowVolumeExpansion in its StorageClass, or give the claim another name")
		}
	}
}

// expands reports whether claims of a class may grow. A claim that names none
// has the built-in one where Git marks no default.
func (u *storageUse) expands(class string) bool {
	if c := u.classes[class]; c != nil {
		return c.AllowVolumeExpansion != nil && *c.AllowVolumeExpansion
	}
	return class == "" && u.classes[nodes.BuiltinClassName] == nil || nodes.StandsForBuiltin(class)
}
