package manifest

import (
	"fmt"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// validateVolumeSnapshot holds to the rules of the kind's published definition.
func validateVolumeSnapshot(v runtime.Object) (field.ErrorList, error) {
	s, ok := v.(*snapshotv1.VolumeSnapshot)
	if !ok {
		return nil, fmt.Errorf("%T is no VolumeSnapshot", v)
	}
	errs := validateMeta(&s.ObjectMeta, true)
	source := field.NewPath("spec", "source")
	claim, content := s.Spec.Source.PersistentVolumeClaimName, s.Spec.Source.VolumeSnapshotContentName
	if (claim == nil) == (content == nil) {
		errs = append(errs, field.Invalid(source, "", "exactly one of persistentVolumeClaimName and volumeSnapshotContentName must be set"))
	}
	if claim != nil {
		for _, why := range validation.NameIsDNSSubdomain(*claim, false) {
			errs = append(errs, field.Invalid(source.Child("persistentVolumeClaimName"), *claim, why))
		}
	}
	if class := s.Spec.VolumeSnapshotClassName; class != nil && *class == "" {
		errs = append(errs, field.Required(field.NewPath("spec", "volumeSnapshotClassName"), "must not be the empty string when set"))
	}
	return errs, nil
}

func validateVolumeSnapshotClass(v runtime.Object) (field.ErrorList, error) {
	c, ok := v.(*snapshotv1.VolumeSnapshotClass)
	if !ok {
		return nil, fmt.Errorf("%T is no VolumeSnapshotClass", v)
	}
	errs := validateMeta(&c.ObjectMeta, false)
	if c.Driver == "" {
		errs = append(errs, field.Required(field.NewPath("driver"), ""))
	}
	policies := []snapshotv1.DeletionPolicy{snapshotv1.VolumeSnapshotContentDelete, snapshotv1.VolumeSnapshotContentRetain}
	switch c.DeletionPolicy {
	case "":
		errs = append(errs, field.Required(field.NewPath("deletionPolicy"), ""))
	case policies[0], policies[1]:
	default:
		errs = append(errs, field.NotSupported(field.NewPath("deletionPolicy"), c.DeletionPolicy, policies))
	}
	return errs, nil
}

// dataSource looks for what a claim is to begin with.
func (u *storageUse) dataSource(e *entry, c claimSpec) {
	var group *string
	var kind, name, at string
	switch {
	case c.spec.DataSourceRef != nil:
		group, kind, name, at = c.spec.DataSourceRef.APIGroup, c.spec.DataSourceRef.Kind, c.spec.DataSourceRef.Name, ".dataSourceRef"
	case c.spec.DataSource != nil:
		group, kind, name, at = c.spec.DataSource.APIGroup, c.spec.DataSource.Kind, c.spec.DataSource.Name, ".dataSource"
	default:
		return
	}
	source := desired.Key{Kind: kind, Namespace: e.key.Namespace, Name: name}
	if group != nil {
		source.Group = *group
	}
	switch {
	case source.Group == snapshotGroup && kind == "VolumeSnapshot", source.Group == "" && kind == "PersistentVolumeClaim":
	default:
		u.found.report(e, desired.Error, "unsupported", c.path+at,
			"nothing here fills a claim from "+source.String(), "name a VolumeSnapshot or a PersistentVolumeClaim")
		return
	}
	made := source.Group == "" && u.makesClaim(source.Namespace, name)
	if u.known[source] == nil && !made {
		u.found.report(e, desired.Warning, "missing-"+strings.ToLower(kind), c.path+at+".name", fmt.Sprintf("there is no %s: the claim waits for it", source), "add it")
	}
}

// snapshotSource looks for the claim that a snapshot is to be taken of.
func (u *storageUse) snapshotSource(e *entry, s *snapshotv1.VolumeSnapshot) {
	name := s.Spec.Source.PersistentVolumeClaimName
	if name == nil {
		return
	}
	claim := desired.Key{Kind: "PersistentVolumeClaim", Namespace: e.key.Namespace, Name: *name}
	if u.known[claim] == nil && !u.makesClaim(claim.Namespace, *name) {
		u.found.report(e, desired.Warning, "missing-persistentvolumeclaim", "spec.source.persistentVolumeClaimName",
			fmt.Sprintf("there is no %s: the snapshot waits for it", claim), "add it")
	}
	if class := s.Spec.VolumeSnapshotClassName; class != nil && u.known[desired.Key{Group: snapshotGroup, Kind: "VolumeSnapshotClass", Name: *class}] == nil {
		u.found.report(e, desired.Warning, "missing-volumesnapshotclass", "spec.volumeSnapshotClassName",
			fmt.Sprintf("there is no VolumeSnapshotClass %q: the snapshot waits for it", *class), "add it, or leave the field out for volumes of "+nodes.LocalProvisioner)
	}
}
