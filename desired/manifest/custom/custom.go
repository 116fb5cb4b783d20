// Package custom holds custom resources to their definitions, as an API server
// does: names and scope, the structural schema of each version with its
// defaults, unknown fields, sets and maps.
//
// Guarantees: Check gives the same outcome for the same definition and object;
// it never panics, whatever either says; an object without errors has its
// defaults and no field that the schema does not know. Rules in
// x-kubernetes-validations are counted, not checked: their compiler would cost
// an idle machine 4 MiB.
package custom

import (
	"fmt"
	"slices"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kube-openapi/pkg/validation/validate"
)

// Definition is a CustomResourceDefinition made ready to check objects.
// Not safe for concurrent use.
type Definition struct {
	*apiextensionsv1.CustomResourceDefinition
	versions map[string]*Version
}

// Version is one version of a definition.
type Version struct {
	*apiextensionsv1.CustomResourceDefinitionVersion
	// Rules counts the rules in x-kubernetes-validations, which are not checked.
	Rules     int
	schema    *schema.Structural
	validator *validate.SchemaValidator
}

// NewDefinition makes a valid definition ready.
func NewDefinition(crd *apiextensionsv1.CustomResourceDefinition) *Definition {
	return &Definition{CustomResourceDefinition: crd, versions: map[string]*Version{}}
}

// Namespaced reports whether objects lie in namespaces.
func (d *Definition) Namespaced() bool { return d.Spec.Scope == apiextensionsv1.NamespaceScoped }

// Served are the names of the versions that objects may be written in.
func (d *Definition) Served() []string {
	var names []string
	for i := range d.Spec.Versions {
		if d.Spec.Versions[i].Served {
			names = append(names, d.Spec.Versions[i].Name)
		}
	}
	return names
}

// Version gives a served version, nil if there is none of this name.
func (d *Definition) Version(name string) (*Version, error) {
	if v, ok := d.versions[name]; ok {
		return v, nil
	}
	i := slices.IndexFunc(d.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool { return v.Name == name && v.Served })
	if i < 0 {
		return nil, nil
	}
	v := &Version{CustomResourceDefinitionVersion: &d.Spec.Versions[i]}
	if s := v.Schema; s != nil && s.OpenAPIV3Schema != nil {
		structural, err := structuralOf(s.OpenAPIV3Schema)
		if err != nil {
			return nil, fmt.Errorf("read the schema of %s: %w", d.Name, err)
		}
		v.schema, v.Rules = structural, rules(structural)
		v.validator = validatorOf(structural)
	}
	d.versions[name] = v
	return v, nil
}

// Check gives an object its defaults and says what is wrong with it: the paths
// of fields that the schema does not know, which are removed, and everything
// else. A status that controllers alone write is dropped, and not judged. The
// object is changed.
func (v *Version) Check(object *unstructured.Unstructured, namespaced bool) (unknown []string, errs field.ErrorList) {
	defer func() {
		if p := recover(); p != nil {
			errs = append(errs, field.InternalError(nil, fmt.Errorf("the object cannot be held to its schema")))
		}
	}()
	unknown = pruning.PruneWithOptions(object.Object, v.schema, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	if err := objectmeta.Coerce(nil, object.Object, v.schema, false, false); err != nil {
		return unknown, field.ErrorList{err}
	}
	dropNulls(object.Object, v.schema)
	fill(object.Object, v.schema)
	if v.hasStatus() {
		delete(object.Object, "status")
	}
	errs = validation.ValidateObjectMetaAccessor(object, namespaced, validation.NameIsDNSSubdomain, field.NewPath("metadata"))
	errs = append(errs, objectmeta.Validate(nil, object.Object, v.schema, false)...)
	if v.validator != nil {
		errs = append(errs, fieldErrors(v.validator.Validate(object.Object))...)
	}
	return unknown, append(errs, listtype.ValidateListSetsAndMaps(nil, v.schema, object.Object)...)
}

// hasStatus reports whether a status is written by controllers alone.
func (v *Version) hasStatus() bool { return v.Subresources != nil && v.Subresources.Status != nil }

// rules counts the validation rules of a schema.
func rules(s *schema.Structural) int {
	if s == nil {
		return 0
	}
	n := len(s.XValidations) + rules(s.Items)
	for name := range s.Properties {
		property := s.Properties[name]
		n += rules(&property)
	}
	if s.AdditionalProperties != nil {
		n += rules(s.AdditionalProperties.Structural)
	}
	return n
}
