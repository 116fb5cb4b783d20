package manifest

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/apis/core"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/storage"
	_ "k8s.io/kubernetes/pkg/apis/storage/install" // registers types, defaults and conversions
	storagevalidation "k8s.io/kubernetes/pkg/apis/storage/validation"
)

func validatePersistentVolumeClaim(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(c *core.PersistentVolumeClaim) field.ErrorList {
		return corevalidation.ValidatePersistentVolumeClaim(c, corevalidation.ValidationOptionsForPersistentVolumeClaim(c, nil))
	})
}

func validatePersistentVolume(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(p *core.PersistentVolume) field.ErrorList {
		return corevalidation.ValidatePersistentVolume(p, corevalidation.ValidationOptionsForPersistentVolume(p, nil))
	})
}

func validateStorageClass(v runtime.Object) (field.ErrorList, error) {
	return through(v, storagevalidation.ValidateStorageClass)
}

func validateCSIDriver(v runtime.Object) (field.ErrorList, error) {
	return through(v, storagevalidation.ValidateCSIDriver)
}

func validateVolumeAttributesClass(v runtime.Object) (field.ErrorList, error) {
	return through(v, storagevalidation.ValidateVolumeAttributesClass)
}

func validateCSINode(v runtime.Object) (field.ErrorList, error) {
	return through(v, storagevalidation.ValidateCSINode)
}

func validateCSIStorageCapacity(v runtime.Object) (field.ErrorList, error) {
	return through(v, func(c *storage.CSIStorageCapacity) field.ErrorList {
		return storagevalidation.ValidateCSIStorageCapacity(c, storagevalidation.CSIStorageCapacityValidateOptions{})
	})
}

func validateVolumeAttachment(v runtime.Object) (field.ErrorList, error) {
	return through(v, storagevalidation.ValidateVolumeAttachment)
}
